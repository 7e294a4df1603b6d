//! A guest without a VM: the guest's driver over a vhost-user frontend, in the process of its device.
//! The two share a memfd and eventfds, as a VM and its device do.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vsock_device::{Device, GuestCid};
use vsock_driver::{Arena, Endpoint, Interrupts, Parts};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// No operation that works takes this long, even on a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// The guest address where memory begins.
const BASE: u64 = 0x10_0000;

/// Descriptors per ring, as QEMU has.
const QUEUE_SIZE: u16 = 128;

/// Size and guest addresses of a ring, as the driver sets them.
#[derive(Debug, Clone, Copy)]
struct Ring {
    size: u16,
    descriptors: u64,
    available: u64,
    used: u64,
}

/// In place of the monitor between driver and device.
struct Monitor {
    frontend: Frontend,
    /// Features that the device offers.
    offered: u64,
    memory: GuestMemoryMmap<()>,
    cid: [u8; 8],
    status: DeviceStatus,
    rings: [Option<Ring>; 2],
    kicks: [EventFd; 2],
    call: EventFd,
}

impl Monitor {
    fn connect(socket: &Path, file: File, len: usize, call: EventFd) -> Self {
        let file = FileOffset::new(file, 0);
        let memory =
            GuestMemoryMmap::from_ranges_with_files([(GuestAddress(BASE), len, Some(file))])
                .unwrap();
        let mut frontend = Frontend::connect(socket, 2).unwrap();
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        frontend
            .set_protocol_features(protocol & VhostUserProtocolFeatures::CONFIG)
            .unwrap();
        let (_, cid) = frontend
            .get_config(0, 8, VhostUserConfigFlags::empty(), &[0; 8])
            .unwrap();
        Self {
            frontend,
            offered,
            memory,
            cid: cid.try_into().unwrap(),
            status: DeviceStatus::empty(),
            rings: [None; 2],
            kicks: [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).unwrap()),
            call,
        }
    }

    fn start_rings(&mut self) {
        let region = self.memory.iter().next().unwrap();
        let region = VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
        self.frontend.set_mem_table(&[region]).unwrap();
        let at = |at| self.memory.get_host_address(GuestAddress(at)).unwrap() as u64;
        for (index, ring) in self.rings.into_iter().enumerate() {
            let ring = ring.unwrap();
            let addresses = VringConfigData {
                queue_max_size: QUEUE_SIZE,
                queue_size: ring.size,
                flags: 0,
                desc_table_addr: at(ring.descriptors),
                used_ring_addr: at(ring.used),
                avail_ring_addr: at(ring.available),
                log_addr: None,
            };
            let frontend = &mut self.frontend;
            frontend.set_vring_num(index, ring.size).unwrap();
            frontend.set_vring_addr(index, &addresses).unwrap();
            frontend.set_vring_base(index, 0).unwrap();
            frontend.set_vring_call(index, &self.call).unwrap();
            frontend.set_vring_kick(index, &self.kicks[index]).unwrap();
            frontend.set_vring_enable(index, true).unwrap();
        }
        // None of these messages is answered, and a device may drop the kicks of a ring that it
        // does not know to be enabled. The reply to a request shows that it has handled them all.
        self.frontend.get_features().unwrap();
    }
}

impl Transport for Monitor {
    fn device_type(&self) -> DeviceType {
        DeviceType::Socket
    }

    fn read_device_features(&mut self) -> u64 {
        self.offered
    }

    fn write_driver_features(&mut self, features: u64) {
        // One of them is only between device and monitor.
        let ours = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let features = self.offered & (features | ours);
        self.frontend.set_features(features).unwrap();
    }

    fn max_queue_size(&mut self, _queue: u16) -> u32 {
        QUEUE_SIZE.into()
    }

    fn notify(&mut self, queue: u16) {
        self.kicks[usize::from(queue)].write(1).unwrap();
    }

    fn get_status(&self) -> DeviceStatus {
        if self.frontend.get_features().is_ok() {
            self.status
        } else {
            self.status | DeviceStatus::DEVICE_NEEDS_RESET
        }
    }

    fn set_status(&mut self, status: DeviceStatus) {
        if status.contains(DeviceStatus::DRIVER_OK) {
            self.start_rings();
        }
        self.status = status;
    }

    fn set_guest_page_size(&mut self, _size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(&mut self, queue: u16, size: u32, descriptors: u64, available: u64, used: u64) {
        self.rings[usize::from(queue)] = Some(Ring {
            size: size.try_into().unwrap(),
            descriptors,
            available,
            used,
        });
    }

    fn queue_unset(&mut self, _queue: u16) {}

    fn queue_used(&mut self, queue: u16) -> bool {
        self.rings[usize::from(queue)].is_some()
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::QUEUE_INTERRUPT
    }

    fn read_config_generation(&self) -> u32 {
        0
    }

    fn read_config_space<T: FromBytes + IntoBytes>(
        &self,
        offset: usize,
    ) -> virtio_drivers::Result<T> {
        let bytes = self.cid.get(offset..).unwrap_or_default();
        let read = T::read_from_prefix(bytes);
        read.map(|(value, _)| value)
            .map_err(|_| virtio_drivers::Error::ConfigSpaceTooSmall)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        _offset: usize,
        _value: T,
    ) -> virtio_drivers::Result<()> {
        Err(virtio_drivers::Error::Unsupported)
    }
}

impl Drop for Monitor {
    /// Stops the rings before their memory is unmapped.
    fn drop(&mut self) {
        for index in 0..2 {
            self.frontend.get_vring_base(index).ok();
        }
    }
}

/// The interrupt line.
struct Line(EventFd);

impl Interrupts for Line {
    #[expect(
        unsafe_code,
        reason = "an `EventFd` of vmm-sys-util lends only its number"
    )]
    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the eventfd, which is borrowed as long as the
        // result.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }

    fn take(&mut self) -> io::Result<()> {
        self.0.read().map(drop)
    }

    fn unmask(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A guest whose driver uses the device behind `socket`.
///
/// # Panics
/// If the device does not answer, or the system has no resources.
#[must_use]
pub fn drive(socket: &Path, config: vsock_driver::Config) -> Endpoint {
    let len = config.arena_size().next_multiple_of(1 << 21);
    let file = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(len as u64).unwrap();
    let arena = Arena::shared(&file, len, BASE).unwrap();
    let call = EventFd::new(EFD_NONBLOCK).unwrap();
    let interrupts = Line(call.try_clone().unwrap());
    let parts = Parts {
        transport: Monitor::connect(socket, file, len, call),
        interrupts,
        arena,
    };
    Endpoint::start(parts, config).unwrap()
}

/// A device, and a guest whose driver uses it.
#[derive(Debug)]
pub struct Testbed {
    /// The guest's driver.
    pub guest: Endpoint,
    /// The host's device.
    pub device: Device,
    _dir: tempfile::TempDir,
}

impl Default for Testbed {
    fn default() -> Self {
        Self::new()
    }
}

impl Testbed {
    /// A testbed with the usual sizes on both sides.
    ///
    /// # Panics
    /// If the system has no resources.
    #[must_use]
    pub fn new() -> Self {
        Self::with(vsock_driver::Config::default())
    }

    /// A testbed with other sizes of the driver.
    ///
    /// # Panics
    /// As [`Self::new`].
    #[must_use]
    pub fn with(config: vsock_driver::Config) -> Self {
        Self::with_both(config, |_| {})
    }

    /// A testbed with other sizes of the driver and the device.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub fn with_both(
        config: vsock_driver::Config,
        change: impl FnOnce(&mut vsock_device::Config),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vsock");
        let mut host = vsock_device::Config::new(GuestCid::try_from(3).unwrap());
        change(&mut host);
        let device = Device::start(&socket, host).unwrap();
        Self {
            guest: drive(&socket, config),
            device,
            _dir: dir,
        }
    }

    /// Both ends of a connection that the guest makes to `port`: the guest's and the host's.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn pair(&self, port: u32) -> (vsock_driver::Stream, vsock_device::Stream) {
        let listener = self.device.listen(port).unwrap();
        let guest = self.guest.connect(port, TIMEOUT).unwrap();
        let host = listener.accept(Some(TIMEOUT)).unwrap();
        guest.set_read_timeout(Some(TIMEOUT));
        guest.set_write_timeout(Some(TIMEOUT));
        host.set_read_timeout(Some(TIMEOUT));
        host.set_write_timeout(Some(TIMEOUT));
        (guest, host)
    }
}
