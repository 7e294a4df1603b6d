//! The device against a driver that was written for these tests and shares no code with it.

#[cfg(test)]
mod driver;
#[cfg(test)]
mod ends;
#[cfg(test)]
mod honest;
#[cfg(test)]
mod hostile;

#[cfg(test)]
use std::path::PathBuf;

#[cfg(test)]
use vsock_device::{Config, Device, GuestCid};

/// A device at a socket in its own directory.
#[cfg(test)]
struct TestDevice {
    device: Device,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

#[cfg(test)]
impl TestDevice {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vsock");
        let mut config = Config::new(GuestCid::try_from(3).unwrap());
        change(&mut config);
        let device = Device::start(&socket, config).unwrap();
        Self {
            device,
            socket,
            _dir: dir,
        }
    }
}
