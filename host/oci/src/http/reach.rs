//! Whether a server may be reached, and by which way.
//!
//! ```text
//! the user names it ─────────────────────► allowed: any address
//! an address or localhost, not permitted ► denied
//! a name, not among those of --allow-net ► denied, and not looked up
//! a proxy of the environment serves it ──► proxied: the proxy resolves the name and decides
//! anything else ─────────────────────────► checked: only permitted addresses of the name are tried
//! ```
//!
//! The law: an address is judged after the name was resolved, and only what was judged is connected
//! to; so it does not help to answer differently the next time. Each redirection is judged again.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use hyper_util::client::proxy::matcher::Matcher;
use net_policy::{AddressPolicy, Denied, Reach, Refusal};
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::{BoxError, is_loopback};

/// How a server is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// At any address.
    Allowed,
    /// At permitted addresses.
    Checked,
    /// Through a proxy that the user has set.
    Proxied,
}

/// A server that must not be reached, because the user did not name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDenied {
    /// Name or address as the request has it; addresses of IPv6 are in brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The address that the name leads to, if it was resolved.
    pub address: Option<IpAddr>,
    /// What is wrong with it.
    pub why: Refusal,
    /// Whether the server that was asked for redirects there.
    pub redirected: bool,
}

impl std::error::Error for HostDenied {}

impl fmt::Display for HostDenied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            host, port, why, ..
        } = self;
        if self.redirected {
            write!(f, "after a redirection: ")?;
        }
        let why = match why {
            Refusal::Address(why) => why,
            Refusal::NoRule => {
                return write!(
                    f,
                    "--allow-net does not name {host}:{port}; to allow it, build with --allow-net {host}:{port}"
                );
            }
        };
        match self.address {
            Some(address) => write!(f, "{host}:{port} leads to {address}, {why}")?,
            None => write!(f, "{host}:{port} is {why}")?,
        }
        write!(
            f,
            "; a Dockerfile or an image may reach it only with --allow-host {host}:{port}"
        )
    }
}

/// Chooses the [`Route`] to a server.
pub(super) struct Router {
    reach: Reach,
    /// The proxies of the environment.
    proxies: Matcher,
}

impl Router {
    pub(super) fn new(reach: Reach, proxies: Matcher) -> Self {
        Self { reach, proxies }
    }

    pub(super) fn route(&self, url: &Url) -> Result<Route, HostDenied> {
        let (host, port) = server(url);
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        // What is on this machine is not asked of another one.
        let proxied = !is_loopback(bare) && self.is_proxied(url);
        if self.reach.names(host, port) {
            return Ok(if proxied {
                Route::Proxied
            } else {
                Route::Allowed
            });
        }
        let route = self.check(bare, port);
        let route = route.map_err(|why| denied(url, None, why))?;
        Ok(if proxied { Route::Proxied } else { route })
    }

    /// Judges what needs no look-up. `Url` has read all ways to write an address already.
    fn check(&self, host: &str, port: u16) -> Result<Route, Refusal> {
        let policy = &self.reach.policy;
        if let Ok(address) = host.parse() {
            return policy.judge(address, port, &[]).map(|_| Route::Checked);
        }
        let name = host.strip_suffix('.').unwrap_or(host);
        if name == "localhost" || name.ends_with(".localhost") {
            let v4 = policy.judge(Ipv4Addr::LOCALHOST.into(), port, &[]);
            let verdict = v4.and_then(|_| policy.judge(Ipv6Addr::LOCALHOST.into(), port, &[]));
            return verdict.map(|_| Route::Allowed);
        }
        let named = policy.allows_name(name, port);
        named.then_some(Route::Checked).ok_or(Refusal::NoRule)
    }

    fn is_proxied(&self, url: &Url) -> bool {
        let uri = url.as_str().parse();
        uri.is_ok_and(|uri| self.proxies.intercept(&uri).is_some())
    }
}

/// Host and port of an address for requests.
fn server(url: &Url) -> (&str, u16) {
    let host = url.host_str().unwrap_or_default();
    (host, url.port_or_known_default().unwrap_or_default())
}

fn denied(url: &Url, address: Option<IpAddr>, why: Refusal) -> HostDenied {
    let (host, port) = server(url);
    HostDenied {
        host: host.to_owned(),
        port,
        address,
        why,
        redirected: false,
    }
}

/// What a request to `url` failed for, if it is that its name has no permitted address.
pub(super) fn denial(url: &Url, error: &reqwest::Error) -> Option<HostDenied> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(NoneAllowed { address, why }) = error.downcast_ref() {
            return Some(denied(url, Some(*address), Refusal::Address(*why)));
        }
        cause = error.source();
    }
    None
}

/// None of a name's addresses is permitted.
#[derive(Debug, thiserror::Error)]
#[error("{address} is {why}")]
struct NoneAllowed {
    address: IpAddr,
    why: Denied,
}

/// Looks up a name.
pub(super) type Lookup = Arc<
    dyn Fn(String) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>
        + Send
        + Sync,
>;

/// Looks up names as all programs of this machine do.
pub(super) fn system_lookup() -> Lookup {
    Arc::new(|name| {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name, 0)).await?;
            Ok(found.collect())
        })
    })
}

/// Gives a name's addresses to the client, or only those that are permitted.
pub(super) struct Resolver {
    pub(super) lookup: Lookup,
    /// `None` permits all.
    pub(super) policy: Option<AddressPolicy>,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = self.policy.clone();
        let found = (self.lookup)(name.as_str().to_owned());
        Box::pin(async move {
            let found = found.await?;
            let addresses = match policy {
                Some(policy) => permitted(&policy, found)?,
                None => found,
            };
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// The permitted ones of a name's addresses; an error if there are only others.
fn permitted(policy: &AddressPolicy, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, BoxError> {
    let mut denied = None;
    let mut addresses = Vec::new();
    for address in found {
        match policy.check(address.ip()) {
            Ok(()) => addresses.push(address),
            Err(why) if denied.is_none() => {
                let address = address.ip();
                denied = Some(NoneAllowed { address, why });
            }
            Err(_) => {}
        }
    }
    match denied {
        Some(denied) if addresses.is_empty() => Err(denied.into()),
        Some(_) | None => Ok(addresses),
    }
}

#[cfg(test)]
mod tests {
    use net_policy::{FixedAddresses, Policy};

    use super::*;

    fn router(named: &[&str], proxy: Option<&str>) -> Router {
        let own = FixedAddresses(vec!["192.168.1.5".parse().unwrap()]);
        let policy = Policy {
            addresses: AddressPolicy::new(Arc::new(own)),
            rules: Vec::new(),
        };
        let reach = Reach {
            policy,
            named: named.iter().map(|rule| rule.parse().unwrap()).collect(),
        };
        let proxies = match proxy {
            Some(proxy) => Matcher::builder().all(proxy).no("direct.example"),
            None => Matcher::builder(),
        };
        Router::new(reach, proxies.build())
    }

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[track_caller]
    fn check(router: &Router, address: &str, want: Result<Route, Denied>) {
        let route = router.route(&url(address)).map_err(|denied| denied.why);
        assert_eq!(route, want.map_err(Refusal::Address), "{address}");
    }

    /// A router with `--allow-net`.
    fn restricted(rules: &[&str], named: &[&str], proxy: Option<&str>) -> Router {
        let mut router = router(named, proxy);
        let rules = rules.iter().map(|rule| rule.parse().unwrap());
        router.reach.policy.rules = rules.collect();
        router
    }

    #[test]
    fn with_rules_only_what_they_or_the_user_name_is_looked_up_or_asked() {
        for proxy in [None, Some("http://127.0.0.1:3128")] {
            let rules = [
                "a.example:443",
                "*.b.example",
                "93.184.215.0/24",
                "localhost:81",
            ];
            let router = restricted(&rules, &["named.example"], proxy);
            let is_open = |text: &str| match router.route(&url(text)) {
                Ok(_) => true,
                Err(denied) => {
                    assert_eq!(denied.why, Refusal::NoRule, "{text}");
                    false
                }
            };
            for text in [
                "https://a.example/",
                "https://A.example./",
                "http://x.b.example:8080/",
                "http://93.184.215.7/",
                "http://named.example/",
            ] {
                assert!(is_open(text), "{text}");
            }
            for text in [
                "http://a.example/",
                "https://b.example/",
                "https://xa.example/",
                "https://a.example.evil.example/",
                "http://93.184.216.7/",
                "http://[2001:67c::1]/",
            ] {
                assert!(!is_open(text), "{text}");
            }
            // What is written out is exempt from the rule against addresses, as it is for steps.
            check(&router, "http://localhost:81/", Ok(Route::Allowed));
            check(&router, "http://localhost/", Err(Denied::Loopback));
            check(&router, "http://169.254.169.254/", Err(Denied::Metadata));
        }
        let any = restricted(&["*"], &[], None);
        check(&any, "https://other.example/", Ok(Route::Checked));
        check(&any, "http://127.0.0.1/", Err(Denied::Loopback));
    }

    #[test]
    fn however_an_address_is_written_it_is_judged() {
        let router = router(&[], None);
        for text in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f000001/",
            "http://0x7f.1/",
            "http://0177.0.0.1/",
            "http://017700000001/",
            "http://127.0.0.1./",
            "http://%31%32%37.0.0.1/",
            "http://①②⑦.0.0.1/",
            "http://127。0。0。1/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[::ffff:7f00:1]/",
            "http://[0:0:0:0:0:0:0:1]/",
            "http://[64:ff9b::7f00:1]/",
            "http://me:secret@127.0.0.1:8080/x",
            "http://localhost/",
            "http://LOCALHOST./",
            "https://a.localhost:1/",
        ] {
            check(&router, text, Err(Denied::Loopback));
        }
        check(&router, "http://0/", Err(Denied::Unspecified));
        check(&router, "http://[::]/", Err(Denied::Unspecified));
        for text in [
            "http://169.254.169.254/latest/meta-data/",
            "http://2852039166/",
            "http://0xa9fea9fe/",
            "http://[::ffff:a9fe:a9fe]/",
            "http://[fd00:ec2::254]/",
        ] {
            check(&router, text, Err(Denied::Metadata));
        }
        check(&router, "http://192.168.1.5/", Err(Denied::ThisHost));
        check(&router, "http://192.168.1.6/", Ok(Route::Checked));
        check(&router, "https://example.com/", Ok(Route::Checked));
        check(&router, "https://localhost.example/", Ok(Route::Checked));
    }

    #[test]
    fn what_the_user_names_is_allowed_and_its_neighbours_are_not() {
        let router = router(&["localhost:5000", "[::1]:80", "*.corp.example"], None);
        check(&router, "http://localhost:5000/v2/", Ok(Route::Allowed));
        check(&router, "http://localhost:5001/v2/", Err(Denied::Loopback));
        check(&router, "http://127.0.0.1:5000/v2/", Err(Denied::Loopback));
        check(&router, "http://[::1]/", Ok(Route::Allowed));
        check(&router, "https://a.corp.example/", Ok(Route::Allowed));
    }

    #[test]
    fn a_proxy_is_used_for_what_is_elsewhere_and_not_to_come_back() {
        let router = router(
            &["localhost:5000", "named.example"],
            Some("http://127.0.0.1:3128"),
        );
        check(&router, "http://example.com/", Ok(Route::Proxied));
        check(&router, "http://named.example/", Ok(Route::Proxied));
        check(&router, "http://direct.example/", Ok(Route::Checked));
        check(&router, "http://localhost:5000/", Ok(Route::Allowed));
        check(&router, "http://localhost/", Err(Denied::Loopback));
        check(&router, "http://127.0.0.1:3128/", Err(Denied::Loopback));
        check(&router, "http://169.254.169.254/", Err(Denied::Metadata));
        check(&router, "http://192.168.1.5/", Err(Denied::ThisHost));
    }

    #[test]
    fn only_the_permitted_addresses_of_a_name_are_tried() {
        let policy = router(&[], None).reach.policy.addresses;
        let of = |texts: &[&str]| {
            let found = texts
                .iter()
                .map(|ip| SocketAddr::new(ip.parse().unwrap(), 0));
            permitted(&policy, found.collect())
        };
        let some = of(&["127.0.0.1", "1.1.1.1", "::1", "2a00::1"]).unwrap();
        let some: Vec<String> = some.iter().map(|found| found.ip().to_string()).collect();
        assert_eq!(some, ["1.1.1.1", "2a00::1"]);
        let none = of(&["169.254.169.254", "127.0.0.1"]).unwrap_err();
        assert!(none.to_string().starts_with("169.254.169.254 is"), "{none}");
        assert!(of(&[]).unwrap().is_empty());
    }

    #[test]
    fn a_denial_says_what_would_allow_it() {
        let error = router(&[], None).route(&url("http://[::1]/x")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "[::1]:80 is a loopback address, which is this machine; a Dockerfile or an image may reach it \
             only with --allow-host [::1]:80"
        );
        let error = HostDenied {
            redirected: true,
            ..denied(
                &url("http://a.example/"),
                Some([10, 0, 0, 1].into()),
                Refusal::Address(Denied::Private),
            )
        };
        assert_eq!(
            error.to_string(),
            "after a redirection: a.example:80 leads to 10.0.0.1, a private address; a Dockerfile or an \
             image may reach it only with --allow-host a.example:80"
        );
        let router = restricted(&["b.example"], &[], None);
        let error = router.route(&url("https://a.example/")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "--allow-net does not name a.example:443; to allow it, build with --allow-net a.example:443"
        );
    }
}
