//! Any sequence of packets into the connections of either side, and any use of them meanwhile.

use bytes::Bytes;
use vsock_device::fuzzing::Device;
use vsock_device::{Config, GuestCid};
use vsock_driver::fuzzing::{Driver, Id, Piece, Read};

use crate::input::Input;
use crate::packets::Packet;

const CID: u32 = 3;
const HOST: u64 = 2;
/// Own ports of a side, beginning with those where somebody listens, and ports of its peer.
const OWN: &[u64] = &[7, 7, 8, 9, 0x4000_0000, 0x4000_0001];
const PEER: &[u64] = &[1, 2, 3, 0x4000_0000];
/// Payloads come from here.
static ZEROS: Bytes = Bytes::from_static(&[0; 8192]);
/// Steps of a program; more would show nothing new.
const STEPS: usize = 500;
/// Bytes that the applications may queue on the device at once.
const QUEUED: usize = 64;

/// What the host does with its connections.
pub(crate) fn use_device(device: &mut Device, sends: &mut usize, input: &mut Input<'_>) {
    let n = input.roll(device.accepted().max(1));
    match input.roll(7) {
        0 => {
            device.connect(input.pick(&[1, 2]));
        }
        1 if *sends < QUEUED => {
            *sends += 1;
            let len = input.pick(&[0, 1, 100, 1023, 5000, 8192]);
            device.send(n, ZEROS.slice(..len)).ok();
        }
        1 | 2 => {
            device
                .read(n, &mut vec![0; input.pick(&[0, 1, 100, 5000])])
                .ok();
        }
        3 => device.finish_sending(n),
        4 => device.hang_up(n),
        5 => device.reset(n),
        _ => {
            device.is_open(n).ok();
        }
    }
}

/// A hostile guest says this to the device.
pub fn device(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let config = Config {
        buf_alloc: input.pick(&[8, 5000, 1]),
        max_connections: 4,
        ..Config::new(GuestCid::try_from(CID).expect("a good number"))
    };
    let mut device = Device::new(config, &[7, 8]);
    let mut sends = 0;
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        match input.roll(4) {
            0 | 1 => {
                let packet = Packet::read(&mut input, CID.into(), HOST, [PEER, OWN]);
                let len = (packet.len as usize).min(ZEROS.len());
                device.receive(&packet.to_bytes(), &ZEROS[..len]);
            }
            2 => drop(device.poll_packet(input.pick(&[1, 100, 5000, u32::MAX]))),
            _ => use_device(&mut device, &mut sends, &mut input),
        }
        if device.failure().is_some() {
            break;
        }
        assert_eq!(device.broken_invariant(), None);
    }
    // Nobody is left who could not be told.
    device.guest_stopped();
    assert_eq!(device.connections(), 0);
    assert_eq!(device.poll_packet(100), None);
}

/// A driver, its slots and who holds what lies in them.
struct Bench {
    driver: Driver<Bytes>,
    posted: usize,
    ids: Vec<Id>,
    hands: Vec<(Id, Piece<Bytes>)>,
}

const SLOTS: usize = 5;

/// A hostile host says this to the driver.
pub fn driver(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let window = 1 + input.roll(3);
    let mut bench = Bench {
        driver: Driver::new(CID.into(), SLOTS, 5000, window, 4),
        posted: SLOTS,
        ids: Vec::new(),
        hands: Vec::new(),
    };
    assert!(bench.driver.listen(7));
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        match input.roll(4) {
            0 | 1 => bench.hear(&mut input),
            2 => drop(bench.driver.poll_packet()),
            _ => bench.use_it(&mut input),
        }
        bench.settle();
    }
    bench.end();
}

impl Bench {
    fn hear(&mut self, input: &mut Input<'_>) {
        assert!(self.posted > 0, "the device has no slot");
        let packet = Packet::read(input, HOST, CID.into(), [PEER, OWN]);
        let len = (packet.len as usize).min(5000);
        self.posted -= 1;
        self.driver
            .receive(&packet.to_bytes(), ZEROS.slice(..5000), len);
    }

    fn use_it(&mut self, input: &mut Input<'_>) {
        match input.roll(9) {
            0 => self.ids.extend(self.driver.connect(input.pick(&[1, 2]))),
            1 => self.ids.extend(self.driver.accept(7)),
            2 if !self.hands.is_empty() => {
                let which = input.roll(self.hands.len());
                let (id, piece) = self.hands.swap_remove(which);
                self.driver.drop_piece(id, piece);
            }
            3 => {
                self.driver.unlisten(7);
                assert!(self.driver.listen(7));
            }
            what => {
                let which = input.roll(self.ids.len());
                if let Some(&id) = self.ids.get(which) {
                    self.use_connection(what, id, input);
                }
            }
        }
    }

    fn use_connection(&mut self, what: usize, id: Id, input: &mut Input<'_>) {
        let driver = &mut self.driver;
        match what {
            4 => {
                let want = input.pick(&[1, 100, 5000]);
                if let Ok(len @ 1..) = driver.begin_send(id, want) {
                    let unused = len.min(input.pick(&[0, 1, 5000]));
                    driver
                        .send(id, ZEROS.slice(..5000), len - unused, unused)
                        .ok();
                }
            }
            5 => {
                if let Ok(Read::Piece(piece)) = driver.read(id) {
                    self.hands.push((id, piece));
                }
            }
            6 => {
                driver.finish_sending(id).ok();
            }
            7 => driver.reset(id),
            _ => {
                driver.hang_up(id);
                self.ids.retain(|known| *known != id);
            }
        }
    }

    fn settle(&mut self) {
        while self.driver.take_received().is_some() {
            self.posted += 1;
        }
        while self.driver.take_unsent().is_some() {}
        self.driver.forget_events();
        assert_eq!(self.posted + self.driver.held(), SLOTS, "slots");
        assert_eq!(self.driver.broken_invariant(), None);
        assert!(self.driver.connections() <= 4 + self.ids.len() + self.hands.len());
    }

    /// Everybody goes, and nothing is left.
    fn end(mut self) {
        self.driver.end();
        self.driver.unlisten(7);
        for id in std::mem::take(&mut self.ids) {
            self.driver.hang_up(id);
        }
        for (id, piece) in std::mem::take(&mut self.hands) {
            self.driver.drop_piece(id, piece);
        }
        self.settle();
        assert_eq!(self.posted, SLOTS);
        assert_eq!(self.driver.connections(), 0);
    }
}

/// Programs that open connections, move bytes and end them. Numbers are places in the lists of
/// [`Packet::read`] and of the programs above.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    // A packet: operation, both ports, and then what its operation has.
    let request = [0, 0, 0, 0, 0, 4, 0, 0, 0, 0];
    let response = [0, 1, 0, 4, 0, 4, 0, 0, 0, 0];
    let data = [0, 4, 0, 0, 2, 4, 0, 0, 0, 0];
    let full = [0, 4, 0, 0, 4, 4, 0, 0, 0, 0];
    let shutdown = [0, 3, 0, 0, 0, 2, 4, 0, 0, 0, 0];
    let reset = [0, 2, 0, 0, 0, 0, 0, 0, 0, 0];
    let poll = [2, 2];
    let accept = [3, 1];
    let connect = [3, 0, 0];
    let send = [3, 4, 0, 2, 0];
    let read = [3, 5, 0];
    let drop = [3, 2, 0];
    let program = |parts: &[&[u8]]| [&[1], parts.concat().as_slice()].concat();
    vec![
        program(&[&request, &accept, &poll, &data, &read, &drop, &poll, &reset]),
        program(&[&request, &accept, &poll, &full, &full, &read, &read, &drop]),
        program(&[&request, &accept, &send, &poll, &poll, &shutdown, &poll]),
        program(&[&connect, &poll, &response, &send, &poll, &[3, 6, 0], &poll]),
        program(&[&request, &request, &data, &accept, &[3, 8, 0], &full, &poll]),
    ]
}
