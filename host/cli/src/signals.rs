//! The first SIGINT, SIGTERM or SIGHUP cancels the command; the second exits immediately.
//!
//! After an immediate exit the next command cleans up, as after a crash.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use exec::Cancel;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;

use crate::exit::Class;

/// Handles signals until the process ends. Calls `notify` at the first one.
pub(crate) fn watch(cancel: &Cancel, notify: impl Fn() + Send + 'static) -> io::Result<()> {
    let terminating = [SIGINT, SIGTERM, SIGHUP];
    let second = Arc::new(AtomicBool::new(false));
    for signal in terminating {
        // The order matters: the first signal finds the flag unset, then sets it. The exit happens
        // in the signal handler, so it works even if every thread hangs.
        flag::register_conditional_shutdown(
            signal,
            Class::Cancelled.status().into(),
            Arc::clone(&second),
        )?;
        flag::register(signal, Arc::clone(&second))?;
    }
    let mut signals = Signals::new(terminating)?;
    let cancel = cancel.clone();
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            if signals.forever().next().is_some() {
                cancel.cancel();
                notify();
            }
        })?;
    Ok(())
}
