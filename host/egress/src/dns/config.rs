//! The name servers of this machine, from `/etc/resolv.conf`.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

/// Where the file is.
const PATH: &str = "/etc/resolv.conf";
/// Most name servers that are asked, as in the C library.
const MAX_SERVERS: usize = 3;
/// Longest file that is read, in bytes.
const MAX_LENGTH: u64 = 64 << 10;
const PORT: u16 = 53;

/// The name servers of this machine; the file is read again when it has changed.
#[derive(Debug)]
pub(crate) struct NameServers {
    /// The file; without one the servers never change.
    path: Option<PathBuf>,
    read: Option<Stamp>,
    servers: Vec<SocketAddr>,
}

/// What changes when the file does.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

impl Default for NameServers {
    fn default() -> Self {
        Self::of(PATH.into())
    }
}

impl NameServers {
    fn of(path: PathBuf) -> Self {
        Self {
            path: Some(path),
            read: None,
            servers: Vec::new(),
        }
    }

    #[cfg(test)]
    pub(crate) fn fixed(servers: Vec<SocketAddr>) -> Self {
        Self {
            path: None,
            read: None,
            servers,
        }
    }

    /// The servers now, in the order in which to ask.
    pub(crate) fn now(&mut self) -> Vec<SocketAddr> {
        let Some(path) = &self.path else {
            return self.servers.clone();
        };
        let stamp = fs::metadata(path).ok().map(|metadata| Stamp {
            inode: metadata.ino(),
            length: metadata.len(),
            changed: (metadata.mtime(), metadata.mtime_nsec()),
        });
        // A file that is not there is looked for again.
        if stamp.is_none() || stamp != self.read {
            self.servers = parse(&read(path).unwrap_or_default());
            self.read = stamp;
        }
        self.servers.clone()
    }
}

fn read(path: &PathBuf) -> io::Result<String> {
    let mut bytes = Vec::new();
    io::Read::read_to_end(
        &mut io::Read::take(fs::File::open(path)?, MAX_LENGTH),
        &mut bytes,
    )?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The name servers in the file. Without any there is one on this machine, as in the C library.
fn parse(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some("nameserver")).then_some(())?;
        server(words.next()?)
    });
    let servers: Vec<_> = servers.take(MAX_SERVERS).collect();
    if servers.is_empty() {
        return vec![(Ipv4Addr::LOCALHOST, PORT).into()];
    }
    servers
}

/// An address, perhaps with the interface through which it is reached.
fn server(text: &str) -> Option<SocketAddr> {
    if let Some((address, interface)) = text.split_once('%') {
        let address: Ipv6Addr = address.parse().ok()?;
        let index = fs::read_to_string(format!("/sys/class/net/{interface}/ifindex"));
        let index = index.ok().and_then(|index| index.trim().parse().ok())?;
        return Some(SocketAddrV6::new(address, PORT, 0, index).into());
    }
    let address: IpAddr = text.parse().ok()?;
    Some((address, PORT).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_as_the_c_library_does() {
        let text = "# a comment\nsearch example.org\nnameserver 192.0.2.1\n\tnameserver 2001:db8::1\n\
                    nameserver\nnameserver nonsense\noptions edns0\nnameserver fe80::1%lo\n\
                    nameserver 192.0.2.9\n";
        let got = parse(text);
        assert_eq!(
            got[..2],
            [
                "192.0.2.1:53".parse().unwrap(),
                "[2001:db8::1]:53".parse().unwrap()
            ]
        );
        let SocketAddr::V6(scoped) = got[2] else {
            panic!("{got:?}")
        };
        assert_eq!((scoped.scope_id(), got.len()), (1, 3));
        assert_eq!(parse(""), ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn the_file_is_read_again_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let mut servers = NameServers::of(path.clone());
        assert_eq!(servers.now(), parse(""));
        for server in ["192.0.2.1", "192.0.2.22"] {
            fs::write(&path, format!("nameserver {server}\n")).unwrap();
            assert_eq!(servers.now(), [format!("{server}:53").parse().unwrap()]);
        }
    }
}
