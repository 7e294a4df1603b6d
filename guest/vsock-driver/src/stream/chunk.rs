//! Received bytes in their slot.

use std::ops::Deref;
use std::sync::Arc;

use crate::inbox::Piece;
use crate::rings::Slot;
use crate::shared::Shared;
use crate::table::Id;

/// Received bytes, where the device put them. Dropping it returns the slot to the device and the
/// credit to the host. It may be sent to other threads and outlive its stream.
#[derive(Debug)]
pub struct Chunk {
    pub(super) shared: Arc<Shared>,
    pub(super) id: Id,
    pub(super) piece: Option<Piece<Slot>>,
    /// Bytes at the beginning that have been read.
    pub(super) from: usize,
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let bytes = self.piece.as_ref().map(Piece::bytes);
        bytes
            .and_then(|bytes| bytes.get(self.from..))
            .unwrap_or_default()
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Some(piece) = self.piece.take() {
            let (len, slot) = piece.into_parts();
            let mut state = self.shared.lock();
            state.mux.consumed(self.id, len, slot);
            self.shared.settle(&mut state);
        }
    }
}
