//! One TCP connection of a step, between its kernel and the host.
//!
//! Each connection has a whole TCP/IP stack of its own, of one socket with the address that the step
//! wants to reach. A stack of many sockets would look at each of them for every packet.

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet, SocketStorage};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpCidr};
use wire::flow::FlowTable;

use super::super::MTU;
use super::frames::Frames;
use super::packet::{PacketSink, Route};

/// How long the step's kernel may be silent about the last segments of a connection.
const FAREWELL: Duration = Duration::from_secs(30);

/// How long an acknowledgement may wait for more to acknowledge. A program that writes in small pieces
/// gets them into one packet meanwhile; longer, and one that writes twice before it reads would notice.
const ACK_DELAY: Duration = Duration::from_millis(2);

/// A TCP connection.
pub(super) struct Connection {
    pub(super) route: Route,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    /// Size of each of the two buffers of the socket, in bytes.
    pub(super) buffer: usize,
    /// What the host has sent and the socket had no room for, and how much of that is done.
    to_step: Vec<u8>,
    done: usize,
    /// The host sends nothing more.
    host_ended: bool,
    /// The step sends nothing more, and the host was told.
    step_ended: bool,
}

/// Whether a connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    GoesOn,
    /// Both ends have all that the other has sent.
    Over,
    /// The step has broken it off.
    Broken,
}

impl Connection {
    /// Takes the connection that `syn` begins, which the host has accepted.
    pub(super) fn accept(
        now: Instant,
        seed: u64,
        route: Route,
        buffer: usize,
        syn: &[u8],
        sink: &mut impl PacketSink,
    ) -> Option<Self> {
        let mut socket = Socket::new(new_buffer(buffer), new_buffer(buffer));
        // The host sends when it has something, and programs wait for each other's answers.
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(Some(ACK_DELAY));
        socket.listen(route.target).ok()?;
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut link = Link { packet: None, sink };
        let mut interface = Interface::new(config, &mut link, now);
        interface.update_ip_addrs(|addresses| {
            // A prefix of no bits: every other address is a neighbour.
            addresses
                .push(IpCidr::new(route.target.ip().into(), 0))
                .ok();
        });
        let mut sockets = SocketSet::new(vec![SocketStorage::EMPTY]);
        let socket = sockets.add(socket);
        let mut connection = Self {
            route,
            interface,
            sockets,
            socket,
            buffer,
            to_step: Vec::new(),
            done: 0,
            host_ended: false,
            step_ended: false,
        };
        connection.receive(now, syn, sink);
        Some(connection)
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.socket)
    }

    /// Takes a packet of the step. It is acknowledged by [`Self::pump`], together with those after it.
    pub(super) fn receive(&mut self, now: Instant, packet: &[u8], sink: &mut impl PacketSink) {
        let (packet, sockets) = (Some(packet), &mut self.sockets);
        let mut link = Link { packet, sink };
        self.interface.poll_ingress_single(now, &mut link, sockets);
    }

    /// Takes bytes of the host. Returns how many of them went to the socket at once.
    pub(super) fn send(&mut self, bytes: &[u8]) -> usize {
        let sent = if self.to_step.is_empty() {
            self.socket().send_slice(bytes).unwrap_or(0)
        } else {
            0
        };
        self.to_step
            .extend_from_slice(bytes.get(sent..).unwrap_or_default());
        sent
    }

    /// The host sends nothing more.
    pub(super) fn end(&mut self) {
        self.host_ended = true;
    }

    /// Breaks the connection off.
    pub(super) fn abort(&mut self, now: Instant, sink: &mut impl PacketSink) {
        self.socket().abort();
        self.transmit(now, sink);
    }

    fn transmit(&mut self, now: Instant, sink: &mut impl PacketSink) {
        let mut link = Link { packet: None, sink };
        self.interface.poll(now, &mut link, &mut self.sockets);
    }

    /// Moves what can be moved, both ways.
    pub(super) fn pump(
        &mut self,
        now: Instant,
        flow: u64,
        table: &mut FlowTable,
        frames: &mut Frames,
        sink: &mut impl PacketSink,
    ) -> Fate {
        // Both give the socket reasons to send: a larger window, and data.
        self.pump_to_host(flow, table, frames);
        self.pump_to_step(flow, table, frames);
        self.transmit(now, sink);
        // What was sent made no room: only an answer of the step does.
        self.fate()
    }

    fn pump_to_host(&mut self, flow: u64, table: &mut FlowTable, frames: &mut Frames) {
        while !frames.is_full()
            && let Some(room) = table.room(flow)
        {
            let socket = self.sockets.get_mut::<Socket<'static>>(self.socket);
            let sent = socket.recv(|bytes| {
                let piece = bytes.get(..room).unwrap_or(bytes);
                // Fails only for want of room, which there is.
                let header = (!piece.is_empty()).then(|| table.data(flow, piece).ok());
                let Some(header) = header.flatten() else {
                    return (0, 0);
                };
                frames.push_data(&header, piece);
                (piece.len(), piece.len())
            });
            if sent.unwrap_or(0) == 0 {
                break;
            }
        }
        let socket = self.sockets.get_mut::<Socket<'static>>(self.socket);
        let finished = matches!(
            socket.state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        );
        if finished && socket.recv_queue() == 0 && !self.step_ended {
            self.step_ended = true;
            frames.push(table.end(flow));
        }
    }

    fn pump_to_step(&mut self, flow: u64, table: &mut FlowTable, frames: &mut Frames) {
        let socket = self.sockets.get_mut::<Socket<'static>>(self.socket);
        if !self.to_step.is_empty() {
            let rest = self.to_step.get(self.done..).unwrap_or_default();
            let sent = socket.send_slice(rest).unwrap_or(0);
            frames.push(table.consumed(flow, sent));
            self.done += sent;
            if self.done < self.to_step.len() {
                return self.make_room();
            }
            // Memory is for those that need it now.
            (self.to_step, self.done) = (Vec::new(), 0);
        }
        // A socket that ends before it was acknowledged gets its numbers wrong, and waits for a timer.
        if self.host_ended && socket.state() != State::SynReceived {
            socket.close();
            if self.step_ended {
                // The host knows nothing of it any more. The kernel of the step answers at once.
                socket.set_timeout(Some(FAREWELL));
            }
        }
    }

    /// Frees what is done, when that is worth the copy of the rest.
    fn make_room(&mut self) {
        if self.done > self.to_step.len() / 2 {
            self.to_step.drain(..self.done);
            self.done = 0;
        }
    }

    fn fate(&mut self) -> Fate {
        let ended = self.step_ended && self.host_ended && self.to_step.is_empty();
        match self.socket().state() {
            // Nobody else will use this pair of addresses, and the step's kernel has all that we sent.
            State::TimeWait if ended => Fate::Over,
            State::Closed if ended => Fate::Over,
            State::Closed => Fate::Broken,
            State::Listen
            | State::SynSent
            | State::SynReceived
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait => Fate::GoesOn,
        }
    }

    /// Whether the step has sent what the host was not sent yet.
    pub(super) fn waits(&mut self) -> bool {
        self.socket().recv_queue() > 0
    }

    /// When time alone makes a difference.
    pub(super) fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        self.interface.poll_at(now, &self.sockets)
    }
}

/// A buffer whose pages cost nothing until they are used.
fn new_buffer(len: usize) -> SocketBuffer<'static> {
    SocketBuffer::new(vec![0; len])
}

/// The device of one connection: a packet that comes, and where packets go.
struct Link<'a, S> {
    packet: Option<&'a [u8]>,
    sink: &'a mut S,
}

struct Received<'a>(&'a [u8]);

struct Transmit<'a, S>(&'a mut S);

impl<S: PacketSink> Device for Link<'_, S> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Transmit<'a, S>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Transmit<'_, S>)> {
        let packet = self.packet.take()?;
        Some((Received(packet), Transmit(self.sink)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Transmit<'_, S>> {
        Some(Transmit(self.sink))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        // Nothing happens to a packet between the step's kernel and us.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::None;
        capabilities
    }
}

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl<S: PacketSink> TxToken for Transmit<'_, S> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.0.send(len, f)
    }
}
