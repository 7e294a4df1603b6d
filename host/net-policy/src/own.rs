//! The addresses of this machine.

use std::io;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

/// How long a list of addresses counts: so short that an interface that comes up is known before
/// anybody can be told its address, so long that thousands of connections cost nothing.
const FRESH: Duration = Duration::from_secs(1);

/// Says which addresses are this machine's, beyond those that always are, such as loopback.
pub trait OwnAddresses: Send + Sync {
    /// Whether the address is this machine's.
    ///
    /// # Errors
    /// If that cannot be found out; nothing is reached then.
    fn contains(&self, address: IpAddr) -> io::Result<bool>;
}

/// The addresses of this machine's interfaces, as the kernel lists them now.
///
/// Addresses that a router or firewall elsewhere leads back to this machine are not among them.
#[derive(Debug, Default)]
pub struct Interfaces {
    listed: Mutex<Option<Listed>>,
}

#[derive(Debug)]
struct Listed {
    at: Instant,
    addresses: Vec<IpAddr>,
}

impl OwnAddresses for Interfaces {
    fn contains(&self, address: IpAddr) -> io::Result<bool> {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(listed) = listed.as_ref().filter(|listed| listed.at.elapsed() < FRESH) {
            return Ok(listed.addresses.contains(&address));
        }
        let addresses = list()?;
        let found = addresses.contains(&address);
        let at = Instant::now();
        *listed = Some(Listed { at, addresses });
        Ok(found)
    }
}

fn list() -> io::Result<Vec<IpAddr>> {
    let interfaces = getifaddrs()?;
    Ok(interfaces.filter_map(|found| ip(&found.address?)).collect())
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| address.ip().into());
    v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into()))
}

/// Exactly these addresses are this machine's, beyond those that always are.
#[derive(Debug, Clone, Default)]
pub struct FixedAddresses(pub Vec<IpAddr>);

impl OwnAddresses for FixedAddresses {
    fn contains(&self, address: IpAddr) -> io::Result<bool> {
        Ok(self.0.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn the_kernel_lists_loopback() {
        let interfaces = Interfaces::default();
        assert!(interfaces.contains([127, 0, 0, 1].into()).unwrap());
        assert!(!interfaces.contains([192, 0, 2, 1].into()).unwrap());
    }

    /// The address from which packets leave is one of ours. Nothing is sent.
    #[test]
    fn the_kernel_lists_the_address_that_packets_leave_from() {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        if socket.connect("192.0.2.1:9").is_err() {
            return; // No route: no address either.
        }
        let own = socket.local_addr().unwrap().ip();
        assert!(Interfaces::default().contains(own).unwrap(), "{own}");
    }
}
