//! A guest without a VM: it speaks vhost-user, owns memory and two rings, and does what a test says,
//! correct or not. It shares no code with the device.

use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub(crate) const RX: usize = 0;
pub(crate) const TX: usize = 1;
pub(crate) const CID: u64 = 3;
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const HEADER: usize = 44;
/// The guest address of memory, and its bytes.
pub(crate) const BASE: u64 = 0x10_0000;
pub(crate) const MEMORY: u64 = 96 << 20;
/// Descriptors per ring.
pub(crate) const SIZE: u16 = 64;
/// Bytes of a packet to send, with its header.
pub(crate) const TX_SLOT: u32 = 128 * 1024;
/// No operation that works takes this long, even on a busy machine.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

/// A packet header, written independently from the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) src_cid: u64,
    pub(crate) dst_cid: u64,
    pub(crate) src_port: u32,
    pub(crate) dst_port: u32,
    pub(crate) len: u32,
    pub(crate) kind: u16,
    pub(crate) op: u16,
    pub(crate) flags: u32,
    pub(crate) buf_alloc: u32,
    pub(crate) fwd_cnt: u32,
}

pub(crate) const REQUEST: u16 = 1;
pub(crate) const RESPONSE: u16 = 2;
pub(crate) const RST: u16 = 3;
pub(crate) const SHUTDOWN: u16 = 4;
pub(crate) const RW: u16 = 5;
pub(crate) const CREDIT_UPDATE: u16 = 6;
pub(crate) const CREDIT_REQUEST: u16 = 7;

impl Packet {
    /// A packet from this guest.
    pub(crate) fn new(guest_port: u32, host_port: u32, op: u16) -> Self {
        Self {
            src_cid: CID,
            dst_cid: 2,
            src_port: guest_port,
            dst_port: host_port,
            len: 0,
            kind: 1,
            op,
            flags: 0,
            buf_alloc: 1 << 20,
            fwd_cnt: 0,
        }
    }

    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER);
        bytes.extend(self.src_cid.to_le_bytes());
        bytes.extend(self.dst_cid.to_le_bytes());
        bytes.extend(self.src_port.to_le_bytes());
        bytes.extend(self.dst_port.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.op.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.buf_alloc.to_le_bytes());
        bytes.extend(self.fwd_cnt.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        Self {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            len: u32_at(24),
            kind: u16_at(28),
            op: u16_at(30),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
        }
    }
}

/// One split virtqueue, made by hand.
pub(crate) struct Ring {
    at: u64,
    avail: u16,
    used: u16,
    kick: EventFd,
    call: EventFd,
}

impl Ring {
    fn new(at: u64) -> Self {
        let [kick, call] = [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
        Self {
            at,
            avail: 0,
            used: 0,
            kick,
            call,
        }
    }

    fn avail_at(&self) -> u64 {
        self.at + 16 * u64::from(SIZE)
    }

    fn used_at(&self) -> u64 {
        self.at + 0x4000
    }

    /// Moves the ring. To be called before it starts.
    pub(crate) fn move_to(&mut self, at: u64) {
        self.at = at;
    }
}

/// The guest.
pub(crate) struct Guest {
    pub(crate) memory: GuestMemoryMmap<()>,
    pub(crate) frontend: Frontend,
    pub(crate) rings: [Ring; 2],
    rx_buffer: u32,
    /// Sent packets that the device has not returned yet.
    busy: u16,
}

impl Guest {
    /// Connects to the device, as far as a monitor does before the driver starts.
    pub(crate) fn connect(socket: &Path, rx_buffer: u32) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(MEMORY).unwrap();
        let memory = GuestMemoryMmap::from_ranges_with_files([(
            GuestAddress(BASE),
            usize::try_from(MEMORY).unwrap(),
            Some(FileOffset::new(file, 0)),
        )])
        .unwrap();
        let mut frontend = Frontend::connect(socket, 3).unwrap();
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        frontend
            .set_protocol_features(protocol & VhostUserProtocolFeatures::CONFIG)
            .unwrap();
        frontend.set_features(features).unwrap();
        let (_, cid) = frontend
            .get_config(0, 8, VhostUserConfigFlags::empty(), &[0; 8])
            .unwrap();
        assert_eq!(cid, CID.to_le_bytes());
        let region = memory.iter().next().unwrap();
        let region = VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
        frontend.set_mem_table(&[region]).unwrap();
        let rings = [Ring::new(BASE), Ring::new(BASE + 0x8000)];
        Self {
            memory,
            frontend,
            rings,
            rx_buffer,
            busy: 0,
        }
    }

    /// A guest with both rings running and all receive buffers posted.
    pub(crate) fn boot(socket: &Path, rx_buffer: u32) -> Self {
        let mut guest = Self::connect(socket, rx_buffer);
        guest.start_ring(RX);
        guest.start_ring(TX);
        guest.post_all();
        guest
    }

    /// Makes one ring ready.
    pub(crate) fn start_ring(&mut self, index: usize) {
        let ring = &self.rings[index];
        let at = |at| self.memory.get_host_address(GuestAddress(at)).unwrap() as u64;
        let addresses = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: at(ring.at),
            used_ring_addr: at(ring.used_at()),
            avail_ring_addr: at(ring.avail_at()),
            log_addr: None,
        };
        self.frontend.set_vring_num(index, SIZE).unwrap();
        self.frontend.set_vring_addr(index, &addresses).unwrap();
        self.frontend.set_vring_base(index, 0).unwrap();
        self.frontend.set_vring_call(index, &ring.call).unwrap();
        self.frontend.set_vring_kick(index, &ring.kick).unwrap();
        self.frontend.set_vring_enable(index, true).unwrap();
    }

    /// Stops both rings, as a driver does when it is unloaded.
    pub(crate) fn stop(&mut self) {
        for index in [RX, TX] {
            self.frontend.get_vring_base(index).unwrap();
        }
        let zeros = vec![0; 0x1_0000];
        self.memory.write_slice(&zeros, GuestAddress(BASE)).unwrap();
        self.rings = [Ring::new(BASE), Ring::new(BASE + 0x8000)];
        self.busy = 0;
    }

    pub(crate) fn post_all(&mut self) {
        for slot in 0..SIZE {
            self.describe(RX, slot, self.rx_at(slot), self.rx_buffer, WRITE, 0);
            self.publish(RX, slot);
        }
        self.kick(RX);
    }

    pub(crate) fn rx_at(&self, slot: u16) -> u64 {
        BASE + 0x10_0000 + u64::from(slot) * u64::from(self.rx_buffer)
    }

    pub(crate) fn tx_at(slot: u16) -> u64 {
        BASE + MEMORY - (1 + u64::from(slot)) * u64::from(TX_SLOT)
    }

    /// Writes a descriptor.
    pub(crate) fn describe(
        &self,
        ring: usize,
        slot: u16,
        at: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let mut bytes = at.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        let place = self.rings[ring].at + 16 * u64::from(slot);
        self.memory
            .write_slice(&bytes, GuestAddress(place))
            .unwrap();
    }

    /// Makes the chain that begins at `head` available.
    pub(crate) fn publish(&mut self, index: usize, head: u16) {
        let ring = &mut self.rings[index];
        let place = ring.avail_at() + 4 + 2 * u64::from(ring.avail % SIZE);
        self.memory
            .write_obj(head.to_le(), GuestAddress(place))
            .unwrap();
        ring.avail = ring.avail.wrapping_add(1);
        let available = ring.avail;
        self.set_available(index, available);
    }

    /// Sets the available index.
    pub(crate) fn set_available(&mut self, ring: usize, index: u16) {
        let at = GuestAddress(self.rings[ring].avail_at() + 2);
        self.memory
            .store(index.to_le(), at, Ordering::Release)
            .unwrap();
    }

    /// Kicks, unless the device suppresses it.
    pub(crate) fn kick(&self, ring: usize) {
        let ring = &self.rings[ring];
        fence(Ordering::SeqCst);
        let flags: u16 = self
            .memory
            .load(GuestAddress(ring.used_at()), Ordering::Acquire)
            .unwrap();
        if flags & 1 == 0 {
            ring.kick.write(1).unwrap();
        }
    }

    /// Kicks, also if the device suppresses it.
    pub(crate) fn force_kick(&self, ring: usize) {
        self.rings[ring].kick.write(1).unwrap();
    }

    /// Waits until the device has closed the connection to the monitor.
    pub(crate) fn frontend_is_gone(&self) -> bool {
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            if self.frontend.get_features().is_err() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        false
    }

    /// The next chain that the device has returned, and how much it wrote.
    pub(crate) fn pop_used(&mut self, ring: usize) -> Option<(u16, u32)> {
        let ring = &mut self.rings[ring];
        let index = GuestAddress(ring.used_at() + 2);
        let used: u16 = self.memory.load(index, Ordering::Acquire).unwrap();
        if u16::from_le(used) == ring.used {
            return None;
        }
        let place = GuestAddress(ring.used_at() + 4 + 8 * u64::from(ring.used % SIZE));
        let [head, len]: [u32; 2] = self.memory.read_obj(place).unwrap();
        ring.used = ring.used.wrapping_add(1);
        Some((u16::try_from(head).unwrap(), len))
    }

    /// Waits until the device has returned a chain of `ring`.
    pub(crate) fn wait_used(&mut self, ring: usize, timeout: Duration) -> Option<(u16, u32)> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(used) = self.pop_used(ring) {
                return Some(used);
            }
            if Instant::now() > deadline {
                return None;
            }
            if self.rings[ring].call.read().is_err() {
                std::thread::sleep(Duration::from_micros(20));
            }
        }
    }

    /// Sends a packet, in one descriptor or two.
    pub(crate) fn send(&mut self, packet: Packet, payload: &[u8]) {
        let slot = self.free_slot();
        let at = Self::tx_at(slot);
        let mut bytes = packet.to_bytes();
        bytes.extend(payload);
        self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
        let payload = u32::try_from(payload.len()).unwrap();
        if payload == 0 {
            self.describe(TX, slot, at, 44, 0, 0);
        } else {
            self.describe(TX, slot, at, 44, NEXT, slot + SIZE / 2);
            self.describe(TX, slot + SIZE / 2, at + 44, payload, 0, 0);
        }
        self.publish(TX, slot);
        self.kick(TX);
    }

    /// Sends a chain that is described already, and waits until it is returned.
    pub(crate) fn send_chain(&mut self, head: u16) {
        self.wait_idle();
        self.publish(TX, head);
        self.kick(TX);
        self.wait_used(TX, TIMEOUT)
            .expect("the device keeps the chain");
    }

    /// Waits until the device has returned all packets.
    pub(crate) fn wait_idle(&mut self) {
        while self.busy > 0 {
            self.wait_used(TX, TIMEOUT)
                .expect("the device takes no packets");
            self.busy -= 1;
        }
    }

    /// A slot for a packet. The device handles packets in order, so slots are returned in order.
    fn free_slot(&mut self) -> u16 {
        if self.busy == SIZE / 2 {
            self.wait_used(TX, TIMEOUT)
                .expect("the device takes no packets");
            self.busy -= 1;
        }
        while self.busy > 0 && self.pop_used(TX).is_some() {
            self.busy -= 1;
        }
        self.busy += 1;
        self.rings[TX].avail % (SIZE / 2)
    }

    /// The next packet from the device. Its buffer is posted again at once.
    pub(crate) fn try_receive(&mut self) -> Option<(Packet, Vec<u8>)> {
        let (slot, len) = self.pop_used(RX)?;
        let mut bytes = vec![0; len as usize];
        self.memory
            .read_slice(&mut bytes, GuestAddress(self.rx_at(slot)))
            .unwrap();
        self.publish(RX, slot);
        self.kick(RX);
        let packet = Packet::from_bytes(&bytes);
        assert_eq!(bytes.len() - HEADER, packet.len as usize);
        assert_eq!((packet.src_cid, packet.dst_cid), (2, CID));
        Some((packet, bytes.split_off(HEADER)))
    }

    pub(crate) fn receive(&mut self) -> (Packet, Vec<u8>) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(received) = self.try_receive() {
                return received;
            }
            assert!(Instant::now() < deadline, "the device sends nothing");
            std::thread::sleep(Duration::from_micros(20));
        }
    }

    /// Receives a packet without copying its payload: only its first and last byte.
    pub(crate) fn receive_ends(&mut self) -> (Packet, Option<[u8; 2]>) {
        let (slot, len) = self
            .wait_used(RX, TIMEOUT)
            .expect("the device sends nothing");
        let mut bytes = vec![0; HEADER];
        let at = self.rx_at(slot);
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        let byte = |at| self.memory.read_obj(GuestAddress(at)).unwrap();
        let ends = (len > 44).then(|| [byte(at + 44), byte(at + u64::from(len) - 1)]);
        self.publish(RX, slot);
        self.kick(RX);
        (Packet::from_bytes(&bytes), ends)
    }

    /// Writes `payload` into all send slots, after the header.
    pub(crate) fn prepare(&mut self, payload: &[u8]) {
        self.wait_idle();
        for slot in 0..SIZE / 2 {
            let at = GuestAddress(Self::tx_at(slot) + HEADER as u64);
            self.memory.write_slice(payload, at).unwrap();
        }
    }

    /// Sends a packet with the payload that is in its slot already.
    pub(crate) fn send_prepared(&mut self, packet: Packet) {
        let slot = self.free_slot();
        let at = Self::tx_at(slot);
        self.memory
            .write_slice(&packet.to_bytes(), GuestAddress(at))
            .unwrap();
        self.describe(TX, slot, at, 44 + packet.len, 0, 0);
        self.publish(TX, slot);
        self.kick(TX);
    }

    /// Discards packets until there are no more. Returns how many there were.
    pub(crate) fn discard_all(&mut self) -> usize {
        self.wait_idle();
        let mut received = 0;
        loop {
            std::thread::sleep(Duration::from_millis(50));
            let before = received;
            while self.try_receive().is_some() {
                received += 1;
            }
            if received == before {
                return received;
            }
        }
    }

    /// Receives a packet that must be `op` for `guest_port`.
    #[track_caller]
    pub(crate) fn expect(&mut self, guest_port: u32, op: u16) -> (Packet, Vec<u8>) {
        let (packet, payload) = self.receive();
        assert_eq!((packet.dst_port, packet.op), (guest_port, op), "{packet:?}");
        (packet, payload)
    }

    /// Connects to the host.
    #[track_caller]
    pub(crate) fn open(&mut self, guest_port: u32, host_port: u32, buf_alloc: u32) -> Peer {
        self.send(
            Packet {
                buf_alloc,
                ..Packet::new(guest_port, host_port, REQUEST)
            },
            &[],
        );
        let (response, _) = self.expect(guest_port, RESPONSE);
        Peer {
            guest_port,
            host_port,
            buf_alloc,
            fwd_cnt: 0,
            announced: 0,
            host_buf_alloc: response.buf_alloc,
            host_fwd_cnt: 0,
            sent: 0,
            received: 0,
            ended: false,
        }
    }
}

/// The guest's side of one connection, as a correct driver has it.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) guest_port: u32,
    pub(crate) host_port: u32,
    pub(crate) buf_alloc: u32,
    fwd_cnt: u32,
    announced: u32,
    host_buf_alloc: u32,
    host_fwd_cnt: u32,
    /// Bytes sent and received so far.
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// Whether the host has shut down sending.
    pub(crate) ended: bool,
}

impl Peer {
    pub(crate) fn packet(&mut self, op: u16) -> Packet {
        self.announced = self.fwd_cnt;
        Packet {
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
            ..Packet::new(self.guest_port, self.host_port, op)
        }
    }

    /// Handles a packet from the host. Returns whether the host needs a credit update.
    pub(crate) fn on_packet(&mut self, packet: &Packet, payload: &[u8]) -> bool {
        let first = self.received;
        assert!(
            payload.iter().zip(first..).all(|(&b, i)| b == nth(i)),
            "wrong bytes"
        );
        self.on_header(packet)
    }

    /// The same for a packet of which only the first and the last byte are known.
    pub(crate) fn on_ends(&mut self, packet: &Packet, ends: Option<[u8; 2]>) -> bool {
        if let Some(ends) = ends {
            let last = self.received + u64::from(packet.len) - 1;
            assert_eq!(ends, [nth(self.received), nth(last)], "wrong bytes");
        }
        self.on_header(packet)
    }

    fn on_header(&mut self, packet: &Packet) -> bool {
        assert_ne!(packet.op, RST, "the host reset the connection");
        self.host_buf_alloc = packet.buf_alloc;
        self.host_fwd_cnt = packet.fwd_cnt;
        if packet.op == SHUTDOWN {
            self.ended |= packet.flags & 2 != 0;
        }
        self.received += u64::from(packet.len);
        self.fwd_cnt = self.fwd_cnt.wrapping_add(packet.len);
        assert!(packet.len <= self.buf_alloc, "more than there is credit");
        self.fwd_cnt.wrapping_sub(self.announced) >= (self.buf_alloc / 2).max(1)
    }

    /// How much may be sent. As in recent Linux, no more is in flight than fits in either buffer.
    pub(crate) fn credit(&self) -> u32 {
        let sent = u32::try_from(self.sent & u64::from(u32::MAX)).unwrap();
        let window = self.host_buf_alloc.min(self.buf_alloc);
        window.saturating_sub(sent.wrapping_sub(self.host_fwd_cnt))
    }
}

/// Byte `i` of a stream.
pub(crate) fn nth(i: u64) -> u8 {
    u8::try_from(i % 251).unwrap()
}

/// Bytes `from..from + len` of a stream.
pub(crate) fn bytes(from: u64, len: usize) -> Vec<u8> {
    (from..).take(len).map(nth).collect()
}
