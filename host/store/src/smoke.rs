//! Whole ways through the store.

use std::io::Write;
use std::path::Path;

use crate::*;

fn open(root: &Path) -> Store {
    Store::open(
        root,
        &OpenOptions {
            command: "test".to_owned(),
            read_only: false,
        },
    )
    .unwrap()
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, *data).unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn a_layer_goes_in_and_comes_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let bytes = tar(&[("b/c", b"hello"), ("a", b"")]);
    let mut writer = store.layer_writer("test").unwrap();
    writer.write_all(&bytes).unwrap();
    let layer = writer.finish().unwrap();
    assert_eq!(layer.diff_id, DiffId(Digest::of(&bytes)));
    let index = store.index(layer.diff_id).unwrap();
    assert_eq!(index.entries().len(), 2);
    let key = StepKey(Digest::of(b"key"));
    let Lookup::Claimed(claim) = store.lookup(key).unwrap() else {
        panic!()
    };
    let other = open(dir.path());
    let Lookup::Busy(owner) = other.lookup(key).unwrap() else {
        panic!()
    };
    assert_eq!(owner.instance, store.instance());
    claim.commit(&layer, &[], false).unwrap();
    let Lookup::Hit(hit) = other.lookup(key).unwrap() else {
        panic!()
    };
    assert_eq!(hit, layer);
    let manifest = store.put_blob(b"{}", "manifest").unwrap();
    let config = store.put_blob(b"{} ", "config").unwrap();
    store
        .set_image("x", manifest, config, &[layer.diff_id])
        .unwrap();
    assert_eq!(other.image("x").unwrap().unwrap().layers, [layer.diff_id]);
    store.close().unwrap();
    drop(other);
    let again = open(dir.path());
    assert_eq!(*again.index(layer.diff_id).unwrap(), *index);
    again.close().unwrap();
}
