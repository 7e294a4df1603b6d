//! The configuration space as a transport may see it: BARs can be sized without touching the device.
//!
//! A transport sizes a BAR as firmware does at boot: it disables address decoding, writes ones into
//! the BAR, reads which of them stick, and restores everything. The kernel has done that already and
//! exports the sizes; doing it again unmaps the registers of a running machine for a moment. In an
//! emulator that is not only slow: while one virtual CPU changes the memory map, QEMU before 8.1.1
//! can send a register write of another one to the wrong device (its commit 0d58c660, "Use
//! async_run_on_cpu in `tcg_commit`"), and a disk that loses its notification this way hangs. So
//! writes to these registers only change a copy.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};

/// The command register.
pub(super) const COMMAND: u8 = 4;

/// BARs of a function.
pub(super) const BARS: usize = 6;

/// The first BAR's register.
const BAR0: u8 = 0x10;

/// Type bits of a memory BAR (PCI 3.0, 6.2.5.1), and the bits of which one says that the next
/// register holds the upper half of the address.
const KIND: u32 = 0b1111;
const SPACE_AND_WIDTH: u32 = 0b111;
const IS_WIDE: u32 = 0b100;

/// The configuration space of one function. Reads come from its file, except for BARs. Writes to BARs
/// go to a copy; writes to the command register are ignored.
#[derive(Debug)]
pub(super) struct ConfigSpace {
    file: File,
    bars: [Bar; BARS],
}

/// The copy of a BAR's register.
#[derive(Debug, Default, Clone, Copy)]
struct Bar {
    value: u32,
    /// Bits that keep what is written to them.
    writable: u32,
}

impl ConfigSpace {
    /// The space in `file`, of a function with memory BARs of these indices and lengths in bytes.
    pub(super) fn new(file: File, lens: impl Iterator<Item = (usize, u64)>) -> io::Result<Self> {
        let mut registers = [[0; 4]; BARS];
        file.read_exact_at(registers.as_flattened_mut(), BAR0.into())?;
        let mut bars = registers.map(|register| Bar {
            value: u32::from_le_bytes(register),
            writable: 0,
        });
        for (index, len) in lens {
            let address = (!len.saturating_sub(1)).to_le_bytes();
            let (halves, _) = address.as_chunks();
            let mut halves = halves.iter().map(|half| u32::from_le_bytes(*half));
            if let Some([bar, rest @ ..]) = bars.get_mut(index..) {
                bar.writable = halves.next().unwrap_or_default() & !KIND;
                if let (IS_WIDE, Some(upper)) = (bar.value & SPACE_AND_WIDTH, rest.first_mut()) {
                    upper.writable = halves.next().unwrap_or_default();
                }
            }
        }
        Ok(Self { file, bars })
    }
}

/// Which BAR has its register at `offset`.
fn bar(offset: u8) -> Option<usize> {
    let index = usize::from(offset.checked_sub(BAR0)?) / 4;
    (index < BARS).then_some(index)
}

impl ConfigurationAccess for ConfigSpace {
    fn read_word(&self, _function: DeviceFunction, offset: u8) -> u32 {
        if let Some(bar) = bar(offset).and_then(|index| self.bars.get(index)) {
            return bar.value;
        }
        let mut bytes = [0; 4];
        match self.file.read_exact_at(&mut bytes, offset.into()) {
            Ok(()) => u32::from_le_bytes(bytes),
            Err(failed) => {
                log::warn!("vsock: cannot read the configuration space: {failed}");
                // What a bus returns when there is no device.
                u32::MAX
            }
        }
    }

    fn write_word(&mut self, _function: DeviceFunction, offset: u8, data: u32) {
        if let Some(bar) = bar(offset).and_then(|index| self.bars.get_mut(index)) {
            bar.value = bar.value & !bar.writable | data & bar.writable;
            return;
        }
        if offset == COMMAND {
            return;
        }
        let written = self.file.write_all_at(&data.to_le_bytes(), offset.into());
        if let Err(failed) = written {
            log::warn!("vsock: cannot write the configuration space: {failed}");
        }
    }

    // SAFETY: nothing is required of the caller, since a file cannot be misused by two users; the
    // trait is about registers that are selected in one step and read in another.
    unsafe fn unsafe_clone(&self) -> Self {
        Self {
            file: self.file.try_clone().expect("a free file descriptor"),
            bars: self.bars,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use virtio_drivers::transport::pci::bus::{BarInfo, MemoryBarType, PciRoot};

    use super::*;
    use crate::pci::FUNCTION;

    /// A function like QEMU's: ports in BAR 0, 4 KiB in BAR 1, 16 KiB above 4 GiB in BAR 4.
    const REGISTERS: [u32; BARS] = [0xc001, 0xfebd_0000, 0, 0, 0xfebe_000c, 0x12];

    fn space() -> (File, Vec<u8>) {
        let mut bytes = vec![0; 256];
        bytes[usize::from(COMMAND)..][..2].copy_from_slice(&0x107_u16.to_le_bytes());
        for (index, register) in REGISTERS.iter().enumerate() {
            let at = usize::from(BAR0) + 4 * index;
            bytes[at..at + 4].copy_from_slice(&register.to_le_bytes());
        }
        let mut file = File::from(memfd_create(c"config", MFdFlags::empty()).unwrap());
        file.write_all(&bytes).unwrap();
        (file, bytes)
    }

    #[test]
    fn bars_are_sized_without_touching_the_function() {
        let (file, bytes) = space();
        let lens = [(1, 0x1000), (4, 0x4000)].into_iter();
        let mut root = PciRoot::new(ConfigSpace::new(file.try_clone().unwrap(), lens).unwrap());
        let want = [
            BarInfo::Memory {
                address_type: MemoryBarType::Width32,
                prefetchable: false,
                address: 0xfebd_0000,
                size: 0x1000,
            },
            BarInfo::Memory {
                address_type: MemoryBarType::Width64,
                prefetchable: true,
                address: 0x12_febe_0000,
                size: 0x4000,
            },
        ];
        // Twice: each time everything is restored.
        for _ in 0..2 {
            for (index, want) in [1, 4].into_iter().zip(&want) {
                let info = root.bar_info(FUNCTION, index).unwrap();
                assert_eq!(info.as_ref(), Some(want), "BAR {index}");
            }
            assert_eq!(root.bar_info(FUNCTION, 2), Ok(None));
            let ports = root.bar_info(FUNCTION, 0).unwrap();
            assert!(matches!(ports, Some(BarInfo::IO { .. })), "{ports:?}");
        }
        let mut now = vec![0; 256];
        file.read_exact_at(&mut now, 0).unwrap();
        assert_eq!(now, bytes, "the function's own registers were written");
    }

    #[test]
    fn lengths_of_missing_bars_are_ignored() {
        let (file, _) = space();
        let lens = [(5, 0x1000), (6, 0x1000), (usize::MAX, 1), (0, 0)].into_iter();
        ConfigSpace::new(file, lens).unwrap();
    }
}
