//! What stands between a session and its guest in a test: it sees every frame, and loses, changes,
//! doubles, swaps or cuts those it is told to.
//!
//! It lies above the transport, so the same faults happen whichever driver the guest has. Frames
//! that it is told nothing about pass as they are.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use wire::{HEADER_LEN, Header, Kind};

use super::{Door, Link, Pulse, Terms, lock};

/// How much is read from below at a time.
const READ: usize = 64 * 1024;

/// In which direction a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    ToHost,
    ToGuest,
}

/// A frame on its way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Passing<'a> {
    /// Which VM of the build, from one.
    pub(crate) vm: usize,
    /// Which frame of the VM, from one: of all its connections, without heartbeats.
    pub(crate) number: u64,
    pub(crate) way: Way,
    pub(crate) header: Header,
    /// All of it.
    pub(crate) bytes: &'a [u8],
}

/// What becomes of a frame.
#[derive(Debug, Clone)]
pub(crate) enum Fate {
    Passes,
    Lost,
    /// One bit of its last byte is wrong.
    Flipped,
    Twice,
    /// The next frame overtakes it.
    Swapped,
    /// Something else comes instead.
    Replaced(Vec<u8>),
    /// The connection ends after it.
    CutAfter,
    /// The connection ends in the middle of it.
    CutInside,
}

type Judge = dyn Fn(&Passing<'_>) -> Fate + Send + Sync;

/// What a test changes about the VMs of a build.
#[derive(Clone, Default)]
pub(crate) struct Seam {
    judge: Option<Arc<Judge>>,
    chopped: bool,
    pulse: Option<(Duration, Duration)>,
    vms: Arc<AtomicUsize>,
    cuts: Arc<AtomicUsize>,
}

impl fmt::Debug for Seam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seam")
    }
}

impl Seam {
    /// Every frame meets the fate that `judge` says.
    pub(crate) fn judged(judge: impl Fn(&Passing<'_>) -> Fate + Send + Sync + 'static) -> Self {
        Self {
            judge: Some(Arc::new(judge)),
            ..Self::default()
        }
    }

    /// Bytes come in pieces of random lengths, down to one.
    pub(crate) fn chopped() -> Self {
        Self {
            chopped: true,
            ..Self::default()
        }
    }

    /// The first VM has a heartbeat of this period and limit.
    pub(crate) fn with_pulse(period: Duration, limit: Duration) -> Self {
        Self {
            pulse: Some((period, limit)),
            ..Self::default()
        }
    }

    /// Stands before the connections of one more VM.
    pub(crate) fn door(&self, inner: Box<dyn Door>) -> Box<dyn Door> {
        let vm = self.vms.fetch_add(1, Ordering::Relaxed) + 1;
        if self.judge.is_none() && !self.chopped {
            return inner;
        }
        Box::new(Doorway {
            inner,
            path: Arc::new(Path {
                seam: self.clone(),
                vm,
                frames: AtomicU64::new(0),
                dice: AtomicU64::new(0x9e37_79b9_7f4a_7c15),
            }),
        })
    }

    /// How many connections were cut so far.
    pub(crate) fn cuts(&self) -> usize {
        self.cuts.load(Ordering::Acquire)
    }

    /// The terms of the session with the VM whose door was made last.
    pub(crate) fn adjust(&self, terms: Terms) -> Terms {
        match self.pulse {
            Some((period, limit)) if self.vms.load(Ordering::Relaxed) == 1 => Terms {
                pulse: Pulse::new(period, limit),
                ..terms
            },
            Some(_) | None => terms,
        }
    }
}

/// What the connections of one VM share.
#[derive(Debug)]
struct Path {
    seam: Seam,
    vm: usize,
    frames: AtomicU64,
    dice: AtomicU64,
}

impl Path {
    fn judge(&self, way: Way, header: Header, bytes: &[u8]) -> Fate {
        let counts = !matches!(header.kind, Kind::Ping | Kind::Pong);
        let number = self.frames.fetch_add(counts.into(), Ordering::Relaxed) + 1;
        let passing = Passing {
            vm: self.vm,
            number,
            way,
            header,
            bytes,
        };
        match &self.seam.judge {
            Some(judge) if counts => judge(&passing),
            Some(_) | None => Fate::Passes,
        }
    }

    /// How many of `len` bytes go together.
    fn piece(&self, len: usize) -> usize {
        if !self.seam.chopped {
            return len;
        }
        let next = |seed: u64| seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let rolled = self
            .dice
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |seed| {
                Some(next(seed))
            })
            .unwrap_or_default();
        len.min(1 << ((rolled >> 33) % 17))
    }
}

struct Doorway {
    inner: Box<dyn Door>,
    path: Arc<Path>,
}

impl Door for Doorway {
    fn accept(&self, timeout: Duration) -> io::Result<Arc<dyn Link>> {
        Ok(Arc::new(Tampered {
            inner: self.inner.accept(timeout)?,
            path: Arc::clone(&self.path),
            to_host: Mutex::default(),
            to_guest: Mutex::default(),
            cut: AtomicBool::new(false),
        }))
    }
}

/// A connection with somebody in between.
#[derive(Debug)]
struct Tampered {
    inner: Arc<dyn Link>,
    path: Arc<Path>,
    to_host: Mutex<Line>,
    to_guest: Mutex<Line>,
    cut: AtomicBool,
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Line {
    /// What came and is no whole frame yet.
    raw: Vec<u8>,
    /// A frame that the next one overtakes.
    held: Vec<u8>,
    /// What goes on.
    ready: Vec<u8>,
}

impl Line {
    /// Takes what came; whole frames meet their fates. Returns whether the connection ends here.
    fn feed(&mut self, bytes: &[u8], way: Way, path: &Path) -> bool {
        self.raw.extend_from_slice(bytes);
        while let Some(&head) = self.raw.first_chunk::<HEADER_LEN>() {
            let Ok(header) = Header::parse(&head) else {
                self.ready.append(&mut self.raw);
                return false;
            };
            let len = HEADER_LEN + header.len as usize;
            if self.raw.len() < len {
                return false;
            }
            let rest = self.raw.split_off(len);
            let frame = std::mem::replace(&mut self.raw, rest);
            let fate = path.judge(way, header, &frame);
            if self.settle(frame, fate) {
                return true;
            }
        }
        false
    }

    fn settle(&mut self, mut frame: Vec<u8>, fate: Fate) -> bool {
        let cut = matches!(fate, Fate::CutAfter | Fate::CutInside);
        match fate {
            Fate::Passes | Fate::CutAfter => {}
            Fate::Lost => return false,
            Fate::Flipped => *frame.last_mut().expect("a frame has a header") ^= 4,
            Fate::Twice => frame = frame.repeat(2),
            Fate::Replaced(other) => frame = other,
            Fate::CutInside => frame.truncate(frame.len() / 2),
            Fate::Swapped => {
                self.held = frame;
                return false;
            }
        }
        self.ready.append(&mut frame);
        self.ready.append(&mut self.held);
        cut
    }

    /// Nothing more will come.
    fn end(&mut self) {
        self.ready.append(&mut self.raw);
        self.ready.append(&mut self.held);
    }
}

impl Tampered {
    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    /// It ends here. Where it was cut before, in the other direction, it is not cut again.
    fn cut(&self) {
        if !self.cut.swap(true, Ordering::AcqRel) {
            self.path.seam.cuts.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Hands on what is ready, in pieces.
    fn forward(&self, line: &mut Line) -> io::Result<()> {
        let ready = std::mem::take(&mut line.ready);
        let mut rest = ready.as_slice();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(self.path.piece(rest.len()));
            self.inner.send(piece.to_vec())?;
            rest = after;
        }
        Ok(())
    }
}

impl Link for Tampered {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let mut line = lock(&self.to_host);
        while line.ready.is_empty() {
            if self.is_cut() {
                return Ok(0);
            }
            let mut came = vec![0; READ];
            let n = self.inner.read(&mut came)?;
            if n == 0 {
                line.end();
                if line.ready.is_empty() {
                    return Ok(0);
                }
            } else if line.feed(&came[..n], Way::ToHost, &self.path) {
                self.cut();
                self.inner.reset();
            }
        }
        let n = self.path.piece(line.ready.len().min(buf.len()));
        buf[..n].copy_from_slice(&line.ready[..n]);
        line.ready.drain(..n);
        Ok(n)
    }

    fn send(&self, data: Vec<u8>) -> io::Result<()> {
        let mut line = lock(&self.to_guest);
        if self.is_cut() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let cut = line.feed(&data, Way::ToGuest, &self.path);
        self.forward(&mut line)?;
        if cut {
            self.cut();
            // What was sent still arrives; then the guest sees the end.
            self.inner.finish()?;
        }
        Ok(())
    }

    fn finish(&self) -> io::Result<()> {
        let mut line = lock(&self.to_guest);
        line.end();
        self.forward(&mut line)?;
        self.inner.finish()
    }

    fn reset(&self) {
        self.inner.reset();
    }
}
