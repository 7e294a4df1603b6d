//! The verdict on a connection or a name.
//!
//! **Law:** a connection is judged by the address that is dialled, which comes as a number from the
//! guest: no name is resolved between verdict and connection.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use net_policy::{HOST_NAME, Policy, Refusal};
use wire::flow::{GATEWAYS, NAMESERVERS, Target};

use crate::resolved::Resolved;

/// The port of name servers.
const DOMAIN: u16 = 53;

/// Where a flow goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// To the name server, which this process is.
    Names,
    /// To the first of these addresses that answers. There is at least one.
    Dial {
        to: Vec<SocketAddr>,
        name: Option<String>,
    },
    /// Nowhere.
    Denied(Denial),
    /// Nothing listens there.
    Closed,
}

/// What is denied, and how to allow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Denial {
    pub(crate) address: Option<IpAddr>,
    pub(crate) name: Option<String>,
    pub(crate) port: u16,
    pub(crate) why: Refusal,
    /// The options that allow it.
    pub(crate) options: String,
}

/// Judges a flow.
pub(crate) fn route(policy: &Policy, target: Target, resolved: &Resolved, now: Instant) -> Route {
    let port = target.port;
    let address = target.address.to_canonical();
    if is_one_of(address, NAMESERVERS) {
        return if port == DOMAIN {
            Route::Names
        } else {
            Route::Closed
        };
    }
    if is_one_of(address, GATEWAYS) {
        return to_this_machine(policy, port, resolved, now);
    }
    let names: Vec<&str> = resolved.names(address, now).collect();
    let newest = names.first().map(|&name| name.to_owned());
    match policy.judge(address, port, &names) {
        Ok(name) => Route::Dial {
            to: vec![(address, port).into()],
            name: name.map(str::to_owned).or(newest),
        },
        Err(why) => {
            // A name helps only where no address has to be written out.
            let by_name = newest.as_deref().filter(|_| why == Refusal::NoRule);
            let options = options(policy, &suggest(by_name, address, port));
            Route::Denied(Denial {
                address: Some(address),
                name: newest,
                port,
                why,
                options,
            })
        }
    }
}

/// Judges a flow to the gateway, which stands for the loopback addresses of this machine.
fn to_this_machine(policy: &Policy, port: u16, resolved: &Resolved, now: Instant) -> Route {
    let loopbacks = [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ];
    let mut why = None;
    let mut to = Vec::new();
    for address in loopbacks {
        match policy.judge(address, port, &[]) {
            Ok(_) => to.push(SocketAddr::from((address, port))),
            Err(refusal) => why = why.or(Some(refusal)),
        }
    }
    let name = resolved.names(GATEWAYS.0.into(), now).next();
    let name = Some(name.unwrap_or(HOST_NAME).to_owned());
    match why {
        Some(why) if to.is_empty() => Route::Denied(Denial {
            address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            name,
            port,
            why,
            options: options(policy, &format!("localhost:{port}")),
        }),
        _ => Route::Dial { to, name },
    }
}

/// Judges a name, normalized.
pub(crate) fn resolves(policy: &Policy, name: &str) -> Result<(), Denial> {
    if policy.resolves(name) {
        return Ok(());
    }
    Err(Denial {
        address: None,
        name: Some(name.to_owned()),
        port: DOMAIN,
        why: Refusal::NoRule,
        options: options(policy, name),
    })
}

/// The options that allow one thing more.
fn options(policy: &Policy, rule: &str) -> String {
    if policy.rules.is_empty() {
        // With one rule, only rules count.
        format!("--allow-net {rule} --allow-net '*'")
    } else {
        format!("--allow-net {rule}")
    }
}

/// The text of a rule that allows exactly this, for messages.
fn suggest(name: Option<&str>, address: IpAddr, port: u16) -> String {
    match (name, address) {
        (Some(name), _) => format!("{name}:{port}"),
        (None, IpAddr::V4(address)) => format!("{address}:{port}"),
        (None, IpAddr::V6(address)) => format!("[{address}]:{port}"),
    }
}

impl Denial {
    /// What the step and the user are told, in one line.
    pub(crate) fn notice(&self) -> String {
        let Self { port, options, .. } = self;
        let name = self.name.as_deref();
        let what = match (self.address, name) {
            (Some(address), name) => {
                let shown = SocketAddr::new(address, *port);
                let name = name.map(|name| format!(" ({name})")).unwrap_or_default();
                format!("the connection to {shown}{name} is denied")
            }
            (None, name) => format!("the name {} is not resolved", name.unwrap_or("?")),
        };
        let why = match self.why {
            Refusal::Address(denied) => format!("it is {denied}"),
            Refusal::NoRule => Refusal::NoRule.to_string(),
        };
        format!("{what}: {why}; to allow it, build with {options}")
    }
}

fn is_one_of(address: IpAddr, (v4, v6): (Ipv4Addr, Ipv6Addr)) -> bool {
    address == IpAddr::V4(v4) || address == IpAddr::V6(v6)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use net_policy::{AddressPolicy, Denied, FixedAddresses};
    use wire::flow::Protocol;

    use super::*;

    fn policy(rules: &[&str]) -> Policy {
        Policy {
            addresses: AddressPolicy::new(Arc::new(FixedAddresses::default())),
            rules: rules.iter().map(|rule| rule.parse().unwrap()).collect(),
        }
    }

    /// What `a.org` and `b.org` resolved to.
    fn resolved() -> Resolved {
        let mut resolved = Resolved::default();
        for (name, address) in [
            ("a.org", "93.184.215.1"),
            ("b.org", "93.184.215.2"),
            ("both.org", "93.184.215.1"),
            ("inside.org", "127.0.0.1"),
        ] {
            let address = address.parse().unwrap();
            resolved.insert(name, address, Duration::ZERO, Instant::now());
        }
        resolved
    }

    fn routed(policy: &Policy, to: &str) -> Route {
        let to: SocketAddr = to.parse().unwrap();
        let target = Target {
            protocol: Protocol::Tcp,
            address: to.ip(),
            port: to.port(),
        };
        route(policy, target, &resolved(), Instant::now())
    }

    #[track_caller]
    fn dials(rules: &[&str], to: &str, want: &[&str], name: Option<&str>) {
        let want = Route::Dial {
            to: want.iter().map(|to| to.parse().unwrap()).collect(),
            name: name.map(str::to_owned),
        };
        assert_eq!(routed(&policy(rules), to), want, "{rules:?} {to}");
    }

    #[track_caller]
    fn denies(rules: &[&str], to: &str, why: Refusal, options: &str) {
        let found = routed(&policy(rules), to);
        let Route::Denied(denial) = found else {
            panic!("{rules:?} {to}: {found:?}");
        };
        assert_eq!(
            (denial.why, denial.options.as_str()),
            (why, options),
            "{to}"
        );
    }

    #[test]
    fn without_rules_everything_outside_is_open_and_this_machine_is_not() {
        dials(
            &[],
            "93.184.215.1:80",
            &["93.184.215.1:80"],
            Some("both.org"),
        );
        dials(&[], "93.184.215.9:80", &["93.184.215.9:80"], None);
        dials(&[], "10.1.2.3:80", &["10.1.2.3:80"], None);
        for (to, why, options) in [
            ("127.0.0.1:22", Denied::Loopback, "127.0.0.1:22"),
            ("[::ffff:127.0.0.1]:22", Denied::Loopback, "127.0.0.1:22"),
            ("[::1]:22", Denied::Loopback, "[::1]:22"),
            ("10.0.2.2:22", Denied::Loopback, "localhost:22"),
            ("169.254.169.254:80", Denied::Metadata, "169.254.169.254:80"),
            ("0.0.0.0:22", Denied::Unspecified, "0.0.0.0:22"),
        ] {
            let options = format!("--allow-net {options} --allow-net '*'");
            denies(&[], to, Refusal::Address(why), &options);
        }
    }

    #[test]
    fn with_rules_only_what_they_name_is_open() {
        let rules = ["a.org:443", "*.org:8080", "10.0.0.0/8"];
        dials(
            &rules,
            "93.184.215.1:443",
            &["93.184.215.1:443"],
            Some("a.org"),
        );
        dials(
            &rules,
            "93.184.215.2:8080",
            &["93.184.215.2:8080"],
            Some("b.org"),
        );
        dials(&rules, "10.9.9.9:1", &["10.9.9.9:1"], None);
        denies(
            &rules,
            "93.184.215.1:80",
            Refusal::NoRule,
            "--allow-net both.org:80",
        );
        denies(
            &rules,
            "93.184.215.2:443",
            Refusal::NoRule,
            "--allow-net b.org:443",
        );
        denies(
            &rules,
            "1.1.1.1:443",
            Refusal::NoRule,
            "--allow-net 1.1.1.1:443",
        );
    }

    #[test]
    fn a_name_never_opens_an_address_that_is_denied() {
        for rules in [&["inside.org"][..], &["*"], &["0.0.0.0/0"]] {
            let why = Refusal::Address(Denied::Loopback);
            denies(rules, "127.0.0.1:80", why, "--allow-net 127.0.0.1:80");
            denies(rules, "10.0.2.2:80", why, "--allow-net localhost:80");
        }
    }

    #[test]
    fn an_address_that_a_rule_writes_out_is_open_although_it_is_denied_otherwise() {
        dials(
            &["169.254.169.254"],
            "169.254.169.254:80",
            &["169.254.169.254:80"],
            None,
        );
        let both = ["127.0.0.1:5000", "[::1]:5000"];
        let host = Some(HOST_NAME);
        dials(&["localhost"], "10.0.2.2:5000", &both, host);
        dials(&["localhost:5000", "*"], "10.0.2.2:5000", &both, host);
        dials(&["127.0.0.1:5000"], "10.0.2.2:5000", &both[..1], host);
        let why = Refusal::Address(Denied::Loopback);
        denies(
            &["localhost:5000"],
            "10.0.2.2:22",
            why,
            "--allow-net localhost:22",
        );
    }

    #[test]
    fn private_networks_can_be_closed_and_opened_one_by_one() {
        let closed = |rules: &[&str]| {
            let mut policy = policy(rules);
            policy.addresses.allow_private = false;
            policy
        };
        assert!(matches!(
            routed(&closed(&[]), "10.1.2.3:80"),
            Route::Denied(_)
        ));
        assert!(matches!(
            routed(&closed(&["*"]), "10.1.2.3:80"),
            Route::Denied(_)
        ));
        for rule in ["10.1.2.3", "10.1.0.0/16:80"] {
            assert!(matches!(
                routed(&closed(&[rule]), "10.1.2.3:80"),
                Route::Dial { .. }
            ));
        }
    }

    #[test]
    fn the_name_server_is_this_process_and_has_no_other_port() {
        for rules in [&[][..], &["a.org"]] {
            assert_eq!(routed(&policy(rules), "10.0.2.3:53"), Route::Names);
            assert_eq!(routed(&policy(rules), "10.0.2.3:80"), Route::Closed);
        }
    }

    #[test]
    fn with_rules_only_the_names_in_them_resolve() {
        assert_eq!(resolves(&policy(&[]), "x.com"), Ok(()));
        let some = policy(&["a.org:443", "*.b.org"]);
        assert_eq!(resolves(&some, "a.org"), Ok(()));
        assert_eq!(resolves(&some, "c.b.org"), Ok(()));
        let denial = resolves(&some, "evil.com").unwrap_err();
        assert_eq!(
            denial.notice(),
            "the name evil.com is not resolved: --allow-net does not name it; to allow it, build \
             with --allow-net evil.com"
        );
    }

    #[test]
    fn a_notice_says_what_why_and_how_to_allow_it() {
        let Route::Denied(denial) = routed(&policy(&["*"]), "10.0.2.2:5000") else {
            panic!()
        };
        assert_eq!(
            denial.notice(),
            "the connection to 127.0.0.1:5000 (host.docker.internal) is denied: it is a loopback \
             address, which is this machine; to allow it, build with --allow-net localhost:5000"
        );
    }
}
