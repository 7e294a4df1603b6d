//! The device as the kernel presents it: a PCI function bound to `uio_pci_generic`.
//!
//! Contract: this module may use unsafe code to map registers, and gives out a transport that is safe
//! to use.
//!
//! The kernel assigns the function's resources and turns its interrupt line into a file descriptor.
//! Everything else is done here: bus mastering, registers, and unmasking the interrupt line, which
//! the kernel masks whenever it fires.

mod config_space;

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use thiserror::Error;
use virtio_drivers::transport::pci::bus::{DeviceFunction, PciRoot};
use virtio_drivers::transport::pci::{PciTransport, VirtioPciError};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use self::config_space::{BARS, COMMAND, ConfigSpace};
use crate::arena::Arena;
use crate::config::Config;
use crate::parts::{Interrupts, Parts};

/// Where the kernel lists functions.
const DEVICES: &str = "/sys/bus/pci/devices";

/// Makes the kernel look for a driver for the function written to it.
const PROBE: &str = "/sys/bus/pci/drivers_probe";

/// The driver that leaves a function to user space.
const DRIVER: &str = "uio_pci_generic";

/// Vendor and device of a modern virtio-vsock function (virtio 1.2, 4.1.2 and 5.10.1).
const VENDOR: &str = "0x1af4";
const DEVICE: &str = "0x1053";

/// Bits of the command register.
const MEMORY_SPACE: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;
const INTERRUPT_DISABLE: u16 = 1 << 10;

/// Flag in `resource`: this range is memory (`IORESOURCE_MEM`).
const IS_MEMORY: u64 = 0x200;

/// Why the device cannot be used.
#[derive(Debug, Error)]
pub enum BindError {
    /// This machine has no modern virtio-vsock function.
    #[error("there is no virtio-vsock device on the PCI bus")]
    NoDevice,
    /// Another driver has it, or the module is not loaded.
    #[error("the kernel did not bind the vsock device to {DRIVER}; is its module loaded?")]
    NotBound,
    /// An operation on a file of the kernel failed.
    #[error("cannot use {what}")]
    Kernel {
        /// The file or directory.
        what: String,
        /// The reason.
        source: io::Error,
    },
    /// There is no memory for the device.
    #[error("no memory for the vsock device")]
    Memory(#[source] io::Error),
    /// The function does not work as a virtio device.
    #[error("not a virtio device: {0}")]
    Virtio(VirtioPciError),
}

/// Takes the vsock device over from its current driver, and prepares it for an
/// [`Endpoint`](crate::Endpoint) with an arena for `config`. The modules `uio` and `uio_pci_generic`
/// must be loaded, `/sys`, `/proc` and `/dev` mounted, and the caller must be root.
///
/// # Errors
/// If there is no device, no driver or no memory, or the kernel refuses something. [`give_back`] then
/// returns the device to the kernel's driver.
pub fn bind(config: &Config) -> Result<Parts<PciTransport, UioInterrupts>, BindError> {
    let device = find()?;
    take_over(&device)?;
    // Only now: the kernel keeps hugepages reserved, even if they are not used.
    let arena = Arena::huge(config.arena_size()).map_err(BindError::Memory)?;
    let config_space = open(&device.join("config"))?;
    enable(&config_space)?;
    let uio = open(&uio_node(&device)?)?;
    let bars = map_bars(&device)?;
    let space = config_space.try_clone().and_then(|file| {
        let lens = bars.iter().map(|bar| (bar.index, bar.len));
        ConfigSpace::new(file, lens)
    });
    let space = space.map_err(kernel(&device))?;
    let transport = with_bars(bars, || {
        PciTransport::new::<BarHal, _>(&mut PciRoot::new(space), FUNCTION)
    });
    let command = read_command(&config_space).map_err(kernel(&device))?;
    Ok(Parts {
        transport: transport.map_err(BindError::Virtio)?,
        interrupts: UioInterrupts {
            uio,
            config: config_space,
            unmasked: command & !INTERRUPT_DISABLE,
            processor: processor(&device),
        },
        arena,
    })
}

/// [`ConfigSpace`] is of one function, so its number does not matter.
const FUNCTION: DeviceFunction = DeviceFunction {
    bus: 0,
    device: 0,
    function: 0,
};

fn find() -> Result<PathBuf, BindError> {
    let root = Path::new(DEVICES);
    for entry in fs::read_dir(root).map_err(kernel(root))? {
        let device = entry.map_err(kernel(root))?.path();
        let is = |file: &str, id: &str| {
            fs::read_to_string(device.join(file)).is_ok_and(|text| text.trim() == id)
        };
        if is("vendor", VENDOR) && is("device", DEVICE) {
            return Ok(device);
        }
    }
    Err(BindError::NoDevice)
}

/// Binds the function to [`DRIVER`].
fn take_over(device: &Path) -> Result<(), BindError> {
    let is_bound = || {
        let driver = fs::read_link(device.join("driver"));
        driver.is_ok_and(|driver| driver.ends_with(DRIVER))
    };
    if is_bound() {
        return Ok(());
    }
    rebind(device, DRIVER)?;
    if is_bound() {
        Ok(())
    } else {
        Err(BindError::NotBound)
    }
}

/// Returns the vsock device to the kernel's virtio driver. Its [`Endpoint`](crate::Endpoint) must be
/// dropped before.
///
/// # Errors
/// If there is no device, or the kernel refuses it.
pub fn give_back() -> Result<(), BindError> {
    rebind(&find()?, "\n")
}

/// Makes the kernel choose a driver for the function again: the named one, or with an empty line its
/// default.
fn rebind(device: &Path, driver: &str) -> Result<(), BindError> {
    let name = device.file_name().unwrap_or_default();
    let name = name.to_string_lossy();
    write(&device.join("driver_override"), driver)?;
    let unbind = device.join("driver/unbind");
    if unbind.exists() {
        write(&unbind, &name)?;
    }
    write(Path::new(PROBE), &name)
}

/// The device node of the function's interrupts.
fn uio_node(device: &Path) -> Result<PathBuf, BindError> {
    let dir = device.join("uio");
    let mut nodes = fs::read_dir(&dir).map_err(kernel(&dir))?;
    let node = nodes.next().ok_or(BindError::NotBound)?;
    let node = node.map_err(kernel(&dir))?;
    Ok(Path::new("/dev").join(node.file_name()))
}

/// Enables access to the registers of the function, and its own access to memory.
fn enable(config: &File) -> Result<(), BindError> {
    let command = read_command(config);
    let enabled = command.and_then(|now| write_command(config, now | MEMORY_SPACE | BUS_MASTER));
    enabled.map_err(kernel(Path::new("the PCI command register")))
}

fn read_command(config: &File) -> io::Result<u16> {
    let mut bytes = [0; 2];
    config.read_exact_at(&mut bytes, COMMAND.into())?;
    Ok(u16::from_le_bytes(bytes))
}

/// Writes both bytes at once. Writing only the second byte would change the interrupt bit too, but
/// QEMU updates the interrupt line only when the first byte is written.
fn write_command(config: &File, command: u16) -> io::Result<()> {
    config.write_all_at(&command.to_le_bytes(), COMMAND.into())
}

/// Interrupts of a function bound to `uio_pci_generic`.
#[derive(Debug)]
pub struct UioInterrupts {
    uio: File,
    config: File,
    /// The command register with interrupts enabled. The kernel changes no other bit of it.
    unmasked: u16,
    processor: Option<usize>,
}

impl Interrupts for UioInterrupts {
    fn fd(&self) -> BorrowedFd<'_> {
        self.uio.as_fd()
    }

    fn take(&mut self) -> io::Result<()> {
        let mut count = [0; 4];
        self.uio.read_exact(&mut count)
    }

    fn unmask(&mut self) -> io::Result<()> {
        write_command(&self.config, self.unmasked)
    }

    fn processor(&self) -> Option<usize> {
        self.processor
    }
}

/// The processor that receives the interrupts of a function with a driver. `None` if there are
/// several, or the kernel does not say.
fn processor(device: &Path) -> Option<usize> {
    let line = fs::read_to_string(device.join("irq")).ok()?;
    let list = format!("/proc/irq/{}/effective_affinity_list", line.trim());
    fs::read_to_string(list).ok()?.trim().parse().ok()
}

/// A memory BAR and its mapping. Never unmapped: the transport has no lifetime.
#[derive(Debug, Clone, Copy)]
struct Bar {
    index: usize,
    address: u64,
    len: u64,
    at: NonNull<u8>,
}

thread_local! {
    static CURRENT: RefCell<Vec<Bar>> = const { RefCell::new(Vec::new()) };
}

fn with_bars<R>(bars: Vec<Bar>, work: impl FnOnce() -> R) -> R {
    CURRENT.set(bars);
    let done = work();
    CURRENT.take();
    done
}

/// Maps every BAR that is memory.
fn map_bars(device: &Path) -> Result<Vec<Bar>, BindError> {
    let list = device.join("resource");
    let text = fs::read_to_string(&list).map_err(kernel(&list))?;
    let mut bars = Vec::new();
    for (index, line) in text.lines().take(BARS).enumerate() {
        let Some((address, len)) = parse_resource(line) else {
            continue;
        };
        let path = device.join(format!("resource{index}"));
        let at = map(&path, len).map_err(kernel(&path))?;
        bars.push(Bar {
            index,
            address,
            len,
            at,
        });
    }
    Ok(bars)
}

/// Address and length of a BAR, if it is memory.
fn parse_resource(line: &str) -> Option<(u64, u64)> {
    let mut fields = line.split_whitespace().map(|field| {
        let digits = field.strip_prefix("0x")?;
        u64::from_str_radix(digits, 16).ok()
    });
    let [start, end, flags] = [(); 3].map(|()| fields.next().flatten());
    let (start, end) = (start?, end?);
    let len = end.checked_sub(start)?.checked_add(1)?;
    (flags? & IS_MEMORY != 0 && start != 0).then_some((start, len))
}

fn map(path: &Path, len: u64) -> io::Result<NonNull<u8>> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let len = usize::try_from(len).ok().and_then(NonZeroUsize::new);
    let len = len.ok_or(io::ErrorKind::InvalidData)?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: the kernel chooses an unused address range, so no other mapping is replaced; the file
    // is the registers of this function and nothing else.
    let at = unsafe { mmap(None, len, access, MapFlags::MAP_SHARED, &file, 0) }?;
    Ok(at.cast())
}

/// Memory for a transport: the addresses of its registers.
struct BarHal;

// SAFETY: `mmio_phys_to_virt` returns addresses in mappings of the function's registers, which are
// never unmapped and have no other user, since the function is bound to a driver that does nothing
// with them. The other methods are for queues and do not return.
unsafe impl Hal for BarHal {
    fn dma_alloc(_pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        unreachable!("a transport allocates nothing")
    }

    // SAFETY: never returns.
    unsafe fn dma_dealloc(_paddr: PhysAddr, _vaddr: NonNull<u8>, _pages: usize) -> i32 {
        unreachable!("a transport allocates nothing")
    }

    // SAFETY: the range is looked up in the mapped BARs; nothing is required of the caller.
    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, size: usize) -> NonNull<u8> {
        let mapped = CURRENT.with_borrow(|bars| find_mapped(bars, paddr, size));
        mapped.expect("virtio structures lie in BARs of the function")
    }

    // SAFETY: never returns.
    unsafe fn share(_buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        unreachable!("a transport shares nothing")
    }

    // SAFETY: never returns.
    unsafe fn unshare(_paddr: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {
        unreachable!("a transport shares nothing")
    }
}

/// The mapping of `size` bytes of registers at `address`.
fn find_mapped(bars: &[Bar], address: u64, size: usize) -> Option<NonNull<u8>> {
    bars.iter().find_map(|bar| {
        let offset = address.checked_sub(bar.address)?;
        let end = offset.checked_add(size as u64)?;
        let offset = usize::try_from(offset).ok().filter(|_| end <= bar.len)?;
        // SAFETY: the offset is inside the mapping, which is as long as the BAR.
        Some(unsafe { bar.at.add(offset) })
    })
}

fn open(path: &Path) -> Result<File, BindError> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(kernel(path))
}

fn write(path: &Path, text: &str) -> Result<(), BindError> {
    fs::write(path, text).map_err(kernel(path))
}

fn kernel(what: &Path) -> impl FnOnce(io::Error) -> BindError {
    let what = what.display().to_string();
    move |source| BindError::Kernel { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_found_by_address() {
        let line = "0x00000000fe000000 0x00000000fe003fff 0x000000000014220c";
        assert_eq!(parse_resource(line), Some((0xfe00_0000, 0x4000)));
        let port = "0x000000000000c000 0x000000000000c03f 0x0000000000040101";
        assert_eq!(parse_resource(port), None);
        let none = "0x0000000000000000 0x0000000000000000 0x0000000000000000";
        assert_eq!(parse_resource(none), None);
        assert_eq!(parse_resource("nonsense"), None);
    }

    #[test]
    fn registers_outside_of_the_bars_are_not_mapped() {
        let mut registers = [0_u8; 16];
        let at = NonNull::from(&mut registers).cast();
        let bars = [Bar {
            index: 0,
            address: 0x1000,
            len: 16,
            at,
        }];
        assert_eq!(find_mapped(&bars, 0x1000, 16), Some(at));
        assert_eq!(find_mapped(&bars, 0x1008, 9), None);
        assert_eq!(find_mapped(&bars, 0xfff, 1), None);
        assert_eq!(find_mapped(&bars, u64::MAX, 16), None);
    }
}
