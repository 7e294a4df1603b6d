//! Results outside of the store, as other tools see them.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on fails or says that it did not run"
)]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use engine::Cancel;
use engine::export::{ExportError, Exported, OutputSpec, Request, check, export};
use engine::image::{Assembled, HistoryEntry, ImageConfig, ImageError, ImageSource, assemble};
use store::{Digest, Layer, Store};
use support::tree::{Item, assert_same, list};
use support::{
    TestStore, add_file, amd64, chain, file_header, find, has, noise, run, tar_with, try_run,
};

/// Takes a tar in as a layer.
fn layer(store: &Store, tar: &[u8]) -> Layer {
    let mut writer = store.layer_writer("test").unwrap();
    std::io::Write::write_all(&mut writer, tar).unwrap();
    writer.finish().unwrap()
}

fn image(store: &Store, tars: &[Vec<u8>]) -> Assembled {
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

fn write(
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

fn shown(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn special(
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
fn rich() -> Vec<Vec<u8>> {
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

    let mut upper = tar::Builder::new(Vec::new());
    add_file(&mut upper, "etc/.wh.removed", b"");
    add_file(&mut upper, "hidden/.wh..wh..opq", b"");
    add_file(&mut upper, "hidden/new", b"y");
    special(&mut upper, "changes/", Directory, 0o711, "");
    add_file(&mut upper, "changes/file", b"now a directory");
    add_file(&mut upper, "linked", b"no longer the same file");
    vec![lower.into_inner().unwrap(), upper.into_inner().unwrap()]
}

fn builder_pax(builder: &mut tar::Builder<Vec<u8>>, pairs: &[(&str, &[u8])]) {
    builder
        .append_pax_extensions(pairs.iter().copied())
        .unwrap();
}

/// Unpacks an image layout with an independent tool.
fn unpack(layout: &Path, tag: &str, into: &Path) -> PathBuf {
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

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn archives_directories_and_trees_hold_the_same_files() {
    if !is_root() || !has("umoci") || !has("skopeo") {
        eprintln!("SKIPPED: needs root, umoci and skopeo");
        return;
    }
    let store = TestStore::new();
    let image = image(&store, &rich());
    let oci = store.path("image.oci.tar");
    write(
        &store,
        &image,
        &["app:v1"],
        &format!("type=oci,dest={}", shown(&oci)),
    )
    .unwrap();
    let docker = store.path("image.docker.tar");
    write(
        &store,
        &image,
        &["app:v1"],
        &format!("type=docker,dest={}", shown(&docker)),
    )
    .unwrap();
    let dir = store.path("layout");
    let spec = format!(
        "type=oci,tar=false,compression=uncompressed,dest={}",
        shown(&dir)
    );
    write(&store, &image, &["app:v1"], &spec).unwrap();
    let tar = store.path("files.tar");
    write(
        &store,
        &image,
        &[],
        &format!("type=tar,dest={}", shown(&tar)),
    )
    .unwrap();
    let local = store.path("local");
    let done = write(
        &store,
        &image,
        &[],
        &format!("type=local,dest={}", shown(&local)),
    )
    .unwrap();
    assert_eq!(done.warnings, Vec::<String>::new());

    let converted = |from: &str, name: &str| {
        let layout = store.path(name);
        run(
            "skopeo",
            &[
                "copy",
                "-q",
                "--insecure-policy",
                from,
                &format!("oci:{}:x", shown(&layout)),
            ],
        );
        list(&unpack(
            &layout,
            "x",
            &store.path(&format!("{name}.bundle")),
        ))
    };
    let expected = converted(&format!("oci-archive:{}:v1", shown(&oci)), "from-oci");
    assert_same(
        &converted(
            &format!("docker-archive:{}:docker.io/library/app:v1", shown(&docker)),
            "from-docker",
        ),
        &expected,
        |_| {},
    );
    assert_same(
        &converted(&format!("oci:{}:v1", shown(&dir)), "from-dir"),
        &expected,
        |_| {},
    );
    let untarred = store.path("untarred");
    fs::create_dir(&untarred).unwrap();
    let flags = [
        "--xattrs",
        "--xattrs-include=*",
        "--numeric-owner",
        "-xpf",
        shown(&tar),
        "-C",
    ];
    run("tar", &[&flags[..], &[shown(&untarred)]].concat());
    assert_same(&list(&untarred), &expected, |_| {});
    assert_same(&list(&local), &expected, |_| {});

    assert_eq!(expected.get("etc/removed"), None);
    assert_eq!(expected.get("hidden/old"), None);
    let setuid = &expected["setuid"];
    assert_eq!(
        (setuid.mode, setuid.owner),
        (0o4755, (3_000_000, 4_000_000))
    );
    assert_eq!(setuid.mtime, (1_200_000_000, 123_456_789));
    assert_eq!(setuid.xattrs["user.note"], b"a\0b");
    assert_eq!(
        expected["linked-too"].same_as.as_deref(),
        Some("etc/linked-three")
    );
    assert_ne!(expected["linked"].content, expected["linked-too"].content);
    assert_eq!(expected["changes"].kind, "directory");
    assert!(expected.contains_key(r"caf\xe9 \xff, 100%20\n"));
}

#[test]
fn other_tools_read_the_configuration() {
    if !has("skopeo") {
        return;
    }
    let store = TestStore::new();
    let image = image(&store, &[tar_with("a", b"x")]);
    for kind in ["oci", "docker"] {
        let path = store.path(kind);
        write(
            &store,
            &image,
            &["app:v1", "other"],
            &format!("type={kind},dest={}", shown(&path)),
        )
        .unwrap();
        let from = match kind {
            "oci" => format!("oci-archive:{}:v1", shown(&path)),
            _ => format!(
                "docker-archive:{}:docker.io/library/other:latest",
                shown(&path)
            ),
        };
        let config: serde_json::Value =
            serde_json::from_str(&run("skopeo", &["inspect", "--config", &from])).unwrap();
        assert_eq!(config["config"]["Env"], serde_json::json!(["A=b"]));
        assert_eq!(config["architecture"], "amd64");
        assert_eq!(config["author"], "me");
        assert_eq!(config["history"][0]["empty_layer"], true);
        assert_eq!(config["history"][1]["created_by"], "COPY x y # buildkit");
        let layers = config["rootfs"]["diff_ids"].as_array().unwrap();
        assert_eq!(layers.len(), 1);
        assert_eq!(layers[0], image.layers[0].to_string());
    }
}

#[test]
fn equal_images_are_equal_to_the_byte_and_the_second_time_is_remembered() {
    let store = TestStore::new();
    let image = image(
        &store,
        &[tar_with("a", &noise(3_000_000, 1)), tar_with("b", b"x")],
    );
    let forms = [
        "type=oci",
        "type=oci,compression=zstd",
        "type=docker,compression=uncompressed",
        "type=tar",
    ];
    for form in forms {
        let spec: OutputSpec = format!("{form},dest=-").parse().unwrap();
        let names = ["app".to_owned()];
        let request = Request {
            store: &store,
            image: &image,
            names: &names,
            spec: &spec,
            epoch: None,
        };
        let bytes = || {
            let mut out = Vec::new();
            let compressed = std::sync::atomic::AtomicBool::new(false);
            let report = |progress: engine::image::Progress| {
                let compresses = progress.what.ends_with("compressing");
                compressed.fetch_or(compresses, std::sync::atomic::Ordering::Relaxed);
            };
            export(&request, &mut out, &report, &Cancel::new()).unwrap();
            (Digest::of(&out), compressed.into_inner())
        };
        let (first, compressed) = bytes();
        assert_eq!(
            compressed,
            matches!(form, "type=oci" | "type=oci,compression=zstd")
        );
        assert_eq!(bytes(), (first, false), "{form}");
    }
}

#[test]
fn gzip_and_zstd_do_not_depend_on_the_store() {
    let tars = [tar_with("a", &noise(2_000_000, 1))];
    for compression in [
        "gzip",
        "zstd,compression-level=9",
        "gzip,compression-level=1",
    ] {
        let layers = |_| {
            let store = TestStore::new();
            let image = image(&store, &tars);
            let dir = store.path("out");
            let spec = format!(
                "type=oci,tar=false,compression={compression},dest={}",
                shown(&dir)
            );
            write(&store, &image, &[], &spec).unwrap();
            let index: serde_json::Value =
                serde_json::from_slice(&fs::read(dir.join("index.json")).unwrap()).unwrap();
            let digest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
            let path = dir
                .join("blobs/sha256")
                .join(digest.strip_prefix("sha256:").unwrap());
            let manifest: serde_json::Value =
                serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
            manifest["layers"].to_string()
        };
        assert_eq!(layers(1), layers(2));
    }
}

#[test]
fn compressed_layers_unpack_with_other_tools() {
    if !has("zstd") {
        return;
    }
    let store = TestStore::new();
    let image = image(&store, &[tar_with("a", &noise(2_000_000, 1))]);
    for (compression, tool, kind) in [("gzip", "gzip", "gzip"), ("zstd", "zstd", "zstd")] {
        let dir = store.path(kind);
        let spec = format!(
            "type=oci,tar=false,compression={compression},dest={}",
            shown(&dir)
        );
        write(&store, &image, &["app:v1"], &spec).unwrap();
        let text = run(
            "skopeo",
            &["inspect", "--raw", &format!("oci:{}:v1", shown(&dir))],
        );
        let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
        let layer = &manifest["layers"][0];
        let media_type = format!("application/vnd.oci.image.layer.v1.tar+{kind}");
        assert_eq!(layer["mediaType"], media_type.as_str());
        let digest: Digest = layer["digest"].as_str().unwrap().parse().unwrap();
        let blob = dir.join("blobs/sha256").join(digest.hex());
        assert_eq!(layer["size"], fs::metadata(&blob).unwrap().len());
        let plain = try_run(tool, &["-d", "-c", "--", shown(&blob)]).stdout;
        assert_eq!(Digest::of(&plain), image.layers[0].0);
    }
}

#[test]
fn assembling_again_gives_the_same_image() {
    let store = TestStore::new();
    let tars = rich();
    assert_eq!(image(&store, &tars), image(&store, &tars));
}

#[test]
fn an_exported_layout_can_be_built_upon() {
    let store = TestStore::new();
    let image = image(&store, &rich());
    let dir = store.path("layout");
    write(
        &store,
        &image,
        &["app:v1"],
        &format!("type=oci,tar=false,dest={}", shown(&dir)),
    )
    .unwrap();
    let other = TestStore::new();
    let source = ImageSource::OciLayout {
        dir,
        tag: Some("v1".to_owned()),
        digest: None,
    };
    let base = find(&other, &source).unwrap();
    assert_eq!(base.layers, image.layers);
    let top = HistoryEntry {
        created_by: "RUN x".to_owned(),
        layer: Some(layer(&other, &tar_with("new", b"z"))),
    };
    let made = assemble(
        &other,
        Some(&base),
        &base.config.config,
        None,
        &amd64(),
        &[top],
        Some(0),
    )
    .unwrap();
    assert_eq!(made.layers.len(), 3);
    let config: serde_json::Value =
        serde_json::from_slice(&other.blob(made.config).unwrap().unwrap()).unwrap();
    assert_eq!(config["history"].as_array().unwrap().len(), 4);
    assert_eq!(config["created"], "1970-01-01T00:00:00Z");
    assert_ne!(config["history"][1]["created"], config["created"]);
}

#[test]
fn a_layout_keeps_its_other_images_and_replaces_its_own() {
    let store = TestStore::new();
    let dir = store.path("layout");
    let spec = format!("type=oci,tar=false,dest={}", shown(&dir));
    let (a, b) = (
        image(&store, &[tar_with("a", b"1")]),
        image(&store, &[tar_with("a", b"2")]),
    );
    write(&store, &a, &["app:one"], &spec).unwrap();
    write(&store, &a, &["app:two"], &spec).unwrap();
    write(&store, &b, &["app:one"], &spec).unwrap();
    let get = |tag: &str| {
        let source = ImageSource::OciLayout {
            dir: dir.clone(),
            tag: Some(tag.to_owned()),
            digest: None,
        };
        find(&store, &source).unwrap().layers
    };
    assert_eq!(get("one"), b.layers);
    assert_eq!(get("two"), a.layers);
    let index = fs::read_to_string(dir.join("index.json")).unwrap();
    assert_eq!(index.matches("ref.name").count(), 2, "{index}");
}

#[test]
fn local_output_never_leaves_its_directory() {
    let store = TestStore::new();
    let outside = store.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "precious").unwrap();
    let dest = store.path("dest");
    fs::create_dir(&dest).unwrap();
    symlink(&outside, dest.join("etc")).unwrap();
    symlink(outside.join("file"), dest.join("linked")).unwrap();
    symlink(outside.join("made"), dest.join("abs")).unwrap();
    fs::write(dest.join("kept"), "kept").unwrap();
    // The image, too, has a link to the outside, and files below its name.
    let mut evil = tar::Builder::new(Vec::new());
    let target = shown(&outside).to_owned();
    special(&mut evil, "door", tar::EntryType::Symlink, 0o777, &target);
    let below = tar_with("door/file", b"overwritten");
    let mut tars = rich();
    tars.extend([evil.into_inner().unwrap(), below]);
    let image = image(&store, &tars);

    write(&store, &image, &[], shown(&dest)).unwrap();

    assert_eq!(
        fs::read_to_string(outside.join("file")).unwrap(),
        "precious"
    );
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert!(fs::symlink_metadata(dest.join("etc")).unwrap().is_dir());
    assert_eq!(
        fs::read_to_string(dest.join("linked")).unwrap(),
        "no longer the same file"
    );
    assert_eq!(
        fs::read_to_string(dest.join("door/file")).unwrap(),
        "overwritten"
    );
    assert_eq!(fs::read_to_string(dest.join("kept")).unwrap(), "kept");
    assert!(!dest.join(".cofferdam-incomplete").exists());
}

#[test]
fn an_interrupted_export_leaves_the_old_target_or_a_mark() {
    let store = TestStore::new();
    let image = image(&store, &[tar_with("a", &noise(5_000_000, 1))]);
    let file = store.path("out.tar");
    fs::write(&file, "old").unwrap();
    let dir = store.path("dir");
    fs::create_dir(&dir).unwrap();
    let fresh = store.path("fresh");
    for spec in [
        format!("type=oci,dest={}", shown(&file)),
        format!("type=docker,compression=uncompressed,dest={}", shown(&file)),
        format!("type=tar,dest={}", shown(&file)),
        format!("type=oci,tar=false,dest={}", shown(&fresh)),
        format!("type=local,dest={}", shown(&fresh)),
        format!("type=local,dest={}", shown(&dir)),
    ] {
        let cancel = Cancel::new();
        let parsed: OutputSpec = spec.parse().unwrap();
        let request = Request {
            store: &store,
            image: &image,
            names: &[],
            spec: &parsed,
            epoch: None,
        };
        let outcome = export(
            &request,
            &mut std::io::sink(),
            &|progress| {
                if progress.current > 1_000_000 {
                    cancel.cancel();
                }
            },
            &cancel,
        );
        assert!(matches!(outcome, Err(ExportError::Cancelled)), "{spec}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "old", "{spec}");
        assert!(!fresh.exists(), "{spec}");
        let left: Vec<_> = fs::read_dir(store.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".partial"))
            .collect();
        assert!(left.is_empty(), "{spec}: {left:?}");
    }
    assert!(dir.join(".cofferdam-incomplete").exists());
    write(&store, &image, &[], shown(&dir)).unwrap();
    assert!(!dir.join(".cofferdam-incomplete").exists());
}

#[test]
fn useless_targets_are_refused() {
    let store = TestStore::new();
    let image = image(&store, &[tar_with("a", b"x")]);
    let refused = |spec: &str, reason: &str| {
        let error = write(&store, &image, &[], spec).unwrap_err();
        let early = check(&spec.parse().unwrap()).map_err(|error| chain(&error));
        assert_eq!(early, Err(chain(&error)), "{spec}");
        assert!(
            matches!(error, ExportError::Target { .. }),
            "{spec}: {}",
            chain(&error)
        );
        assert!(chain(&error).contains(reason), "{spec}: {}", chain(&error));
    };
    let file = store.path("file");
    fs::write(&file, "x").unwrap();
    refused(
        &format!("type=tar,dest={}", shown(store.dir.path())),
        "is a directory",
    );
    refused(&format!("type=local,dest={}", shown(&file)), "is a file");
    refused(
        &format!("type=oci,tar=false,dest={}", shown(&file)),
        "is a file",
    );
    refused(
        &format!("type=oci,dest={}/no/such", shown(store.dir.path())),
        "directory cannot be used",
    );
    refused(
        &format!("type=oci,tar=false,dest={}", shown(store.dir.path())),
        "neither empty nor",
    );
    for good in [
        "type=oci,dest=-",
        "type=tar,dest=/dev/null",
        "type=local,dest=new/er",
        "type=image",
    ] {
        check(&good.parse().unwrap()).unwrap();
    }
    // A directory with something in it is in the way of a file.
    let dest = store.path("dest");
    fs::create_dir_all(dest.join("a/b")).unwrap();
    let error = write(&store, &image, &[], shown(&dest)).unwrap_err();
    assert!(chain(&error).contains("is in the way"), "{}", chain(&error));
}

#[test]
fn devices_are_written_to_and_links_followed() {
    let store = TestStore::new();
    let image = image(&store, &[tar_with("a", b"x")]);
    write(&store, &image, &[], "type=oci,dest=/dev/null").unwrap();
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
    let real = store.path("real.tar");
    fs::write(&real, "old").unwrap();
    let link = store.path("link.tar");
    symlink(&real, &link).unwrap();
    write(
        &store,
        &image,
        &[],
        &format!("type=tar,dest={}", shown(&link)),
    )
    .unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(fs::metadata(&real).unwrap().len() > 1000);
    let mode = fs::metadata(&real).unwrap().permissions().mode();
    assert_eq!(mode & 0o600, 0o600);
}

#[test]
fn an_epoch_is_the_time_of_every_file() {
    let store = TestStore::new();
    let image = image(&store, &rich());
    let dest = store.path("dest");
    let spec = OutputSpec::Local { dest: dest.clone() };
    let request = Request {
        store: &store,
        image: &image,
        names: &[],
        spec: &spec,
        epoch: Some(86_400),
    };
    export(&request, &mut std::io::sink(), &|_| {}, &Cancel::new()).unwrap();
    let late: Vec<(String, Item)> = list(&dest)
        .into_iter()
        .filter(|(_, item)| item.mtime != (86_400, 0))
        .collect();
    assert!(late.is_empty(), "{late:?}");
}

#[test]
fn images_are_kept_in_the_store_under_their_names() {
    let store = TestStore::new();
    let image = image(&store, &[tar_with("a", b"x")]);
    write(&store, &image, &["app", "user/app:2"], "type=docker").unwrap();
    for name in ["app:latest", "docker.io/user/app:2"] {
        let found = find(&store, &ImageSource::Named(name.to_owned())).unwrap();
        assert_eq!(found.manifest_digest, image.manifest);
    }
}

#[test]
fn spoiled_bytes_in_the_store_do_not_leave_it() {
    let store = TestStore::new();
    let made = layer(&store, &tar_with("a", &noise(100_000, 1)));
    let entry = HistoryEntry {
        created_by: "x".to_owned(),
        layer: Some(made.clone()),
    };
    let image = assemble(
        &store,
        None,
        &ImageConfig::default(),
        None,
        &amd64(),
        &[entry],
        None,
    )
    .unwrap();
    let file = store.open_layer(made.diff_id).unwrap();
    let inode = file.metadata().unwrap().ino();
    let path = find_inode(&store.path("store"), inode).unwrap();
    let whole = fs::read(&path).unwrap();
    let mut spoiled = whole.clone();
    spoiled[50_000] ^= 1;
    let mode = fs::metadata(&path).unwrap().permissions();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&path, &spoiled).unwrap();
    for compression in ["gzip", "uncompressed"] {
        let out = store.path("out.tar");
        let spec = format!("type=oci,compression={compression},dest={}", shown(&out));
        let error = write(&store, &image, &[], &spec).unwrap_err();
        assert!(
            matches!(error, ExportError::Damaged(_)),
            "{}",
            chain(&error)
        );
        assert!(!out.exists());
    }
    fs::write(&path, &whole).unwrap();
    fs::set_permissions(&path, mode).unwrap();
}

fn find_inode(dir: &Path, inode: u64) -> Option<PathBuf> {
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            if metadata.is_dir() {
                pending.push(path);
            } else if metadata.ino() == inode {
                return Some(path);
            }
        }
    }
    None
}

#[test]
fn a_base_layer_that_went_away_is_an_error() {
    let store = TestStore::new();
    let base = engine::image::BaseImage {
        name: "x".to_owned(),
        manifest_digest: Digest::of(b""),
        config: engine::image::ImageConfigFile::default(),
        layers: vec![Digest::of(b"gone").into()],
    };
    let outcome = assemble(
        &store,
        Some(&base),
        &ImageConfig::default(),
        None,
        &amd64(),
        &[],
        None,
    );
    assert!(matches!(outcome, Err(ImageError::Unusable { .. })));
}

/// Runs one of these tests again as another process, with `value` in the variable `name`.
fn again(test: &str, name: &str, value: &Path, wrapper: &[&str]) -> std::process::Output {
    let me = std::env::current_exe().unwrap();
    // Somebody else may not be allowed to run it where it is.
    let copy = value.join("test-program");
    fs::copy(me, &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let args = [wrapper, &[shown(&copy), "--exact", test, "--nocapture"]].concat();
    std::process::Command::new("timeout")
        .arg("60")
        .args(args)
        .env(name, value)
        .env("TMPDIR", value)
        .output()
        .unwrap()
}

#[test]
fn without_privileges_files_are_the_callers_and_devices_are_left_out() {
    const NAME: &str = "COFFERDAM_TEST_UNPRIVILEGED";
    if is_root() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let wrapper = [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
        ];
        let test = "without_privileges_files_are_the_callers_and_devices_are_left_out";
        let output = again(test, NAME, dir.path(), &wrapper);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}"
        );
        return;
    }
    let store = TestStore::new();
    let image = image(&store, &rich());
    let dest = store.path("dest");
    let done = write(&store, &image, &[], shown(&dest)).unwrap();
    let devices = done
        .warnings
        .iter()
        .filter(|text| text.contains("is a device"))
        .count();
    assert_eq!(devices, 2, "{:?}", done.warnings);
    let files = list(&dest);
    assert_eq!(
        files["setuid"].mode, 0o755,
        "a set-user-id file would now be the caller's"
    );
    assert_eq!(files["setuid"].mtime, (1_200_000_000, 123_456_789));
    assert_eq!(files["closed"].mode, 0o555);
    assert_eq!(files["pipe"].kind, "pipe");
    assert!(!files.contains_key("null"));
    let me = nix::unistd::geteuid().as_raw();
    assert!(files.values().all(|item| item.owner.0 == me));
    // What cannot be entered or removed otherwise.
    for dir in ["closed", "hidden"] {
        fs::set_permissions(dest.join(dir), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// Whoever is killed while it writes leaves nothing that looks like a result, and the next who
/// opens the store removes the rest.
#[test]
fn a_killed_export_leaves_the_old_target_and_its_rest_is_removed() {
    const NAME: &str = "COFFERDAM_TEST_KILLED";
    let specs = |dir: &Path| {
        let dir = shown(dir).to_owned();
        [
            "type=oci,dest=",
            "type=docker,compression=uncompressed,dest=",
            "type=tar,dest=",
        ]
        .map(|kind| format!("{kind}{dir}/file"))
        .into_iter()
        .chain(["type=oci,tar=false,dest=", "type=local,dest="].map(|k| format!("{k}{dir}/new")))
        .collect::<Vec<String>>()
    };
    if let Some(dir) = std::env::var_os(NAME) {
        let dir = Path::new(&dir);
        let store = support::open_store(&dir.join("store"));
        let image = image(&store, &[tar_with("a", &noise(5_000_000, 1))]);
        let which: usize = fs::read_to_string(dir.join("which"))
            .unwrap()
            .parse()
            .unwrap();
        let spec: OutputSpec = specs(dir)[which].parse().unwrap();
        let request = Request {
            store: &store,
            image: &image,
            names: &[],
            spec: &spec,
            epoch: None,
        };
        let report = |progress: engine::image::Progress| {
            if progress.current > 1_000_000 && !progress.what.ends_with("compressing") {
                let me = nix::unistd::getpid();
                nix::sys::signal::kill(me, nix::sys::signal::Signal::SIGKILL).unwrap();
            }
        };
        export(&request, &mut std::io::sink(), &report, &Cancel::new()).unwrap();
        panic!("still alive");
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "old").unwrap();
    for which in 0..specs(dir.path()).len() {
        fs::write(dir.path().join("which"), which.to_string()).unwrap();
        let test = "a_killed_export_leaves_the_old_target_and_its_rest_is_removed";
        let output = again(test, NAME, dir.path(), &[]);
        assert_eq!(output.status.signal(), Some(9), "{output:?}");
        assert_eq!(fs::read_to_string(dir.path().join("file")).unwrap(), "old");
        assert!(!dir.path().join("new").exists());
        let partial = || {
            fs::read_dir(dir.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| name.ends_with(".partial"))
                .count()
        };
        assert_eq!(partial(), 1, "spec {which}");
        let store = support::open_store(&dir.path().join("store"));
        assert_eq!(partial(), 0, "spec {which}");
        support::close_clean(store);
    }
}
