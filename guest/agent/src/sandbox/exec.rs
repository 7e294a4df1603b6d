//! Looking up and starting the program of a step, inside its root.

use std::convert::Infallible;
use std::ffi::{CStr, CString};

use anyhow::{Error, Result};
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access, execve};

use crate::fault;

/// Where programs are looked up if the environment has no `PATH`.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Executes the program in place of this one. Returns only if that fails.
pub(super) fn exec(args: &[Vec<u8>], env: &[Vec<u8>]) -> Result<Infallible> {
    let Some(program) = args.first() else {
        return Err(fault::setup("the step has no command"));
    };
    let args = c_strings(args, "an argument")?;
    let env_c = c_strings(env, "an environment entry")?;
    let mut worst = Refusal::Absent;
    for path in candidates(program, env) {
        let path = CString::new(path).map_err(|_| fault::setup("PATH contains a NUL byte"))?;
        let errno = match execve(&path, &args, &env_c) {
            Err(errno) => errno,
            Ok(never) => match never {},
        };
        let absent = matches!(errno, Errno::ENOENT | Errno::ENOTDIR);
        if absent && exists(&path) {
            worst = Refusal::Interpreter;
        } else if errno == Errno::EACCES {
            // Another directory may have a program that can be started.
            worst = Refusal::Errno(errno);
        } else if !absent {
            return Err(refused(program, &Refusal::Errno(errno)));
        }
    }
    Err(refused(program, &worst))
}

/// Why no candidate could be started.
enum Refusal {
    Absent,
    Interpreter,
    Errno(Errno),
}

fn refused(program: &[u8], why: &Refusal) -> Error {
    let shown = program.escape_ascii();
    fault::setup(match why {
        Refusal::Absent if program.contains(&b'/') => {
            format!("exec: \"{shown}\": no such file or directory in the image")
        }
        Refusal::Absent => format!("exec: \"{shown}\": not found in any directory of PATH"),
        Refusal::Interpreter => {
            format!("exec: \"{shown}\": its interpreter or loader is not in the image")
        }
        Refusal::Errno(Errno::ENOEXEC) => {
            format!("exec: \"{shown}\": not a program for this machine (wrong platform?)")
        }
        Refusal::Errno(errno) => format!("exec: \"{shown}\": {}", errno.desc()),
    })
}

/// The paths to try, in order.
fn candidates(program: &[u8], env: &[Vec<u8>]) -> Vec<Vec<u8>> {
    if program.contains(&b'/') {
        return vec![program.to_vec()];
    }
    let path = env.iter().find_map(|entry| entry.strip_prefix(b"PATH="));
    path.unwrap_or(DEFAULT_PATH)
        .split(|byte| *byte == b':')
        .map(|dir| if dir.is_empty() { b"." } else { dir })
        .map(|dir| [dir, b"/", program].concat())
        .collect()
}

fn c_strings(list: &[Vec<u8>], what: &str) -> Result<Vec<CString>> {
    let nul = |_| fault::setup(format!("{what} contains a NUL byte"));
    list.iter()
        .map(|text| CString::new(text.as_slice()).map_err(nul))
        .collect()
}

/// Whether a file exists at a path. A symbolic link exists if its target does.
pub(super) fn exists(path: &CStr) -> bool {
    access(path, AccessFlags::F_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use wire::FailureKind;

    use super::*;

    #[track_caller]
    fn check(program: &str, env: &[&str], want: &[&str]) {
        let env: Vec<Vec<u8>> = env.iter().map(|entry| entry.as_bytes().to_vec()).collect();
        let want: Vec<Vec<u8>> = want.iter().map(|path| path.as_bytes().to_vec()).collect();
        assert_eq!(candidates(program.as_bytes(), &env), want);
    }

    #[test]
    fn names_are_looked_up_in_path_and_paths_are_not() {
        check("sh", &["A=b", "PATH=/a:/b", "PATH=/c"], &["/a/sh", "/b/sh"]);
        check("sh", &["PATH=:/a"], &["./sh", "/a/sh"]);
        check("./sh", &["PATH=/a"], &["./sh"]);
        assert_eq!(candidates(b"sh", &[]).len(), 6);
    }

    #[track_caller]
    fn check_refusal(program: &str, text: &str) {
        let err = exec(&[program.as_bytes().to_vec()], &[b"PATH=/bin".to_vec()]).unwrap_err();
        let failure = fault::failure(&err);
        assert_eq!(
            (failure.kind, failure.text.as_str()),
            (FailureKind::Setup, text)
        );
    }

    #[test]
    fn each_error_says_what_is_wrong() {
        let temp = tempfile::tempdir().unwrap();
        let path = |name: &str| temp.path().join(name).to_str().unwrap().to_owned();
        check_refusal(
            "/no/such",
            "exec: \"/no/such\": no such file or directory in the image",
        );
        check_refusal(
            "no-such",
            "exec: \"no-such\": not found in any directory of PATH",
        );
        for (name, content, mode, why) in [
            (
                "script",
                "#!/no/such\n",
                0o755,
                "its interpreter or loader is not in the image",
            ),
            (
                "data",
                "data",
                0o755,
                "not a program for this machine (wrong platform?)",
            ),
            ("plain", "data", 0o644, "Permission denied"),
        ] {
            std::fs::write(path(name), content).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(path(name), mode).unwrap();
            check_refusal(&path(name), &format!("exec: \"{}\": {why}", path(name)));
        }
    }
}
