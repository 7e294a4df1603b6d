//! The console: where the agent reports when nothing else works.
//!
//! The launcher keeps the last lines of it for its error reports.
//!
//! **Law:** no output of a step goes here, and a broken console stops nothing.

use std::convert::Infallible;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::panic;
use std::thread;
use std::time::Duration;

use log::{LevelFilter, Log, Metadata, Record};
use nix::sys::reboot::{RebootMode, reboot};

/// Writes one line. The console is opened each time: this must work before /dev is mounted and after
/// a panic.
pub(crate) fn print(line: &str) {
    let console = OpenOptions::new().write(true).open("/dev/console");
    if let Ok(mut console) = console {
        // Nobody else can be told that the console is broken.
        console.write_all(format!("{line}\n").as_bytes()).ok();
    }
}

struct Console;

impl Log for Console {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &Record<'_>) {
        print(&format!("agent: {}", record.args()));
    }
    fn flush(&self) {}
}

/// Sends log records to the console and makes a panic end the VM.
pub(crate) fn install() {
    if log::set_logger(&Console).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
    panic::set_hook(Box::new(|info| {
        print(&format!("agent: panic: {info}"));
        power_off()
    }));
}

/// Powers off the VM. Data on the guest disk may be lost: the disk is a cache.
pub(crate) fn power_off() -> ! {
    // The last bytes of the console are still on their way to the host.
    thread::sleep(Duration::from_millis(20));
    let refused = match reboot(RebootMode::RB_POWER_OFF) {
        Err(refused) => refused,
        Ok(never) => match never {},
    };
    print(&format!("agent: power off: {refused}"));
    loop {
        thread::park();
    }
}

/// Runs `serve`, the work of PID 1, which can only end in failure, and then powers off the VM.
pub(crate) fn pid1(serve: impl FnOnce() -> anyhow::Result<Infallible>) -> ! {
    match serve() {
        Err(err) => print(&format!("agent: {err:#}")),
        Ok(never) => match never {},
    }
    power_off()
}
