//! Where the Dockerfile comes from, when the context is somebody else's.

use std::fs;
use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use engine::build::{BuildError, Class, DockerfileSource, chain};
use exec::Cancel;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;

use crate::bench::Bench;

/// No Dockerfile: if it is read as one, the error quotes its line.
const SECRET: &str = "root:*:19000:0:99999:7:::\n";

/// A file that the context has no business with.
fn secret() -> (TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shadow");
    fs::write(&path, SECRET).unwrap();
    (dir, path)
}

fn build(bench: &Bench, dockerfile: DockerfileSource) -> Result<(), BuildError> {
    let mut request = bench.request("");
    request.dockerfile = dockerfile;
    bench.build_as(&request, &Cancel::new()).result.map(drop)
}

/// Checks that a build is refused with a message that has this text, and quotes nothing.
#[track_caller]
fn check_refused(bench: &Bench, dockerfile: DockerfileSource, text: &str) {
    let shown = format!("{dockerfile:?}");
    let error = build(bench, dockerfile).unwrap_err();
    let message = chain(&error);
    assert!(message.contains(text), "{shown}: {message}");
    assert!(!message.contains("root:"), "{shown}: {message}");
    assert_eq!(
        (error.class(), error.excerpt()),
        (Class::User, None),
        "{shown}"
    );
}

#[test]
fn a_link_to_a_dockerfile_that_leads_out_of_the_context_is_refused_and_quoted_nowhere() {
    let (_dir, secret) = secret();
    for name in ["Dockerfile", "dockerfile", "sub/Dockerfile.prod"] {
        let bench = Bench::new();
        let context = bench.context();
        fs::create_dir_all(context.join("sub")).unwrap();
        symlink(&secret, context.join(name)).unwrap();
        let refused = "leads out of the build context";
        check_refused(&bench, DockerfileSource::Path(context.join(name)), refused);
        if !name.contains('/') {
            check_refused(&bench, DockerfileSource::Default, refused);
        }
        // Named by the user, it is his own word, and his error to see.
        let error = build(&bench, DockerfileSource::Path(secret.clone())).unwrap_err();
        assert!(error.excerpt().unwrap().contains("root:"), "{error}");
    }
}

#[test]
fn a_link_within_the_context_may_be_the_dockerfile() {
    let bench = Bench::new();
    bench.write("a", "one");
    bench.write("real", "FROM scratch\nCOPY a /a\n");
    let context = bench.context();
    symlink("real", context.join("Dockerfile")).unwrap();
    build(&bench, DockerfileSource::Default).unwrap();
    build(&bench, DockerfileSource::Path(context.join("Dockerfile"))).unwrap();
}

#[test]
fn an_ignore_file_beside_the_dockerfile_leads_out_of_the_context_as_little() {
    let (_dir, secret) = secret();
    for name in [".dockerignore", "Dockerfile.dockerignore"] {
        let bench = Bench::new();
        bench.write("Dockerfile", "FROM scratch\n");
        let context = bench.context();
        symlink(&secret, context.join(name)).unwrap();
        let refused = "leads out of the build context";
        check_refused(&bench, DockerfileSource::Default, refused);
        let named = DockerfileSource::Path(context.join("Dockerfile"));
        check_refused(&bench, named, refused);
    }
}

/// A path that is relative to the working directory is the usual one, and names a file in the context
/// as well as an absolute one does.
#[test]
fn a_relative_path_is_a_path_in_the_context_too() {
    let (_dir, secret) = secret();
    let here = std::env::current_dir().unwrap();
    let bench = Bench::new();
    bench.write("Dockerfile", "FROM scratch\n");
    let context = bench.context();
    let up = "../".repeat(here.components().count());
    let relative = Path::new(&up).join(context.strip_prefix("/").unwrap());
    symlink(&secret, context.join("Dockerfile.dockerignore")).unwrap();
    symlink(&secret, context.join("link")).unwrap();
    let refused = "leads out of the build context";
    for name in ["Dockerfile", "link"] {
        check_refused(&bench, DockerfileSource::Path(relative.join(name)), refused);
    }
}

#[test]
fn a_dockerfile_in_the_context_that_is_no_regular_file_is_refused_at_once() {
    let bench = Bench::new();
    let context = bench.context();
    let path = context.join("Dockerfile");
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    check_refused(&bench, DockerfileSource::Default, "a named pipe");
    check_refused(&bench, DockerfileSource::Path(path.clone()), "a named pipe");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    check_refused(&bench, DockerfileSource::Default, "a directory");
    fs::remove_dir(&path).unwrap();
    let socket = UnixListener::bind(&path).unwrap();
    check_refused(&bench, DockerfileSource::Default, "a socket");
    drop(socket);
    let device = DockerfileSource::Path("/dev/zero".into());
    check_refused(&bench, device, "a device");
}

#[test]
fn a_pipe_that_the_user_names_is_read_within_limits() {
    let bench = Bench::new();
    bench.write("a", "one");
    let feed = |bytes: Vec<u8>| {
        let (reader, mut writer) = std::io::pipe().unwrap();
        // As the shell does for `<(…)`.
        let path = format!("/dev/fd/{}", reader.as_raw_fd());
        std::thread::scope(|scope| {
            // Its reader may have seen enough.
            scope.spawn(move || writer.write_all(&bytes).ok());
            let built = build(&bench, DockerfileSource::Path(path.into()));
            drop(reader);
            built
        })
    };
    feed(b"FROM scratch\nCOPY a /a\n".to_vec()).unwrap();
    let error = feed(vec![b'#'; (16 << 20) + 2]).unwrap_err();
    assert!(chain(&error).contains("larger than 16 MiB"), "{error}");
}

#[test]
fn a_pipe_that_nobody_writes_to_honours_cancel() {
    let bench = Bench::new();
    let (reader, _writer) = std::io::pipe().unwrap();
    let mut request = bench.request("");
    let path = format!("/dev/fd/{}", reader.as_raw_fd());
    request.dockerfile = DockerfileSource::Path(path.into());
    let cancel = Cancel::new();
    std::thread::scope(|scope| {
        let building = scope.spawn(|| bench.build_as(&request, &cancel).result);
        cancel.cancel();
        assert!(matches!(
            building.join().unwrap(),
            Err(BuildError::Cancelled)
        ));
    });
}
