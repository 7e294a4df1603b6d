//! Log messages of the libraries: on standard error, or above the live display.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use crate::output::message;

/// Shows a line of text.
type Show = Arc<dyn Fn(String) + Send + Sync>;

/// Where records go while a display is active.
static DISPLAY: Mutex<Option<Show>> = Mutex::new(None);

/// Sets up logging at the level in `COFFERDAM_LOG`, by default `warn`.
pub(crate) fn start() {
    let filter = env_logger::Env::new().filter_or("COFFERDAM_LOG", "warn");
    let target = env_logger::Target::Pipe(Box::new(Sink));
    // Fails only if logging is already set up.
    env_logger::Builder::from_env(filter)
        .target(target)
        .format_timestamp(None)
        .try_init()
        .ok();
}

/// Sends log records to `show` from now on, or to standard error if it is `None`.
pub(crate) fn send_to(show: Option<Show>) {
    *DISPLAY.lock().unwrap_or_else(PoisonError::into_inner) = show;
}

/// The output of the logger. It writes each record as a whole. Records quote the guest and registries,
/// and the display sanitizes its notes, too.
struct Sink;

impl Write for Sink {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        let show = DISPLAY
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let text = String::from_utf8_lossy(record).trim_end().to_owned();
        match show {
            Some(show) => show(text),
            None => message(&text),
        }
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
