//! What every pair of guest and host has to do through a vsock device.
//!
//! A check is a function of a [`Setup`] and does not depend on driver, device or process of the two
//! sides. A known fault of a stock peer is a field of [`Faults`], and the checks say what follows from
//! it.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use vsock_guest::conformance::{Connection, Side, TIMEOUT};

/// More bytes than both sides and everything in between can buffer for one connection.
const BULK: u64 = 24 << 20;

/// Bytes of the slots of our driver.
const SLOT: u64 = 1 << 20;

/// Bytes of its send buffers.
const BUFFER: u64 = 128 * 1024;

/// Two sides of a device.
pub(crate) struct Setup<'a> {
    pub(crate) guest: &'a dyn Side,
    pub(crate) host: &'a dyn Side,
    pub(crate) faults: Faults,
}

/// Known faults of a peer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    /// A guest that connects to a port without a listener gets no answer.
    pub(crate) drops_refusals: bool,
    /// Shutting down one direction is not passed on from guest to host, and closes both directions from
    /// host to guest.
    pub(crate) no_half_close: bool,
    /// A guest that closes while the host is slow gets no answer, and the host sees no end.
    pub(crate) forgets_to_close: bool,
    /// Of several connections with something for the guest, some are forgotten until something else
    /// happens.
    pub(crate) needs_nudges: bool,
}

/// Sets a flag when dropped, also by a panic.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// One of the two sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Actor {
    Guest,
    Host,
}

const BOTH: [Actor; 2] = [Actor::Guest, Actor::Host];

/// How often to nudge a peer that needs it.
const NUDGE: Duration = Duration::from_millis(5);

impl Setup<'_> {
    /// Runs a check.
    pub(crate) fn check(&self, check: fn(&Setup<'_>)) {
        if !self.faults.needs_nudges {
            return check(self);
        }
        let [nudger, _nobody_reads] = self.pair(Actor::Guest);
        let is_done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                // If this fails, the check fails too, and its message is enough.
                while !is_done.load(Ordering::SeqCst) && nudger.send(0, 1, 1).is_ok() {
                    thread::sleep(NUDGE);
                }
            });
            let _done = Done(&is_done);
            check(self);
        });
    }

    /// Both ends of a connection that `actor` makes: its own and the other side's.
    fn pair(&self, actor: Actor) -> [Box<dyn Connection>; 2] {
        let (from, to) = match actor {
            Actor::Guest => (self.guest, self.host),
            Actor::Host => (self.host, self.guest),
        };
        let port = port();
        let listener = to.listen(port).unwrap();
        let one = from.connect(port, TIMEOUT).unwrap();
        let other = listener.accept().unwrap();
        [one, other]
    }
}

/// A port that no test has used before.
fn port() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(20_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Where the pattern of a connection begins, far from that of any other.
fn origin() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed) << 32
}

/// Sends from one end to the other, and compares.
#[track_caller]
fn transfer(from: &dyn Connection, to: &dyn Connection, len: u64) {
    let origin = origin();
    thread::scope(|scope| {
        let sent = scope.spawn(move || from.send(origin, len, SLOT));
        let got = to.expect(origin, len);
        got.unwrap_or_else(|error| panic!("{len} bytes: {error}"));
        sent.join().unwrap().unwrap();
    });
}

/// Waits for the end of the stream, or for an error that ends the connection.
#[track_caller]
pub(crate) fn check_ended(end: &dyn Connection) {
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

/// Sends until that fails.
#[track_caller]
fn check_cannot_send(end: &dyn Connection) {
    let error = end.send(origin(), BULK, SLOT).unwrap_err();
    let is_late = matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock);
    assert!(!is_late, "{error}");
}

/// Each side can connect, and then both can send.
pub(crate) fn both_sides_connect_and_send(setup: &Setup<'_>) {
    for actor in BOTH {
        let [one, other] = setup.pair(actor);
        transfer(&*one, &*other, 14);
        transfer(&*other, &*one, 13);
    }
}

/// A port without a listener refuses at once, also if it had one before.
pub(crate) fn a_port_without_a_listener_refuses(setup: &Setup<'_>) {
    for actor in BOTH {
        let (from, to) = match actor {
            Actor::Guest => (setup.guest, setup.host),
            Actor::Host => (setup.host, setup.guest),
        };
        let port = port();
        drop(to.listen(port).unwrap());
        if actor == Actor::Guest && setup.faults.drops_refusals {
            let limit = Duration::from_secs(1);
            let refused = from.connect(port, limit).err().map(|error| error.kind());
            assert_eq!(refused, Some(ErrorKind::TimedOut));
        } else {
            let refused = from.connect(port, TIMEOUT).err().map(|error| error.kind());
            assert!(
                matches!(
                    refused,
                    // The kernel's driver says the second.
                    Some(ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset)
                ),
                "{actor:?}: {refused:?}"
            );
        }
        // The port can be used afterwards.
        let listener = to.listen(port).unwrap();
        let one = from.connect(port, TIMEOUT).unwrap();
        transfer(&*one, &*listener.accept().unwrap(), 1);
    }
}

/// One byte, what fits into a page, a slot or a buffer, and one byte more or less.
pub(crate) fn sizes_around_every_boundary_arrive(setup: &Setup<'_>) {
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
    let [guest, host] = setup.pair(Actor::Guest);
    for size in sizes {
        transfer(&*host, &*guest, size);
        transfer(&*guest, &*host, size);
    }
}

/// Bulk data in both directions at once on one connection.
pub(crate) fn both_directions_flow_at_once(setup: &Setup<'_>) {
    for actor in BOTH {
        let [one, other] = setup.pair(actor);
        thread::scope(|scope| {
            scope.spawn(|| transfer(&*one, &*other, BULK / 3));
            transfer(&*other, &*one, BULK / 3);
        });
    }
}

/// Many small pieces that wait to be read: they need little credit and many slots.
pub(crate) fn thousands_of_tiny_pieces_wait_for_their_reader(setup: &Setup<'_>) {
    let [guest, host] = setup.pair(Actor::Guest);
    for (from, to) in [(&guest, &host), (&host, &guest)] {
        let origin = origin();
        from.send(origin, 3000, 1).unwrap();
        from.send(origin + 3000, 10_000, 10).unwrap();
        to.expect(origin, 13_000).unwrap();
    }
}

/// A guest that has shut down sending still receives.
pub(crate) fn the_guest_shuts_down_one_direction(setup: &Setup<'_>) {
    let [guest, host] = setup.pair(Actor::Guest);
    transfer(&*guest, &*host, 100_000);
    guest.finish().unwrap();
    if !setup.faults.no_half_close {
        host.expect_end().unwrap();
    }
    transfer(&*host, &*guest, 300_000);
    drop(host);
    check_ended(&*guest);
}

/// A host that has shut down sending still receives.
pub(crate) fn the_host_shuts_down_one_direction(setup: &Setup<'_>) {
    let [guest, host] = setup.pair(Actor::Guest);
    transfer(&*host, &*guest, 100_000);
    host.finish().unwrap();
    guest.expect_end().unwrap();
    if setup.faults.no_half_close {
        return check_cannot_send(&*guest);
    }
    transfer(&*guest, &*host, 300_000);
    drop(guest);
    check_ended(&*host);
}

/// What was sent before the connection was closed arrives, and then the end.
pub(crate) fn what_was_sent_before_a_close_arrives(setup: &Setup<'_>) {
    let len = 512 << 10;
    for actor in BOTH {
        let [guest, host] = setup.pair(Actor::Guest);
        let (from, to) = match actor {
            Actor::Guest => (guest, host),
            Actor::Host => (host, guest),
        };
        let origin = origin();
        thread::scope(|scope| {
            scope.spawn(move || {
                from.send(origin, len, SLOT).unwrap();
                drop(from);
            });
            to.expect(origin, len).unwrap();
        });
        if actor == Actor::Host || !setup.faults.forgets_to_close {
            check_ended(&*to);
        }
    }
}

/// When one side resets, reading and writing fail on the other side.
pub(crate) fn a_reset_is_seen_by_the_other_side(setup: &Setup<'_>) {
    for actor in BOTH {
        let [one, other] = setup.pair(actor);
        transfer(&*one, &*other, 5);
        thread::scope(|scope| {
            let reader = scope.spawn(|| check_ended(&*other));
            one.reset().unwrap();
            reader.join().unwrap();
        });
        check_cannot_send(&*other);
    }
}

/// A side that does not read stops its sender and nothing else, and loses nothing.
pub(crate) fn a_sleeping_reader_stops_only_its_own_sender(setup: &Setup<'_>) {
    for actor in BOTH {
        let [slow_guest, slow_host] = setup.pair(Actor::Guest);
        let [guest, host] = setup.pair(Actor::Host).map(Some);
        let (guest, host) = (host.unwrap(), guest.unwrap());
        let ends = [&slow_guest, &slow_host, &guest, &host].map(|end| &**end);
        let [slow_from, slow_to, from, to] = match (actor, ends) {
            (Actor::Guest, ends) => ends,
            (Actor::Host, [slow_guest, slow_host, guest, host]) => {
                [slow_host, slow_guest, host, guest]
            }
        };
        let origin = origin();
        let is_sent = AtomicBool::new(false);
        thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let sent = slow_from.send(origin, BULK, 65_536);
                is_sent.store(true, Ordering::SeqCst);
                sent
            });
            // Other connections, in both directions, and new ones too.
            transfer(from, to, BULK);
            transfer(to, from, BULK / 8);
            both_sides_connect_and_send(setup);
            // The same amount was transferred meanwhile on a connection with a reader.
            assert!(
                !is_sent.load(Ordering::SeqCst),
                "{actor:?}: it was sent without a reader"
            );
            slow_to.expect(origin, BULK).unwrap();
            sender.join().unwrap().unwrap();
        });
    }
}

/// Connections do not mix, and all of them work.
pub(crate) fn sixteen_connections_work_at_once(setup: &Setup<'_>) {
    let pairs: Vec<_> = (0..16)
        .map(|n| {
            setup.pair(if n % 2 == 0 {
                Actor::Guest
            } else {
                Actor::Host
            })
        })
        .collect();
    thread::scope(|scope| {
        for [one, other] in &pairs {
            scope.spawn(|| transfer(&**one, &**other, 700_001));
            scope.spawn(|| transfer(&**other, &**one, 700_001));
        }
    });
}

/// Connections that are dropped with bytes in flight do not affect later ones.
pub(crate) fn connections_come_and_go(setup: &Setup<'_>) {
    for round in 0..60 {
        let actor = if round % 2 == 0 {
            Actor::Guest
        } else {
            Actor::Host
        };
        let [one, other] = setup.pair(actor);
        let origin = origin();
        // Few enough bytes that sending does not wait for a reader.
        one.send(origin, 40_000, SLOT).unwrap();
        match round % 3 {
            0 => other.expect(origin, 40_000).unwrap(),
            1 => one.reset().unwrap(),
            _ => {}
        }
    }
    let [one, other] = setup.pair(Actor::Guest);
    transfer(&*one, &*other, BULK / 8);
    transfer(&*other, &*one, BULK / 8);
}

/// Calls a macro with the names of all checks.
macro_rules! with_checks {
    ($macro:ident $(, $($before:tt)*)?) => {
        $macro! {
            $($($before)*)?
            both_sides_connect_and_send,
            a_port_without_a_listener_refuses,
            sizes_around_every_boundary_arrive,
            both_directions_flow_at_once,
            thousands_of_tiny_pieces_wait_for_their_reader,
            the_guest_shuts_down_one_direction,
            the_host_shuts_down_one_direction,
            what_was_sent_before_a_close_arrives,
            a_reset_is_seen_by_the_other_side,
            a_sleeping_reader_stops_only_its_own_sender,
            sixteen_connections_work_at_once,
            connections_come_and_go,
        }
    };
}
