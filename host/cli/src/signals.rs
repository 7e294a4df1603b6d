//! The first SIGINT, SIGTERM or SIGHUP cancels; the second ends the process at once.
//!
//! What is left behind then is settled by the next command, as after a crash.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use exec::Cancel;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;

use crate::exit::Class;

/// Watches for signals for the rest of the process's life. `told` is called at the first one.
pub(crate) fn watch(cancel: &Cancel, told: impl Fn() + Send + 'static) -> io::Result<()> {
    let ending = [SIGINT, SIGTERM, SIGHUP];
    let second = Arc::new(AtomicBool::new(false));
    for signal in ending {
        // In this order: the first signal finds the flag unset and sets it. Leaving happens within
        // the handler, so it works even if every thread is stuck.
        flag::register_conditional_shutdown(
            signal,
            Class::Cancelled.status().into(),
            Arc::clone(&second),
        )?;
        flag::register(signal, Arc::clone(&second))?;
    }
    let mut signals = Signals::new(ending)?;
    let cancel = cancel.clone();
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            if signals.forever().next().is_some() {
                cancel.cancel();
                told();
            }
        })?;
    Ok(())
}
