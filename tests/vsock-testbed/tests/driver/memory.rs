//! Memory use of one test, measured in a process of its own.

use std::fs;
use std::process::Command;

/// Set in the process that was started for a test.
const ALONE: &str = "COFFERDAM_TEST_ALONE";

/// Whether this process runs only the test `name`. If not, starts one that does, and returns when it has
/// succeeded.
pub(crate) fn is_alone(name: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--include-ignored"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(
        run.status.success() && said.contains("1 passed"),
        "{said}\n{}",
        String::from_utf8_lossy(&run.stderr)
    );
    false
}

/// The largest resident memory of this process so far, in bytes.
pub(crate) fn peak() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<usize>().unwrap() * 1024
}

/// Checks that memory has grown since `before` by the windows and no more: the arena, which driver and
/// device map each, what the device buffers for both directions, and a little for threads and buffers.
#[track_caller]
pub(crate) fn check_grown(before: usize, config: &vsock_driver::Config) {
    const DEVICE: usize = 5 << 20;
    const LITTLE: usize = 8 << 20;
    let grown = peak() - before;
    let window = 2 * config.arena_size() + DEVICE;
    assert!(grown < window + LITTLE, "{} MiB", grown >> 20);
}
