//! A send buffer that the application fills.

use std::io;
use std::ops::{Deref, DerefMut};

use super::Stream;
use crate::rings::Slot;

/// A send buffer to fill and send; see [`Stream::lend`]. Dropping it sends nothing.
#[derive(Debug)]
pub struct SendBuffer {
    pub(super) stream: Stream,
    /// `None` once it is sent.
    pub(super) slot: Option<Slot>,
    /// Bytes of it for which credit was taken.
    pub(super) credit: u32,
}

impl SendBuffer {
    /// Sends the first `len` bytes, or all if there are fewer.
    ///
    /// # Errors
    /// If the host will not receive it.
    pub fn send(mut self, len: usize) -> io::Result<()> {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let slot = self.slot.take();
        slot.map_or(Ok(()), |slot| {
            self.stream
                .end_write(slot, len.min(self.credit), self.credit)
        })
    }
}

impl Deref for SendBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let data = self.slot.as_ref().map(|slot| &*slot.data);
        data.and_then(|data| data.get(..self.credit as usize))
            .unwrap_or_default()
    }
}

impl DerefMut for SendBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let data = self.slot.as_mut().map(|slot| &mut *slot.data);
        data.and_then(|data| data.get_mut(..self.credit as usize))
            .unwrap_or_default()
    }
}

impl Drop for SendBuffer {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            // The connection may be closed already: nothing is sent anyway.
            self.stream.end_write(slot, 0, self.credit).ok();
        }
    }
}
