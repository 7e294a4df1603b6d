//! The TUN device of a step: packets of its kernel as reads and writes of a file.
//!
//! A header of virtio precedes each packet. With it, neither side computes checksums of payloads:
//! nothing happens to a packet between two parts of one machine (Linux, `networking/tuntap.rst`;
//! virtio 1.2, 5.1.6).

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet, checksum};

use super::MTU;
use super::stack::{PacketSink, network_order};
use crate::sys;

/// Length of `struct virtio_net_hdr` without the number of buffers: flags, kind of segmentation, length
/// of headers, length of segments, start and offset of the checksum.
const HEADER: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum field has that of the pseudo-header only.
const NEEDS_CHECKSUM: u8 = 1;

/// The file of a TUN device.
#[derive(Debug)]
pub(super) struct Tun {
    file: File,
    /// A packet that is being made, with its header.
    packet: Vec<u8>,
}

/// Makes a TUN device in the network namespace of this process.
pub(super) fn create(name: &str) -> Result<OwnedFd> {
    let mut options = File::options();
    let file = options.read(true).write(true).open("/dev/net/tun");
    let file = file.context("cannot open /dev/net/tun")?;
    sys::make_tun(file.as_fd(), name).context("cannot create a TUN device")?;
    Ok(file.into())
}

/// A buffer for one packet with its header.
pub(super) fn new_buffer() -> Vec<u8> {
    vec![0; HEADER + MTU]
}

impl Tun {
    /// Takes the file of a device.
    pub(super) fn new(file: OwnedFd) -> Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
        fcntl(&file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self {
            file: File::from(file),
            packet: new_buffer(),
        })
    }

    /// Reads the next packet of the step's kernel into a [`new_buffer`]. `None`: there is none now.
    pub(super) fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
        loop {
            match (&self.file).read(buffer) {
                Ok(n) => return Ok(buffer.get(HEADER.min(n)..n)),
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(err) => return Err(err),
            }
        }
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl PacketSink for Tun {
    fn send<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let end = HEADER + len;
        if self.packet.len() < end {
            self.packet.resize(end, 0);
        }
        let (header, packet) = self.packet.split_at_mut(HEADER);
        let packet = packet.get_mut(..len).unwrap_or_default();
        let filled = fill(packet);
        header.fill(0);
        if let Some((start, field)) = leave_checksum(packet) {
            let fields = [NEEDS_CHECKSUM, 0, 0, 0, 0, 0];
            let start = start.to_le_bytes();
            let field = field.to_le_bytes();
            let bytes = fields.into_iter().chain(start).chain(field);
            header
                .iter_mut()
                .zip(bytes)
                .for_each(|(to, byte)| *to = byte);
        }
        // A packet that the kernel does not take is lost like any other: it is sent again.
        let packet = self.packet.get(..end).unwrap_or_default();
        if let Err(err) = self.file.write(packet)
            && err.raw_os_error() != Some(Errno::EAGAIN as i32)
        {
            log::debug!("a packet of {len} bytes is lost: {err}");
        }
        filled
    }
}

/// Leaves the checksum of a TCP segment or datagram to whoever needs it: writes that of the
/// pseudo-header, and returns where the sum starts and the offset of its field.
fn leave_checksum(packet: &mut [u8]) -> Option<(u16, u16)> {
    let (from, to, protocol, start): (IpAddr, IpAddr, IpProtocol, usize) =
        match packet.first()? >> 4 {
            4 => {
                let ip = Ipv4Packet::new_checked(&*packet).ok()?;
                let (from, to) = (ip.src_addr().into(), ip.dst_addr().into());
                (from, to, ip.next_header(), ip.header_len().into())
            }
            6 => {
                let ip = Ipv6Packet::new_checked(&*packet).ok()?;
                let (from, to) = (ip.src_addr().into(), ip.dst_addr().into());
                (from, to, ip.next_header(), ip.header_len())
            }
            _ => return None,
        };
    let field = if protocol == IpProtocol::Tcp {
        16
    } else if protocol == IpProtocol::Udp {
        6
    } else {
        return None;
    };
    let length = u32::try_from(packet.len() - start).ok()?;
    let sum = checksum::pseudo_header(&from.into(), &to.into(), protocol, length);
    let bytes = packet.get_mut(start + field..start + field + 2)?;
    bytes.copy_from_slice(&network_order(sum));
    Some((u16::try_from(start).ok()?, u16::try_from(field).ok()?))
}
