//! The plan of the root file system.

use std::fs;

use nix::sys::stat::Mode;
use wire::StepLimits;

use super::*;

fn step(network: Network) -> RunStep {
    RunStep {
        step: 1,
        output: 2,
        layers: vec![[0; 32], [1; 32]],
        args: Vec::new(),
        env: Vec::new(),
        cwd: b"/".to_vec(),
        uid: 0,
        gid: 0,
        groups: Vec::new(),
        hostname: "builder".into(),
        hosts: vec![("10.1.1.1".into(), "db".into())],
        network,
        limits: StepLimits::default(),
        script: None,
    }
}

#[test]
fn the_longest_chain_fits_into_the_page_of_mount_options() {
    assert!(overlay_options(wire::limits::MAX_LAYERS - 1).len() < 4096);
    let none = overlay_options(0);
    assert!(
        none.starts_with("lowerdir=skeleton,upperdir=upper,"),
        "{none}"
    );
    assert!(overlay_options(3).starts_with("lowerdir=2:1:0:skeleton,"));
}

#[test]
fn the_root_is_entered_before_anything_in_the_image_is_touched() {
    let ops = plan(&step(Network::None));
    assert!(matches!(ops[0], Op::Enter { .. }));
    assert_eq!(
        ops.iter()
            .filter(|op| matches!(op, Op::Enter { .. }))
            .count(),
        1
    );
}

#[test]
fn the_skeleton_is_what_an_image_would_have() {
    use std::os::unix::fs::PermissionsExt as _;
    let temp = tempfile::tempdir().unwrap();
    nix::sys::stat::umask(Mode::empty());
    make_skeleton(temp.path()).unwrap();
    let mode = |name: &str| {
        let found = fs::metadata(temp.path().join(name)).unwrap();
        found.permissions().mode() & 0o7777
    };
    assert_eq!((mode("etc"), mode("etc/hosts")), (0o755, 0o644));
}

#[test]
fn every_mount_but_devpts_refuses_devices() {
    for op in plan(&step(Network::None)) {
        if let Op::Mount {
            kind, at, flags, ..
        } = op
        {
            assert!(
                flags.contains(MsFlags::MS_NODEV) || kind == "devpts",
                "{at}"
            );
            assert!(flags.contains(MsFlags::MS_NOSUID), "{at}");
        }
    }
}

#[test]
fn nothing_is_mounted_over_what_is_hidden() {
    let mut hidden = Vec::new();
    for op in plan(&step(Network::None)) {
        match op {
            Op::Mask(path) => hidden.push(path),
            Op::Mount { at, .. } | Op::Protect(at) => assert!(
                !hidden.iter().any(|path| Path::new(path).starts_with(at)),
                "{at}"
            ),
            Op::Enter { .. }
            | Op::CheckDirectory(_)
            | Op::CreateDirectory(_)
            | Op::Symlink { .. }
            | Op::MountFiles(_) => {}
        }
    }
    assert_eq!(hidden, MASKED);
}

#[test]
fn a_step_writes_only_to_the_files_that_describe_its_network() {
    let writable = |content: Content| content.attributes() & libc::MOUNT_ATTR_RDONLY == 0;
    assert!(writable(Content::File(String::new())));
    assert!(!writable(Content::Script(Vec::new())));
    let paths: Vec<String> = files(&step(Network::None))
        .into_iter()
        .map(|file| file.at)
        .collect();
    assert_eq!(paths, ["/etc/hosts", "/etc/resolv.conf"]);
}

#[test]
fn hosts_and_name_servers_follow_the_specification() {
    let text = |network| files(&step(network)).map_texts();
    let [hosts, servers] = text(Network::Default { flows: 1 });
    assert!(
        hosts.ends_with("10.1.1.1\tdb\n127.0.1.1\tbuilder\n"),
        "{hosts}"
    );
    assert_eq!(servers, "nameserver 10.0.2.3\n");
    let [_, servers] = text(Network::None);
    assert_eq!(servers, "");
}

trait Texts {
    fn map_texts(self) -> [String; 2];
}
impl Texts for Vec<StepFile> {
    fn map_texts(self) -> [String; 2] {
        let text = |file: StepFile| match file.content {
            Content::File(text) => text,
            Content::Device(..) | Content::Script(_) => panic!("no such file"),
        };
        self.into_iter()
            .map(text)
            .collect::<Vec<_>>()
            .try_into()
            .unwrap()
    }
}
