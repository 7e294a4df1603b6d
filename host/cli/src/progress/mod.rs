//! Shows the progress of a build without slowing it down.
//!
//! The threads of the engine put events into a bounded [`queue`]; a renderer thread takes them out
//! and writes. A slow, stopped or closed terminal blocks or ends the renderer thread only, never the
//! build. At the end the program waits for the renderer only as long as it makes progress.
//!
//! [`plain`], [`tty`], [`quiet`] and [`rawjson`] are the displays; [`text`] has the lines that they
//! share.

mod plain;
mod queue;
mod quiet;
mod rawjson;
mod text;
mod tty;

use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use engine::event::{Event, Reporter};

pub(crate) use rawjson::{comparison, explanation, with};
pub(crate) use text::log_time;

use crate::exit::Class;
use plain::Plain;
use queue::{Item, Queue};
use quiet::Quiet;
use rawjson::RawJson;
use text::Ending;
use tty::Tty;

/// Interval between redraws of the live display.
const TICK: Duration = Duration::from_millis(100);
/// How long the program waits at its end for a display that makes no progress.
const STALL_LIMIT: Duration = Duration::from_secs(5);

/// How to show progress on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// `tty` on a terminal, otherwise `plain`
    Auto,
    /// One line after the other
    Plain,
    /// Live display; requires a terminal
    Tty,
    /// Errors only
    Quiet,
    /// One JSON object per line
    Rawjson,
}

/// How the build ended: the last thing to show.
#[derive(Debug)]
pub(crate) struct End {
    /// The error class, or `None` after a success.
    pub(crate) class: Option<Class>,
    /// The last lines, such as the error message.
    pub(crate) closing: Vec<String>,
}

/// The display of a build.
#[derive(Debug)]
pub(crate) struct Progress {
    shared: Arc<Shared>,
    done: Receiver<()>,
}

#[derive(Debug)]
struct Shared {
    queue: Queue,
    /// Number of items shown, to see whether the renderer makes progress.
    shown: AtomicU64,
    end: Mutex<Option<End>>,
}

impl Progress {
    /// Starts the display.
    pub(crate) fn start(mode: Mode) -> io::Result<Self> {
        Self::with(Display::new(mode)?)
    }

    fn with(display: Display) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Queue::new(Instant::now()),
            shown: AtomicU64::new(0),
            end: Mutex::new(None),
        });
        let (finished, done) = bounded(1);
        let renderer = Arc::clone(&shared);
        thread::Builder::new()
            .name("renderer".into())
            .spawn(move || {
                // A closed output ends the display only.
                if render(display, &renderer).is_err() {
                    renderer.queue.abandon();
                }
                finished.try_send(()).ok();
            })?;
        Ok(Self { shared, done })
    }

    /// Shows a message of the program itself.
    pub(crate) fn note(&self, text: impl Into<String>) {
        self.shared.queue.note(text.into());
    }

    /// Shows the end, and waits for the display as long as it makes progress.
    pub(crate) fn finish(&self, end: End) {
        self.finish_within(end, STALL_LIMIT);
    }

    fn finish_within(&self, end: End, stall_limit: Duration) {
        *self
            .shared
            .end
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(end);
        self.shared.queue.close();
        let mut before = None;
        loop {
            let shown = self.shared.shown.load(Ordering::Relaxed);
            if before == Some(shown) {
                return;
            }
            before = Some(shown);
            match self.done.recv_timeout(stall_limit) {
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

impl Reporter for Progress {
    fn report(&self, event: Event) {
        self.shared.queue.event(event);
    }
}

/// The body of the renderer thread.
fn render(mut display: Display, shared: &Shared) -> io::Result<()> {
    loop {
        let (items, closed) = shared.queue.take(TICK);
        for item in items {
            display.item(item)?;
            shared.shown.fetch_add(1, Ordering::Relaxed);
        }
        if closed {
            break;
        }
        display.tick(shared.queue.now())?;
    }
    let end = shared
        .end
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    end.map_or(Ok(()), |end| display.finish(shared.queue.now(), &end))
}

/// The output of a display that writes line by line.
type Out = Box<dyn Write + Send>;

/// One of the displays.
enum Display {
    Plain(Plain<Out>),
    Tty(Box<Tty>),
    Quiet(Quiet, Out),
    RawJson(RawJson<Out>),
}

impl Display {
    /// On standard error.
    fn new(mode: Mode) -> io::Result<Self> {
        let out = || -> Out { Box::new(BufWriter::new(io::stderr())) };
        let terminal = io::stderr().is_terminal();
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Ok(match mode {
            Mode::Tty if !terminal => {
                return Err(io::Error::other(
                    "--progress tty requires a terminal on standard error",
                ));
            }
            Mode::Auto if terminal && !dumb => Self::Tty(Box::new(Tty::on_stderr(colours()))),
            Mode::Tty => Self::Tty(Box::new(Tty::on_stderr(colours()))),
            Mode::Auto | Mode::Plain => Self::Plain(Plain::new(out())),
            Mode::Quiet => Self::Quiet(Quiet::default(), out()),
            Mode::Rawjson => Self::RawJson(RawJson::new(out())),
        })
    }

    fn item(&mut self, item: Item) -> io::Result<()> {
        match self {
            Self::Plain(plain) => plain.item(item)?,
            Self::Tty(tty) => tty.item(item)?,
            Self::Quiet(quiet, _) => quiet.item(item),
            Self::RawJson(raw) => raw.item(item)?,
        }
        Ok(())
    }

    fn tick(&mut self, now: Duration) -> io::Result<()> {
        match self {
            Self::Plain(plain) => plain.tick(now)?,
            Self::Tty(tty) => tty.tick(now),
            Self::Quiet(..) => {}
            Self::RawJson(raw) => raw.flush()?,
        }
        Ok(())
    }

    fn finish(&mut self, now: Duration, end: &End) -> io::Result<()> {
        let ending = match end.class {
            None | Some(Class::Differs) => Ending::Built,
            Some(Class::Cancelled) => Ending::Cancelled,
            Some(Class::User | Class::Usage | Class::Limit | Class::Host) => Ending::Failed,
        };
        match self {
            Self::Plain(plain) => plain.finish(now, ending, &end.closing),
            Self::Tty(tty) => tty.finish(now, ending, &end.closing),
            Self::Quiet(quiet, out) => {
                for line in quiet.finish().iter().chain(&end.closing) {
                    writeln!(out, "{line}")?;
                }
                out.flush()
            }
            Self::RawJson(raw) => {
                let name = end.class.map_or("success", Class::name);
                let status = end.class.map_or(0, Class::status);
                let error = (!end.closing.is_empty()).then(|| end.closing.join("\n"));
                raw.finish(now, name, status, error.as_deref())
            }
        }
    }
}

/// Whether to use colours on standard error: it is a terminal, and neither `NO_COLOR` nor a similar
/// variable forbids them.
fn colours() -> bool {
    anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never
}

#[cfg(test)]
mod tests {
    use engine::event::Outcome;
    use exec::Stream;

    use super::*;

    /// A reader that never reads: the first write blocks until the end of the test.
    struct Stuck(Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            self.0.recv().ok();
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A reader that has closed the pipe.
    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Captures what is written.
    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn plain(out: impl Write + Send + 'static) -> Progress {
        Progress::with(Display::Plain(Plain::new(Box::new(out)))).unwrap()
    }

    fn report_a_lot(progress: &Progress) {
        progress.report(Event::Started {
            step: 1,
            name: "RUN yes".into(),
        });
        for _ in 0..10_000 {
            let data = vec![b'y'; 10_000];
            progress.report(Event::Log {
                step: 1,
                stream: Stream::Stdout,
                data,
            });
        }
        progress.report(Event::Ended {
            step: 1,
            outcome: Outcome::Done,
            took: Duration::ZERO,
        });
    }

    fn end(closing: &[&str]) -> End {
        End {
            class: None,
            closing: closing.iter().map(|line| (*line).to_owned()).collect(),
        }
    }

    #[test]
    fn a_reader_that_never_reads_blocks_neither_the_build_nor_its_end() {
        let (release, held) = bounded(1);
        let progress = plain(Stuck(held));
        report_a_lot(&progress);
        progress.finish_within(end(&[]), Duration::from_millis(50));
        drop(release);
    }

    #[test]
    fn a_closed_output_does_not_affect_the_build() {
        let progress = plain(Closed);
        report_a_lot(&progress);
        progress.finish(end(&["ERROR: never seen"]));
    }

    #[test]
    fn the_closing_lines_come_last() {
        let captured = Captured::default();
        let progress = plain(captured.clone());
        progress.note("booting");
        progress.finish(end(&["ERROR: no"]));
        let text = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "booting\nERROR: no\n");
    }
}
