//! ADD of local archives.

use std::fs;
use std::io::Write;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use flate2::write::GzEncoder;
use layer::{Style, Writer};

use super::{Kit, Line};
use crate::copy::CopyError;

/// A tar archive of these lines.
fn tar(lines: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut tar = Writer::new(&mut bytes, Style::Copy);
    for line in lines {
        let (entry, data) = Line::parse(line).entry();
        tar.header(&entry.path, &entry.attributes(), &entry.kind)
            .expect("a header");
        tar.write_all(&data).expect("data");
        tar.pad(data.len() as u64).expect("padding");
    }
    tar.finish().expect("an end");
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("compressed");
    encoder.finish().expect("compressed")
}

/// Adds the archive as `a.tar` and lists the layer.
#[track_caller]
fn check(archive: &[u8], target: &[&str], instruction: &str, want: &[&str]) {
    let kit = Kit::new(&[], target);
    fs::write(kit.path().join("a.tar"), archive).expect("an archive");
    let plan = match kit.plan(instruction) {
        Ok(plan) => plan,
        Err(error) => panic!("{instruction}: {error}"),
    };
    assert_eq!(kit.list(&kit.ingest(&plan)), want, "{instruction}");
}

#[track_caller]
fn fails(lines: &[&str], target: &[&str], want: &str) {
    let kit = Kit::new(&[], target);
    fs::write(kit.path().join("a.tar"), tar(lines)).expect("an archive");
    assert_eq!(kit.error("ADD a.tar /d"), want);
}

const LINES: [&str; 4] = [
    "s/ [700 1:2]",
    "s/f = text [4755 3:4]",
    "s/h == s/f",
    "s/l -> /x",
];
const UNPACKED: [&str; 5] = [
    "d/",
    "d/s/ [700 1:2]",
    "d/s/f = text [4755 3:4]",
    "d/s/h == d/s/f [4755 3:4]",
    "d/s/l -> /x",
];

#[test]
fn the_destination_is_a_directory_whatever_its_name() {
    for archive in [
        tar(&LINES),
        gzip(&tar(&LINES)),
        zstd::encode_all(&*tar(&LINES), 1).expect("zstd"),
    ] {
        check(&archive, &[], "ADD a.tar /d", &UNPACKED);
        check(&archive, &[], "ADD a.tar /d/", &UNPACKED);
    }
    check(
        &tar(&["f"]),
        &[],
        "ADD a.tar /opt/a.tar",
        &["opt/", "opt/a.tar/", "opt/a.tar/f"],
    );
}

#[test]
fn other_compressions_are_known() {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(&tar(&LINES)).expect("compressed");
    check(
        &encoder.finish().expect("compressed"),
        &[],
        "ADD a.tar /d",
        &UNPACKED,
    );
    // `tar c f | xz`, where f is an empty file.
    let xz = hex::decode(XZ).expect("hexadecimal");
    check(&xz, &[], "ADD a.tar /d", &["d/", "d/f = "]);
}

/// Made with the tools of xz 5.4.
const XZ: &str = "\
    fd377a585a000004e6d6b446020021011c00000010cf58cce027ff004f5d00330033501868898301\
    dce26e340ae3d2b4291605b2559b4227f3b2a13c0bf93230d29c3da3560dfc2928483883d4b94922\
    7c6d003a65c8fbe3520281ec1f6d03cb314bafc2ba2f90d879a25d3a3e8400009ff3d95530e2f578\
    00016b805000000074948ddbb1c467fb020000000004595a";

#[test]
fn only_the_owner_can_be_changed() {
    check(
        &tar(&["f [600 1:2]"]),
        &[],
        "ADD --chmod=777 a.tar /d",
        &["d/", "d/f [600 1:2]"],
    );
    let want = ["d/ [755 5:6]", "d/f [600 5:6]"];
    check(
        &tar(&["f [600 1:2]"]),
        &[],
        "ADD --chown=5:6 a.tar /d",
        &want,
    );
    check(
        &tar(&["f", "g"]),
        &[],
        "ADD --exclude=f a.tar /d",
        &["d/", "d/f", "d/g"],
    );
}

#[test]
fn what_is_no_archive_is_a_file() {
    check(b"", &[], "ADD a.tar /d/", &["d/", "d/a.tar = "]);
    check(b"text", &[], "ADD a.tar /d", &["d = text"]);
    let kit = Kit::new(&["f"], &[]);
    fs::write(kit.path().join("a.tar"), tar(&["x"])).expect("an archive");
    let plan = kit.plan("COPY a.tar /d").expect("a plan");
    assert_eq!(plan.entries.len(), 1, "COPY never unpacks");
}

#[test]
fn an_archive_goes_through_the_links_of_the_target() {
    let target = ["lib -> usr/lib", "usr/", "usr/lib/ [711]"];
    let want = ["usr/", "usr/lib/ [711]", "usr/lib/x"];
    check(&tar(&["lib/x"]), &target, "ADD a.tar /", &want);
    check(
        &tar(&["lib/", "lib/x"]),
        &target,
        "ADD a.tar /",
        &["lib/", "lib/x"],
    );
}

#[test]
fn an_archive_replaces_what_is_in_its_way() {
    let target = ["d/", "d/x/", "d/x/y", "d/z [600]"];
    check(
        &tar(&["x = file"]),
        &target,
        "ADD a.tar /d",
        &["d/", "d/x = file"],
    );
    check(
        &tar(&["z/", "z/a"]),
        &target,
        "ADD a.tar /d",
        &["d/", "d/z/", "d/z/a"],
    );
    check(
        &tar(&["x/ [700]"]),
        &target,
        "ADD a.tar /d",
        &["d/", "d/x/ [700]"],
    );
}

#[test]
fn sources_behind_an_archive_see_it() {
    let kit = Kit::new(&["f = new"], &[]);
    fs::write(kit.path().join("a.tar"), tar(&["f = old", "g"])).expect("an archive");
    let plan = kit.plan("ADD a.tar f /d/").expect("a plan");
    assert_eq!(kit.list(&kit.ingest(&plan)), ["d/", "d/f = new", "d/g"]);
}

#[test]
fn hostile_archives_are_refused() {
    fails(
        &["l -> /etc", "l/passwd = evil"],
        &[],
        "cannot unpack a.tar: `l/passwd`: it is below something that is not a directory",
    );
    fails(
        &["h == nowhere"],
        &[],
        "cannot unpack a.tar: `h` has a name or a link target that is not allowed in an image",
    );
    fails(
        &[".wh.f = "],
        &[],
        "cannot unpack a.tar: `f` has a name or a link target that is not allowed in an image",
    );
}

#[test]
fn a_damaged_archive_is_an_error() {
    let kit = Kit::new(&[], &[]);
    let mut bytes = gzip(&tar(&["f = some text", "g"]));
    let at = bytes.len() - 6;
    bytes[at] ^= 0xff;
    fs::write(kit.path().join("a.tar"), bytes).expect("an archive");
    let error = kit.error("ADD a.tar /d");
    assert!(error.starts_with("cannot unpack a.tar: "), "{error}");
}

#[test]
fn a_small_archive_cannot_unpack_without_bound() {
    let kit = Kit::new(&[], &[]);
    let zeroes = "\0".repeat(40 << 20);
    let bomb = zstd::encode_all(&*tar(&[&format!("f = {zeroes}")]), 1).expect("zstd");
    assert!(bomb.len() < 8000, "{}", bomb.len());
    fs::write(kit.path().join("a.tar.zst"), &bomb).expect("an archive");
    let failed = kit.plan("ADD a.tar.zst /d").expect_err("a bomb");
    assert!(failed.is_limit() && !failed.is_host(), "{failed:?}");
    let error = failed.to_string();
    let limit = (16 << 20) + 100 * bomb.len();
    assert_eq!(
        error,
        format!(
            "cannot unpack a.tar.zst: it unpacks to more than {limit} bytes, the limit for {} \
             compressed bytes (--layer-ratio 100); raise that limit if you trust the archive",
            bomb.len()
        )
    );
    let report = kit.store.check(false).expect("a check");
    assert_eq!((report.objects, report.findings), (0, Vec::new()));
}

#[test]
fn an_archive_that_changes_while_it_is_read_leaves_nothing() {
    let kit = Kit::new(&[], &[]);
    let path = kit.path().join("a.tar");
    fs::write(&path, tar(&[&format!("f = {}", "x".repeat(32 << 20))])).expect("an archive");
    let (begun, ended) = (Barrier::new(2), AtomicBool::new(false));
    let error = thread::scope(|scope| {
        scope.spawn(|| {
            let file = fs::File::options().append(true).open(&path).expect("open");
            for second in 1.. {
                let time = UNIX_EPOCH + Duration::from_secs(second);
                file.set_modified(time).expect("touched");
                if second == 1 {
                    begun.wait();
                }
                if ended.load(Ordering::SeqCst) {
                    break;
                }
            }
        });
        begun.wait();
        let planned = kit.plan("ADD a.tar /d");
        ended.store(true, Ordering::SeqCst);
        planned.err()
    });
    assert!(matches!(error, Some(CopyError::Changed(_))), "{error:?}");
    let report = kit.store.check(false).expect("a check");
    assert_eq!((report.objects, report.findings), (0, Vec::new()));
}

#[test]
fn an_archive_is_read_once() {
    let kit = Kit::new(&[], &[]);
    let path = kit.path().join("a.tar");
    fs::write(&path, tar(&LINES)).expect("an archive");
    let context = kit.context();
    let first = kit
        .plan_from(&context, "ADD a.tar /d")
        .expect("a plan")
        .content_id();
    assert!(first.is_some(), "the result is known before it is written");
    // Were it read again, it would be found missing.
    fs::remove_file(&path).expect("removed");
    let again = kit
        .plan_from(&context, "ADD a.tar /d")
        .expect("a plan")
        .content_id();
    assert_eq!(first, again);
}

#[test]
fn a_directory_that_another_archive_replaced_does_not_come_back_with_old_content() {
    let kit = Kit::new(&[], &["x/", "x/d/", "x/d/old"]);
    for (name, lines) in [("a.tar", ["d"]), ("b.tar", ["d/"])] {
        fs::write(kit.path().join(name), tar(&lines)).expect("an archive");
    }
    let error = kit.error("ADD a.tar b.tar /x/");
    assert!(error.contains("x/d is a directory in the image"), "{error}");
}
