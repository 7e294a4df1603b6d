//! Rules: what `--allow-net HOST[:PORT]` names.
//!
//! **Law:** a rule is read in one way or refused, and its text says exactly what it allows. Only an
//! address that is written out, or `localhost`, can name an address that is denied otherwise.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use thiserror::Error;

use crate::{AddressPolicy, Denied, HostRule, NotAHostRule};

/// The name under which a step finds the host's loopback, if it may.
pub const HOST_NAME: &str = "host.docker.internal";

/// What one `--allow-net` allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetRule {
    host: Host,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    /// `*`: every name, and every address that is not denied.
    Any,
    /// A name, or every name below one. Its port is that of the rule.
    Name(HostRule),
    /// `localhost`: the loopback addresses of the host.
    Loopback,
    /// An address, or a range of addresses.
    Range(IpNet),
}

/// Why a text is no rule.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NetRuleError {
    /// It is neither a host nor an address.
    #[error(transparent)]
    Host(#[from] NotAHostRule),
    /// It has a slash and is no range.
    #[error("`{0}` is not a range of addresses; write it as 10.1.0.0/16 or [2001:db8::/32]:443")]
    Range(String),
}

impl FromStr for NetRule {
    type Err = NetRuleError;

    fn from_str(text: &str) -> Result<Self, NetRuleError> {
        if text.contains('/') {
            return range(text);
        }
        // What stands for any host is read like the name of one.
        let any = text
            .strip_prefix('*')
            .filter(|rest| rest.is_empty() || rest.starts_with(':'));
        if let Some(port) = any {
            let port = format!("any{port}").parse::<HostRule>()?.port();
            let host = Host::Any;
            return Ok(Self { host, port });
        }
        let rule: HostRule = text.parse()?;
        let port = rule.port();
        let is = |name| rule.matches(name, port.unwrap_or(1));
        let host = match rule.address() {
            Some(address) => Host::Range(address.into()),
            None if is("localhost") || is(HOST_NAME) && !text.starts_with('*') => Host::Loopback,
            None => Host::Name(rule),
        };
        Ok(Self { host, port })
    }
}

/// A range of addresses; one of IPv6 with a port is in brackets.
fn range(text: &str) -> Result<NetRule, NetRuleError> {
    let wrong = || NetRuleError::Range(text.to_owned());
    let (range, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']').ok_or_else(wrong)? {
            (range, "") => (range, None),
            (range, rest) => (range, Some(rest.strip_prefix(':').ok_or_else(wrong)?)),
        },
        None if text.matches(':').count() > 1 => (text, None),
        None => match text.split_once(':') {
            Some((range, port)) => (range, Some(port)),
            None => (text, None),
        },
    };
    let port = match port {
        // Read as it is after a name.
        Some(port) => format!("any:{port}").parse::<HostRule>()?.port(),
        None => None,
    };
    let range: IpNet = range.parse().map_err(|_| wrong())?;
    Ok(NetRule {
        host: Host::Range(range.trunc()),
        port,
    })
}

impl NetRule {
    /// Whether it allows to resolve a name; `name` is normalized.
    pub(crate) fn names(&self, name: &str) -> bool {
        match &self.host {
            Host::Any => true,
            Host::Name(rule) => rule.matches(name, rule.port().unwrap_or(1)),
            Host::Loopback => name == HOST_NAME,
            Host::Range(_) => false,
        }
    }

    /// Whether it allows connections to an address by a name that resolved to it.
    pub(crate) fn allows_name(&self, name: &str, port: u16) -> bool {
        self.allows_port(port) && self.names(name)
    }

    /// Whether it allows connections to an address that `policy` does not deny.
    pub(crate) fn allows_address(&self, address: IpAddr, port: u16) -> bool {
        let covers = match &self.host {
            Host::Any => true,
            Host::Range(range) => range.contains(&address),
            Host::Loopback => address.is_loopback(),
            Host::Name(_) => false,
        };
        covers && self.allows_port(port)
    }

    /// Whether it names an address that is denied otherwise: by itself, or by a range in which
    /// everything is denied for the same reason. `0.0.0.0/0` does not mean the host's loopback.
    pub(crate) fn insists_on(
        &self,
        address: IpAddr,
        port: u16,
        denied: Denied,
        policy: &AddressPolicy,
    ) -> bool {
        let named = match &self.host {
            Host::Loopback => address.is_loopback(),
            Host::Range(range) => {
                let same = |address| policy.check(address) == Err(denied);
                range.contains(&address) && same(range.network()) && same(range.broadcast())
            }
            Host::Any | Host::Name(_) => false,
        };
        named && self.allows_port(port)
    }

    /// Whether it names a loopback address.
    pub(crate) fn opens_loopback(&self) -> bool {
        match &self.host {
            Host::Loopback => true,
            Host::Range(range) => range.network().is_loopback(),
            Host::Any | Host::Name(_) => false,
        }
    }

    fn allows_port(&self, port: u16) -> bool {
        self.port.is_none_or(|own| own == port)
    }
}

impl fmt::Display for NetRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        match &self.host {
            Host::Any => write!(f, "*{port}"),
            Host::Name(rule) => rule.fmt(f),
            Host::Loopback => write!(f, "localhost{port}"),
            Host::Range(range) => {
                let single = range.prefix_len() == range.max_prefix_len();
                let range = match single {
                    true => range.addr().to_string(),
                    false => range.to_string(),
                };
                if range.contains(':') && self.port.is_some() {
                    return write!(f, "[{range}]{port}");
                }
                write!(f, "{range}{port}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(text: &str) -> NetRule {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_rule_is_a_name_a_wildcard_an_address_or_a_range_with_or_without_a_port() {
        for text in [
            "deb.debian.org",
            "deb.debian.org:443",
            "*.debian.org",
            "*.debian.org:80",
            "*",
            "*:443",
            "localhost",
            "localhost:5000",
            "10.1.2.3",
            "10.1.2.3:5000",
            "10.1.0.0/16",
            "10.1.0.0/16:443",
            "2001:db8::1",
            "[2001:db8::1]:443",
            "2001:db8::/32",
            "[2001:db8::/32]:443",
            "my_host-1",
        ] {
            assert_eq!(rule(text).to_string(), text);
        }
        assert_eq!(rule("Deb.Debian.ORG.").to_string(), "deb.debian.org");
        assert_eq!(rule("10.1.2.3/16").to_string(), "10.1.0.0/16");
        assert_eq!(rule("[::1]").to_string(), "::1");
        assert_eq!(rule("host.docker.internal:1").to_string(), "localhost:1");
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for text in [
            "",
            ":80",
            "a.org:0",
            "a.org:65536",
            "a.org:",
            "a.org:http",
            "a.*.org",
            "*a.org",
            "*.*.org",
            "**",
            "*:",
            "*:0",
            "a..org",
            ".org",
            "1.2.3",
            "1.2.3.4.5",
            "bücher.de",
            "a b",
            "[::1",
            "[::1]x",
            "*.1",
            "http://a.org",
            "10.0.0.0/33",
            "10.0.0.0/8:",
            "10.0.0.0/8:0",
            "[2001:db8::/32",
            "[2001:db8::/32]x",
            "[2001:db8::/32]:",
            "a.org/8",
            "/8",
            "[10.0.0.0/8]]",
            "10.0.0.0/8]",
        ] {
            assert!(text.parse::<NetRule>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_wildcard_means_what_is_below_the_name_at_any_depth() {
        let below = rule("*.debian.org");
        assert!(below.names("deb.debian.org") && below.names("a.b.debian.org"));
        for other in [
            "debian.org",
            "xdebian.org",
            ".debian.org",
            "debian.org.evil.com",
            "",
        ] {
            assert!(!below.names(other), "{other}");
        }
        assert!(rule("debian.org").names("debian.org"));
        assert!(!rule("debian.org").names("deb.debian.org"));
        assert!(rule("*").names("anything"));
    }

    #[test]
    fn a_port_restricts_the_connection_and_not_the_name() {
        let rule = rule("a.org:443");
        assert!(rule.names("a.org"));
        assert!(rule.allows_name("a.org", 443) && !rule.allows_name("a.org", 80));
    }

    #[test]
    fn only_what_is_written_out_means_an_address_that_is_denied() {
        let policy = AddressPolicy::default();
        let insists = |text: &str, to: &str| {
            let to = address(to);
            let denied = policy.check(to).unwrap_err();
            rule(text).insists_on(to, 80, denied, &policy)
        };
        for (text, to) in [
            ("127.0.0.1", "127.0.0.1"),
            ("127.0.0.1:80", "127.0.0.1"),
            ("127.0.0.0/8", "127.1.2.3"),
            ("localhost", "127.0.0.1"),
            ("localhost:80", "::1"),
            ("::1", "::1"),
            ("169.254.169.254", "169.254.169.254"),
            ("169.254.0.0/16", "169.254.7.7"),
        ] {
            assert!(insists(text, to), "{text} {to}");
        }
        for (text, to) in [
            ("0.0.0.0/0", "127.0.0.1"),
            ("::/0", "::1"),
            ("*", "127.0.0.1"),
            ("a.org", "127.0.0.1"),
            ("localhost:81", "127.0.0.1"),
            ("127.0.0.1", "127.0.0.2"),
            // The metadata address is more than just link-local.
            ("169.254.0.0/16", "169.254.169.254"),
        ] {
            assert!(!insists(text, to), "{text} {to}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_rule_or_refused(text in ".{0,80}") {
            if let Ok(rule) = text.parse::<NetRule>() {
                prop_assert_eq!(rule.to_string().parse::<NetRule>().unwrap(), rule);
            }
        }

        #[test]
        fn what_looks_like_a_rule_reads_back_as_itself(text in "(\\*\\.)?[a-z0-9.:/\\[\\]*-]{1,20}") {
            if let Ok(rule) = text.parse::<NetRule>() {
                prop_assert_eq!(rule.to_string().parse::<NetRule>().unwrap(), rule);
            }
        }
    }
}
