//! Packets of virtio-vsock (virtio 1.2, 5.10.6), in a reading of their own.

use crate::input::Input;

/// Bytes of a header.
pub const HEADER: usize = 44;

/// A header.
#[derive(Debug, Clone, Copy)]
pub struct Packet {
    /// Sender and receiver.
    pub src_cid: u64,
    /// See `src_cid`.
    pub dst_cid: u64,
    /// Their ports.
    pub src_port: u32,
    /// See `src_port`.
    pub dst_port: u32,
    /// Bytes of payload.
    pub len: u32,
    /// 1 for a stream.
    pub kind: u16,
    /// The operation.
    pub op: u16,
    /// Which directions end.
    pub flags: u32,
    /// Size of the sender's buffer, and what it has taken from there.
    pub buf_alloc: u32,
    /// See `buf_alloc`.
    pub fwd_cnt: u32,
}

impl Packet {
    /// A packet of `src` to `dst`, of which most is in order. Ports are few, so that many packets
    /// belong together.
    pub fn read(input: &mut Input<'_>, src: u64, dst: u64, ports: [&[u64]; 2]) -> Self {
        let op = input.nearly(&[1, 2, 3, 4, 5, 5, 5, 6, 7]);
        let [src_ports, dst_ports] = ports;
        let mut number = |from: &[u64]| cut(input.nearly(from));
        Self {
            src_port: number(src_ports),
            dst_port: number(dst_ports),
            len: if op == 5 {
                number(&[0, 1, 7, 100, 5000])
            } else {
                number(&[0])
            },
            flags: if op == 4 { number(&[1, 2, 3]) } else { 0 },
            buf_alloc: number(&[0, 1, 8, 5000, 1 << 20, u64::from(u32::MAX)]),
            fwd_cnt: number(&[0, 0, 0, 1, 7, 100, 5000]),
            op: u16::try_from(op & 0xFFFF).unwrap_or(0),
            kind: if number(&[1]) == 1 { 1 } else { 2 },
            src_cid: if number(&[1]) == 1 { src } else { dst },
            dst_cid: if number(&[1]) == 1 { dst } else { src },
        }
    }

    /// As it lies in memory.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

/// The low half.
fn cut(number: u64) -> u32 {
    u32::try_from(number & u64::from(u32::MAX)).unwrap_or(0)
}
