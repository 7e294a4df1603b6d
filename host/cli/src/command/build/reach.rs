//! Which servers a build may reach: what the user says with options, and what other options name.

use net_policy::{HostRule, Policy, Reach};
use oci::ImageRef;

use super::args::Args;

/// Build arguments that name proxies, and no servers that a Dockerfile should use. Also in lower case.
const PROXIES: [&str; 5] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "FTP_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
];

/// What the options say of all that is connected to for a build, by RUN steps and by this process.
pub(super) fn policy(args: &Args) -> Policy {
    let mut policy = Policy::default();
    policy.addresses.allow_private = !args.deny_private;
    policy.rules.clone_from(&args.allow_net);
    policy
}

/// The same with what they allow this process besides. The engine adds the registries of named
/// contexts.
pub(super) fn from(args: &Args, build_args: &[(String, String)]) -> Reach {
    let arguments = build_args
        .iter()
        .filter(|(name, _)| !PROXIES.contains(&name.to_ascii_uppercase().as_str()))
        .filter_map(|(_, value)| named(value));
    Reach {
        policy: policy(args),
        named: args.allow_hosts.iter().cloned().chain(arguments).collect(),
    }
}

/// The server that the value of a build argument names: `HOST:PORT`, or the beginning of a URL or of
/// the name of an image. The default of an ARG is the word of the Dockerfile; this is the user's.
fn named(value: &str) -> Option<HostRule> {
    let (rest, usual) = match value.split_once("://") {
        Some(("http", rest)) => (rest, Some(80)),
        Some(("https", rest)) => (rest, Some(443)),
        Some(_) => return None,
        None => (value, None),
    };
    let server = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let server = server.rsplit('@').next().unwrap_or_default();
    let rule: HostRule = server.parse().ok().filter(HostRule::is_one_host)?;
    match (rule.port(), usual) {
        (Some(_), _) => Some(rule),
        (None, Some(usual)) => Some(rule.or_port(usual)),
        // Many things look like the name of a host, so something must say that it is one.
        (None, None) => {
            let image: ImageRef = value.parse().ok()?;
            image.host_rule().filter(|_| image.registry() == server)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(value: &str, want: Option<&str>) {
        let found = named(value).map(|rule| rule.to_string());
        assert_eq!(found.as_deref(), want, "{value}");
    }

    #[test]
    fn a_build_argument_may_name_a_server() {
        check("localhost:5000", Some("localhost:5000"));
        check("localhost:5000/team/app:1", Some("localhost:5000"));
        check("[::1]:5000/app", Some("[::1]:5000"));
        check("http://127.0.0.1:8080/a?b#c", Some("127.0.0.1:8080"));
        check("http://me:secret@127.0.0.1/a", Some("127.0.0.1:80"));
        check("https://localhost", Some("localhost:443"));
        check("localhost/team/app:1", Some("localhost:80"));
        check("registry.lan/app", Some("registry.lan:443"));
    }

    #[test]
    fn other_build_arguments_name_none() {
        for value in [
            "",
            "localhost",
            "127.0.0.1",
            "::1",
            "debug",
            "debug/1",
            "1.2.3",
            "8080:80",
            "*.example:80",
            "*",
            "postgres://localhost:5432/db",
            "http://",
            "http://a b:80/",
            "a:b:80",
        ] {
            check(value, None);
        }
    }
}
