//! Layers that are taken in, step by step. Which tars are refused is tested in `layer`.

use layer::{Attributes, EntryKind, Mtime, Style, Writer};

use super::*;

/// A tar with one entry.
fn one(path: &str, attributes: &Attributes, kind: &EntryKind, data: &[u8]) -> Vec<u8> {
    let mut tar = Writer::new(Vec::new(), Style::Copy);
    tar.header(path.as_bytes(), attributes, kind).unwrap();
    tar.write_all(data).unwrap();
    tar.pad(data.len() as u64).unwrap();
    tar.finish().unwrap()
}

fn file_of(size: u64) -> EntryKind {
    EntryKind::File {
        size,
        digest: Digest::UNKNOWN,
        offset: 0,
    }
}

#[test]
fn what_was_refused_stays_refused_and_leaves_nothing() {
    let root = Root::new();
    let store = root.open();
    let mut writer = store.layer_writer("test").unwrap();
    let error = writer.write_all(&[1; 512]).unwrap_err();
    let inner = error
        .into_inner()
        .unwrap()
        .downcast::<IngestError>()
        .unwrap();
    assert!(matches!(*inner, IngestError::Layer(_)));
    assert!(writer.write_all(&[0; 1024]).is_err());
    assert!(writer.finish().is_err());
    let mut writer = store.layer_writer("test").unwrap();
    writer.write_all(&vec![0; 5 << 20]).unwrap();
    writer.abandon();
    drop(store.layer_writer("dropped").unwrap());
    assert_eq!(names(&root.path().join("blobs")).len(), 1);
    store.close().unwrap();
    assert_eq!(names(&root.path().join("blobs")).len(), 0);
    root.assert_clean();
}

#[test]
fn a_layer_that_is_written_is_not_there_before_it_is_finished() {
    let root = Root::new();
    let store = root.open();
    let written = || {
        let mut writer = store.layer_writer("test").unwrap();
        let tar = tar(&[("a", b"x")]);
        writer.write_all(&tar).unwrap();
        let written = writer.written().unwrap();
        assert_eq!(written.diff_id().digest(), crate::sha256(&tar));
        written
    };
    let unwanted = written();
    let diff_id = unwanted.diff_id();
    assert_eq!(store.layer(diff_id).unwrap(), None);
    unwanted.abandon();
    assert_eq!(store.layer(diff_id).unwrap(), None);
    assert_eq!(names(&root.path().join("blobs")).len(), 0);
    let layer = written().finish().unwrap();
    assert_eq!(store.layer(diff_id).unwrap(), Some(layer));
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn the_content_id_leaves_out_times_and_nothing_else() {
    let root = Root::new();
    let store = root.open();
    let id = |path: &str, attributes: &Attributes, kind: &EntryKind, data: &[u8]| {
        ingest(&store, &one(path, attributes, kind, data))
            .unwrap()
            .content_id
    };
    let usual = Attributes::implicit();
    let file = |attributes: &Attributes| id("a", attributes, &file_of(1), b"x");
    let base = file(&usual);
    let at = |secs, nanos| Attributes {
        mtime: Mtime { secs, nanos },
        ..usual.clone()
    };
    assert_eq!(file(&at(0o777, 0)), base);
    // The extended header moves the data.
    assert_eq!(file(&at(0, 1)), base);
    let mode = 0o600;
    assert_ne!(
        file(&Attributes {
            mode,
            ..usual.clone()
        }),
        base
    );
    let uid = 1;
    assert_ne!(
        file(&Attributes {
            uid,
            ..usual.clone()
        }),
        base
    );
    let xattrs = vec![(b"user.a".to_vec(), b"1".to_vec())];
    assert_ne!(
        file(&Attributes {
            xattrs,
            ..usual.clone()
        }),
        base
    );
    assert_ne!(id("b", &usual, &file_of(1), b"x"), base);
    assert_ne!(id("a", &usual, &file_of(1), b"y"), base);
    let bare = |kind: &EntryKind| id("a", &usual, kind, b"");
    assert_ne!(bare(&EntryKind::Directory), bare(&EntryKind::Fifo));
    let device = |minor| bare(&EntryKind::CharDevice { major: 0, minor });
    assert_ne!(device(1), device(2));
    store.close().unwrap();
}
