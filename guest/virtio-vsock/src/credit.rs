//! Credit of one connection, in both directions (virtio 1.2, 5.10.6.3).
//!
//! Invariant: the counters are free-running `u32`, and nothing outside this module computes with
//! them. A mistake of the peer is a [`CreditError`]; a mistake of the caller is a bug.

use thiserror::Error;

/// What a correct peer never does with credit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum CreditError {
    /// The peer sent more bytes than the receive buffer had space for.
    #[error("more data than there was credit for")]
    Overrun,
    /// The peer acknowledged bytes that were never sent.
    #[error("acknowledged data that was not sent")]
    ForwardedUnsent,
}

/// Free bytes at the peer that always justify a packet. Every peer announces free space in steps of
/// at most this (Linux does when less than 64 KiB of its last announcement is left), so waiting for
/// more could be waiting for ever.
const WORTH_A_PACKET: u32 = 64 * 1024;

/// What may still be sent to the peer.
///
/// `peer_fwd_cnt` never passes `tx_cnt`: a peer that acknowledges bytes which nobody sent does not
/// open its window that way.
#[derive(Debug, Clone, Copy, Hash)]
pub struct TxCredit {
    tx_cnt: u32,
    peer_fwd_cnt: u32,
    peer_buf_alloc: u32,
}

impl TxCredit {
    /// Credit of a connection on which nothing has been sent, to a peer with a receive buffer of
    /// `peer_buf_alloc` bytes.
    #[must_use]
    pub fn new(peer_buf_alloc: u32) -> Self {
        Self::starting_at(0, peer_buf_alloc)
    }

    /// As [`Self::new`], with counters that begin at `count`: for tests of the wrap.
    #[must_use]
    pub fn starting_at(count: u32, peer_buf_alloc: u32) -> Self {
        Self {
            tx_cnt: count,
            peer_fwd_cnt: count,
            peer_buf_alloc,
        }
    }

    /// Bytes of the peer's receive buffer, as it last announced them.
    #[must_use]
    #[inline]
    pub fn peer_buf_alloc(&self) -> u32 {
        self.peer_buf_alloc
    }

    /// Free bytes in the peer's receive buffer. Zero also if it shrank its buffer below what is in
    /// flight.
    #[must_use]
    #[inline]
    pub fn peer_free(&self) -> u32 {
        self.peer_buf_alloc.saturating_sub(self.in_flight())
    }

    /// How many of `want` bytes the next packet should carry. Zero means: wait for credit.
    ///
    /// A few free bytes are not worth a packet and a descriptor. Half of the peer's buffer always
    /// is: a peer whose application has read everything has announced at least that much.
    #[must_use]
    #[inline]
    pub fn packet_len(&self, want: u32) -> u32 {
        let free = self.peer_free();
        let half = (self.peer_buf_alloc / 2).max(1);
        let enough = want.min(WORTH_A_PACKET).min(half);
        if free < enough { 0 } else { want.min(free) }
    }

    /// Takes the credit for a packet of up to `want` bytes, [`Self::packet_len`] of them.
    #[must_use]
    #[inline]
    pub fn take(&mut self, want: u32) -> u32 {
        let taken = self.packet_len(want);
        self.advance(taken);
        taken
    }

    /// Gives back credit that was taken last and not used. Less of it, if the peer has acknowledged
    /// those bytes meanwhile.
    #[inline]
    pub fn give_back(&mut self, unused: u32) {
        self.tx_cnt = self.tx_cnt.wrapping_sub(unused.min(self.in_flight()));
    }

    /// Takes over the counters that a packet of the peer carries.
    ///
    /// A count older than one already seen is ignored: it cannot open the window, and a peer with
    /// several processors may queue two packets in the wrong order.
    ///
    /// # Errors
    /// [`CreditError::ForwardedUnsent`]; the counters stay as they were.
    #[inline]
    pub fn on_packet(&mut self, buf_alloc: u32, fwd_cnt: u32) -> Result<(), CreditError> {
        let ahead = fwd_cnt.wrapping_sub(self.peer_fwd_cnt);
        if ahead <= self.in_flight() {
            self.peer_fwd_cnt = fwd_cnt;
            self.peer_buf_alloc = buf_alloc;
            return Ok(());
        }
        let is_stale = ahead > u32::MAX / 2;
        if is_stale {
            Ok(())
        } else {
            Err(CreditError::ForwardedUnsent)
        }
    }

    fn advance(&mut self, sent: u32) {
        self.tx_cnt = self.tx_cnt.wrapping_add(sent);
    }

    fn in_flight(&self) -> u32 {
        self.tx_cnt.wrapping_sub(self.peer_fwd_cnt)
    }
}

/// What the peer may still send, and what it was told about that.
#[derive(Debug, Clone, Copy, Hash)]
pub struct RxCredit {
    buf_alloc: u32,
    buffered: u32,
    fwd_cnt: u32,
    announced_fwd_cnt: u32,
}

impl RxCredit {
    /// Credit for a receive buffer of `buf_alloc` bytes.
    #[must_use]
    pub fn new(buf_alloc: u32) -> Self {
        Self::starting_at(0, buf_alloc)
    }

    /// As [`Self::new`], with counters that begin at `count`: for tests of the wrap.
    #[must_use]
    pub fn starting_at(count: u32, buf_alloc: u32) -> Self {
        Self {
            buf_alloc,
            buffered: 0,
            fwd_cnt: count,
            announced_fwd_cnt: count,
        }
    }

    /// Counts `len` bytes that the peer sent.
    ///
    /// # Errors
    /// [`CreditError::Overrun`] if the buffer has no space for them; they are not counted.
    #[inline]
    pub fn accept(&mut self, len: u32) -> Result<(), CreditError> {
        if len > self.buf_alloc.saturating_sub(self.buffered) {
            return Err(CreditError::Overrun);
        }
        self.buffered += len;
        Ok(())
    }

    /// Counts `len` bytes that the application has read.
    #[inline]
    pub fn consume(&mut self, len: u32) {
        debug_assert!(len <= self.buffered, "more consumed than accepted");
        self.buffered = self.buffered.saturating_sub(len);
        self.fwd_cnt = self.fwd_cnt.wrapping_add(len);
    }

    /// Whether the peer has to be told that there is free space again.
    ///
    /// Some peers keep no more in flight than the smaller of both buffers. At half of that they
    /// still have something to send when the update arrives. Later would be a deadlock: the peer
    /// would wait for the update, and this side for the peer's bytes.
    #[must_use]
    #[inline]
    pub fn owes_update(&self, peer_buf_alloc: u32) -> bool {
        let half = (self.buf_alloc.min(peer_buf_alloc) / 2).max(1);
        self.fwd_cnt.wrapping_sub(self.announced_fwd_cnt) >= half
    }

    /// `buf_alloc` and `fwd_cnt` for a packet that is sent now.
    #[must_use]
    #[inline]
    pub fn announce(&mut self) -> (u32, u32) {
        self.announced_fwd_cnt = self.fwd_cnt;
        (self.buf_alloc, self.fwd_cnt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_peer_that_acknowledges_what_nobody_sent_is_caught() {
        let mut credit = TxCredit::new(100);
        assert_eq!(credit.take(60), 60);
        let error = Err(CreditError::ForwardedUnsent);
        assert_eq!(credit.on_packet(100, 61), error);
        assert_eq!(credit.on_packet(100, 60), Ok(()));
        assert_eq!(credit.peer_free(), 100);
    }

    #[test]
    fn an_older_count_neither_opens_nor_shuts_the_window() {
        let mut credit = TxCredit::new(100);
        assert_eq!(credit.take(80), 80);
        assert_eq!(credit.on_packet(100, 50), Ok(()));
        assert_eq!(credit.on_packet(1000, 20), Ok(()));
        assert_eq!(credit.peer_free(), 70);
    }

    #[test]
    fn a_peer_may_shrink_its_buffer_below_what_is_in_flight() {
        let mut credit = TxCredit::new(100);
        assert_eq!(credit.take(80), 80);
        assert_eq!(credit.on_packet(10, 0), Ok(()));
        assert_eq!(credit.peer_free(), 0);
        assert_eq!(credit.take(1), 0);
    }

    #[test]
    fn a_few_free_bytes_are_not_worth_a_packet() {
        let mut credit = TxCredit::new(1000);
        assert_eq!(credit.take(600), 600);
        assert_eq!(credit.take(800), 0);
        assert_eq!(credit.take(400), 400);
    }

    #[test]
    fn unused_credit_is_given_back() {
        let mut credit = TxCredit::starting_at(u32::MAX, 100);
        assert_eq!(credit.take(60), 60);
        credit.give_back(50);
        assert_eq!(credit.peer_free(), 90);
        // A peer that acknowledges unused credit gains nothing.
        assert_eq!(credit.take(90), 90);
        assert_eq!(credit.on_packet(100, 95), Ok(()));
        credit.give_back(90);
        assert_eq!(credit.peer_free(), 100);
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

    #[test]
    fn a_peer_without_a_buffer_still_gets_updates() {
        let mut credit = RxCredit::new(1000);
        assert!(!credit.owes_update(0));
        credit.accept(1).unwrap();
        credit.consume(1);
        assert!(credit.owes_update(0));
    }

    proptest! {
        /// Two ends of ours, started anywhere near the wrap: the sender never overruns the receiver,
        /// and it can send again when everything is consumed and the owed update has arrived.
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

        /// The same with a sender that takes any free byte, and limits itself to its own buffer if
        /// that is smaller.
        #[test]
        fn a_sender_that_limits_itself_to_its_own_buffer_is_never_stuck(
            start in (u32::MAX - 5000)..=u32::MAX,
            window in 1u32..2000,
            own in 1u32..2000,
            steps in prop::collection::vec((any::<bool>(), 1u32..3000), 1..200),
        ) {
            let mut tx = TxCredit::starting_at(start, window);
            let mut rx = RxCredit::starting_at(start, window);
            let mut buffered = 0;
            for (send, n) in steps {
                if send {
                    let taken = n.min(own.min(window).saturating_sub(tx.in_flight()));
                    tx.advance(taken);
                    prop_assert!(rx.accept(taken).is_ok());
                    buffered += taken;
                } else {
                    let taken = n.min(buffered);
                    rx.consume(taken);
                    buffered -= taken;
                }
                if rx.owes_update(own) {
                    let (buf_alloc, fwd_cnt) = rx.announce();
                    prop_assert!(tx.on_packet(buf_alloc, fwd_cnt).is_ok());
                }
            }
            rx.consume(buffered);
            if rx.owes_update(own) {
                let (buf_alloc, fwd_cnt) = rx.announce();
                prop_assert!(tx.on_packet(buf_alloc, fwd_cnt).is_ok());
            }
            prop_assert!(tx.in_flight() < own.min(window), "the sender is stuck");
        }

        #[test]
        fn no_counters_free_more_than_the_buffer(
            sent in 0u32..1000,
            packets in prop::collection::vec((any::<u32>(), any::<u32>()), 0..50),
        ) {
            let mut credit = TxCredit::new(1000);
            let sent = credit.take(sent);
            for (buf_alloc, fwd_cnt) in packets {
                let _error = credit.on_packet(buf_alloc, fwd_cnt);
                prop_assert!(credit.peer_free() <= credit.peer_buf_alloc());
                prop_assert!(credit.in_flight() <= sent);
            }
        }
    }
}
