//! The first SIGINT, SIGTERM or SIGHUP cancels the command; the second exits immediately.
//!
//! After an immediate exit the next command cleans up, as after a crash. It is possible only after the
//! cancel was recorded, so that the history never takes a cancelled build for one that died.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use exec::Cancel;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;

use crate::exit::Class;

/// Signals within this time of the first are the same one: `timeout`, terminals and wrappers send it to
/// a process and then to its group.
const SAME_SIGNAL: Duration = Duration::from_millis(500);
/// How long the record of a cancel may keep a second signal from ending the command. The store may be
/// what hangs.
const RECORD_LIMIT: Duration = Duration::from_secs(2);

/// Records that the command was told to stop.
type Record = Box<dyn FnOnce() + Send>;

/// The watch for signals, which lasts until the process ends.
#[derive(Clone, Default)]
pub(crate) struct Watch {
    record: Arc<Mutex<Option<Record>>>,
}

impl Watch {
    /// Calls `record` at the first signal, on a thread of its own. A signal that came before is for the
    /// caller to see in the cancel.
    pub(crate) fn on_cancel(&self, record: impl FnOnce() + Send + 'static) {
        let mut slot = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = Some(Box::new(record));
    }

    fn take(&self) -> Option<Record> {
        let mut slot = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        slot.take()
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}

/// Handles signals until the process ends. Calls `notify` at the first one.
pub(crate) fn watch(cancel: &Cancel, notify: impl FnOnce() + Send + 'static) -> io::Result<Watch> {
    let terminating = [SIGINT, SIGTERM, SIGHUP];
    // First, so that there is no moment in which a signal does nothing.
    let mut signals = Signals::new(terminating)?;
    let armed = Arc::new(AtomicBool::new(false));
    for signal in terminating {
        // This exit happens in the signal handler, so it works even if every thread hangs.
        let status = Class::Cancelled.status().into();
        flag::register_conditional_shutdown(signal, status, Arc::clone(&armed))?;
    }
    let (cancel, watch) = (cancel.clone(), Watch::default());
    let recorder = watch.clone();
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            if signals.forever().next().is_some() {
                cancel.cancel();
                first_signal(recorder, notify);
                armed.store(true, Ordering::SeqCst);
            }
        })?;
    Ok(watch)
}

/// Does what is due at the first signal. Returns when the next one may end the process.
fn first_signal(watch: Watch, notify: impl FnOnce() + Send + 'static) {
    let began = Instant::now();
    let (done, is_done) = bounded(1);
    let recording = thread::Builder::new().spawn(move || {
        if let Some(record) = watch.take() {
            record();
        }
        // Fails only if nobody waits any more.
        done.send(()).ok();
    });
    // A display that hangs must not keep the process from being ended.
    let notifying = thread::Builder::new().spawn(notify);
    for failed in [recording.err(), notifying.err()].into_iter().flatten() {
        log::debug!("cannot start a thread: {failed}");
    }
    // An error means that the thread has ended, too.
    is_done.recv_timeout(RECORD_LIMIT).ok();
    thread::sleep(SAME_SIGNAL.saturating_sub(began.elapsed()));
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::Command;

    use signal_hook::low_level::raise;

    use super::*;

    /// Tells itself to stop twice at once, then again and again.
    #[test]
    #[ignore = "a process that another test starts"]
    fn helper_raises_signals() {
        let cancel = Cancel::new();
        let (recorded, is_recorded) = bounded(1);
        let watch = watch(&cancel, || {}).unwrap();
        watch.on_cancel(move || recorded.send(()).unwrap());
        raise(SIGTERM).unwrap();
        raise(SIGINT).unwrap();
        is_recorded.recv().unwrap();
        assert!(cancel.is_cancelled());
        io::stdout().write_all(b"recorded\n").unwrap();
        loop {
            raise(SIGTERM).unwrap();
            thread::yield_now();
        }
    }

    #[test]
    fn two_signals_at_once_are_one_and_a_later_one_exits_after_the_record() {
        let done = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "signals::tests::helper_raises_signals"])
            .args(["--ignored", "--nocapture"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&done.stdout);
        assert!(text.contains("recorded\n"), "{text}");
        assert_eq!(done.status.code(), Some(130), "{text}");
    }
}
