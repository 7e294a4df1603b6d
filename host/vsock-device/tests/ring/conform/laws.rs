//! What is true of every guest and every host between which a vsock device works.
//!
//! A law is a function of a [`World`] and knows nothing of what the two sides are made of. What a
//! stock peer is known to do wrong is a field of [`Faults`], and the law says what follows.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::side::{End, PATIENCE, Side};

/// More than both sides and everything in between can hold of one connection.
const BULK: u64 = 24 << 20;

/// Bytes of the slots of our driver.
const SLOT: u64 = 1 << 20;

/// Bytes of what it sends from.
const BUFFER: u64 = 128 * 1024;

/// Two sides and what is between them.
pub(crate) struct World<'a> {
    pub(crate) guest: &'a dyn Side,
    pub(crate) host: &'a dyn Side,
    pub(crate) faults: Faults,
}

/// What a peer is known to do wrong.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    /// A guest that connects to a port where nobody listens gets no answer.
    pub(crate) drops_refusals: bool,
    /// The end of one direction is not passed on from guest to host, and is the end of both from
    /// host to guest.
    pub(crate) no_half_close: bool,
    /// A guest that closes while the host is slow is never answered, and the host sees no end.
    pub(crate) forgets_to_close: bool,
    /// Of several connections that have something for the guest, some are forgotten until anything
    /// else happens.
    pub(crate) needs_nudges: bool,
}

/// Says that something is over, also when it panics.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Which side does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Guest,
    Host,
}

const BOTH: [Who; 2] = [Who::Guest, Who::Host];

/// How often a peer is nudged that needs it.
const NUDGE: Duration = Duration::from_millis(5);

impl World<'_> {
    /// Checks a law.
    pub(crate) fn check(&self, law: fn(&World<'_>)) {
        if !self.faults.needs_nudges {
            return law(self);
        }
        let [nudger, _nobody_reads] = self.pair(Who::Guest);
        let is_done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                // When the law is broken, or has broken the device, its own complaint is enough.
                while !is_done.load(Ordering::SeqCst) && nudger.send(0, 1, 1).is_ok() {
                    thread::sleep(NUDGE);
                }
            });
            let _done = Done(&is_done);
            law(self);
        });
    }

    /// Two ends of a connection that `who` made: theirs and the other side's.
    fn pair(&self, who: Who) -> [Box<dyn End>; 2] {
        let (from, to) = match who {
            Who::Guest => (self.guest, self.host),
            Who::Host => (self.host, self.guest),
        };
        let port = port();
        let door = to.listen(port).unwrap();
        let one = from.connect(port, PATIENCE).unwrap();
        let other = door.accept().unwrap();
        [one, other]
    }
}

/// A port that no test has used before.
fn port() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(20_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Where the pattern of a connection begins, which is nowhere near another one's.
fn origin() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed) << 32
}

/// Sends from one end to the other.
#[track_caller]
fn carry(from: &dyn End, to: &dyn End, len: u64) {
    let origin = origin();
    thread::scope(|scope| {
        let sent = scope.spawn(move || from.send(origin, len, SLOT));
        let got = to.expect(origin, len);
        got.unwrap_or_else(|error| panic!("{len} bytes: {error}"));
        sent.join().unwrap().unwrap();
    });
}

/// Waits until there is nothing more to read, in whatever way.
#[track_caller]
pub(crate) fn check_ended(end: &dyn End) {
    match end.expect_end() {
        Ok(()) => {}
        Err(error) => assert!(
            matches!(
                error.kind(),
                ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::NotConnected
            ),
            "{error}"
        ),
    }
}

/// Waits until bytes cannot be sent any more.
#[track_caller]
fn check_deaf(end: &dyn End) {
    let error = end.send(origin(), BULK, SLOT).unwrap_err();
    let is_late = matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock);
    assert!(!is_late, "{error}");
}

/// Each side can connect, and then each can talk.
pub(crate) fn both_sides_connect_and_talk(world: &World<'_>) {
    for who in BOTH {
        let [one, other] = world.pair(who);
        carry(&*one, &*other, 14);
        carry(&*other, &*one, 13);
    }
}

/// A port where nobody listens refuses at once, also one where somebody listened before.
pub(crate) fn a_port_where_nobody_listens_refuses(world: &World<'_>) {
    for who in BOTH {
        let (from, to) = match who {
            Who::Guest => (world.guest, world.host),
            Who::Host => (world.host, world.guest),
        };
        let port = port();
        drop(to.listen(port).unwrap());
        if who == Who::Guest && world.faults.drops_refusals {
            let limit = Duration::from_secs(1);
            let refused = from.connect(port, limit).err().map(|error| error.kind());
            assert_eq!(refused, Some(ErrorKind::TimedOut));
        } else {
            let refused = from.connect(port, PATIENCE).err().map(|error| error.kind());
            assert!(
                matches!(
                    refused,
                    // The kernel's driver says the second.
                    Some(ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset)
                ),
                "{who:?}: {refused:?}"
            );
        }
        // It does not matter afterwards.
        let door = to.listen(port).unwrap();
        let one = from.connect(port, PATIENCE).unwrap();
        carry(&*one, &*door.accept().unwrap(), 1);
    }
}

/// One byte, what fits into a page, a slot or a buffer, and one byte more or less.
pub(crate) fn sizes_around_every_boundary_arrive(world: &World<'_>) {
    let page = 4096;
    let sizes = [
        1,
        2,
        43,
        44,
        45,
        page - 44,
        page - 1,
        page,
        page + 1,
        65_535,
        65_536,
        65_537,
        BUFFER - 44,
        BUFFER - 1,
        BUFFER,
        BUFFER + 1,
        SLOT - 44,
        SLOT - 1,
        SLOT,
        SLOT + 1,
        SLOT + 3,
        4 << 20,
        (5 << 20) + 7,
    ];
    let [guest, host] = world.pair(Who::Guest);
    for size in sizes {
        carry(&*host, &*guest, size);
        carry(&*guest, &*host, size);
    }
}

/// Much in both directions at once on one connection.
pub(crate) fn both_directions_flow_at_once(world: &World<'_>) {
    for who in BOTH {
        let [one, other] = world.pair(who);
        thread::scope(|scope| {
            scope.spawn(|| carry(&*one, &*other, BULK / 3));
            carry(&*other, &*one, BULK / 3);
        });
    }
}

/// Many small pieces that wait to be read: they need little credit and many slots.
pub(crate) fn thousands_of_tiny_pieces_wait_for_their_reader(world: &World<'_>) {
    let [guest, host] = world.pair(Who::Guest);
    for (from, to) in [(&guest, &host), (&host, &guest)] {
        let origin = origin();
        from.send(origin, 3000, 1).unwrap();
        from.send(origin + 3000, 10_000, 10).unwrap();
        to.expect(origin, 13_000).unwrap();
    }
}

/// A guest that has finished sending still hears the answer.
pub(crate) fn the_guest_ends_one_direction(world: &World<'_>) {
    let [guest, host] = world.pair(Who::Guest);
    carry(&*guest, &*host, 100_000);
    guest.finish().unwrap();
    if !world.faults.no_half_close {
        host.expect_end().unwrap();
    }
    carry(&*host, &*guest, 300_000);
    drop(host);
    check_ended(&*guest);
}

/// A host that has finished sending still hears the answer.
pub(crate) fn the_host_ends_one_direction(world: &World<'_>) {
    let [guest, host] = world.pair(Who::Guest);
    carry(&*host, &*guest, 100_000);
    host.finish().unwrap();
    guest.expect_end().unwrap();
    if world.faults.no_half_close {
        return check_deaf(&*guest);
    }
    carry(&*guest, &*host, 300_000);
    drop(guest);
    check_ended(&*host);
}

/// What was sent before the connection was closed arrives, and then the end.
pub(crate) fn what_was_sent_before_a_close_arrives(world: &World<'_>) {
    let len = 512 << 10;
    for who in BOTH {
        let [guest, host] = world.pair(Who::Guest);
        let (from, to) = match who {
            Who::Guest => (guest, host),
            Who::Host => (host, guest),
        };
        let origin = origin();
        thread::scope(|scope| {
            scope.spawn(move || {
                from.send(origin, len, SLOT).unwrap();
                drop(from);
            });
            to.expect(origin, len).unwrap();
        });
        if who == Who::Host || !world.faults.forgets_to_close {
            check_ended(&*to);
        }
    }
}

/// When one side gives up, the other one neither reads nor writes for ever.
pub(crate) fn a_reset_is_seen_by_the_other_side(world: &World<'_>) {
    for who in BOTH {
        let [one, other] = world.pair(who);
        carry(&*one, &*other, 5);
        thread::scope(|scope| {
            let reader = scope.spawn(|| check_ended(&*other));
            one.reset().unwrap();
            reader.join().unwrap();
        });
        check_deaf(&*other);
    }
}

/// Who does not read stops who sends to it, and nobody else; and loses nothing.
pub(crate) fn a_sleeping_reader_stops_only_its_own_sender(world: &World<'_>) {
    for who in BOTH {
        let [slow_guest, slow_host] = world.pair(Who::Guest);
        let [guest, host] = world.pair(Who::Host).map(Some);
        let (guest, host) = (host.unwrap(), guest.unwrap());
        let ends = [&slow_guest, &slow_host, &guest, &host].map(|end| &**end);
        let [slow_from, slow_to, from, to] = match (who, ends) {
            (Who::Guest, ends) => ends,
            (Who::Host, [slow_guest, slow_host, guest, host]) => {
                [slow_host, slow_guest, host, guest]
            }
        };
        let origin = origin();
        let is_through = AtomicBool::new(false);
        thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let sent = slow_from.send(origin, BULK, 65_536);
                is_through.store(true, Ordering::SeqCst);
                sent
            });
            // The others, in both directions, and new ones too.
            carry(from, to, BULK);
            carry(to, from, BULK / 8);
            both_sides_connect_and_talk(world);
            // It had all the time that the same amount took that somebody read.
            assert!(
                !is_through.load(Ordering::SeqCst),
                "{who:?}: nobody has read that"
            );
            slow_to.expect(origin, BULK).unwrap();
            sender.join().unwrap().unwrap();
        });
    }
}

/// Connections do not mix, and all of them get through.
pub(crate) fn sixteen_connections_work_at_once(world: &World<'_>) {
    let pairs: Vec<_> = (0..16)
        .map(|n| world.pair(if n % 2 == 0 { Who::Guest } else { Who::Host }))
        .collect();
    thread::scope(|scope| {
        for [one, other] in &pairs {
            scope.spawn(|| carry(&**one, &**other, 700_001));
            scope.spawn(|| carry(&**other, &**one, 700_001));
        }
    });
}

/// Connections that are dropped with bytes on their way leave nothing behind that hurts others.
pub(crate) fn connections_come_and_go(world: &World<'_>) {
    for round in 0..60 {
        let who = if round % 2 == 0 {
            Who::Guest
        } else {
            Who::Host
        };
        let [one, other] = world.pair(who);
        let origin = origin();
        // Little enough that it need not be read.
        one.send(origin, 40_000, SLOT).unwrap();
        match round % 3 {
            0 => other.expect(origin, 40_000).unwrap(),
            1 => one.reset().unwrap(),
            _ => {}
        }
    }
    let [one, other] = world.pair(Who::Guest);
    carry(&*one, &*other, BULK / 8);
    carry(&*other, &*one, BULK / 8);
}

/// Calls a macro with the names of all laws.
macro_rules! with_laws {
    ($macro:ident $(, $($before:tt)*)?) => {
        $macro! {
            $($($before)*)?
            both_sides_connect_and_talk,
            a_port_where_nobody_listens_refuses,
            sizes_around_every_boundary_arrive,
            both_directions_flow_at_once,
            thousands_of_tiny_pieces_wait_for_their_reader,
            the_guest_ends_one_direction,
            the_host_ends_one_direction,
            what_was_sent_before_a_close_arrives,
            a_reset_is_seen_by_the_other_side,
            a_sleeping_reader_stops_only_its_own_sender,
            sixteen_connections_work_at_once,
            connections_come_and_go,
        }
    };
}
