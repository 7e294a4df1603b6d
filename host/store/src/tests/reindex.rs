//! Indexes that are made again from the tar.

use super::{Root, Trust, key, names, step};

#[test]
fn a_lost_index_is_made_again_and_a_damaged_tar_is_not_believed() {
    let root = Root::new();
    let store = root.open();
    let made = step(&store, "a", &[]);
    let index = store.index(made.diff_id).unwrap();
    store.close().unwrap();
    let name = names(&root.path().join("index")).remove(0);
    std::fs::remove_file(root.path().join("index").join(&name)).unwrap();
    let store = root.open();
    assert_eq!(*store.index(made.diff_id).unwrap(), *index);
    assert!(root.path().join("index").join(&name).exists());
    store.close().unwrap();
    std::fs::remove_file(root.path().join("index").join(&name)).unwrap();
    let file = root.path().join("blobs").join(&name);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[512] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let store = root.open();
    assert!(store.index(made.diff_id).is_err());
    assert_eq!(store.peek(key("a"), Trust::Host).unwrap(), None);
    store.close().unwrap();
    root.assert_clean();
}

/// Rules of layers may become stricter, and what an older version stored is then of no use without
/// its index. The tar is not damaged, and nothing says so.
#[test]
fn a_layer_that_this_version_does_not_accept_is_evicted_for_that_reason() {
    let root = Root::new();
    let store = root.open();
    step(&store, "a", &[]);
    store.close().unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    for (kind, name, target) in [
        (tar::EntryType::Directory, "d/", None),
        (tar::EntryType::Link, "l", Some("d")),
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_path(name).unwrap();
        if let Some(target) = target {
            header.set_link_name(target).unwrap();
        }
        header.set_cksum();
        tar.append(&header, std::io::empty()).unwrap();
    }
    let bytes = tar.into_inner().unwrap();
    let name = names(&root.path().join("index")).remove(0);
    std::fs::remove_file(root.path().join("index").join(&name)).unwrap();
    std::fs::write(root.path().join("blobs").join(&name), &bytes).unwrap();
    let digest = crate::sha256(&bytes);
    let changed = root
        .database()
        .execute("UPDATE object SET digest = ?1", [&digest.0[..]]);
    assert_eq!(changed.unwrap(), 1);
    let store = root.open();
    let error = store.index(digest.into()).unwrap_err().to_string();
    assert!(error.contains("does not accept its tar"), "{error}");
    assert_eq!(store.peek(key("a"), Trust::Host).unwrap(), None);
    store.close().unwrap();
    root.assert_clean();
}
