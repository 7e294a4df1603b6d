//! Results outside of the store, as other tools see them.

mod support;

use std::collections::BTreeMap;

use support::exports::*;

#[test]
#[ignore = "needs root, umoci and skopeo"]
fn as_root_archives_directories_and_trees_hold_the_same_files() {
    let store = TestStore::new();
    let image = image(&store, &rich());
    let written = |file: &str, names: &[&str], options: &str| {
        let path = store.path(file);
        let spec = format!("{options},dest={}", shown(&path));
        let done = write(&store, &image, names, &spec).unwrap();
        assert_eq!(done.warnings, Vec::<String>::new());
        path
    };
    let oci = written("image.oci.tar", &["app:v1"], "type=oci");
    let docker = written("image.docker.tar", &["app:v1"], "type=docker");
    let options = "type=oci,tar=false,compression=uncompressed";
    let dir = written("layout", &["app:v1"], options);
    let tar = written("files.tar", &[], "type=tar");
    let local = written("local", &[], "type=local,devices=true,setuid=true");

    let expected = converted(&store, &format!("oci-archive:{}:v1", shown(&oci)), "oci");
    let docker = format!("docker-archive:{}:docker.io/library/app:v1", shown(&docker));
    assert_same(&converted(&store, &docker, "docker"), &expected, |_| {});
    let dir = format!("oci:{}:v1", shown(&dir));
    assert_same(&converted(&store, &dir, "dir"), &expected, |_| {});
    let untarred = store.path("untarred");
    fs::create_dir(&untarred).unwrap();
    let flags = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"];
    let places = [shown(&tar), "-C", shown(&untarred)];
    run("tar", &[&flags[..], &places].concat());
    assert_same(&list(&untarred), &expected, |_| {});
    assert_same(&list(&local), &expected, |_| {});
    assert_rich(&expected);
}

/// The files of an image that skopeo copies `from` somewhere and umoci unpacks.
fn converted(store: &TestStore, from: &str, name: &str) -> BTreeMap<String, Item> {
    let layout = store.path(&format!("from-{name}"));
    let to = format!("oci:{}:x", shown(&layout));
    run("skopeo", &["copy", "-q", "--insecure-policy", from, &to]);
    let bundle = store.path(&format!("from-{name}.bundle"));
    list(&unpack(&layout, "x", &bundle))
}

/// What is special about the files of [`rich`] is there.
fn assert_rich(files: &BTreeMap<String, Item>) {
    assert_eq!(files.get("etc/removed"), None);
    assert_eq!(files.get("hidden/old"), None);
    let setuid = &files["setuid"];
    assert_eq!(
        (setuid.mode, setuid.owner),
        (0o4755, (3_000_000, 4_000_000))
    );
    assert_eq!(setuid.mtime, (1_200_000_000, 123_456_789));
    assert_eq!(
        setuid.xattrs.get("user.note").map(Vec::as_slice),
        Some(&b"a\0b"[..])
    );
    assert_eq!(
        files["linked-too"].same_as.as_deref(),
        Some("etc/linked-three")
    );
    assert_ne!(files["linked"].content, files["linked-too"].content);
    assert_eq!(files["changes"].kind, "directory");
    assert!(files.contains_key(r"caf\xe9 \xff, 100%20\n"));
}

#[test]
#[ignore = "needs skopeo"]
fn other_tools_read_the_configuration() {
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
            let report = |progress: engine::event::Progress| {
                let compresses = progress.what.ends_with("compressing");
                compressed.fetch_or(compresses, std::sync::atomic::Ordering::Relaxed);
            };
            export(&request, &mut out, &report, &Cancel::new()).unwrap();
            (store::sha256(&out), compressed.into_inner())
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
#[ignore = "needs zstd and skopeo"]
fn compressed_layers_unpack_with_other_tools() {
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
        assert_eq!(store::sha256(&plain), image.layers[0].0);
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
