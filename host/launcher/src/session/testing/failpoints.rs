//! Failpoints between a session and its guest: a test sees every frame, and loses, changes, doubles
//! or swaps frames, or cuts connections.
//!
//! They are above the transport, so the same faults happen whichever driver the guest has. Frames
//! without a fault pass unchanged.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use wire::{HEADER_LEN, Header, Kind};

use crate::session::shared::lock;
use crate::session::{GuestConnection, GuestListener, Heartbeat, SessionConfig};

/// How much is read from below at a time.
const READ: usize = 64 * 1024;

/// In which direction a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    ToHost,
    ToGuest,
}

/// A frame on its way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PassingFrame<'a> {
    /// Which VM of the build, from one.
    pub(crate) vm: usize,
    /// Which frame of the VM, from one: of all its connections, without heartbeats.
    pub(crate) number: u64,
    pub(crate) direction: Direction,
    pub(crate) header: Header,
    /// The whole frame.
    pub(crate) bytes: &'a [u8],
}

/// What happens to a frame.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    None,
    Lost,
    /// One bit of its last byte is wrong.
    Flipped,
    Twice,
    /// The next frame overtakes it.
    Swapped,
    /// Other bytes arrive instead.
    Replaced(Vec<u8>),
    /// The connection ends after it.
    CutAfter,
    /// The connection ends in the middle of it.
    CutInside,
}

type Decide = dyn Fn(&PassingFrame<'_>) -> Fault + Send + Sync;

/// What a test changes about the VMs of a build.
#[derive(Clone, Default)]
pub(crate) struct Failpoints {
    decide: Option<Arc<Decide>>,
    chopped: bool,
    heartbeat: Option<(Duration, Duration)>,
    vms: Arc<AtomicUsize>,
    cuts: Arc<AtomicUsize>,
}

impl fmt::Debug for Failpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Failpoints")
    }
}

impl Failpoints {
    /// `decide` chooses the fault of every frame.
    pub(crate) fn deciding(
        decide: impl Fn(&PassingFrame<'_>) -> Fault + Send + Sync + 'static,
    ) -> Self {
        Self {
            decide: Some(Arc::new(decide)),
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
    pub(crate) fn with_heartbeat(period: Duration, limit: Duration) -> Self {
        Self {
            heartbeat: Some((period, limit)),
            ..Self::default()
        }
    }

    /// The listener of one more VM, with the faults in front.
    pub(crate) fn listener(&self, inner: Box<dyn GuestListener>) -> Box<dyn GuestListener> {
        let vm = self.vms.fetch_add(1, Ordering::Relaxed) + 1;
        if self.decide.is_none() && !self.chopped {
            return inner;
        }
        Box::new(FaultyListener {
            inner,
            faults: Arc::new(VmFaults {
                failpoints: self.clone(),
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

    /// The configuration of the session with the VM whose listener was made last.
    pub(crate) fn adjust(&self, config: SessionConfig) -> SessionConfig {
        match self.heartbeat {
            Some((period, limit)) if self.vms.load(Ordering::Relaxed) == 1 => SessionConfig {
                heartbeat: Heartbeat::new(period, limit),
                ..config
            },
            Some(_) | None => config,
        }
    }
}

/// What the connections of one VM share.
#[derive(Debug)]
struct VmFaults {
    failpoints: Failpoints,
    vm: usize,
    frames: AtomicU64,
    dice: AtomicU64,
}

impl VmFaults {
    fn fault(&self, direction: Direction, header: Header, bytes: &[u8]) -> Fault {
        let counts = !matches!(header.kind, Kind::Ping | Kind::Pong);
        let number = self.frames.fetch_add(counts.into(), Ordering::Relaxed) + 1;
        let passing = PassingFrame {
            vm: self.vm,
            number,
            direction,
            header,
            bytes,
        };
        match &self.failpoints.decide {
            Some(decide) if counts => decide(&passing),
            Some(_) | None => Fault::None,
        }
    }

    /// How many of `len` bytes go together.
    fn piece(&self, len: usize) -> usize {
        if !self.failpoints.chopped {
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

struct FaultyListener {
    inner: Box<dyn GuestListener>,
    faults: Arc<VmFaults>,
}

impl GuestListener for FaultyListener {
    fn accept(&self, timeout: Duration) -> io::Result<Arc<dyn GuestConnection>> {
        Ok(Arc::new(FaultyConnection {
            inner: self.inner.accept(timeout)?,
            faults: Arc::clone(&self.faults),
            to_host: Mutex::default(),
            to_guest: Mutex::default(),
            cut: AtomicBool::new(false),
        }))
    }
}

/// A connection with faults.
#[derive(Debug)]
struct FaultyConnection {
    inner: Arc<dyn GuestConnection>,
    faults: Arc<VmFaults>,
    to_host: Mutex<Line>,
    to_guest: Mutex<Line>,
    cut: AtomicBool,
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Line {
    /// Bytes that are not a whole frame yet.
    raw: Vec<u8>,
    /// A frame that the next one overtakes.
    held: Vec<u8>,
    /// Bytes to pass on.
    ready: Vec<u8>,
}

impl Line {
    /// Takes bytes that arrived, and applies the faults of whole frames. Returns whether the
    /// connection ends here.
    fn feed(&mut self, bytes: &[u8], direction: Direction, faults: &VmFaults) -> bool {
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
            let fault = faults.fault(direction, header, &frame);
            if self.apply(frame, fault) {
                return true;
            }
        }
        false
    }

    fn apply(&mut self, mut frame: Vec<u8>, fault: Fault) -> bool {
        let cut = matches!(fault, Fault::CutAfter | Fault::CutInside);
        match fault {
            Fault::None | Fault::CutAfter => {}
            Fault::Lost => return false,
            Fault::Flipped => *frame.last_mut().expect("a frame has a header") ^= 4,
            Fault::Twice => frame = frame.repeat(2),
            Fault::Replaced(other) => frame = other,
            Fault::CutInside => frame.truncate(frame.len() / 2),
            Fault::Swapped => {
                self.held = frame;
                return false;
            }
        }
        self.ready.append(&mut frame);
        self.ready.append(&mut self.held);
        cut
    }

    /// Nothing more will arrive.
    fn end(&mut self) {
        self.ready.append(&mut self.raw);
        self.ready.append(&mut self.held);
    }
}

impl FaultyConnection {
    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    /// It ends here. A connection that was cut in the other direction before is not counted again.
    fn cut(&self) {
        if !self.cut.swap(true, Ordering::AcqRel) {
            self.faults.failpoints.cuts.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Passes on what is ready, in pieces.
    fn forward(&self, line: &mut Line) -> io::Result<()> {
        let ready = std::mem::take(&mut line.ready);
        let mut rest = ready.as_slice();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(self.faults.piece(rest.len()));
            self.inner.send(piece.to_vec())?;
            rest = after;
        }
        Ok(())
    }
}

impl GuestConnection for FaultyConnection {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let mut line = lock(&self.to_host);
        while line.ready.is_empty() {
            if self.is_cut() {
                return Ok(0);
            }
            let mut arrived = vec![0; READ];
            let n = self.inner.read(&mut arrived)?;
            if n == 0 {
                line.end();
                if line.ready.is_empty() {
                    return Ok(0);
                }
            } else if line.feed(&arrived[..n], Direction::ToHost, &self.faults) {
                self.cut();
                self.inner.reset();
            }
        }
        let n = self.faults.piece(line.ready.len().min(buf.len()));
        buf[..n].copy_from_slice(&line.ready[..n]);
        line.ready.drain(..n);
        Ok(n)
    }

    fn send(&self, data: Vec<u8>) -> io::Result<()> {
        let mut line = lock(&self.to_guest);
        if self.is_cut() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let cut = line.feed(&data, Direction::ToGuest, &self.faults);
        self.forward(&mut line)?;
        if cut {
            self.cut();
            // What was sent before still arrives; then the guest sees the end.
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
