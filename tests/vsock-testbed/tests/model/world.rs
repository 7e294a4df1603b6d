//! Driver, device, the rings between them, and the applications.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher as _};

use bytes::Bytes;
use virtio_vsock::{HEADER_LEN, Header, Op};
use vsock_device::fuzzing::Device;
use vsock_device::{Config, GuestCid};
use vsock_driver::fuzzing::{Driver, Id, Piece, Read};

use super::script::{Abort, Fault, Opener, Plan, SLOT, Script, stretch};

const CID: u32 = 3;
/// Ports of the first connection, if the host listens and if the guest does.
const HOST_PORT: u32 = 100;
const GUEST_PORT: u32 = 200;

/// Bytes in a buffer.
#[derive(Debug, Clone, Hash)]
pub(super) struct Buf(Bytes);

impl AsRef<[u8]> for Buf {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// The state of one application of a connection, in the guest or on the host.
#[derive(Debug, Clone, Default, Hash)]
struct User {
    /// Sends of the script that are done, and bytes.
    lines: usize,
    sent: u32,
    got: u32,
    has_finished: bool,
    reached_end: bool,
    has_failed: bool,
    has_left: bool,
}

#[derive(Debug, Clone, Default, Hash)]
struct Guest {
    id: Option<Id>,
    user: User,
    held: Vec<Piece<Buf>>,
    /// Bytes of pieces that were dropped, and the window that was announced to the host.
    dropped: u32,
    buf_alloc: u32,
}

#[derive(Debug, Clone, Default, Hash)]
struct Host {
    number: Option<usize>,
    user: User,
    /// Bytes that are in packets.
    packed: u32,
}

/// See the module's description.
#[derive(Debug, Clone, Hash)]
#[expect(
    clippy::derived_hash_with_manual_eq,
    reason = "the comparison is one of hashes"
)]
pub(super) struct World {
    driver: Driver<Buf>,
    device: Device,
    /// Slots that the device may fill, slots that it has filled, packets that it has not received.
    posted: usize,
    filled: VecDeque<([u8; HEADER_LEN], Buf)>,
    sent: VecDeque<([u8; HEADER_LEN], Option<Buf>)>,
    guests: Vec<Guest>,
    hosts: Vec<Host>,
    /// Control packets since something else happened.
    pub(super) chatter: u8,
    pub(super) broken: Option<String>,
}

/// Something that can happen next. The numbers are indexes of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Open(usize),
    GuestSends(usize),
    GuestFinishes(usize),
    GuestReads(usize),
    /// The second number is the index of the piece.
    GuestDrops(usize, usize),
    GuestLeaves(usize),
    GuestResets(usize),
    HostSends(usize),
    HostFinishes(usize),
    HostReads(usize),
    HostLeaves(usize),
    HostResets(usize),
    /// The device fills a slot.
    Fill,
    /// The device receives a packet.
    DeviceReceive,
    /// The driver takes this many filled slots.
    DriverReceive(usize),
}

impl World {
    pub(super) fn new(script: &Script) -> Self {
        let cid = GuestCid::try_from(CID).unwrap();
        let config = Config {
            buf_alloc: script.buf_alloc,
            ..Config::new(cid)
        };
        let n = u32::try_from(script.plans.len()).unwrap();
        let ports: Vec<u32> = (HOST_PORT..HOST_PORT + n).collect();
        let mut driver = Driver::new(CID.into(), script.slots, SLOT, script.window, 8);
        assert!((GUEST_PORT..GUEST_PORT + n).all(|port| driver.listen(port)));
        Self {
            driver,
            device: Device::new(config, &ports),
            posted: script.slots,
            filled: VecDeque::new(),
            sent: VecDeque::new(),
            guests: vec![Guest::default(); script.plans.len()],
            hosts: vec![Host::default(); script.plans.len()],
            chatter: 0,
            broken: None,
        }
    }

    /// Slots that are posted, filled or held.
    pub(super) fn slots(&self) -> usize {
        self.posted + self.filled.len() + self.driver.held()
    }

    /// Whether everything has happened that should.
    pub(super) fn is_complete(&self, script: &Script) -> bool {
        let plans = script.plans.iter().zip(self.guests.iter().zip(&self.hosts));
        let all_received = plans.clone().all(|(plan, (guest, host))| {
            plan.aborts.is_some()
                || ((plan.max_held == 0 || guest.user.has_all(&plan.down))
                    && (plan.host_sleeps || host.user.has_all(&plan.up)))
        });
        let all_left = plans.clone().all(|(plan, (guest, host))| {
            // A side may abort before the other side knows of the connection.
            let is_unknown = plan.aborts.is_some() && (guest.id.is_none() || host.number.is_none());
            plan.sleeps() || is_unknown || (guest.user.has_left && host.user.has_left)
        });
        let sleepers = plans.filter(|(plan, _)| plan.sleeps()).count();
        all_received
            && all_left
            && self.driver.connections() <= sleepers
            && self.device.connections() <= sleepers
            && self.posted + self.driver.held() == script.slots
            && (sleepers > 0 || self.posted == script.slots)
    }

    // ---- What can happen -----------------------------------------------------------------------

    pub(super) fn actions(&self, script: &Script, actions: &mut Vec<Action>) {
        // Eager plans come last in a script.
        for (n, plan) in script.plans.iter().enumerate().rev() {
            self.guest_actions(n, plan, actions);
            self.host_actions(n, plan, actions);
            if plan.is_eager
                && let Some(next) = actions.pop()
            {
                *actions = vec![next];
                return;
            }
        }
        if self.posted > 0 && self.device.has_packets() {
            actions.push(Action::Fill);
        }
        if !self.sent.is_empty() {
            actions.push(Action::DeviceReceive);
        }
        let filled = self.filled.len();
        actions.extend((filled > 0).then_some(Action::DriverReceive(1)));
        actions.extend((filled > 1).then_some(Action::DriverReceive(filled)));
    }

    fn guest_actions(&self, n: usize, plan: &Plan, actions: &mut Vec<Action>) {
        let Guest { id, user, held, .. } = &self.guests[n];
        actions.extend((0..held.len()).map(|which| Action::GuestDrops(n, which)));
        let Some(id) = *id else {
            if plan.opened_by == Opener::Guest && !user.has_left {
                actions.push(Action::Open(n));
            }
            return;
        };
        if user.has_left {
            return;
        }
        match plan.aborts {
            Some(Abort::GuestCloses) => actions.push(Action::GuestLeaves(n)),
            Some(Abort::GuestResets) if !user.has_failed => actions.push(Action::GuestResets(n)),
            Some(Abort::GuestResets | Abort::HostCloses | Abort::HostResets) | None => {}
        }
        if user.is_done() && held.is_empty() && plan.aborts != Some(Abort::GuestCloses) {
            return actions.push(Action::GuestLeaves(n));
        }
        if user.has_failed || self.driver.is_open(id) == Ok(false) {
            return;
        }
        if user.lines < plan.up.len() {
            let want = user.left(&plan.up);
            if self.driver.may_begin(id, want) {
                actions.push(Action::GuestSends(n));
            }
        } else if !user.has_finished {
            actions.push(Action::GuestFinishes(n));
        }
        if held.len() < plan.max_held && !user.reached_end && self.driver.is_readable(id) {
            actions.push(Action::GuestReads(n));
        }
    }

    fn host_actions(&self, n: usize, plan: &Plan, actions: &mut Vec<Action>) {
        let Host { number, user, .. } = &self.hosts[n];
        let Some(number) = *number else {
            if plan.opened_by == Opener::Host && !user.has_left {
                actions.push(Action::Open(n));
            }
            return;
        };
        if user.has_left {
            return;
        }
        match plan.aborts {
            Some(Abort::HostCloses) => actions.push(Action::HostLeaves(n)),
            Some(Abort::HostResets) if !user.has_failed => actions.push(Action::HostResets(n)),
            Some(Abort::HostResets | Abort::GuestCloses | Abort::GuestResets) | None => {}
        }
        if user.is_done() && plan.aborts != Some(Abort::HostCloses) {
            return actions.push(Action::HostLeaves(n));
        }
        if user.has_failed || self.device.is_open(number) == Ok(false) {
            return;
        }
        if user.lines < plan.down.len() {
            actions.push(Action::HostSends(n));
        } else if !user.has_finished {
            actions.push(Action::HostFinishes(n));
        }
        if !plan.host_sleeps && !user.reached_end && self.device.is_readable(number) {
            actions.push(Action::HostReads(n));
        }
    }

    // ---- What happens --------------------------------------------------------------------------

    pub(super) fn apply(&mut self, script: &Script, action: Action) {
        match action {
            Action::Fill | Action::DeviceReceive | Action::DriverReceive(_) => {}
            Action::Open(n) => self.open(n, script),
            Action::GuestSends(n)
            | Action::GuestFinishes(n)
            | Action::GuestReads(n)
            | Action::GuestDrops(n, _)
            | Action::GuestLeaves(n)
            | Action::GuestResets(n) => self.guest(n, script, action),
            Action::HostSends(n)
            | Action::HostFinishes(n)
            | Action::HostReads(n)
            | Action::HostLeaves(n)
            | Action::HostResets(n) => self.host(n, script, action),
        }
        match action {
            Action::Fill => self.fill(script),
            Action::DeviceReceive => self.device_receive(script),
            Action::DriverReceive(n) => {
                for _ in 0..n {
                    self.receive(script);
                }
            }
            _ => self.chatter = 0,
        }
        self.settle(script);
        let broken = self.driver.broken().or_else(|| self.device.broken());
        self.broken = self.broken.take().or(broken);
    }

    fn open(&mut self, n: usize, script: &Script) {
        let port = u32::try_from(n).unwrap();
        match script.plans[n].opened_by {
            Opener::Guest => self.guests[n].id = self.driver.connect(HOST_PORT + port),
            Opener::Host => self.hosts[n].number = self.device.connect(GUEST_PORT + port),
        }
    }

    fn guest(&mut self, n: usize, script: &Script, action: Action) {
        let Guest {
            id: Some(id),
            user,
            held,
            dropped,
            ..
        } = &mut self.guests[n]
        else {
            return;
        };
        let (id, driver) = (*id, &mut self.driver);
        match action {
            Action::GuestSends(_) => {
                let want = user.left(&script.plans[n].up);
                let sent = driver.begin_send(id, want).and_then(|len| {
                    let bytes = stretch(2 * n, user.sent, len);
                    driver.send(id, Buf(bytes), len, 0).map(|()| len)
                });
                match sent {
                    Ok(len) => user.count(len, &script.plans[n].up),
                    Err(_) => user.has_failed = true,
                }
            }
            Action::GuestFinishes(_) => user.has_finished = driver.finish_sending(id).is_ok(),
            Action::GuestReads(_) => match driver.read(id) {
                Ok(Read::Piece(piece)) => {
                    let len = u32::try_from(piece.bytes().len()).unwrap();
                    if piece.bytes() != stretch(2 * n + 1, user.got, len) {
                        self.broken = Some(format!("the guest read other bytes at {}", user.got));
                    }
                    user.got += len;
                    held.push(piece);
                }
                Ok(Read::End) => user.reached_end = true,
                Ok(Read::Nothing) => {}
                Err(_) => user.has_failed = true,
            },
            Action::GuestDrops(_, which) => {
                let piece = held.remove(which);
                *dropped += u32::try_from(piece.bytes().len()).unwrap();
                if script.fault != Fault::LeakedPiece {
                    driver.drop_piece(id, piece);
                }
            }
            Action::GuestLeaves(_) => {
                user.has_left = true;
                driver.hang_up(id);
            }
            _ => {
                user.has_failed = true;
                driver.reset(id);
            }
        }
        if user.lines > script.plans[n].up.len() {
            self.broken = Some("the guest sent more than it wanted".to_owned());
        }
    }

    fn host(&mut self, n: usize, script: &Script, action: Action) {
        let Host {
            number: Some(number),
            user,
            ..
        } = &mut self.hosts[n]
        else {
            return;
        };
        let (number, device) = (*number, &mut self.device);
        match action {
            Action::HostSends(_) => {
                let len = user.left(&script.plans[n].down);
                let sent = device.send(number, stretch(2 * n + 1, user.sent, len));
                match sent {
                    Ok(()) => user.count(len, &script.plans[n].down),
                    Err(_) => user.has_failed = true,
                }
            }
            Action::HostFinishes(_) => {
                device.finish_sending(number);
                user.has_finished = true;
            }
            Action::HostReads(_) => {
                let mut bytes = [0; 3];
                match device.read(number, &mut bytes) {
                    Ok(Some(0)) => user.reached_end = true,
                    Ok(Some(len)) => {
                        let len32 = u32::try_from(len).unwrap();
                        if bytes[..len] != stretch(2 * n, user.got, len32) {
                            self.broken =
                                Some(format!("the host read other bytes at {}", user.got));
                        }
                        user.got += len32;
                    }
                    Ok(None) => {}
                    Err(_) => user.has_failed = true,
                }
            }
            Action::HostLeaves(_) => {
                user.has_left = true;
                device.hang_up(number);
            }
            _ => {
                user.has_failed = true;
                device.reset(number);
            }
        }
    }

    fn fill(&mut self, script: &Script) {
        let Some((header, payload)) = self.device.poll_packet(SLOT) else {
            return;
        };
        let op = self.count(&header);
        let said = Header::decode(&header);
        let port = (said.src_port.checked_sub(HOST_PORT))
            .filter(|&n| (n as usize) < self.hosts.len())
            .or_else(|| said.dst_port.checked_sub(GUEST_PORT));
        let of = port.and_then(|n| {
            let n = n as usize;
            Some((self.hosts.get_mut(n)?, self.guests.get(n)?))
        });
        if let (Some((host, guest)), Some(Op::Data)) = (of, op) {
            host.packed += said.len;
            let on_its_way = host.packed.saturating_sub(guest.dropped);
            if !guest.user.has_left && on_its_way > guest.buf_alloc {
                self.broken = Some(format!("{on_its_way} bytes are on their way to the guest"));
            }
        }
        let lost = match script.fault {
            Fault::LostEnd => Some(Op::Shutdown),
            Fault::DeviceNoCreditUpdate => Some(Op::CreditUpdate),
            _ => None,
        };
        if lost.is_some() && lost == op {
            return;
        }
        self.posted -= 1;
        let bytes = match payload.as_slice() {
            [one] => one.clone(),
            pieces => pieces.concat().into(),
        };
        if script.fault == Fault::Duplicated && op == Some(Op::Data) && self.posted > 0 {
            self.posted -= 1;
            self.filled.push_back((header, Buf(bytes.clone())));
        }
        self.filled.push_back((header, Buf(bytes)));
    }

    fn device_receive(&mut self, script: &Script) {
        let Some((mut header, payload)) = self.sent.pop_front() else {
            return;
        };
        self.count(&header);
        if script.fault == Fault::InflatedWindow {
            let honest = Header::decode(&header);
            header = Header {
                buf_alloc: honest.buf_alloc * 2,
                ..honest
            }
            .encode();
        }
        let payload = payload.as_ref().map_or(&[][..], |payload| &payload.0);
        if !self.device.receive(&header, payload) {
            self.broken = Some("the driver sent an invalid packet".to_owned());
        }
        // Incoming connections are accepted at once.
        for number in 0..self.device.accepted() {
            let port = self.device.host_port(number).unwrap_or(0);
            let n = port.wrapping_sub(HOST_PORT) as usize;
            if let Some(host) = self.hosts.get_mut(n) {
                host.number = Some(number);
            }
        }
    }

    fn receive(&mut self, script: &Script) {
        if script.fault == Fault::Reordered && self.filled.len() > 1 {
            self.filled.swap(0, 1);
        }
        if let Some((header, slot)) = self.filled.pop_front() {
            let len = slot.0.len();
            self.driver.receive(&header, slot, len);
        }
    }

    /// What the driver does after each change, as its module `shared` does.
    fn settle(&mut self, script: &Script) {
        for (n, guest) in (GUEST_PORT..).zip(&mut self.guests) {
            guest.id = guest.id.or_else(|| self.driver.accept(n));
        }
        while let Some(slot) = self.driver.take_received() {
            let forgets = script.fault == Fault::ForgottenSlot && !slot.0.is_empty();
            self.posted += usize::from(!forgets);
        }
        while self.sent.len() < script.ring_capacity {
            let Some((header, payload)) = self.driver.poll_packet() else {
                break;
            };
            let said = Header::decode(&header);
            let announced = self.announced(&said);
            let update = Op::from_wire(said.op) == Some(Op::CreditUpdate);
            let held_back = match script.fault {
                Fault::NoCreditUpdate => update,
                Fault::CreditAtFullWindow => update && !said.fwd_cnt.is_multiple_of(announced),
                _ => false,
            };
            if !held_back {
                self.sent.push_back((header, payload));
            }
        }
        while self.driver.take_unsent().is_some() {}
        self.driver.forget_events();
    }

    /// Records the window that was announced to the host. Returns it.
    fn announced(&mut self, said: &Header) -> u32 {
        let by_host = said.src_port.wrapping_sub(GUEST_PORT) as usize;
        let by_guest = said.dst_port.wrapping_sub(HOST_PORT) as usize;
        let n = if by_host < self.guests.len() {
            by_host
        } else {
            by_guest
        };
        let resets = Op::from_wire(said.op) == Some(Op::Reset);
        match self.guests.get_mut(n) {
            Some(guest) if !resets => guest.buf_alloc = said.buf_alloc,
            _ => {}
        }
        said.buf_alloc.max(1)
    }

    /// Counts a packet as progress if it has payload. Returns its operation.
    fn count(&mut self, header: &[u8; HEADER_LEN]) -> Option<Op> {
        let said = Header::decode(header);
        self.chatter = if said.len > 0 {
            0
        } else {
            self.chatter.saturating_add(1)
        };
        Op::from_wire(said.op)
    }
}

impl User {
    /// Bytes of this send of the script that are still to be sent.
    fn left(&self, lines: &[u32]) -> u32 {
        let until: u32 = lines.iter().take(self.lines + 1).sum();
        until.saturating_sub(self.sent)
    }

    fn count(&mut self, sent: u32, lines: &[u32]) {
        self.sent += sent;
        self.lines += usize::from(self.left(lines) == 0);
    }

    /// Whether it has nothing left to do.
    fn is_done(&self) -> bool {
        self.has_failed || (self.has_finished && self.reached_end)
    }

    fn has_all(&self, lines: &[u32]) -> bool {
        self.reached_end && self.got == lines.iter().sum::<u32>()
    }
}

impl Plan {
    /// Whether one of its readers never reads, so that the connection never ends.
    fn sleeps(&self) -> bool {
        self.max_held == 0 || self.host_sleeps
    }
}

/// Worlds are equal if nothing that can happen depends on their difference.
impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        let digest = |world: &Self| {
            let mut hasher = DefaultHasher::new();
            world.hash(&mut hasher);
            hasher.finish()
        };
        digest(self) == digest(other)
    }
}
