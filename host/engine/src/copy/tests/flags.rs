//! What the flags do.

use exec::Cancel;

use super::{Kit, UNPACK, check, fails, spec};
use crate::copy::{SourceTree, plan};
use crate::download::Downloads;
use crate::rootfs::Rootfs;

const PASSWD: &str = "etc/passwd = root:x:0:0::/root:/bin/sh\napp:x:7:8::/home/app:/bin/sh\n";
const GROUP: &str = "etc/group = root:x:0:\nstaff:x:50:app\n";

#[test]
fn owners_are_numbers_or_names_of_the_target() {
    let target = ["etc/", PASSWD, GROUP];
    for (owner, want) in [
        ("55", "f [644 55:55]"),
        ("55:66", "f [644 55:66]"),
        ("app", "f [644 7:8]"),
        ("app:staff", "f [644 7:50]"),
        ("55:staff", "f [644 55:50]"),
        ("app:0", "f [644 7:0]"),
        ("app:", "f [644 7:0]"),
        ("root", "f"),
    ] {
        check(
            &["f"],
            &target,
            &format!("COPY --chown={owner} f /f"),
            &[want],
        );
    }
}

#[test]
fn an_unknown_owner_is_an_error_that_helps() {
    let target = ["etc/", PASSWD, GROUP];
    fails(
        &["a"],
        &target,
        "COPY --chown=aps a /a",
        "unable to find user `aps` in /etc/passwd (did you mean `app`?)",
    );
    fails(
        &["a"],
        &target,
        "COPY --chown=app:wheel a /a",
        "unable to find group `wheel` in /etc/group",
    );
    fails(
        &["a"],
        &[],
        "COPY --chown=app a /a",
        "unable to find user `app` in /etc/passwd (the image does not have this file; use a number)",
    );
    check(
        &["a"],
        &[],
        "COPY --chown=1000 a /a",
        &["a [644 1000:1000]"],
    );
}

#[test]
fn an_octal_mode_is_for_directories_too() {
    let want = [
        "a/ [644]",
        "a/b/ [644]",
        "a/b/s/ [644]",
        "a/b/s/f",
        "a/b/s/l -> f",
    ];
    check(
        &["dir/s/f [755]", "dir/s/l -> f"],
        &[],
        "COPY --chmod=644 dir /a/b/",
        &want,
    );
    fails(
        &["a"],
        &[],
        "COPY --chmod=9 a /a",
        "`9` is not a valid mode; use octal up to 07777, or symbolic such as `u=rwX,go=rX`",
    );
}

#[test]
fn a_symbolic_mode_changes_that_of_the_source() {
    let want = ["a/", "a/s/", "a/s/f", "a/s/x [755]"];
    let context = ["dir/s/ [700]", "dir/s/f [600]", "dir/s/x [700]"];
    check(&context, &[], "COPY --chmod=u=rwX,go=rX dir /a", &want);
    check(&["f"], &[], "COPY --chmod=+x f /n/f", &["n/", "n/f [755]"]);
}

#[test]
fn what_is_made_on_the_way_belongs_to_the_new_owner() {
    let want = ["a/ [755 5:5]", "a/b/ [755 5:5]", "a/b/f [644 5:5]"];
    check(&["f"], &[], "COPY --chown=5 f /a/b/", &want);
    let want = ["a/ [711 1:1]", "a/b/ [755 5:5]", "a/b/f [644 5:5]"];
    check(&["f"], &["a/ [711 1:1]"], "COPY --chown=5 f /a/b/", &want);
}

#[test]
fn excluded_paths_are_relative_to_what_is_copied() {
    let context = ["a.txt", "b.txt", "d/a.txt", "d/e/a.txt", "d/e/b.txt"];
    check(
        &context,
        &[],
        "COPY --exclude=a.txt *.txt /d/",
        &["d/", "d/a.txt", "d/b.txt"],
    );
    check(
        &context,
        &[],
        "COPY --exclude=a.txt --exclude=d . /e/",
        &["e/", "e/b.txt"],
    );
    check(
        &context,
        &[],
        "COPY --exclude=a.txt d /e/",
        &["e/", "e/e/", "e/e/a.txt", "e/e/b.txt"],
    );
    check(
        &context,
        &[],
        "COPY --exclude=**/a.txt d /e/",
        &["e/", "e/e/", "e/e/b.txt"],
    );
    let instruction = "COPY --exclude=e --exclude=!e/b.txt --exclude=a.txt d /e/";
    check(&context, &[], instruction, &["e/", "e/e/", "e/e/b.txt"]);
}

#[test]
fn parents_are_kept() {
    let context = [
        "a/ [711]",
        "a/b/ [750]",
        "a/b/c.txt",
        "a/b/d.txt",
        "a/x/c.txt",
    ];
    let want = ["d/", "d/a/ [711]", "d/a/b/ [750]", "d/a/b/c.txt"];
    check(&context, &[], "COPY --parents a/b/c.txt /d/", &want);
    check(&context, &[], "COPY --parents ./a/b/c.txt /d/", &want);
    check(
        &context,
        &[],
        "COPY --parents a/./b/c.txt /d/",
        &["d/", "d/b/ [750]", "d/b/c.txt"],
    );
    let want = [
        "d/",
        "d/a/ [711]",
        "d/a/b/ [750]",
        "d/a/b/c.txt",
        "d/a/x/",
        "d/a/x/c.txt",
    ];
    check(&context, &[], "COPY --parents **/c.txt /d/", &want);
    let want = [
        "d/",
        "d/a/ [711]",
        "d/a/b/ [750]",
        "d/a/b/c.txt",
        "d/a/b/d.txt",
    ];
    check(&context, &[], "COPY --parents a/b /d/", &want);
    let want = ["d/", "d/a/ [711]", "d/a/b/ [750]", "d/a/b/c.txt"];
    check(
        &context,
        &[],
        "COPY --parents --exclude=**/d.txt a/b /d/",
        &want,
    );
    let target = ["d/", "d/a/ [700 4:4]"];
    let want = ["d/", "d/a/ [711 4:4]", "d/a/x/", "d/a/x/c.txt"];
    check(&context, &target, "COPY --parents a/x/c.txt /d/", &want);
    fails(
        &context,
        &[],
        "COPY --parents a/c.txt /d/",
        "`a/c.txt` not found in the build context: did you mean `a/b/c.txt`?",
    );
}

#[test]
fn an_independent_layer_does_not_look_below() {
    let target = ["d -> /real", "real/"];
    check(&["f"], &target, "COPY --link f /d/", &["d/", "d/f"]);
    check(&["f"], &target, "COPY f /d/", &["real/", "real/f"]);
    check(
        &["f"],
        &["d/ [700 3:3]"],
        "COPY --link --chmod=600 f /d/",
        &["d/ [600]", "d/f [600]"],
    );
}

#[test]
fn the_plan_of_an_independent_layer_is_the_same_over_any_root() {
    let kit = Kit::new(&["f"], &["d/ [700 3:3]"]);
    let context = kit.context();
    let id = |target: &Rootfs, instruction: &str| {
        let plan = plan(
            &spec(instruction),
            &SourceTree::Context(&context),
            &Downloads::default(),
            target,
            UNPACK,
            &Cancel::new(),
        )
        .expect("a plan");
        kit.ingest(&plan).content_id
    };
    let (linked, plain) = ("COPY --link f /d/", "COPY f /d/");
    assert_eq!(id(&kit.target, linked), id(&Rootfs::empty(), linked));
    assert_ne!(id(&kit.target, plain), id(&Rootfs::empty(), plain));
}
