//! Credit of one connection, in both directions (virtio 1.2, 5.10.6.3).
//!
//! Law: the counters are free-running `u32` and nothing outside this module computes with them. A
//! peer's mistake is a [`Violation`]; ours is a bug.

use thiserror::Error;

/// Something that a correct peer never does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub(crate) enum Violation {
    /// An operation that makes no sense in the state of its connection.
    #[error("operation in the wrong state")]
    UnexpectedOperation,
    /// Bytes after the peer had said that there would be none.
    #[error("data after shutdown")]
    DataAfterShutdown,
    /// More bytes than the receive buffer holds.
    #[error("more data than there was credit for")]
    CreditOverrun,
    /// An acknowledgement of bytes that were never sent.
    #[error("acknowledged data that was not sent")]
    CreditLie,
}

/// Room at the peer that always justifies a packet. Peers announce room in steps of this at the
/// latest (Linux does when less than 64 KiB of the last grant is left), so waiting for more could be
/// waiting for ever.
const WORTHWHILE: u32 = 64 * 1024;

/// What we may still send.
///
/// `forwarded` never passes `sent`: a peer that claims to have taken bytes which nobody sent does
/// not open its window with it.
#[derive(Debug, Clone, Copy, Hash)]
pub(crate) struct TxCredit {
    sent: u32,
    forwarded: u32,
    buf_alloc: u32,
}

impl TxCredit {
    /// Credit of a connection on which nothing has been sent.
    pub(crate) fn new(buf_alloc: u32) -> Self {
        Self {
            sent: 0,
            forwarded: 0,
            buf_alloc,
        }
    }

    /// Size of the peer's buffer as it last said.
    pub(crate) fn buf_alloc(&self) -> u32 {
        self.buf_alloc
    }

    /// Room at the peer. Zero also if it shrank its buffer below what is in flight.
    #[must_use]
    pub(crate) fn room(&self) -> u32 {
        self.buf_alloc.saturating_sub(self.in_flight())
    }

    /// Takes room for a packet of up to `want` bytes. Zero means blocked: a sliver of room is not
    /// worth a packet. Half of the peer's buffer always is, since a peer that has taken everything
    /// has announced at least that much.
    #[must_use]
    pub(crate) fn take(&mut self, want: u32) -> u32 {
        let room = self.room();
        let enough = want.min(WORTHWHILE).min((self.buf_alloc / 2).max(1));
        if room < enough {
            return 0;
        }
        let taken = want.min(room);
        self.sent = self.sent.wrapping_add(taken);
        taken
    }

    /// Gives back what was taken last and not used. Less, if the peer claims to have taken it.
    pub(crate) fn give_back(&mut self, unused: u32) {
        self.sent = self.sent.wrapping_sub(unused.min(self.in_flight()));
    }

    /// Takes over the counters that a packet of the peer carries.
    ///
    /// A count older than one already seen is ignored: it cannot open the window, and a peer with
    /// several processors may put two packets on its queue in the wrong order.
    pub(crate) fn on_packet(&mut self, buf_alloc: u32, fwd_cnt: u32) -> Result<(), Violation> {
        let ahead = fwd_cnt.wrapping_sub(self.forwarded);
        if ahead <= self.in_flight() {
            self.forwarded = fwd_cnt;
            self.buf_alloc = buf_alloc;
            return Ok(());
        }
        let stale = ahead > u32::MAX / 2;
        if stale {
            Ok(())
        } else {
            Err(Violation::CreditLie)
        }
    }

    fn in_flight(&self) -> u32 {
        self.sent.wrapping_sub(self.forwarded)
    }
}

/// What the peer may still send, and what we have told it about that.
#[derive(Debug, Clone, Copy, Hash)]
pub(crate) struct RxCredit {
    buf_alloc: u32,
    buffered: u32,
    forwarded: u32,
    announced: u32,
}

impl RxCredit {
    /// Credit for a receive buffer of `buf_alloc` bytes.
    pub(crate) fn new(buf_alloc: u32) -> Self {
        Self {
            buf_alloc,
            buffered: 0,
            forwarded: 0,
            announced: 0,
        }
    }

    /// The peer sent `len` bytes. It may not fill more than the buffer that we announced.
    pub(crate) fn accept(&mut self, len: u32) -> Result<(), Violation> {
        if len > self.buf_alloc.saturating_sub(self.buffered) {
            return Err(Violation::CreditOverrun);
        }
        self.buffered += len;
        Ok(())
    }

    /// The application is done with `len` bytes.
    pub(crate) fn consume(&mut self, len: u32) {
        debug_assert!(len <= self.buffered, "more taken than there was");
        self.buffered = self.buffered.saturating_sub(len);
        self.forwarded = self.forwarded.wrapping_add(len);
    }

    /// Whether the peer must be told that there is room again.
    ///
    /// Some peers keep no more in flight than the smaller of both buffers. At half of that they
    /// still have something to send when the news arrives; later would be a deadlock, since they
    /// would wait for the news and we for their bytes.
    #[must_use]
    pub(crate) fn owes_update(&self, peer_buf_alloc: u32) -> bool {
        let half = (self.buf_alloc.min(peer_buf_alloc) / 2).max(1);
        self.forwarded.wrapping_sub(self.announced) >= half
    }

    /// `buf_alloc` and `fwd_cnt` for a packet that is about to be sent.
    #[must_use]
    pub(crate) fn announce(&mut self) -> (u32, u32) {
        self.announced = self.forwarded;
        (self.buf_alloc, self.forwarded)
    }
}

#[cfg(test)]
impl TxCredit {
    /// The same, with counters about to wrap.
    pub(crate) fn starting_at(count: u32, buf_alloc: u32) -> Self {
        Self {
            sent: count,
            forwarded: count,
            buf_alloc,
        }
    }
}

#[cfg(test)]
impl RxCredit {
    /// The same, with counters about to wrap.
    pub(crate) fn starting_at(count: u32, buf_alloc: u32) -> Self {
        Self {
            buf_alloc,
            buffered: 0,
            forwarded: count,
            announced: count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_peer_that_forwards_what_nobody_sent_is_caught() {
        let mut credit = TxCredit::new(100);
        assert_eq!(credit.take(60), 60);
        assert_eq!(credit.on_packet(100, 61), Err(Violation::CreditLie));
        assert_eq!(credit.on_packet(100, 60), Ok(()));
        assert_eq!(credit.room(), 100);
    }

    #[test]
    fn an_older_count_neither_opens_nor_shuts_the_window() {
        let mut credit = TxCredit::new(100);
        assert_eq!(credit.take(80), 80);
        assert_eq!(credit.on_packet(100, 50), Ok(()));
        assert_eq!(credit.on_packet(1000, 20), Ok(()));
        assert_eq!(credit.room(), 70);
    }

    #[test]
    fn a_sliver_of_room_is_not_taken() {
        let mut credit = TxCredit::new(1000);
        assert_eq!(credit.take(600), 600);
        assert_eq!(credit.take(800), 0);
        assert_eq!(credit.take(400), 400);
    }

    #[test]
    fn what_was_not_used_is_given_back() {
        let mut credit = TxCredit::starting_at(u32::MAX, 100);
        assert_eq!(credit.take(60), 60);
        credit.give_back(50);
        assert_eq!(credit.room(), 90);
        // A peer that lies meanwhile makes no room.
        assert_eq!(credit.take(90), 90);
        assert_eq!(credit.on_packet(100, 95), Ok(()));
        credit.give_back(90);
        assert_eq!(credit.room(), 100);
    }

    #[test]
    fn an_update_is_owed_at_half_of_the_smaller_buffer() {
        let mut credit = RxCredit::new(1000);
        credit.accept(600).unwrap();
        credit.consume(49);
        assert!(!credit.owes_update(100));
        credit.consume(1);
        assert!(credit.owes_update(100));
        assert!(!credit.owes_update(5000));
        assert_eq!(credit.announce(), (1000, 50));
        assert!(!credit.owes_update(100));
    }

    proptest! {
        /// Two honest ends, started anywhere near the wrap: the sender never overruns the
        /// receiver, and when everything is taken and the owed news has arrived it can send again.
        #[test]
        fn two_ends_agree_across_the_wrap(
            start in (u32::MAX - 5000)..=u32::MAX,
            window in 1u32..2000,
            steps in prop::collection::vec((any::<bool>(), 1u32..3000), 1..200),
        ) {
            let mut tx = TxCredit::starting_at(start, window);
            let mut rx = RxCredit::starting_at(start, window);
            let mut buffered = 0;
            for (send, n) in steps {
                if send {
                    let taken = tx.take(n);
                    prop_assert!(rx.accept(taken).is_ok());
                    buffered += taken;
                } else {
                    let taken = n.min(buffered);
                    rx.consume(taken);
                    buffered -= taken;
                }
                if rx.owes_update(u32::MAX) {
                    let (buf_alloc, fwd_cnt) = rx.announce();
                    prop_assert!(tx.on_packet(buf_alloc, fwd_cnt).is_ok());
                }
            }
            rx.consume(buffered);
            if rx.owes_update(u32::MAX) {
                let (buf_alloc, fwd_cnt) = rx.announce();
                prop_assert!(tx.on_packet(buf_alloc, fwd_cnt).is_ok());
            }
            prop_assert!(tx.take(u32::MAX) > 0, "the sender is stuck");
        }

        #[test]
        fn no_counters_make_more_room_than_the_buffer(
            sent in 0u32..1000,
            packets in prop::collection::vec((any::<u32>(), any::<u32>()), 0..50),
        ) {
            let mut credit = TxCredit::new(1000);
            let sent = credit.take(sent);
            for (buf_alloc, fwd_cnt) in packets {
                let _violation = credit.on_packet(buf_alloc, fwd_cnt);
                prop_assert!(credit.room() <= credit.buf_alloc());
                prop_assert!(credit.in_flight() <= sent);
            }
        }
    }
}
