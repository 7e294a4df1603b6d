//! What an endpoint is made from: a device, its interrupts, and memory that it can reach.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::arena::Arena;

/// A device that no driver uses yet, and memory for it.
#[derive(Debug)]
pub struct Parts<T, I> {
    /// Access to the registers of the device.
    pub transport: T,
    /// Interrupts of the device.
    pub interrupts: I,
    /// Memory that the device can reach. One start uses it up.
    pub arena: Arc<Arena>,
}

/// Where interrupts of the device arrive.
pub trait Interrupts: Send + 'static {
    /// A descriptor that is readable when the device has interrupted.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Clears the descriptor, so that it waits for the next interrupt.
    ///
    /// # Errors
    /// If the device is gone.
    fn take(&mut self) -> io::Result<()>;

    /// Lets the device interrupt again. Called before the rings are checked.
    ///
    /// # Errors
    /// If the device is gone.
    fn unmask(&mut self) -> io::Result<()>;

    /// The processor that receives the interrupts, if it is always the same.
    fn processor(&self) -> Option<usize> {
        None
    }
}
