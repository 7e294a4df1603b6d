//! The verdict on an address or a name where the user may have restricted both.

use std::fmt;
use std::net::IpAddr;

use crate::{AddressPolicy, Denied, NetRule};

/// What others may make this machine reach: addresses, and what `--allow-net` names.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Which addresses are denied unless a rule writes them out.
    pub addresses: AddressPolicy,
    /// What `--allow-net` names. If it names anything, nothing else resolves or connects.
    pub rules: Vec<NetRule>,
}

/// Why something is not allowed. Displayed, it completes a sentence, as [`Denied`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The address is denied for this reason.
    Address(Denied),
    /// No rule of `--allow-net` allows it.
    NoRule,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(denied) => denied.fmt(f),
            Self::NoRule => f.write_str("--allow-net does not name it"),
        }
    }
}

impl Policy {
    /// Judges an address with the names that resolved to it. Gives the name that decided, if one did.
    ///
    /// # Errors
    /// If it may not be connected to.
    pub fn judge<'a>(
        &self,
        address: IpAddr,
        port: u16,
        names: &[&'a str],
    ) -> Result<Option<&'a str>, Refusal> {
        if let Err(denied) = self.addresses.check(address) {
            let insists = |rule: &NetRule| rule.insists_on(address, port, denied, &self.addresses);
            return match self.rules.iter().any(insists) {
                true => Ok(None),
                false => Err(Refusal::Address(denied)),
            };
        }
        let by_address = |rule: &NetRule| rule.allows_address(address, port);
        if self.rules.is_empty() || self.rules.iter().any(by_address) {
            return Ok(None);
        }
        let by_name = |name: &&&str| self.allows_name(name, port);
        let name = names.iter().find(by_name).ok_or(Refusal::NoRule)?;
        Ok(Some(name))
    }

    /// Whether a name may be resolved.
    #[must_use]
    pub fn resolves(&self, name: &str) -> bool {
        self.rules.is_empty() || self.rules.iter().any(|rule| rule.names(name))
    }

    /// Whether a name may be connected to by what it resolves to.
    #[must_use]
    pub fn allows_name(&self, name: &str, port: u16) -> bool {
        let allows = |rule: &NetRule| rule.allows_name(name, port);
        self.rules.is_empty() || self.rules.iter().any(allows)
    }

    /// Whether a rule opens the loopback of this machine at any port.
    #[must_use]
    pub fn opens_loopback(&self) -> bool {
        self.rules.iter().any(NetRule::opens_loopback)
    }
}
