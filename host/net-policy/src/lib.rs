//! Which addresses others may make this machine reach.
//!
//! A Dockerfile, an image, a registry or a step names a server; a process of this machine connects.
//! From here it reaches more than the one who named the server does: services on loopback, the
//! metadata service of a cloud, the machine's own ports. So every address is checked right before
//! it is connected to, after the name was resolved, by an [`AddressPolicy`]. What the user names is a
//! [`HostRule`]; what it restricts everything to is a [`NetRule`].
//!
//! The law: addresses and names are judged by what they reach, not by how they are written. An IPv4
//! address within an IPv6 one is judged as itself. What is not known to be harmless is denied.
//!
//! This crate opens no socket and resolves no name. It asks the kernel for the addresses of this
//! machine, unless the caller knows them better; see [`OwnAddresses`].
//!
//! | module | what it holds |
//! |---|---|
//! | `policy` | [`AddressPolicy`], the verdict on an address, and [`Denied`] |
//! | `ranges` | what each range of addresses is for |
//! | `inner` | the IPv4 addresses within IPv6 addresses |
//! | `own` | [`OwnAddresses`], the addresses of this machine |
//! | `rule` | [`HostRule`], `HOST[:PORT]` as a user writes it |
//! | `net_rule` | [`NetRule`], what `--allow-net` names |
//! | `judge` | [`Policy`], the verdict with such rules, and [`Refusal`] |
//! | `reach` | [`Reach`], a policy with the hosts that the user names |
//!
//! ```
//! use net_policy::{AddressPolicy, Denied, HostRule};
//!
//! let policy = AddressPolicy::default();
//! assert_eq!(policy.check("1.1.1.1".parse()?), Ok(()));
//! assert_eq!(policy.check("::ffff:127.0.0.1".parse()?), Err(Denied::Loopback));
//! assert_eq!(policy.check("169.254.169.254".parse()?), Err(Denied::Metadata));
//!
//! let rule: HostRule = "localhost:5000".parse()?;
//! assert!(rule.matches("LOCALHOST", 5000));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod inner;
mod judge;
mod net_rule;
mod own;
mod policy;
mod ranges;
mod reach;
mod rule;

pub use judge::{Policy, Refusal};
pub use net_rule::{HOST_NAME, NetRule, NetRuleError};
pub use own::{FixedAddresses, Interfaces, OwnAddresses};
pub use policy::{AddressPolicy, Denied};
pub use reach::Reach;
pub use rule::{HostRule, NotAHostRule};
