//! Shows what a build does, without ever being in its way.
//!
//! The engine's threads put events into a bounded [`queue`]; a thread of its own takes them out
//! and writes. A terminal that is slow, stopped or gone makes that thread wait or end, and nothing
//! else: the build cannot notice. At the end the program waits for the display only while it
//! makes progress.

mod lines;
mod plain;
mod queue;
mod quiet;
mod rawjson;
mod text;
mod tty;

use std::io::{self, BufWriter, IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use engine::event::{Event, Reporter};

pub(crate) use lines::clean;
pub(crate) use text::Ending;

use crate::exit::Class;
use plain::Plain;
use queue::{Item, Queue};
use quiet::Quiet;
use rawjson::RawJson;
use tty::Tty;

/// How often the live display is drawn.
const TICK: Duration = Duration::from_millis(100);
/// How long the program waits at its end for a display that makes no progress.
const PATIENCE: Duration = Duration::from_secs(5);

/// How progress is shown, on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// `tty` on a terminal, else `plain`
    Auto,
    /// Line by line
    Plain,
    /// A live display; needs a terminal
    Tty,
    /// Nothing but errors
    Quiet,
    /// One JSON object on each line
    Rawjson,
}

/// How the build ended, for the display to say last.
#[derive(Debug)]
pub(crate) struct End {
    /// What went wrong, if something did.
    pub(crate) class: Option<Class>,
    /// Lines to show last, such as the error.
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
    /// Grows with each thing that was shown.
    shown: AtomicU64,
    end: Mutex<Option<End>>,
}

impl Progress {
    /// Starts the display.
    pub(crate) fn start(mode: Mode) -> io::Result<Self> {
        let display = Display::new(mode)?;
        let shared = Arc::new(Shared {
            queue: Queue::new(Instant::now()),
            shown: AtomicU64::new(0),
            end: Mutex::new(None),
        });
        let (finished, done) = bounded(1);
        let theirs = Arc::clone(&shared);
        thread::Builder::new()
            .name("renderer".into())
            .spawn(move || {
                // A closed output ends the display, and nothing else.
                if render(display, &theirs).is_err() {
                    theirs.queue.desert();
                }
                finished.try_send(()).ok();
            })?;
        Ok(Self { shared, done })
    }

    /// Shows a line of the program itself.
    pub(crate) fn note(&self, text: impl Into<String>) {
        self.shared.queue.note(text.into());
    }

    /// Shows the end, and waits for the display as long as that makes progress.
    pub(crate) fn finish(self, end: End) {
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
            match self.done.recv_timeout(PATIENCE) {
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

/// The renderer's thread.
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

type Stderr = BufWriter<io::Stderr>;

/// One of the displays.
#[derive(Debug)]
enum Display {
    Plain(Plain<Stderr>, Stderr),
    Tty(Box<Tty>),
    Quiet(Quiet, Stderr),
    RawJson(RawJson<Stderr>),
}

impl Display {
    fn new(mode: Mode) -> io::Result<Self> {
        let stderr = || BufWriter::new(io::stderr());
        let terminal = io::stderr().is_terminal();
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Ok(match mode {
            Mode::Tty if !terminal => {
                return Err(io::Error::other(
                    "--progress tty needs a terminal on standard error",
                ));
            }
            Mode::Auto if terminal && !dumb => Self::Tty(Box::new(Tty::on_stderr(colours()))),
            Mode::Tty => Self::Tty(Box::new(Tty::on_stderr(colours()))),
            Mode::Auto | Mode::Plain => Self::Plain(Plain::new(stderr()), stderr()),
            Mode::Quiet => Self::Quiet(Quiet::default(), stderr()),
            Mode::Rawjson => Self::RawJson(RawJson::new(stderr())),
        })
    }

    fn item(&mut self, item: Item) -> io::Result<()> {
        match self {
            Self::Plain(plain, _) => plain.item(item),
            Self::Tty(tty) => tty.item(item),
            Self::Quiet(quiet, _) => {
                quiet.item(item);
                Ok(())
            }
            Self::RawJson(raw) => raw.item(item),
        }
    }

    fn tick(&mut self, now: Duration) -> io::Result<()> {
        match self {
            Self::Plain(plain, _) => plain.tick(now),
            Self::Tty(tty) => {
                tty.tick(now);
                Ok(())
            }
            Self::Quiet(..) => Ok(()),
            Self::RawJson(raw) => raw.flush(),
        }
    }

    fn finish(&mut self, now: Duration, end: &End) -> io::Result<()> {
        let ending = match end.class {
            None => Ending::Built,
            Some(Class::Cancelled) => Ending::Cancelled,
            Some(Class::User | Class::Usage | Class::Limit | Class::Host) => Ending::Failed,
        };
        match self {
            Self::Plain(plain, stderr) => {
                plain.finish(now, ending)?;
                write_lines(stderr, &end.closing)
            }
            Self::Tty(tty) => {
                tty.finish(now, ending)?;
                end.closing.iter().try_for_each(|line| tty.line(line))
            }
            Self::Quiet(quiet, stderr) => {
                write_lines(stderr, &quiet.finish())?;
                write_lines(stderr, &end.closing)
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

fn write_lines(out: &mut Stderr, lines: &[String]) -> io::Result<()> {
    for line in lines {
        writeln!(out, "{line}")?;
    }
    out.flush()
}

/// Whether standard error shows colours: a terminal, and `NO_COLOR` and its kin do not object.
fn colours() -> bool {
    anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never
}
