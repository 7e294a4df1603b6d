//! The tail of a stream of unlimited length: a guest's console, a monitor's messages.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};

/// How many bytes are kept: enough for a kernel panic with its trace.
const KEPT: usize = 16 << 10;

/// The last bytes of a stream, in bounded memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tail(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    bytes: VecDeque<u8>,
    total: u64,
}

/// Becomes ready when everything was read.
#[derive(Debug)]
pub(crate) struct Drained(Receiver<()>);

impl Drained {
    /// Waits until the last writer has closed its end. Another process that inherited that end may
    /// keep it open for ever, hence the timeout.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        self.0.recv_timeout(timeout) == Err(crossbeam_channel::RecvTimeoutError::Disconnected)
    }
}

impl Tail {
    /// Reads `source` to its end on a thread of its own, so that its writer never waits.
    pub(crate) fn drain(
        name: &str,
        mut source: impl Read + Send + 'static,
    ) -> io::Result<(Self, Drained)> {
        let tail = Self::default();
        let ours = tail.clone();
        let (end, ended) = bounded(0);
        thread::Builder::new().name(name.into()).spawn(move || {
            let mut buf = [0; 4096];
            loop {
                match source.read(&mut buf) {
                    Ok(0) => break,
                    Ok(n) => ours.push(buf.get(..n).unwrap_or_default()),
                    Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                    Err(err) => {
                        log::debug!("cannot read the output of a monitor: {err}");
                        break;
                    }
                }
            }
            drop(end);
        })?;
        Ok((tail, Drained(ended)))
    }

    fn push(&self, bytes: &[u8]) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.total += bytes.len() as u64;
        inner.bytes.extend(bytes);
        let excess = inner.bytes.len().saturating_sub(KEPT);
        inner.bytes.drain(..excess);
    }

    /// How many bytes were read in all.
    pub(crate) fn total(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).total
    }

    /// The last lines, at most `max`, safe for a terminal: the guest controls these bytes, so control
    /// characters are left out.
    pub(crate) fn last_lines(&self, max: usize) -> Vec<String> {
        let bytes: Vec<u8> = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .bytes
            .iter()
            .copied()
            .collect();
        let text = String::from_utf8_lossy(&bytes);
        let mut lines: Vec<String> = text
            .lines()
            .map(|line| line.chars().filter(|c| !c.is_control()).collect::<String>())
            .filter(|line| !line.trim().is_empty())
            .collect();
        lines.split_off(lines.len().saturating_sub(max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_is_kept_and_everything_is_counted() {
        let line = "a line of a console\n";
        let text = line.repeat(10_000) + "last words";
        let (tail, end) = Tail::drain("tail", io::Cursor::new(text.clone().into_bytes())).unwrap();
        assert!(end.wait(Duration::from_secs(10)));
        assert_eq!(tail.total(), text.len() as u64);
        assert_eq!(tail.0.lock().unwrap().bytes.len(), KEPT);
        assert_eq!(tail.last_lines(2), ["a line of a console", "last words"]);
    }

    #[test]
    fn terminal_escapes_and_empty_lines_are_left_out() {
        let tail = Tail::default();
        tail.push(b"\x1b[2J\r\n\n \x07bad\xff\r\nok\n");
        assert_eq!(tail.last_lines(10), ["[2J", " bad\u{fffd}", "ok"]);
    }
}
