//! What the applications of a model do, and which fault it has.

use std::sync::LazyLock;

use bytes::Bytes;

/// Bytes of a slot. A packet that fills it is held in it; one that is a little shorter is copied.
#[expect(clippy::cast_possible_truncation, reason = "some thousands")]
pub(super) const SLOT: u32 = vsock_driver::fuzzing::COPYBREAK as u32 + 8;

/// The initial world, and what may happen in it.
#[derive(Debug, Clone)]
pub(super) struct Script {
    /// Receive slots of the driver, and how many one connection may be granted.
    pub(super) slots: usize,
    pub(super) window: usize,
    /// The device's buffer per connection.
    pub(super) buf_alloc: u32,
    /// RingAddresses in the ring towards the device.
    pub(super) ring_capacity: usize,
    pub(super) plans: Vec<Plan>,
    pub(super) fault: Fault,
}

/// What the applications do with one connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Plan {
    pub(super) opened_by: Opener,
    /// Lengths of what the host sends, and of what the guest sends.
    pub(super) down: Vec<u32>,
    pub(super) up: Vec<u32>,
    /// Pieces that the guest's reader holds at most; zero if it never reads.
    pub(super) max_held: usize,
    /// Whether the host's reader never reads.
    pub(super) host_sleeps: bool,
    /// Whether its applications do at once what they can, which leaves fewer orders.
    pub(super) is_eager: bool,
    /// Which side may give up at any time, and how.
    pub(super) aborts: Option<Abort>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Opener {
    #[default]
    Guest,
    Host,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Abort {
    GuestCloses,
    GuestResets,
    HostCloses,
    HostResets,
}

/// A fault of a driver or device, which the model has to notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Fault {
    #[default]
    None,
    /// The driver never announces credit by itself.
    NoCreditUpdate,
    /// The driver announces credit only when its whole window is free again.
    CreditAtFullWindow,
    /// The device never announces credit by itself.
    DeviceNoCreditUpdate,
    /// The driver announces twice the window that it was granted.
    InflatedWindow,
    /// A free slot does not return to the device.
    ForgottenSlot,
    /// A reader drops a piece, and the driver is not told.
    LeakedPiece,
    /// The packet that says that the host has shut down is lost.
    LostEnd,
    /// The ring max_held two packets over in the wrong order.
    Reordered,
    /// A packet with data is delivered twice.
    Duplicated,
}

impl Script {
    /// One connection that the guest opens, with some spare slots.
    pub(super) fn one(plan: Plan) -> Self {
        Self {
            slots: 10,
            window: 2,
            buf_alloc: 4,
            ring_capacity: 2,
            plans: vec![plan],
            fault: Fault::None,
        }
    }

    /// Two connections that share the minimum of slots: one each, and the reserve.
    pub(super) fn two(first: Plan, second: Plan) -> Self {
        Self {
            slots: 3,
            window: 1,
            plans: vec![first, second],
            ..Self::one(Plan::default())
        }
    }

    pub(super) fn with(self, fault: Fault) -> Self {
        Self { fault, ..self }
    }
}

/// `len` bytes of a stream, from `at` on. They differ at each offset and in each stream.
pub(super) fn stretch(stream: usize, at: u32, len: u32) -> Bytes {
    static PATTERN: LazyLock<Bytes> = LazyLock::new(|| {
        let nth = |i: u32| u8::try_from(i.wrapping_mul(2_654_435_761) >> 24).unwrap_or(0);
        (0..1 << 18).map(nth).collect::<Vec<u8>>().into()
    });
    let from = (stream << 15) + at as usize;
    PATTERN.slice(from..from + len as usize)
}
