//! Any memory, with rings in it, for the device.

use vsock_device::fuzzing::{BASE, RingAddresses, WorkerHarness};
use vsock_device::{Config, GuestCid};

use crate::connections::use_device;
use crate::input::Input;
use crate::packets::{HEADER, Packet};

const CID: u32 = 3;
/// Bytes of guest memory.
const MEMORY: u64 = 256 * 1024;
/// Descriptors of a ring, unless the guest wants it otherwise.
const SIZE: u16 = 16;
/// Steps of a program; more would show nothing new.
const STEPS: usize = 400;
/// Calls of the worker after which there is nothing left to do, if the guest does nothing: a call
/// handles 256 chains, and a ring has at most 1024.
const CALLS: usize = 64;

const NEXT: u64 = 1;
const WRITE: u64 = 2;

/// A guest that writes what it likes where it likes.
struct Guest {
    rig: WorkerHarness,
    at: [RingAddresses; 2],
    available: [u16; 2],
    sends: usize,
}

/// See the module's description.
pub fn run(bytes: &[u8]) {
    let config = Config {
        buf_alloc: 5000,
        max_connections: 6,
        ..Config::new(GuestCid::try_from(CID).expect("a good number"))
    };
    let memory = usize::try_from(MEMORY).expect("small");
    let at = [0, 1].map(|ring| places(BASE + ring * 0x4000, SIZE));
    let mut guest = Guest {
        rig: WorkerHarness::new(config, memory, &[7, 8]),
        at,
        available: [0; 2],
        sends: 0,
    };
    let mut input = Input::new(bytes);
    guest.start(&mut input);
    for _ in 0..STEPS {
        if input.is_empty() || !guest.step(&mut input) {
            break;
        }
    }
    guest.check_rest();
}

fn places(descriptors: u64, size: u16) -> RingAddresses {
    RingAddresses {
        descriptors,
        available: descriptors + 0x1000,
        used: descriptors + 0x2000,
        size,
    }
}

impl Guest {
    /// Starts both rings, usually where they are expected.
    fn start(&mut self, input: &mut Input<'_>) {
        for ring in [0, 1] {
            let mut at = places(BASE + 0x4000 * ring as u64, SIZE);
            if input.byte() > 200 {
                at.size = input.pick(&[1, 2, 1024, 0, 3]);
                at.descriptors = self.address(input);
                at.available = self.address(input) & !1;
                at.used = self.address(input) & !3;
            }
            self.rig.start(ring, at);
            self.at[ring] = at;
            self.available[ring] = 0;
        }
    }

    /// Does something. `false` if the device has given up.
    fn step(&mut self, input: &mut Input<'_>) -> bool {
        match input.roll(10) {
            0 | 1 => self.send(input),
            2 => self.post(input),
            3 => self.describe_anything(input),
            4 => {
                let head = u16::try_from(input.nearly(&[0, 1, 2, 15, 16]) & 0xFFFF);
                let ring = input.roll(2);
                self.publish(ring, head.unwrap_or(0));
            }
            5 => {
                let ring = input.roll(2);
                let index = input.nearly(&[0, 1, 16, 17, 0x7FFF, 0xFFFF]) & 0xFFFF;
                self.available[ring] = u16::try_from(index).unwrap_or(0);
                self.tell(ring);
            }
            6 => {
                let at = self.address(input);
                let n = input.roll(32);
                self.rig.write(at, input.bytes(n));
            }
            7 => use_device(self.rig.device(), &mut self.sends, input),
            8 if input.byte() > 200 => {
                self.rig.stop();
                self.start(input);
            }
            _ => return self.work(),
        }
        true
    }

    fn work(&mut self) -> bool {
        let lives = self.rig.work();
        if lives {
            assert_eq!(self.rig.device().broken_invariant(), None);
        }
        lives
    }

    /// A packet in a chain that is in order, or nearly.
    fn send(&mut self, input: &mut Input<'_>) {
        let own: &[u64] = &[1, 2, 3, 0x4000_0000];
        let theirs: &[u64] = &[7, 7, 8, 9, 0x4000_0000, 0x4000_0001];
        let packet = Packet::read(input, CID.into(), 2, [own, theirs]);
        let head = self.available[1] % SIZE;
        let at = BASE + 0x1_0000 + u64::from(head) * 0x400;
        self.rig.write(at, &packet.to_bytes());
        let header = HEADER as u64;
        let shape = input.byte();
        if shape > 200 {
            // In two parts.
            let split = u64::from(shape) % header;
            self.describe(1, head, [at, split, NEXT, u64::from(head ^ 1)]);
            let rest = header - split + u64::from(packet.len);
            self.describe(1, head ^ 1, [at + split, rest, 0, 0]);
        } else {
            self.describe(1, head, [at, header + u64::from(packet.len), 0, 0]);
        }
        self.publish(1, head);
    }

    /// A receive buffer.
    fn post(&mut self, input: &mut Input<'_>) {
        let head = self.available[0] % SIZE;
        let at = BASE + 0x2_0000 + u64::from(head) * 0x1000;
        let len = input.nearly(&[0x1000, 45, 44, 0x1_0000]);
        self.describe(0, head, [at, len, WRITE, 0]);
        self.publish(0, head);
    }

    fn describe_anything(&mut self, input: &mut Input<'_>) {
        let ring = input.roll(2);
        let index = u16::try_from(input.roll(16)).unwrap_or(0);
        let at = self.address(input);
        let len = input.nearly(&[
            44,
            0,
            1,
            0x1000,
            u64::from(u32::MAX),
            u64::from(u32::MAX) - 43,
        ]);
        let flags = input.nearly(&[0, NEXT, WRITE, NEXT | WRITE, 4, 7]);
        let next = input.nearly(&[0, 1, 2, 15, 16, 0xFFFF]);
        self.describe(ring, index, [at, len, flags, next]);
    }

    fn describe(&self, ring: usize, index: u16, [at, len, flags, next]: [u64; 4]) {
        let mut bytes = at.to_le_bytes().to_vec();
        bytes.extend(&len.to_le_bytes()[..4]);
        bytes.extend(&flags.to_le_bytes()[..2]);
        bytes.extend(&next.to_le_bytes()[..2]);
        let place = self.at[ring].descriptors;
        let place = place.wrapping_add(16 * u64::from(index));
        self.rig.write(place, &bytes);
    }

    fn publish(&mut self, ring: usize, head: u16) {
        let RingAddresses {
            available, size, ..
        } = self.at[ring];
        let slot = u64::from(self.available[ring] % size.max(1));
        let place = available.wrapping_add(4 + 2 * slot);
        self.rig.write(place, &head.to_le_bytes());
        self.available[ring] = self.available[ring].wrapping_add(1);
        self.tell(ring);
    }

    fn tell(&self, ring: usize) {
        let index = self.available[ring].to_le_bytes();
        let place = self.at[ring].available.wrapping_add(2);
        self.rig.write(place, &index);
    }

    /// Somewhere: in the rings, in memory, at its ends or outside.
    fn address(&self, input: &mut Input<'_>) -> u64 {
        let [rx, tx] = self.at;
        input.nearly(&[
            BASE + 0x1_0000,
            BASE + 0x2_0000,
            BASE + 0x2_0400,
            BASE + MEMORY - 44,
            BASE + MEMORY - 1,
            BASE + MEMORY,
            BASE - 1,
            0,
            u64::MAX,
            rx.descriptors,
            rx.available,
            rx.used,
            tx.descriptors,
            tx.available,
            tx.used,
            tx.used + 2,
        ])
    }

    /// With a guest that does nothing any more, the worker comes to rest.
    fn check_rest(&mut self) {
        for _ in 0..CALLS {
            if !self.work() || !self.rig.take_notification() {
                return;
            }
        }
        panic!("the worker does not come to rest");
    }
}

/// Programs that open a connection, send, receive and break something.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let start = [0, 0];
    let post = [2, 0];
    // As in `connections`: operation, ports, and what belongs to it; then the shape of the chain.
    let request = [0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0];
    let data = [0, 4, 0, 0, 2, 4, 0, 0, 0, 0, 0];
    let split = [0, 4, 0, 0, 2, 4, 0, 0, 0, 0, 210];
    let shutdown = [0, 3, 0, 0, 0, 2, 4, 0, 0, 0, 0, 0];
    let send = [7, 0, 1, 2];
    let connect = [7, 0, 0, 0];
    let read = [7, 0, 2, 3];
    let work = [9];
    let loops = [3, 1, 0, 0, 0, 1, 0];
    let publish = [4, 0, 1];
    let jump = [5, 1, 2];
    let program = |parts: &[&[u8]]| [&start, parts.concat().as_slice()].concat();
    vec![
        program(&[
            &post, &post, &request, &work, &data, &send, &work, &read, &work,
        ]),
        program(&[&post, &connect, &work, &request, &split, &shutdown, &work]),
        program(&[&request, &loops, &publish, &work, &post, &work]),
        program(&[&request, &work, &jump, &work]),
        program(&[
            &post, &request, &work, &send, &send, &post, &work, &post, &work,
        ]),
    ]
}
