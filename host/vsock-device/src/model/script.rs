//! What the applications of a model want, and what is wrong with it.

use std::sync::LazyLock;

use bytes::Bytes;

/// Bytes of a slot. A packet that fills it is held, and what is a little shorter is copied.
#[expect(clippy::cast_possible_truncation, reason = "some thousands")]
pub(super) const SLOT: u32 = vsock_driver::fuzzing::COPYBREAK as u32 + 8;

/// A world to begin with, and what may happen in it.
#[derive(Debug, Clone)]
pub(super) struct Script {
    /// Receive slots of the driver, and how many one connection may be granted.
    pub(super) slots: usize,
    pub(super) window: usize,
    /// The device's buffer per connection.
    pub(super) buf_alloc: u32,
    /// Places in the ring towards the device.
    pub(super) places: usize,
    pub(super) talks: Vec<Talk>,
    pub(super) fault: Fault,
}

/// One connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Talk {
    pub(super) opened_by: Opener,
    /// Lengths of what the host sends, and of what the guest sends.
    pub(super) down: Vec<u32>,
    pub(super) up: Vec<u32>,
    /// Pieces that the guest's reader holds at a time; zero if it never reads.
    pub(super) hands: usize,
    /// Whether the host's reader never reads.
    pub(super) host_sleeps: bool,
    /// Whether its programs do at once what they can, which leaves fewer orders.
    pub(super) is_prompt: bool,
    /// Who may give up at any time, and how.
    pub(super) quits: Option<Quit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Opener {
    #[default]
    Guest,
    Host,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quit {
    GuestHangsUp,
    GuestResets,
    HostHangsUp,
    HostResets,
}

/// Something that a broken driver or device would do: the model has to notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Fault {
    #[default]
    None,
    /// The driver never announces credit by itself.
    NoCreditUpdate,
    /// The driver announces credit only when its whole window is free again.
    CreditAtFullWindow,
    /// The device never announces credit by itself.
    DeafDevice,
    /// The driver announces twice the window that it was granted.
    InflatedWindow,
    /// A slot that is free again is not given to the device.
    ForgottenSlot,
    /// A reader drops a piece, and nobody is told.
    LeakedPiece,
    /// The news that the host has finished is lost.
    LostEnd,
    /// The ring hands two packets over in the wrong order.
    Overtaking,
    /// A packet with data is handed over twice.
    Twice,
}

impl Script {
    /// One connection of the guest's making, with some slots to spare.
    pub(super) fn one(talk: Talk) -> Self {
        Self {
            slots: 10,
            window: 2,
            buf_alloc: 4,
            places: 2,
            talks: vec![talk],
            fault: Fault::None,
        }
    }

    /// Two connections that share as few slots as there can be: one each, and the reserve.
    pub(super) fn two(first: Talk, second: Talk) -> Self {
        Self {
            slots: 3,
            window: 1,
            talks: vec![first, second],
            ..Self::one(Talk::default())
        }
    }

    pub(super) fn with(self, fault: Fault) -> Self {
        Self { fault, ..self }
    }
}

/// `len` bytes of a stream, from `at` on. No two places of no two streams look the same.
pub(super) fn stretch(stream: usize, at: u32, len: u32) -> Bytes {
    static PATTERN: LazyLock<Bytes> = LazyLock::new(|| {
        let nth = |i: u32| u8::try_from(i.wrapping_mul(2_654_435_761) >> 24).unwrap_or(0);
        (0..1 << 18).map(nth).collect::<Vec<u8>>().into()
    });
    let from = (stream << 15) + at as usize;
    PATTERN.slice(from..from + len as usize)
}
