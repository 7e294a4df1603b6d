//! The thread that hears the device.
//!
//! It waits for interrupts, and for the bell that tells it to keep an eye on the device while
//! packets are on their way. With nothing on its way it sleeps until something happens.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::shared::Shared;

/// How often the device is looked at while it has something to do, in milliseconds.
const TICK: u16 = 500;

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
}

/// Does its work until the endpoint is dropped or the device is gone.
pub(crate) fn run(shared: &Arc<Shared>, mut interrupts: impl Interrupts) {
    if let Err(failed) = serve(shared, &mut interrupts) {
        let reason = format!("its interrupts are lost: {failed}");
        shared.end(&mut shared.lock(), Some(&reason));
    }
}

fn serve(shared: &Shared, interrupts: &mut impl Interrupts) -> io::Result<()> {
    // The order loses no wake-up: take, acknowledge, unmask, drain.
    interrupts.unmask()?;
    shared.drain();
    loop {
        let watching = shared.watch(Instant::now());
        let state = shared.lock();
        if state.stopping || state.mux.has_ended() {
            return Ok(());
        }
        drop(state);
        let [interrupted, rung] = wait(shared, interrupts, watching)?;
        if rung {
            match shared.bell.read() {
                Ok(_) | Err(Errno::EAGAIN) => {}
                Err(failed) => return Err(failed.into()),
            }
        }
        if interrupted {
            interrupts.take()?;
            shared.acknowledge();
            interrupts.unmask()?;
            shared.drain();
        }
    }
}

/// Waits for an interrupt or the bell. Says which there was.
fn wait(shared: &Shared, interrupts: &impl Interrupts, watching: bool) -> io::Result<[bool; 2]> {
    let mut sources =
        [interrupts.fd(), shared.bell.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    let timeout = if watching {
        PollTimeout::from(TICK)
    } else {
        PollTimeout::NONE
    };
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
