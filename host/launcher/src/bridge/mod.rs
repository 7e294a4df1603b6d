//! Doors that are not our own device: what the guest connects arrives at a socket of this host.
//!
//! * A [`Bridge::Device`] is a vhost-user device that somebody else runs, such as
//!   `vhost-device-vsock`. It connects to a Unix socket for each connection of the guest: to one
//!   whose name ends in the port, as Firecracker and its relatives do, or to one that was named for
//!   this port, as vfkit does. QEMU drives the device.
//! * [`Bridge::Host`] is the host kernel's own device, `/dev/vhost-vsock`, and an `AF_VSOCK` socket.
//!
//! In both the guest connects and the host listens. The other direction, for which Firecracker has
//! a word (`CONNECT port`), is not there: the agent listens on nothing.
//!
//! Threads block on these sockets like on everything else here, so no asynchronous library is
//! wanted.

mod socket;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::str::FromStr;

pub(crate) use socket::SocketDoor;

/// Who makes the VM's vsock device, and where the guest's connections arrive.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Bridge {
    /// This process does.
    #[default]
    Embedded,
    /// A vhost-user device at the first socket. It brings the agent's connections to the second.
    Device(PathBuf, PathBuf),
    /// The host's kernel.
    Host,
}

/// Text that names no bridge.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a vsock device: use embedded, host, DEVICE,uds=PATH or DEVICE,port=PATH, with paths of Unix sockets"
)]
pub struct NotABridge(pub String);

impl FromStr for Bridge {
    type Err = NotABridge;

    fn from_str(text: &str) -> Result<Self, NotABridge> {
        let wrong = || NotABridge(text.into());
        match text {
            "embedded" => return Ok(Self::Embedded),
            "host" => return Ok(Self::Host),
            _ => {}
        }
        let (device, door) = text.rsplit_once(',').ok_or_else(wrong)?;
        let door = match door.split_once('=') {
            Some(("uds", path)) if !path.is_empty() => format!("{path}_{}", wire::PORT),
            Some(("port", path)) if !path.is_empty() => path.into(),
            Some(_) | None => return Err(wrong()),
        };
        if device.is_empty() {
            return Err(wrong());
        }
        // The monitor has another working directory.
        let [device, door] = [device, &door].map(|path| std::path::absolute(Path::new(path)));
        Ok(Self::Device(
            device.map_err(|_| wrong())?,
            door.map_err(|_| wrong())?,
        ))
    }
}

/// A context id for a guest, of those that are not taken by anybody in particular: with the host's
/// kernel they count for the whole host.
pub(crate) fn random_cid() -> Result<u32, getrandom::Error> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes)?;
    // Not 0 to 2, and not the one that means any (virtio 1.2, 5.10.4).
    Ok(u32::from_le_bytes(bytes) >> 1 | 1 << 16)
}
