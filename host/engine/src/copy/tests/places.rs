//! Where things go, and what stands in their way.

use super::{check, fails};

#[test]
fn a_directory_means_its_contents() {
    for source in [
        "src", "src/", "src/.", "/src", "./src", "../src", "x/../src",
    ] {
        let want = &["app/", "app/main.c"];
        check(&["src/main.c"], &[], &format!("COPY {source} /app/"), want);
        check(&["src/main.c"], &[], &format!("COPY {source} /app"), want);
    }
}

#[test]
fn a_file_takes_the_name_of_its_destination() {
    check(&["a"], &[], "COPY a /b", &["b = a"]);
    check(&["a"], &[], "COPY a /b/", &["b/", "b/a"]);
    check(&["a"], &[], "COPY a /b/.", &["b/", "b/a"]);
    check(&["a"], &["b/"], "COPY a /b", &["b/", "b/a"]);
    check(&["a"], &[], "COPY a x/y/b", &["x/", "x/y/", "x/y/b = a"]);
    check(&["d/a"], &[], "COPY d/a /", &["a"]);
}

#[test]
fn destinations_are_relative_to_the_working_directory() {
    let workdir = &["w/ [700 5:6]"];
    for dest in [".", "./"] {
        check(
            &["a"],
            workdir,
            &format!("COPY --cwd=/w a {dest}"),
            &["w/ [700 5:6]", "w/a"],
        );
    }
    check(
        &["a"],
        workdir,
        "COPY --cwd=/w a b",
        &["w/ [700 5:6]", "w/b = a"],
    );
    check(&["a"], workdir, "COPY --cwd=/w a ../b", &["b = a"]);
    check(&["a"], workdir, "COPY --cwd=/w a ../../../b", &["b = a"]);
    check(&["a"], workdir, "COPY --cwd=/w a /b", &["b = a"]);
    check(&["a"], &[], "COPY --cwd=/n a .", &["n/", "n/a"]);
}

#[test]
fn a_star_flattens_one_level() {
    check(
        &["sub/a/x", "sub/f"],
        &[],
        "COPY sub/* /d/",
        &["d/", "d/f", "d/x"],
    );
}

#[test]
fn a_single_match_renames() {
    check(&["v1.txt"], &[], "COPY v*.txt out", &["out = v1.txt"]);
    check(
        &["v1.txt", "v2.txt"],
        &[],
        "COPY v*.txt out",
        &["out = v2.txt"],
    );
}

#[test]
fn later_sources_see_what_earlier_ones_left() {
    check(&["d/x", "f"], &[], "COPY d f /o", &["o/", "o/f", "o/x"]);
    check(
        &["d/f = one", "e/f = two"],
        &[],
        "COPY d e /o",
        &["o/", "o/f = two"],
    );
    fails(
        &["d/x", "f"],
        &[],
        "COPY f d /o",
        "cannot copy to non-directory: /o",
    );
    check(
        &["d/l -> /real", "f"],
        &["real/"],
        "COPY d /o",
        &["o/", "o/l -> /real"],
    );
}

#[test]
fn links_in_the_destination_are_followed() {
    check(
        &["f"],
        &["etc/real = old", "cfg -> /etc/real"],
        "COPY f /cfg",
        &["etc/", "etc/real = f"],
    );
    check(
        &["f"],
        &["real/", "d -> real"],
        "COPY f /d/",
        &["real/", "real/f"],
    );
    check(
        &["f"],
        &["real/", "d -> /../real"],
        "COPY f /d",
        &["real/", "real/f"],
    );
    check(
        &["t/f"],
        &["real/", "d -> real"],
        "COPY t /d",
        &["real/", "real/f"],
    );
    check(
        &["f"],
        &["d -> /new/place"],
        "COPY f /d",
        &["new/", "new/place = f"],
    );
    check(
        &["f"],
        &["d -> /new/place"],
        "COPY f /d/",
        &["new/", "new/place/", "new/place/f"],
    );
    check(
        &["f"],
        &["a/", "a/l -> ../b", "b/"],
        "COPY f /a/l/c",
        &["b/", "b/c = f"],
    );
    fails(
        &["f"],
        &["l -> l"],
        "COPY f /l",
        "/l: too many levels of symbolic links",
    );
}

#[test]
fn a_link_deeper_down_is_in_the_way() {
    fails(
        &["tree/lib/x"],
        &["usr/", "usr/lib/", "o/", "o/lib -> /usr/lib"],
        "COPY tree /o",
        "cannot copy to non-directory: /o/lib",
    );
}

#[test]
fn types_that_do_not_go_together_are_errors() {
    fails(
        &["d/x"],
        &["o = file"],
        "COPY d /o",
        "cannot copy to non-directory: /o",
    );
    fails(
        &["d/x/y"],
        &["o/", "o/x"],
        "COPY d /o",
        "cannot copy to non-directory: /o/x",
    );
    fails(
        &["d/x"],
        &["o/", "o/x/"],
        "COPY d /o",
        "cannot replace to directory /o/x with file",
    );
    fails(
        &["x"],
        &["o/", "o/x/"],
        "COPY x /o",
        "cannot replace to directory /o/x with file",
    );
    fails(
        &["x"],
        &["o/", "o/x/"],
        "COPY x /o/",
        "cannot replace to directory /o/x with file",
    );
    fails(&["x"], &["o = file"], "COPY x /o/", "/o: not a directory");
    fails(
        &["x"],
        &["o = file"],
        "COPY x /o/p/q",
        "/o: not a directory",
    );
}

#[test]
fn nested_files_and_links_are_replaced() {
    check(
        &["d/x = new"],
        &["o/", "o/x = old"],
        "COPY d /o",
        &["o/", "o/x = new"],
    );
    check(
        &["d/x = new"],
        &["o/", "o/x -> /etc"],
        "COPY d /o",
        &["o/", "o/x = new"],
    );
    check(
        &["x = new"],
        &["o/", "o/x -> /etc"],
        "COPY x /o/",
        &["o/", "o/x = new"],
    );
    check(
        &["d/x -> y"],
        &["o/", "o/x = old"],
        "COPY d /o",
        &["o/", "o/x -> y"],
    );
}

#[test]
fn nested_directories_take_the_mode_of_the_source() {
    check(
        &["root/tmp/ [755]", "root/tmp/f"],
        &["tmp/ [1777 3:4]"],
        "COPY root/ /",
        &["tmp/", "tmp/f"],
    );
}

#[test]
fn the_top_directory_keeps_its_mode() {
    check(
        &["d/ [700]", "d/f"],
        &["o/ [1777 3:4]"],
        "COPY d /o",
        &["o/ [1777 3:4]", "o/f"],
    );
    check(&["d/ [700]", "d/f"], &[], "COPY d /o", &["o/", "o/f"]);
    check(
        &["d/ [700]", "d/s/ [700]"],
        &[],
        "COPY d /o",
        &["o/", "o/s/ [700]"],
    );
}

#[test]
fn files_in_the_dockerfile_have_their_own_name() {
    check(&[], &[], "COPY <<name=text /d/", &["d/", "d/name = text"]);
    check(&[], &[], "COPY <<name=text /d", &["d = text"]);
    check(
        &[],
        &[],
        "COPY --chmod=755 --chown=7 <<n=x <<n=y /d/",
        &["d/ [755 7:7]", "d/n = y [755 7:7]"],
    );
}
