//! The verdict on an address.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::inner::{Inner, inner};
use crate::own::{Interfaces, OwnAddresses};
use crate::ranges;

/// Why an address must not be reached. Displayed, it completes a sentence: "10.0.0.1 is …".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum Denied {
    /// `127.0.0.0/8` and `::1`.
    #[error("a loopback address, which is this machine")]
    Loopback,
    /// Only this link: `169.254.0.0/16` and `fe80::/10`.
    #[error("a link-local address")]
    LinkLocal,
    /// `0.0.0.0` and `::`, which connect to this machine.
    #[error("the unspecified address, which is this machine")]
    Unspecified,
    /// A group of machines.
    #[error("a multicast address")]
    Multicast,
    /// All machines of the link.
    #[error("the broadcast address")]
    Broadcast,
    /// Where clouds give a machine its credentials.
    #[error("an address of a cloud's metadata service")]
    Metadata,
    /// An interface of this machine has it.
    #[error("an address of this machine")]
    ThisHost,
    /// Private networks, where [`AddressPolicy::allow_private`] is off.
    #[error("a private address")]
    Private,
    /// No server has it: experiments, IPv6 documentation, or not assigned.
    #[error("a reserved address")]
    Reserved,
    /// This machine does not list its addresses, so any could be its own.
    #[error("not known to be the address of another machine: this machine's own cannot be listed")]
    Unlisted,
}

/// Which addresses may be reached. See the crate.
#[derive(Clone)]
pub struct AddressPolicy {
    /// Whether private networks may be reached: RFC 1918, shared addresses of carriers
    /// (`100.64.0.0/10`), and unique local addresses (`fc00::/7`).
    pub allow_private: bool,
    own: Arc<dyn OwnAddresses>,
}

impl AddressPolicy {
    /// A policy that allows private networks and takes this machine's addresses from `own`.
    #[must_use]
    pub fn new(own: Arc<dyn OwnAddresses>) -> Self {
        Self {
            allow_private: true,
            own,
        }
    }

    /// Whether `address` may be connected to.
    ///
    /// # Errors
    /// If it may not.
    pub fn check(&self, address: IpAddr) -> Result<(), Denied> {
        let inside = match address {
            IpAddr::V4(_) => Inner::None,
            IpAddr::V6(address) => inner(address),
        };
        match inside {
            Inner::None => self.check_plain(address),
            Inner::Addresses(addresses) => {
                // An interface may have the outer address, such as one of 6to4.
                self.check_own(address)?;
                addresses
                    .into_iter()
                    .try_for_each(|inside| self.check_plain(IpAddr::V4(inside)))
            }
            Inner::AnyOf(readings) => {
                self.check_own(address)?;
                let verdicts = readings.map(|inside| self.check_plain(IpAddr::V4(inside)));
                one_of(&verdicts)
            }
        }
    }

    /// Judges an address that has no other one within.
    fn check_plain(&self, address: IpAddr) -> Result<(), Denied> {
        match ranges::class(address) {
            Err(Denied::Private) if self.allow_private => {}
            Err(Denied::Private) => return self.check_own(address).and(Err(Denied::Private)),
            verdict => verdict?,
        }
        self.check_own(address)
    }

    fn check_own(&self, address: IpAddr) -> Result<(), Denied> {
        match self.own.contains(address) {
            Ok(false) => Ok(()),
            Ok(true) => Err(Denied::ThisHost),
            Err(_) => Err(Denied::Unlisted),
        }
    }
}

/// The verdict on an address that can be read in several ways, of which one is meant.
///
/// Any reading that leads to a machine that must not be reached denies it. A reading that leads
/// nowhere is not the one that is meant, unless all do.
fn one_of(verdicts: &[Result<(), Denied>]) -> Result<(), Denied> {
    let leads_nowhere = |denied: Denied| {
        matches!(
            denied,
            Denied::Reserved | Denied::Unspecified | Denied::Multicast | Denied::Broadcast
        )
    };
    let denied = |verdict: &&Result<(), Denied>| verdict.is_err_and(|why| !leads_nowhere(why));
    let first = verdicts.iter().find(denied);
    let first = first.or_else(|| verdicts.iter().find(|verdict| verdict.is_ok()));
    first
        .or_else(|| verdicts.last())
        .copied()
        .unwrap_or(Err(Denied::Reserved))
}

impl Default for AddressPolicy {
    /// Private networks are allowed; the kernel says which addresses are this machine's.
    fn default() -> Self {
        Self::new(Arc::new(Interfaces::default()))
    }
}

impl fmt::Debug for AddressPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressPolicy")
            .field("allow_private", &self.allow_private)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
