//! The memory of a process of its own, in which nothing else goes on.

use std::fs;
use std::process::Command;

/// Set in the process that was started for a test.
const ALONE: &str = "COFFERDAM_TEST_ALONE";

/// Whether this process was started for the test `name` alone. If not, one is started, and it has
/// succeeded when this returns.
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

/// Checks that memory grew by the windows and no more since it was `before`: the arena, which the
/// driver and the device have mapped each, what the device holds for both directions, and a little
/// for threads and buffers.
#[track_caller]
pub(crate) fn check_grown(before: usize, config: &vsock_driver::Config) {
    const DEVICE: usize = 5 << 20;
    const LITTLE: usize = 8 << 20;
    let grown = peak() - before;
    let window = 2 * config.arena_size() + DEVICE;
    assert!(grown < window + LITTLE, "{} MiB", grown >> 20);
}
