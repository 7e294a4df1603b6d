//! Vsock backends: what provides the VM's vsock device, and where the guest's connections arrive.
//!
//! * [`VsockBackend::Embedded`] is the device of this program (`vsock-device`).
//! * [`VsockBackend::Device`] is a vhost-user device of another program, such as
//!   `vhost-device-vsock`. It connects to a Unix socket for each connection of the guest: to one
//!   whose name ends in the port, as Firecracker and its relatives do, or to one that was named for
//!   this port, as vfkit does. QEMU drives the device.
//! * [`VsockBackend::Host`] is the device of the host's kernel, `/dev/vhost-vsock`, with an
//!   `AF_VSOCK` socket.
//!
//! In all of them the guest connects and the host listens. The other direction, for which
//! Firecracker has a command (`CONNECT port`), is not needed: the agent listens on nothing.
//!
//! Threads block on these sockets like on everything else here, so no asynchronous library is used.

mod embedded;
mod socket;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::str::FromStr;

pub(crate) use socket::SocketListener;

/// What provides the VM's vsock device, and where the guest's connections arrive.
///
/// ```
/// use std::path::PathBuf;
///
/// use launcher::VsockBackend;
///
/// assert_eq!("embedded".parse(), Ok(VsockBackend::Embedded));
///
/// // A device that connects to a socket for each port, as Firecracker does:
/// let device = VsockBackend::Device {
///     device: PathBuf::from("/run/device.sock"),
///     listener: PathBuf::from("/run/guest.sock_3325"),
/// };
/// assert_eq!("/run/device.sock,uds=/run/guest.sock".parse(), Ok(device));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum VsockBackend {
    /// This process.
    #[default]
    Embedded,
    /// A vhost-user device of another program.
    Device {
        /// The socket of the device, to which QEMU connects.
        device: PathBuf,
        /// The socket on which this process listens, to which the device connects for the agent.
        listener: PathBuf,
    },
    /// The host's kernel.
    Host,
}

/// Text that names no vsock backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown vsock device `{0}`; use embedded, host, DEVICE,uds=PATH or DEVICE,port=PATH, where \
     DEVICE and PATH are Unix sockets"
)]
pub struct UnknownVsockBackend(pub String);

impl FromStr for VsockBackend {
    type Err = UnknownVsockBackend;

    fn from_str(text: &str) -> Result<Self, UnknownVsockBackend> {
        let unknown = || UnknownVsockBackend(text.into());
        match text {
            "embedded" => return Ok(Self::Embedded),
            "host" => return Ok(Self::Host),
            _ => {}
        }
        let (device, listener) = text.rsplit_once(',').ok_or_else(unknown)?;
        let listener = match listener.split_once('=') {
            Some(("uds", path)) if !path.is_empty() => format!("{path}_{}", wire::PORT),
            Some(("port", path)) if !path.is_empty() => path.into(),
            Some(_) | None => return Err(unknown()),
        };
        if device.is_empty() {
            return Err(unknown());
        }
        // The monitor has another working directory.
        let [device, listener] =
            [device, &listener].map(|path| std::path::absolute(Path::new(path)));
        Ok(Self::Device {
            device: device.map_err(|_| unknown())?,
            listener: listener.map_err(|_| unknown())?,
        })
    }
}

/// A random context id for a guest that is not one of the well-known ones: with the host's kernel,
/// context ids are shared by the whole host.
pub(crate) fn random_cid() -> Result<u32, getrandom::Error> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes)?;
    // Not 0 to 2, and not the one that means any (virtio 1.2, 5.10.4).
    Ok(u32::from_le_bytes(bytes) >> 1 | 1 << 16)
}
