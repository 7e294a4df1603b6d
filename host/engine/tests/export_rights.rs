//! What a hostile image leaves in a directory that it is exported to.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails or says that it did not run"
)]

mod support;

use std::fs::hard_link;
use std::os::unix::fs::FileTypeExt;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use support::exports::*;

/// A file capability, as the kernel keeps it: `cap_setuid` permitted and effective.
const CAPABILITY: &[u8] = b"\x01\0\0\x02\x80\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// A layer with all that gives rights.
fn hostile() -> Vec<u8> {
    use tar::EntryType::{Block, Char, Directory, Fifo, Link};
    let mut tar = tar::Builder::new(Vec::new());
    special(&mut tar, "dev/", Directory, 0o755, "");
    special(&mut tar, "dev/a", Char, 0o666, "");
    special(&mut tar, "dev/b", Block, 0o666, "");
    special(&mut tar, "dev/c", Link, 0o666, "dev/a");
    special(&mut tar, "pipe", Fifo, 0o622, "");
    special(&mut tar, "group/", Directory, 0o2775, "");
    for (name, mode) in [("setuid", 0o4755), ("setgid", 0o2755), ("plain", 0o755)] {
        let mut header = file_header(1);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        if name == "plain" {
            builder_pax(
                &mut tar,
                &[
                    ("SCHILY.xattr.security.capability", CAPABILITY),
                    ("SCHILY.xattr.user.note", b"kept"),
                ],
            );
        }
        tar.append_data(&mut header, name, b"x".as_slice()).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Exports the hostile layer with these options; returns its directory and the warnings.
fn exported(store: &TestStore, options: &str, dest: &str) -> (PathBuf, Vec<String>) {
    let image = image(store, &[hostile()]);
    let dest = store.path(dest);
    let spec = format!("type=local,dest={}{options}", shown(&dest));
    let done = write(store, &image, &[], &spec).unwrap();
    (dest, done.warnings)
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    xattr::get(path, name).unwrap()
}

#[test]
fn nothing_that_gives_rights_is_left_unless_the_user_asks() {
    let store = TestStore::new();
    // Into a directory that exists, too.
    fs::create_dir(store.path("old")).unwrap();
    for dest in ["new", "old"] {
        let (dest, warnings) = exported(&store, "", dest);
        assert_eq!(fs::read_dir(dest.join("dev")).unwrap().count(), 0);
        for name in ["setuid", "setgid", "plain"] {
            assert_eq!(mode(&dest.join(name)), 0o755, "{name}");
            assert_eq!(attribute(&dest.join(name), "security.capability"), None);
        }
        let note = attribute(&dest.join("plain"), "user.note");
        assert_eq!(note.as_deref(), Some(b"kept".as_slice()));
        let pipe = fs::symlink_metadata(dest.join("pipe")).unwrap();
        assert!(pipe.file_type().is_fifo());
        let text = warnings.join("\n");
        assert!(
            text.contains("dev/a and 2 more: devices left out"),
            "{text}"
        );
        assert!(text.contains("devices=true"), "{text}");
        assert_eq!(text.contains("setuid=true"), is_root(), "{text}");
        assert_eq!(warnings.len(), 1 + usize::from(is_root()), "{text}");
    }
}

#[test]
#[ignore = "needs root"]
fn as_root_what_the_user_asks_for_is_as_in_the_image() {
    let store = TestStore::new();
    let (dest, warnings) = exported(&store, ",devices=true,setuid=true", "all");
    assert_eq!(warnings, [""; 0]);
    let device = |name: &str| fs::symlink_metadata(dest.join("dev").join(name)).unwrap();
    assert!(device("a").file_type().is_char_device());
    assert!(device("b").file_type().is_block_device());
    assert_eq!(device("a").ino(), device("c").ino());
    let modes = ["setuid", "setgid", "plain", "group"].map(|name| mode(&dest.join(name)));
    assert_eq!(modes, [0o4755, 0o2755, 0o755, 0o2775]);
    let capability = attribute(&dest.join("plain"), "security.capability");
    assert_eq!(capability.as_deref(), Some(CAPABILITY));

    let (dest, _) = exported(&store, ",setuid=true", "programs");
    assert_eq!(fs::read_dir(dest.join("dev")).unwrap().count(), 0);
    assert_eq!(mode(&dest.join("setuid")), 0o4755);
    let (dest, _) = exported(&store, ",devices=true", "devices");
    assert_eq!(fs::read_dir(dest.join("dev")).unwrap().count(), 3);
    assert_eq!(mode(&dest.join("setuid")), 0o755);
}

/// What an earlier export left there may be as hostile as the image.
#[test]
fn what_exists_in_the_directory_is_replaced_and_neither_written_to_nor_waited_for() {
    for name in ["setuid", "plain", "pipe", ".cofferdam-incomplete"] {
        for kind in ["hard link", "link", "dangling", "pipe"] {
            let store = TestStore::new();
            let outside = store.path("outside");
            fs::write(&outside, "precious").unwrap();
            let dest = store.path("dest");
            fs::create_dir(&dest).unwrap();
            let there = dest.join(name);
            match kind {
                "hard link" => hard_link(&outside, &there).unwrap(),
                "link" => symlink(&outside, &there).unwrap(),
                "dangling" => symlink(store.path("made"), &there).unwrap(),
                _ => mkfifo(&there, Mode::S_IRWXU).unwrap(),
            }
            let before = fs::metadata(&outside).unwrap();
            exported(&store, "", "dest");
            let after = fs::metadata(&outside).unwrap();
            assert_eq!(fs::read(&outside).unwrap(), b"precious", "{name}, {kind}");
            assert_eq!((before.mode(), before.uid()), (after.mode(), after.uid()));
            assert!(!store.path("made").exists(), "{name}, {kind}");
            assert_eq!(fs::read(dest.join("plain")).unwrap(), b"x");
            assert!(!dest.join(".cofferdam-incomplete").exists());
        }
    }
}
