//! Where results go: targets that are of no use, that lead elsewhere, or that are interrupted.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails or says that it did not run"
)]

mod support;

use support::exports::*;

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
    refused(
        &format!("type=local,dest={}", shown(&file)),
        "is not a directory",
    );
    refused(
        &format!("type=oci,tar=false,dest={}", shown(&file)),
        "is not a directory",
    );
    refused(
        &format!("type=oci,dest={}/no/such", shown(store.dir.path())),
        "cannot access its directory",
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
    assert!(
        chain(&error).contains("a non-empty directory exists"),
        "{}",
        chain(&error)
    );
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
    let spec = OutputSpec::Local {
        dest: dest.clone(),
        rights: LocalRights::default(),
    };
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
    let mut spoiled = fs::read(&path).unwrap();
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
        assert!(chain(&error).contains("run `cofferdam store check --repair`"));
        assert!(!out.exists());
    }
    // What is advised helps.
    fs::set_permissions(&path, mode).unwrap();
    assert!(store.layer(made.diff_id).unwrap().is_some());
    assert!(store.check(true).unwrap().is_repaired());
    assert_eq!(store.layer(made.diff_id).unwrap(), None);
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
    let base = engine::pull::BaseImage {
        name: "x".to_owned(),
        manifest_digest: store::sha256(b""),
        config: oci::ImageConfigFile::default(),
        layers: vec![store::sha256(b"gone").into()],
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
    assert!(matches!(outcome, Err(AssembleError::LayerGone(_))));
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
    let [devices] = done.warnings.as_slice() else {
        panic!("{:?}", done.warnings)
    };
    assert!(
        devices.contains("disk and 1 more: devices left out"),
        "{devices}"
    );
    let all = format!(
        "type=local,devices=true,setuid=true,dest={}",
        shown(&store.path("all"))
    );
    let warnings = write(&store, &image, &[], &all)
        .unwrap()
        .warnings
        .join("\n");
    assert!(
        warnings.contains("only root can create devices"),
        "{warnings}"
    );
    assert!(warnings.contains("only root can keep them"), "{warnings}");
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
        let report = |progress: engine::event::Progress| {
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
