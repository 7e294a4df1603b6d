//! What no layer can hold.

use std::fs::File;
use std::os::fd::OwnedFd;

use exec::Cancel;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};

use super::{Kit, fails};

#[test]
fn an_attribute_that_no_layer_can_hold_is_the_users_error() {
    let kit = Kit::new(&["f"], &[]);
    // Not every file system has them.
    if xattr::set(kit.path().join("f"), "user.a=b", b"v").is_err() {
        return;
    }
    let plan = kit.plan("COPY f /to").expect("a plan");
    let error = plan
        .ingest(&kit.store, "test", &Cancel::new())
        .expect_err("no layer");
    assert!(!error.is_host());
    let text = error.to_string();
    assert!(text.starts_with("cannot copy to /to: "), "{text}");
    assert!(text.contains("`user.a=b`"), "{text}");
}

#[test]
fn a_path_is_as_long_as_a_layer_allows_and_no_longer() {
    let kit = Kit::new(&[], &[]);
    let name = "n".repeat(255);
    let mut at = OwnedFd::from(File::open(kit.path()).expect("the context"));
    for _ in 0..15 {
        mkdirat(&at, name.as_str(), Mode::S_IRWXU).expect("a directory");
        at = openat(&at, name.as_str(), OFlag::O_DIRECTORY, Mode::empty()).expect("made");
    }
    // 15 · 256 - 1 bytes, and up to 256 above them.
    let ingest = |dest: usize| {
        let plan = kit
            .plan(&format!("COPY . /{}/", "d".repeat(dest)))
            .expect("a plan");
        plan.ingest(&kit.store, "test", &Cancel::new())
    };
    ingest(255).expect("4095 bytes");
    mkdirat(&at, "n", Mode::S_IRWXU).expect("a directory");
    let error = ingest(255).expect_err("4097 bytes");
    assert!(!error.is_host() && !error.is_limit(), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains("4097 bytes") && text.contains("at most 4095"),
        "{text}"
    );
}

#[test]
fn a_sparse_file_is_refused_before_it_is_read() {
    let kit = Kit::new(&["sparse"], &[]);
    let file = File::options().write(true).open(kit.path().join("sparse"));
    // Not every file system has such files.
    if file.and_then(|file| file.set_len(8 << 40)).is_err() {
        return;
    }
    let plan = kit.plan("COPY sparse /to").expect("a plan");
    let error = plan.ingest(&kit.store, "test", &Cancel::new());
    let error = error.expect_err("no layer");
    assert!(error.is_limit() && !error.is_host(), "{error:?}");
    let text = error.to_string();
    assert!(
        text.starts_with("cannot copy to /to: it is 8 TiB long"),
        "{text}"
    );
}

#[test]
fn a_name_that_removes_something_in_a_layer_is_refused() {
    let refused = |context: &str, instruction: &str, name: &str| {
        let reason = "names that begin with .wh. are reserved: they mark what a layer removes";
        let want = format!("cannot copy to {name}: {reason}; rename it");
        fails(&[context], &["etc/", "etc/passwd"], instruction, &want);
    };
    refused(".wh.passwd", "COPY . /etc/", "/etc/.wh.passwd");
    refused("d/.wh..wh..opq", "COPY d /d", "/d/.wh..wh..opq");
    refused("a", "COPY a /.wh.x/a", "/.wh.x");
}
