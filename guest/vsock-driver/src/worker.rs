//! The thread that handles interrupts of the device.
//!
//! It waits for interrupts, and for the notifier, which tells it to watch the device while packets
//! are in flight. With nothing in flight it sleeps until something happens.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::parts::Interrupts;
use crate::shared::Shared;

/// How often the device is checked while packets are in flight.
const TICK: Duration = Duration::from_millis(500);

/// Runs until the endpoint is dropped or the device is gone.
pub(crate) fn run(shared: &Arc<Shared>, mut interrupts: impl Interrupts) {
    if let Some(processor) = interrupts.processor() {
        bind_to(processor);
    }
    if let Err(failed) = serve(shared, &mut interrupts) {
        let reason = format!("cannot receive its interrupts: {failed}");
        shared.end(&mut shared.lock(), Some(&reason));
    }
}

/// Binds this thread to the processor that receives the interrupts: waking it is then a context
/// switch and not an interrupt of another processor, which is the slowest thing to emulate.
fn bind_to(processor: usize) {
    let mut processors = CpuSet::new();
    let bound = processors.set(processor);
    let bound = bound.and_then(|()| sched_setaffinity(Pid::from_raw(0), &processors));
    if let Err(errno) = bound {
        log::debug!("vsock: not bound to processor {processor}: {errno}");
    }
}

fn serve(shared: &Shared, interrupts: &mut impl Interrupts) -> io::Result<()> {
    // This order loses no wake-up: take, acknowledge, unmask, drain.
    interrupts.unmask()?;
    shared.drain();
    let mut next_look: Option<Instant> = None;
    while !shared.is_over() {
        let [interrupted, woken] = wait(shared, interrupts, next_look)?;
        let now = Instant::now();
        if woken {
            match shared.notifier.read() {
                Ok(_) | Err(Errno::EAGAIN) => {}
                Err(failed) => return Err(failed.into()),
            }
            next_look = next_look.or(Some(now + TICK));
        }
        if next_look.is_some_and(|at| now >= at) {
            next_look = shared.watch(now).then(|| now + TICK);
        }
        if interrupted {
            // Once before, so that waiting threads need not wait for what follows.
            shared.drain();
            interrupts.take()?;
            shared.acknowledge();
            interrupts.unmask()?;
            shared.drain();
        }
    }
    Ok(())
}

/// Waits for an interrupt or the notifier, but not beyond `until`. Returns which of them it was.
fn wait(
    shared: &Shared,
    interrupts: &impl Interrupts,
    until: Option<Instant>,
) -> io::Result<[bool; 2]> {
    let mut sources =
        [interrupts.fd(), shared.notifier.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    let timeout = until.map_or(PollTimeout::NONE, |until| {
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up, or the last millisecond would be a busy loop.
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
