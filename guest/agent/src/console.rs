//! The console: the agent's last word when nothing else works.
//!
//! The launcher keeps the end of it for its error reports. The law: nothing that a step printed
//! goes here, and a console that fails stops nothing.

use std::convert::Infallible;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::panic;
use std::thread;
use std::time::Duration;

use log::{LevelFilter, Log, Metadata, Record};
use nix::sys::reboot::{RebootMode, reboot};

/// Writes one line. Opened anew each time: it must work before /dev is mounted and after a panic.
pub(crate) fn print(line: &str) {
    let console = OpenOptions::new().write(true).open("/dev/console");
    if let Ok(mut console) = console {
        // There is nobody else to tell that the console is broken.
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

/// Ends the VM. What is on the guest disk may be lost: it is a cache.
pub(crate) fn power_off() -> ! {
    // The console's last bytes are still on their way to the host.
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

/// Runs PID 1's work, which can only end in failure, and then ends the VM.
pub(crate) fn pid1(serve: impl FnOnce() -> anyhow::Result<Infallible>) -> ! {
    match serve() {
        Err(err) => print(&format!("agent: {err:#}")),
        Ok(never) => match never {},
    }
    power_off()
}
