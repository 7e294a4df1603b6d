//! Image references: names of images, as users write them.
//!
//! The law: every text either parses to one normal form (registry, repository, and a tag, a digest
//! or both) or is refused with the reason; the normal form parses to itself.

use std::fmt;
use std::str::FromStr;

use net_policy::HostRule;
use store::Digest;

use crate::http::is_loopback;

/// Longest repository name, as registries limit it.
const MAX_NAME: usize = 255;
/// Longest tag.
const MAX_TAG: usize = 128;
/// The registry of names without one.
const DEFAULT_REGISTRY: &str = "docker.io";

/// A parsed image name, for example `docker.io/library/alpine:3`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageRef {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// The text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a valid image reference: {reason}")]
pub struct NotAnImageRef {
    /// The text, shortened.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl ImageRef {
    /// Host and, if given, port of the registry; `docker.io` if the name had none.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path within the registry, such as `library/alpine`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` if the name had neither tag nor digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, which takes precedence over the tag.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Whether the registry is on this machine. Such a registry is used without TLS, as other
    /// clients do.
    #[must_use]
    pub fn is_local(&self) -> bool {
        let host = match self.registry.strip_prefix('[') {
            Some(rest) => rest.split(']').next(),
            None => self.registry.split(':').next(),
        };
        is_loopback(host.unwrap_or_default())
    }

    /// Exactly the registry, at the port at which it is used; for a user who names the image.
    #[must_use]
    pub fn host_rule(&self) -> Option<HostRule> {
        let rule: HostRule = self.registry.parse().ok()?;
        let usual = if self.is_local() { 80 } else { 443 };
        Some(rule.or_port(usual))
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

impl FromStr for ImageRef {
    type Err = NotAnImageRef;

    fn from_str(text: &str) -> Result<Self, NotAnImageRef> {
        parse(text).map_err(|reason| NotAnImageRef {
            text: text.chars().take(MAX_NAME).collect(),
            reason,
        })
    }
}

fn parse(text: &str) -> Result<ImageRef, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    let digest = digest
        .map(str::parse)
        .transpose()
        .map_err(|_| "the text after the @ is not of the form sha256:<64 hexadecimal digits>")?;
    let (name, tag) = split_tag(rest);
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    if is_hex_id(name) && tag.is_none() {
        return Err("64 hexadecimal digits are an image id; write NAME@sha256:<digits>");
    }
    let (registry, repository) = split_registry(name)?;
    check_repository(&repository)?;
    let tag = match (tag, digest) {
        (None, None) => Some("latest"),
        (tag, _) => tag,
    };
    Ok(ImageRef {
        registry,
        repository,
        tag: tag.map(str::to_owned),
        digest,
    })
}

/// Splits `name:tag`. A colon before the last slash belongs to a port.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        Some(_) | None => (text, None),
    }
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let first = tag.bytes().next().ok_or("the tag is empty")?;
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if tag.len() > MAX_TAG {
        return Err("the tag is longer than 128 characters");
    }
    if !word(first) || !tag.bytes().all(|b| word(b) || b == b'.' || b == b'-') {
        return Err(
            "a tag consists of letters, digits, `_`, `.` and `-`, and does not begin with one of the last two",
        );
    }
    Ok(())
}

fn is_hex_id(name: &str) -> bool {
    name.len() == 64
        && name
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// The first element is a registry if it cannot be part of a repository name or is `localhost`.
fn split_registry(name: &str) -> Result<(String, String), &'static str> {
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if is_registry(first) => (first, rest),
        Some(_) | None => (DEFAULT_REGISTRY, name),
    };
    check_registry(registry)?;
    if matches!(registry, DEFAULT_REGISTRY | "index.docker.io") {
        let library = if repository.contains('/') {
            ""
        } else {
            "library/"
        };
        return Ok((
            DEFAULT_REGISTRY.to_owned(),
            format!("{library}{repository}"),
        ));
    }
    Ok((registry.to_owned(), repository.to_owned()))
}

fn is_registry(first: &str) -> bool {
    first == "localhost"
        || first
            .bytes()
            .any(|b| b == b'.' || b == b':' || b == b'[' || b.is_ascii_uppercase())
}

fn check_registry(registry: &str) -> Result<(), &'static str> {
    const REASON: &str = "the text before the first / is not a host with an optional port";
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or(REASON)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| REASON)?;
            (
                None,
                port.strip_prefix(':')
                    .or(if port.is_empty() { None } else { Some("") }),
            )
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let host_is_good = host.is_none_or(|host| host.split('.').all(label));
    let port_is_good = port
        .is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok());
    if host_is_good && port_is_good {
        Ok(())
    } else {
        Err(REASON)
    }
}

fn check_repository(repository: &str) -> Result<(), &'static str> {
    if repository.len() > MAX_NAME {
        return Err("the repository is longer than 255 characters");
    }
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("the repository must be in lower case");
    }
    if repository.split('/').all(is_path_element) {
        Ok(())
    } else {
        Err(
            "a repository consists of lower-case letters and digits, with `.`, `_`, `__` or dashes between them, and slashes",
        )
    }
}

/// Letters and digits, with one separator (`.`, `_`, `__`, or any number of dashes) between runs.
fn is_path_element(element: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut runs = element.as_bytes().chunk_by(|a, b| word(*a) == word(*b));
    let ends_are_words =
        element.bytes().next().is_some_and(word) && element.bytes().next_back().is_some_and(word);
    ends_are_words
        && runs.all(|run| {
            run.iter().all(|b| word(*b))
                || matches!(run, b"." | b"_" | b"__")
                || run.iter().all(|b| *b == b'-')
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let parsed: ImageRef = text.parse().unwrap();
        assert_eq!(parsed.to_string(), expected);
        assert_eq!(expected.parse::<ImageRef>().unwrap(), parsed);
    }

    #[track_caller]
    fn refused(text: &str, reason: &str) {
        let error = text.parse::<ImageRef>().unwrap_err();
        assert!(error.reason.contains(reason), "{text}: {}", error.reason);
    }

    #[test]
    fn short_names_are_completed() {
        check("alpine", "docker.io/library/alpine:latest");
        check("alpine:3.20", "docker.io/library/alpine:3.20");
        check("user/app", "docker.io/user/app:latest");
        check("index.docker.io/alpine", "docker.io/library/alpine:latest");
        check("a-b__c/d.e---f", "docker.io/a-b__c/d.e---f:latest");
    }

    #[test]
    fn a_registry_is_recognised_by_dot_colon_or_localhost() {
        check("quay.io/a", "quay.io/a:latest");
        check("localhost/a", "localhost/a:latest");
        check("localhost:5000/a/b:c", "localhost:5000/a/b:c");
        check("host:5000/a", "host:5000/a:latest");
        check("[::1]:5000/a", "[::1]:5000/a:latest");
        check("Host/a", "Host/a:latest");
    }

    #[test]
    fn a_digest_needs_no_tag() {
        check(
            &format!("a@sha256:{HEX}"),
            &format!("docker.io/library/a@sha256:{HEX}"),
        );
        check(
            &format!("a:1@sha256:{HEX}"),
            &format!("docker.io/library/a:1@sha256:{HEX}"),
        );
    }

    #[test]
    fn other_texts_are_refused_with_the_reason() {
        refused("", "empty");
        refused("Alpine", "lower case");
        refused("alpine:", "tag is empty");
        refused("alpine:.x", "a tag consists of");
        refused(&format!("alpine:{}", "x".repeat(129)), "128");
        refused("alpine@sha256:12", "@");
        refused("alpine@md5:12", "@");
        refused(HEX, "image id");
        refused("a//b", "repository consists of");
        refused("a/", "repository consists of");
        refused("a..b", "repository consists of");
        refused("a___b", "repository consists of");
        refused("-a", "repository consists of");
        refused("a b", "repository consists of");
        refused("a.b:port/c", "host");
        refused("a.b:99999/c", "host");
        refused("[::1/c", "host");
        refused("[::1]x/c", "host");
        refused("../x", "host");
        refused(&"a".repeat(300), "255");
    }

    #[test]
    fn registries_on_this_machine_are_known() {
        for (text, local) in [
            ("localhost:5000/a", true),
            ("localhost/a", true),
            ("127.0.0.1:5000/a", true),
            ("127.1.2.3/a", true),
            ("[::1]:5000/a", true),
            ("localhost.example.org/a", false),
            ("10.0.0.1/a", false),
            ("a", false),
        ] {
            assert_eq!(
                text.parse::<ImageRef>().unwrap().is_local(),
                local,
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_the_normal_form_is_stable(text in "\\PC{0,80}") {
            if let Ok(parsed) = text.parse::<ImageRef>() {
                prop_assert_eq!(parsed.to_string().parse::<ImageRef>().unwrap(), parsed);
            }
        }

        #[test]
        fn likely_names_keep_their_parts(
            registry in "[a-z]{1,8}\\.[a-z]{2,3}(:[0-9]{1,4})?",
            repository in "[a-z0-9]{1,8}([._-][a-z0-9]{1,8})?(/[a-z0-9]{1,8}){0,3}",
            tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}",
        ) {
            let parsed: ImageRef = format!("{registry}/{repository}:{tag}").parse().unwrap();
            prop_assert_eq!(parsed.registry(), registry);
            prop_assert_eq!(parsed.repository(), repository);
            prop_assert_eq!(parsed.tag(), Some(tag.as_str()));
        }
    }
}
