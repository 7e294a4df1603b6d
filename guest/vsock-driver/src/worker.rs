//! The thread that hears the device.
//!
//! It waits for interrupts, and for the bell that tells it to keep an eye on the device while
//! packets are on their way. With nothing on its way it sleeps until something happens.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::shared::Shared;

/// How often the device is looked at while it has something to do.
const TICK: Duration = Duration::from_millis(500);

/// Where interrupts of the device arrive.
pub trait Interrupts: Send + 'static {
    /// Readable when the device has interrupted.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Makes the descriptor wait for the next interrupt.
    ///
    /// # Errors
    /// If the device is gone.
    fn take(&mut self) -> io::Result<()>;

    /// Lets the device interrupt again. Called before the rings are looked at.
    ///
    /// # Errors
    /// If the device is gone.
    fn unmask(&mut self) -> io::Result<()>;

    /// The processor that is interrupted, if it is always the same.
    fn processor(&self) -> Option<usize> {
        None
    }
}

/// Does its work until the endpoint is dropped or the device is gone.
pub(crate) fn run(shared: &Arc<Shared>, mut interrupts: impl Interrupts) {
    if let Some(processor) = interrupts.processor() {
        stay_on(processor);
    }
    if let Err(failed) = serve(shared, &mut interrupts) {
        let reason = format!("its interrupts are lost: {failed}");
        shared.end(&mut shared.lock(), Some(&reason));
    }
}

/// Keeps this thread where the interrupts are: to wake it takes a change of thread then, and not an
/// interrupt of another processor, which an emulator takes longest for.
fn stay_on(processor: usize) {
    let mut processors = CpuSet::new();
    let stays = processors.set(processor);
    let stays = stays.and_then(|()| sched_setaffinity(Pid::from_raw(0), &processors));
    if let Err(errno) = stays {
        log::debug!("vsock: not bound to processor {processor}: {errno}");
    }
}

fn serve(shared: &Shared, interrupts: &mut impl Interrupts) -> io::Result<()> {
    // The order loses no wake-up: take, acknowledge, unmask, drain.
    interrupts.unmask()?;
    shared.drain();
    let mut next_look: Option<Instant> = None;
    while !shared.is_over() {
        let [interrupted, rung] = wait(shared, interrupts, next_look)?;
        let now = Instant::now();
        if rung {
            match shared.bell.read() {
                Ok(_) | Err(Errno::EAGAIN) => {}
                Err(failed) => return Err(failed.into()),
            }
            next_look = next_look.or(Some(now + TICK));
        }
        if next_look.is_some_and(|at| now >= at) {
            next_look = shared.watch(now).then(|| now + TICK);
        }
        if interrupted {
            // Once before, so that who waits need not wait for what follows.
            shared.drain();
            interrupts.take()?;
            shared.acknowledge();
            interrupts.unmask()?;
            shared.drain();
        }
    }
    Ok(())
}

/// Waits for an interrupt or the bell, but not beyond `until`. Says which there was.
fn wait(
    shared: &Shared,
    interrupts: &impl Interrupts,
    until: Option<Instant>,
) -> io::Result<[bool; 2]> {
    let mut sources =
        [interrupts.fd(), shared.bell.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    let timeout = until.map_or(PollTimeout::NONE, |until| {
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up, or the last millisecond would be spent awake.
        let left = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
        PollTimeout::from(left.saturating_add(1))
    });
    match poll(&mut sources, timeout) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok([false; 2]),
        Err(failed) => return Err(failed.into()),
    }
    let found = sources.map(|source| source.revents().unwrap_or(PollFlags::POLLNVAL));
    let lost = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
    if found.iter().any(|events| events.intersects(lost)) {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    Ok(found.map(|events| events.contains(PollFlags::POLLIN)))
}
