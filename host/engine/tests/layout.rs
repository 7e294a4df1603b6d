//! Images out of directories.

mod support;

use std::fs;

use engine::pull::{ImageSource, PullError, resolve};
use exec::Cancel;
use oci::decompress::UnpackLimits;
use oci::{ImageError, Platform};
use store::Digest;
use support::{
    Form, LayoutDir, TestLayer, TestStore, amd64, chain, find, find_with, noise, options, tar_with,
};

#[test]
fn every_form_of_layer_is_taken_in() {
    let store = TestStore::new();
    let mut layout = LayoutDir::new(&store.path("layout"));
    let layers = [
        TestLayer::new(tar_with("a", b"one"), Form::Plain),
        TestLayer::new(tar_with("b", &noise(300_000, 1)), Form::Gzip),
        TestLayer::new(tar_with("c", &noise(300_000, 2)), Form::Zstd),
        TestLayer::new(tar_with("a", b"one"), Form::Gzip),
    ];
    let image = layout.image("amd64", &layers);
    layout.tag(image.clone(), "v1");

    let base = find(&store, &layout.source(Some("v1"))).unwrap();

    assert_eq!(base.manifest_digest, image.digest);
    let ids: Vec<Digest> = base.layers.iter().map(|layer| layer.0).collect();
    assert_eq!(
        ids,
        layers.iter().map(TestLayer::diff_id).collect::<Vec<_>>()
    );
    assert_eq!(base.config.config.cmd, ["sh"]);
    for layer in base.layers {
        assert!(store.layer(layer).unwrap().is_some());
    }
}

/// A layer of zeroes, taken in with these limits.
fn take_zeroes(form: Form, unpack: UnpackLimits) -> (TestStore, TestLayer, Result<(), PullError>) {
    let store = TestStore::new();
    let mut layout = LayoutDir::new(&store.path("layout"));
    let layer = TestLayer::new(tar_with("zeroes", &vec![0; 4 << 20]), form);
    let image = layout.image("amd64", std::slice::from_ref(&layer));
    layout.tag(image, "v1");
    let mut options = options();
    options.unpack = unpack;
    let taken = find_with(&store, &layout.source(Some("v1")), &options).map(drop);
    (store, layer, taken)
}

#[test]
fn a_layer_above_a_limit_is_named_with_the_option_and_kept_nowhere() {
    let usual = UnpackLimits::USUAL;
    let small = UnpackLimits {
        size: 4 << 20,
        ..usual
    };
    let dense = UnpackLimits {
        base: 0,
        ratio: 10,
        ..usual
    };
    for (form, limits, option) in [
        (Form::Gzip, small, "--layer-size"),
        (Form::Plain, small, "--layer-size"),
        (Form::Gzip, dense, "--layer-ratio 10"),
        (Form::Zstd, dense, "--layer-ratio 10"),
    ] {
        let (store, layer, taken) = take_zeroes(form, limits);
        let error = taken.unwrap_err();
        assert!(matches!(error, PullError::TooLarge { .. }), "{error:?}");
        let text = chain(&error);
        let digest = store::sha256(&layer.blob()).to_string();
        let image = store.path("layout").display().to_string();
        for part in [option, digest.as_str(), image.as_str()] {
            assert!(text.contains(part), "no {part}: {text}");
        }
        assert_eq!(store.du().unwrap().items.len(), 0);
    }
    for limits in [
        UnpackLimits {
            size: 5 << 20,
            ..small
        },
        UnpackLimits {
            ratio: 100_000,
            ..dense
        },
    ] {
        take_zeroes(Form::Gzip, limits).2.unwrap();
    }
}

#[test]
fn what_the_store_has_is_not_read_again() {
    let store = TestStore::new();
    let mut layout = LayoutDir::new(&store.path("layout"));
    let layer = TestLayer::new(tar_with("a", b"one"), Form::Gzip);
    let image = layout.image("amd64", std::slice::from_ref(&layer));
    layout.tag(image, "v1");
    find(&store, &layout.source(Some("v1"))).unwrap();

    fs::remove_file(layout.blob_path(store::sha256(&layer.blob()))).unwrap();
    find(&store, &layout.source(Some("v1"))).unwrap();
}

#[test]
fn the_platform_is_chosen_from_nested_indexes() {
    let store = TestStore::new();
    let mut layout = LayoutDir::new(&store.path("layout"));
    let image = |architecture: &str| {
        let tar = tar_with("arch", architecture.as_bytes());
        layout.image(architecture, &[TestLayer::new(tar, Form::Gzip)])
    };
    let (x, a) = (image("amd64"), image("arm64"));
    let inner = layout.index(&[("amd64", x.clone()), ("arm64", a.clone())]);
    let mut outer = inner;
    for _ in 0..2 {
        let bytes = serde_json::to_vec(&oci::ImageIndex::new(vec![outer])).unwrap();
        outer = layout.blob("application/vnd.oci.image.index.v1+json", &bytes);
    }
    layout.tag(outer, "multi");

    let get = |platform: &str| {
        let platform: Platform = platform.parse().unwrap();
        resolve(
            &store,
            &layout.source(Some("multi")),
            &platform,
            false,
            &options(),
            &|_| {},
            &Cancel::new(),
        )
    };
    assert_eq!(get("linux/amd64").unwrap().manifest_digest, x.digest);
    assert_eq!(get("linux/arm64/v8").unwrap().manifest_digest, a.digest);
    let error = get("linux/s390x").unwrap_err();
    assert!(matches!(
        error,
        PullError::Image(ImageError::Platform { .. })
    ));
    assert!(
        chain(&error).contains("only for linux/amd64, linux/arm64"),
        "{}",
        chain(&error)
    );
}

#[test]
fn tags_and_digests_choose_among_several_images() {
    let store = TestStore::new();
    let mut layout = LayoutDir::new(&store.path("layout"));
    let image =
        |name: &str| layout.image("amd64", &[TestLayer::new(tar_with(name, b""), Form::Plain)]);
    let (a, b) = (image("a"), image("b"));
    layout.tag(a.clone(), "a");
    layout.tag(b.clone(), "b");

    assert_eq!(
        find(&store, &layout.source(Some("b")))
            .unwrap()
            .manifest_digest,
        b.digest
    );
    let by_digest = ImageSource::OciLayout {
        dir: layout.dir.clone(),
        tag: None,
        digest: Some(a.digest),
    };
    assert_eq!(find(&store, &by_digest).unwrap().manifest_digest, a.digest);
    let error = chain(&find(&store, &layout.source(None)).unwrap_err());
    assert!(
        error.contains("several images") && error.contains("a, b"),
        "{error}"
    );
    let error = chain(&find(&store, &layout.source(Some("c"))).unwrap_err());
    assert!(error.contains("it contains a, b"), "{error}");
}

#[test]
fn damage_is_found_and_nothing_of_it_is_kept() {
    let layer = TestLayer::new(tar_with("a", &noise(500_000, 3)), Form::Gzip);
    for (what, damage) in [
        ("a flipped bit", 0usize),
        ("a flipped bit at the end", layer.blob().len() - 5),
        ("a flipped bit in the middle", layer.blob().len() / 2),
    ] {
        let store = TestStore::new();
        let mut layout = LayoutDir::new(&store.path("layout"));
        let image = layout.image("amd64", std::slice::from_ref(&layer));
        layout.tag(image.clone(), "v1");
        let path = layout.blob_path(store::sha256(&layer.blob()));
        let mut bytes = fs::read(&path).unwrap();
        bytes[damage] ^= 1;
        fs::write(&path, bytes).unwrap();

        let error = find(&store, &layout.source(Some("v1"))).unwrap_err();
        assert!(
            matches!(error, PullError::Image(ImageError::Damaged { .. })),
            "{what}: {}",
            chain(&error)
        );
        assert_eq!(store.layer(layer.diff_id().into()).unwrap(), None);
        assert_eq!(store.blob(image.digest).unwrap(), None);
    }
}

#[test]
fn a_truncated_blob_is_named() {
    let store = TestStore::new();
    let mut layout = LayoutDir::new(&store.path("layout"));
    let layer = TestLayer::new(tar_with("a", &noise(5000, 3)), Form::Gzip);
    let image = layout.image("amd64", std::slice::from_ref(&layer));
    layout.tag(image, "v1");
    let path = layout.blob_path(store::sha256(&layer.blob()));
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..100]).unwrap();
    let error = chain(&find(&store, &layout.source(Some("v1"))).unwrap_err());
    assert!(error.contains("100 bytes long"), "{error}");
}

#[test]
fn a_lying_configuration_is_refused() {
    let store = TestStore::new();
    let mut layout = LayoutDir::new(&store.path("layout"));
    let layer = TestLayer::new(tar_with("a", b"one"), Form::Gzip);
    let wrong = store::sha256(b"something else");
    let image = layout.image_with("amd64", std::slice::from_ref(&layer), &[wrong]);
    layout.tag(image, "diff");
    let image = layout.image_with("amd64", std::slice::from_ref(&layer), &[]);
    layout.tag(image, "count");
    let image = layout.image("s390x", std::slice::from_ref(&layer));
    layout.tag(image, "arch");

    let error = chain(&find(&store, &layout.source(Some("diff"))).unwrap_err());
    let actual = layer.diff_id();
    assert!(
        error.contains(&format!(
            "has diff ID {actual}, but the image configuration says {wrong}"
        )),
        "{error}"
    );
    for digest in [wrong, actual] {
        assert_eq!(store.layer(digest.into()).unwrap(), None);
    }
    let error = chain(&find(&store, &layout.source(Some("count"))).unwrap_err());
    assert!(
        error.contains("lists 1 layers, but its configuration lists 0"),
        "{error}"
    );
    let error = chain(&find(&store, &layout.source(Some("arch"))).unwrap_err());
    assert!(
        error.contains("not available for linux/amd64, only for linux/s390x"),
        "{error}"
    );
}

#[test]
fn a_layer_that_is_no_tar_is_refused() {
    let store = TestStore::new();
    let mut layout = LayoutDir::new(&store.path("layout"));
    let image = layout.image("amd64", &[TestLayer::new(vec![b'x'; 2048], Form::Gzip)]);
    layout.tag(image, "v1");
    let error = find(&store, &layout.source(Some("v1"))).unwrap_err();
    assert!(
        matches!(error, PullError::Ingest { .. }),
        "{}",
        chain(&error)
    );
}

#[test]
fn what_is_not_there_is_explained() {
    let store = TestStore::new();
    let missing = ImageSource::OciLayout {
        dir: store.path("nothing"),
        tag: None,
        digest: None,
    };
    let error = chain(&find(&store, &missing).unwrap_err());
    assert!(error.contains("index.json does not exist"), "{error}");

    let layout = LayoutDir::new(&store.path("empty"));
    let error = chain(&find(&store, &layout.source(None)).unwrap_err());
    assert!(error.contains("does not exist in"), "{error}");

    // A pipe must not block anybody.
    let pipe = store.path("pipe");
    fs::create_dir(&pipe).unwrap();
    support::run("mkfifo", &[pipe.join("index.json").to_str().unwrap()]);
    let source = ImageSource::OciLayout {
        dir: pipe,
        tag: None,
        digest: None,
    };
    let error = chain(&find(&store, &source).unwrap_err());
    assert!(error.contains("not a regular file"), "{error}");
}

#[test]
fn a_cancelled_look_up_ends_and_keeps_nothing() {
    let store = TestStore::new();
    let mut layout = LayoutDir::new(&store.path("layout"));
    let layer = TestLayer::new(tar_with("a", &noise(4_000_000, 3)), Form::Gzip);
    let image = layout.image("amd64", std::slice::from_ref(&layer));
    layout.tag(image, "v1");
    let cancel = Cancel::new();
    let outcome = resolve(
        &store,
        &layout.source(Some("v1")),
        &amd64(),
        false,
        &options(),
        &|progress| {
            if progress.current > 1_000_000 {
                cancel.cancel();
            }
        },
        &cancel,
    );
    assert!(matches!(
        outcome,
        Err(PullError::Image(ImageError::Cancelled))
    ));
    assert_eq!(store.layer(layer.diff_id().into()).unwrap(), None);
}

#[test]
fn a_built_image_is_found_by_its_name_without_any_registry() {
    let store = TestStore::new();
    let mut layout = LayoutDir::new(&store.path("layout"));
    let image = layout.image(
        "amd64",
        &[TestLayer::new(tar_with("a", b"one"), Form::Gzip)],
    );
    layout.tag(image, "v1");
    let base = find(&store, &layout.source(None)).unwrap();
    let config = store::sha256(
        &store
            .blob(base.manifest_digest)
            .unwrap()
            .and_then(|bytes| match oci::Document::parse(&bytes) {
                Ok(oci::Document::Manifest(m)) => store.blob(m.config.digest).unwrap(),
                _ => None,
            })
            .unwrap(),
    );
    store
        .set_image(
            "docker.io/library/mine:latest",
            base.manifest_digest,
            config,
            &base.layers,
        )
        .unwrap();
    let found = find(&store, &ImageSource::Named("mine".to_owned())).unwrap();
    assert_eq!(found.manifest_digest, base.manifest_digest);
    assert_eq!(found.name, "docker.io/library/mine:latest");
}
