//! `HOST[:PORT]` as a user writes it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// Longest name of a host (RFC 1035, 2.3.4).
const MAX_NAME: usize = 253;
/// Longest part of a name between dots.
const MAX_LABEL: usize = 63;

/// A host that the user names, with all ports or one: `example.com`, `example.com:443`,
/// `*.example.com`, `10.0.0.1:8080`, `[2001:db8::1]:443`.
///
/// `*.example.com` is every name below `example.com`, at any depth, and not `example.com` itself. A
/// name is never an address and an address never a name: what a name resolves to is not looked at.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostRule {
    host: Host,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Host {
    /// In lower case, without a dot at the end.
    Name(String),
    /// Names that end in a dot and this.
    Below(String),
    /// IPv4 rather than IPv4-mapped.
    Address(IpAddr),
}

/// The text is not a [`HostRule`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct NotAHostRule {
    reason: &'static str,
}

impl HostRule {
    /// Exactly this host and port. `host` is a name or an address, as in [`Self::matches`].
    ///
    /// # Errors
    /// If it is neither, or a pattern.
    pub fn exact(host: &str, port: u16) -> Result<Self, NotAHostRule> {
        let host = Host::parse(host)?;
        if matches!(host, Host::Below(_)) {
            return refuse("a pattern is not a host");
        }
        Ok(Self {
            host,
            port: Some(port),
        })
    }

    /// Whether this names `host`, a name or an address with or without brackets, and `port`.
    #[must_use]
    pub fn matches(&self, host: &str, port: u16) -> bool {
        if self.port.is_some_and(|only| only != port) {
            return false;
        }
        let name = normal(host);
        match (&self.host, address(host)) {
            (Host::Address(own), Some(address)) => *own == address,
            (Host::Name(own), None) => *own == name,
            (Host::Below(own), None) => name
                .strip_suffix(own.as_str())
                .and_then(|rest| rest.strip_suffix('.'))
                .is_some_and(|rest| !rest.is_empty()),
            (Host::Address(_), None) | (Host::Name(_) | Host::Below(_), Some(_)) => false,
        }
    }

    /// The only port that this names; `None` for all.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// The address that this names, if it does not name a host.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        match self.host {
            Host::Address(address) => Some(address),
            Host::Name(_) | Host::Below(_) => None,
        }
    }
}

impl Host {
    fn parse(text: &str) -> Result<Self, NotAHostRule> {
        if let Some(address) = address(text) {
            return Ok(Self::Address(address));
        }
        let (below, name) = match text.strip_prefix("*.") {
            Some(rest) => (true, normal(rest)),
            None => (false, normal(text)),
        };
        check_name(&name)?;
        Ok(match below {
            true => Self::Below(name),
            false => Self::Name(name),
        })
    }
}

/// An address, with or without brackets. IPv4 addresses within IPv6 ones are taken out, as the kernel
/// does when it connects.
fn address(host: &str) -> Option<IpAddr> {
    let inside = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let address: IpAddr = match inside {
        Some(inside) => inside.parse::<Ipv6Addr>().ok()?.into(),
        None => host.parse().ok()?,
    };
    Some(address.to_canonical())
}

/// A name as names are compared (RFC 4343), without the dot of the root.
fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

fn check_name(name: &str) -> Result<(), NotAHostRule> {
    if name.is_empty() {
        return refuse("the host is empty");
    }
    if name.contains('*') {
        return refuse("`*` stands only for whole parts at the beginning, as in `*.example.com`");
    }
    if !name.is_ascii() {
        return refuse("write the name in ASCII, as in `xn--bcher-kva.example`");
    }
    let label_is_fine = |label: &str| {
        let fine = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        !label.is_empty() && label.len() <= MAX_LABEL && label.bytes().all(fine)
    };
    if name.len() > MAX_NAME || !name.split('.').all(label_is_fine) {
        return refuse("this is neither the name of a host nor an address");
    }
    let last = name.rsplit('.').next().unwrap_or_default();
    let hexadecimal = last
        .strip_prefix("0x")
        .is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
    // Some programs take these for addresses, in forms of which others know nothing.
    if hexadecimal || last.bytes().all(|b| b.is_ascii_digit()) {
        return refuse("write an address as four decimal numbers, as in 127.0.0.1");
    }
    Ok(())
}

fn refuse<T>(reason: &'static str) -> Result<T, NotAHostRule> {
    Err(NotAHostRule { reason })
}

impl FromStr for HostRule {
    type Err = NotAHostRule;

    fn from_str(text: &str) -> Result<Self, NotAHostRule> {
        // `::1` has colons and no port.
        if text.parse::<Ipv6Addr>().is_ok() {
            let host = Host::parse(text)?;
            return Ok(Self { host, port: None });
        }
        if text.contains(['/', '@', '?', '#']) {
            return refuse("write only HOST[:PORT], without a scheme, a user or a path");
        }
        let (host, port) = match text.rsplit_once(':') {
            // The colons are within brackets.
            Some((_, after)) if after.ends_with(']') => (text, None),
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        };
        if host.contains(':') && !host.starts_with('[') {
            return refuse("write an IPv6 address in brackets, as in [::1]:443");
        }
        let port = port.map(parse_port).transpose()?;
        let host = Host::parse(host)?;
        Ok(Self { host, port })
    }
}

fn parse_port(text: &str) -> Result<u16, NotAHostRule> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let port = text.parse().ok().filter(|port| digits && *port != 0);
    port.map_or_else(|| refuse("the port must be a number from 1 to 65535"), Ok)
}

impl fmt::Display for HostRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.port) {
            (Host::Name(name), _) => f.write_str(name)?,
            (Host::Below(name), _) => write!(f, "*.{name}")?,
            (Host::Address(IpAddr::V6(address)), Some(_)) => write!(f, "[{address}]")?,
            (Host::Address(address), _) => write!(f, "{address}")?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn rule(text: &str) -> HostRule {
        text.parse().unwrap()
    }

    #[track_caller]
    fn check(text: &str, host: &str, port: u16, want: bool) {
        assert_eq!(
            rule(text).matches(host, port),
            want,
            "{text}: {host}:{port}"
        );
    }

    #[track_caller]
    fn refused(text: &str, reason: &str) {
        let error = text.parse::<HostRule>().unwrap_err();
        assert!(error.reason.contains(reason), "{text}: {error}");
    }

    #[test]
    fn a_name_matches_itself_in_any_case_and_with_the_dot_of_the_root() {
        check("Example.com", "example.COM", 443, true);
        check("example.com", "example.com.", 443, true);
        check("example.com.", "example.com", 443, true);
        check("example.com", "a.example.com", 443, false);
        check("example.com", "example.com.evil.net", 443, false);
        check("localhost", "127.0.0.1", 80, false);
    }

    #[test]
    fn a_port_matches_only_itself() {
        check("example.com:443", "example.com", 443, true);
        check("example.com:443", "example.com", 80, false);
        check("example.com", "example.com", 80, true);
        check("[::1]:5000", "[::1]", 5000, true);
        check("[::1]:5000", "::1", 5001, false);
    }

    #[test]
    fn a_star_matches_every_name_below_and_nothing_else() {
        check("*.example.com", "a.example.com", 1, true);
        check("*.example.com", "b.A.example.com.", 1, true);
        check("*.example.com", "example.com", 1, false);
        check("*.example.com", ".example.com", 1, false);
        check("*.example.com", "notexample.com", 1, false);
        check("*.example.com", "a.example.com.evil.net", 1, false);
        check("*.example.com:443", "a.example.com", 80, false);
    }

    #[test]
    fn an_address_matches_however_it_is_written_and_no_name() {
        check("127.0.0.1:80", "127.0.0.1", 80, true);
        check("127.0.0.1", "[::ffff:127.0.0.1]", 80, true);
        check("::ffff:7f00:1", "127.0.0.1", 80, true);
        check("[0:0::1]", "::1", 80, true);
        check("::1", "[::1]", 80, true);
        check("127.0.0.1", "127.0.0.2", 80, false);
        check("127.0.0.1", "localhost", 80, false);
        check("*.0.0.1x", "127.0.0.1", 80, false);
    }

    #[test]
    fn other_texts_are_refused_with_the_reason() {
        refused("", "empty");
        refused(":80", "empty");
        refused("*", "`*`");
        refused("*.*.com", "`*`");
        refused("a.*.com", "`*`");
        refused("*.", "empty");
        refused("http://example.com", "scheme");
        refused("example.com/x", "path");
        refused("me@example.com", "user");
        refused("example.com:", "port");
        refused("example.com:0", "port");
        refused("example.com:+80", "port");
        refused("example.com:65536", "port");
        refused("::1:x", "brackets");
        refused("[::1", "neither");
        refused("[::1]x", "port");
        refused("[127.0.0.1]", "neither");
        refused("a b", "neither");
        refused("a..b", "neither");
        refused("bücher.example", "ASCII");
        refused("127.1", "four decimal numbers");
        refused("2130706433", "four decimal numbers");
        refused("0x7f000001:80", "four decimal numbers");
        refused("0177.0.0.1", "four decimal numbers");
        refused(&"a.".repeat(200), "neither");
        refused(&"a".repeat(64), "neither");
    }

    #[test]
    fn a_rule_for_exactly_one_port_is_made_from_a_host() {
        assert_eq!(HostRule::exact("[::1]", 80), "[::1]:80".parse());
        assert_eq!(HostRule::exact("A.example", 80), "a.example:80".parse());
        HostRule::exact("*.example", 80).unwrap_err();
        HostRule::exact("a.example:1", 80).unwrap_err();
    }

    proptest! {
        #[test]
        fn no_text_panics_and_a_rule_is_read_as_it_is_shown(text in "\\PC{0,40}|[a-c.*:\\[\\]0-9x]{0,20}") {
            if let Ok(rule) = text.parse::<HostRule>() {
                prop_assert_eq!(rule.to_string().parse::<HostRule>(), Ok(rule));
            }
        }

        #[test]
        fn addresses_are_read_as_they_are_shown(bits: u128, port in 1_u16..) {
            let address = IpAddr::from(Ipv6Addr::from(bits));
            let rule: HostRule = address.to_string().parse().unwrap();
            prop_assert!(rule.matches(&address.to_string(), port));
            let rule: HostRule = format!("[{address}]:{port}").parse().unwrap();
            prop_assert_eq!(rule.to_string().parse::<HostRule>(), Ok(rule.clone()));
            let host = format!("[{address}]");
            prop_assert!(rule.matches(&host, port));
        }
    }
}
