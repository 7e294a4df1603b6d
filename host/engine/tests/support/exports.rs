//! What the tests of exports share.

pub use std::fs;
pub use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
pub use std::os::unix::process::ExitStatusExt;
pub use std::path::{Path, PathBuf};

pub use engine::assemble::{AssembleError, Assembled, HistoryEntry, assemble};
pub use engine::export::{ExportError, Exported, LocalRights, OutputSpec, Request, check, export};
pub use engine::pull::ImageSource;
pub use exec::Cancel;
pub use oci::ImageConfig;
pub use store::{Digest, Layer, Store};

pub use super::tree::{Item, assert_same, list};
pub use super::{
    TestStore, add_file, amd64, chain, file_header, find, noise, run, tar_with, try_run,
};

/// Takes a tar in as a layer.
pub fn layer(store: &Store, tar: &[u8]) -> Layer {
    let mut writer = store.layer_writer("test").unwrap();
    std::io::Write::write_all(&mut writer, tar).unwrap();
    writer.finish().unwrap()
}

pub fn image(store: &Store, tars: &[Vec<u8>]) -> Assembled {
    let mut history = vec![HistoryEntry {
        created_by: "ENV A=b".to_owned(),
        layer: None,
    }];
    history.extend(tars.iter().map(|tar| HistoryEntry {
        created_by: "COPY x y # buildkit".to_owned(),
        layer: Some(layer(store, tar)),
    }));
    let config = ImageConfig {
        env: vec!["A=b".to_owned()],
        cmd: vec!["/bin/sh".to_owned()],
        working_dir: "/".to_owned(),
        ..ImageConfig::default()
    };
    assemble(store, None, &config, Some("me"), &amd64(), &history, None).unwrap()
}

pub fn write(
    store: &Store,
    image: &Assembled,
    names: &[&str],
    spec: &str,
) -> Result<Exported, ExportError> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let spec: OutputSpec = spec.parse().unwrap();
    let request = Request {
        store,
        image,
        names: &names,
        spec: &spec,
        epoch: None,
    };
    export(&request, &mut std::io::sink(), &|_| {}, &Cancel::new())
}

pub fn shown(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub fn special(
    builder: &mut tar::Builder<Vec<u8>>,
    path: &str,
    kind: tar::EntryType,
    mode: u32,
    link: &str,
) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(1_100_000_000);
    header.set_size(0);
    header.set_uid(12);
    header.set_gid(34);
    if matches!(kind, tar::EntryType::Char | tar::EntryType::Block) {
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
    }
    if link.is_empty() {
        builder
            .append_data(&mut header, path, std::io::empty())
            .unwrap();
    } else {
        builder.append_link(&mut header, path, link).unwrap();
    }
}

/// Two layers with everything that a file system can hold, and what upper layers do to lower ones.
pub fn rich() -> Vec<Vec<u8>> {
    vec![rich_lower(), rich_upper()]
}

fn rich_lower() -> Vec<u8> {
    use tar::EntryType::{Block, Char, Directory, Fifo, Link, Symlink};
    let mut lower = tar::Builder::new(Vec::new());
    special(&mut lower, "etc/", Directory, 0o755, "");
    add_file(&mut lower, "etc/passwd", b"root:x:0:0::/:/bin/sh\n");
    add_file(&mut lower, "etc/removed", b"x");
    special(&mut lower, "hidden/", Directory, 0o700, "");
    add_file(&mut lower, "hidden/old", b"x");
    special(&mut lower, "closed/", Directory, 0o555, "");
    add_file(&mut lower, "closed/in", b"inside");
    add_file(&mut lower, "linked", &noise(100_000, 1));
    special(&mut lower, "linked-too", Link, 0o644, "linked");
    special(&mut lower, "etc/linked-three", Link, 0o644, "linked");
    special(&mut lower, "abs", Symlink, 0o777, "/etc/passwd");
    special(
        &mut lower,
        "out",
        Symlink,
        0o777,
        "../../../../../../../../tmp",
    );
    special(&mut lower, "pipe", Fifo, 0o620, "");
    special(&mut lower, "null", Char, 0o666, "");
    special(&mut lower, "disk", Block, 0o660, "");
    special(&mut lower, "sticky/", Directory, 0o1777, "");
    special(&mut lower, "changes", Symlink, 0o777, "etc");
    let mut header = file_header(3);
    header.set_mode(0o4755);
    header.set_uid(3_000_000);
    header.set_gid(4_000_000);
    builder_pax(
        &mut lower,
        &[
            ("mtime", b"1200000000.123456789"),
            ("SCHILY.xattr.user.note", b"a\0b"),
        ],
    );
    lower
        .append_data(&mut header, "setuid", b"suz".as_slice())
        .unwrap();
    special(
        &mut lower,
        &format!("{}/", "d".repeat(150)),
        Directory,
        0o750,
        "",
    );
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(200));
    add_file(&mut lower, &long, b"long");
    let mut header = file_header(0);
    let name: &std::ffi::OsStr =
        std::os::unix::ffi::OsStrExt::from_bytes(b"caf\xe9 \xff, 100%20\n");
    lower
        .append_data(&mut header, name, std::io::empty())
        .unwrap();
    lower.into_inner().unwrap()
}

fn rich_upper() -> Vec<u8> {
    let mut upper = tar::Builder::new(Vec::new());
    add_file(&mut upper, "etc/.wh.removed", b"");
    add_file(&mut upper, "hidden/.wh..wh..opq", b"");
    add_file(&mut upper, "hidden/new", b"y");
    special(&mut upper, "changes/", tar::EntryType::Directory, 0o711, "");
    add_file(&mut upper, "changes/file", b"now a directory");
    add_file(&mut upper, "linked", b"no longer the same file");
    upper.into_inner().unwrap()
}

pub fn builder_pax(builder: &mut tar::Builder<Vec<u8>>, pairs: &[(&str, &[u8])]) {
    builder
        .append_pax_extensions(pairs.iter().copied())
        .unwrap();
}

/// Unpacks an image layout with an independent tool.
pub fn unpack(layout: &Path, tag: &str, into: &Path) -> PathBuf {
    run(
        "umoci",
        &[
            "unpack",
            "--image",
            &format!("{}:{tag}", shown(layout)),
            shown(into),
        ],
    );
    into.join("rootfs")
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
