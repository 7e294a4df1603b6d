//! Names of images: whether one can exist, and when two are the same.

use crate::dockerfile::Fault;

/// Refuses a name that no registry can have: `[host/]path[:tag][@digest]`.
pub(super) fn check_image_name(name: &str) -> Result<(), Fault> {
    let wrong = |why: &str| {
        Err(Fault::new(format!(
            "invalid reference format: \"{name}\": {why}"
        )))
    };
    let (rest, digest) = name
        .split_once('@')
        .map_or((name, None), |(rest, d)| (rest, Some(d)));
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return wrong("the digest is malformed");
    }
    let (host, rest) = split_host(rest);
    let (path, tag) = rest
        .split_once(':')
        .map_or((rest, None), |(path, tag)| (path, Some(tag)));
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return wrong("the tag is malformed");
    }
    if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return wrong("repository name must be lowercase");
    }
    if !path.split('/').all(is_component) || host.is_some_and(str::is_empty) {
        return wrong("it must be of the form [host/]name[:tag][@digest]");
    }
    Ok(())
}

/// The registry's host, if the first element looks like one.
fn split_host(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((host, rest))
            if host == "localhost"
                || host.contains(['.', ':'])
                || host.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (Some(host), rest)
        }
        _ => (None, name),
    }
}

/// Letters and digits, with `.`, `_`, `__` or dashes between them.
fn is_component(text: &str) -> bool {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(word)
        && text.ends_with(word)
        && text
            .chars()
            .all(|c| word(c) || matches!(c, '.' | '_' | '-'))
}

fn is_tag(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.len() <= 128
        && text.starts_with(word)
        && text.chars().all(|c| word(c) || matches!(c, '.' | '-'))
}

fn is_digest(text: &str) -> bool {
    text.split_once(':').is_some_and(|(algorithm, hex)| {
        !algorithm.is_empty() && hex.len() >= 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// The name without what is understood: `docker.io/library/`, `docker.io/`, `:latest`.
pub(super) fn normal_name(name: &str) -> String {
    let short = name.strip_prefix("docker.io/").unwrap_or(name);
    let short = short.strip_prefix("library/").unwrap_or(short);
    short
        .strip_suffix(":latest")
        .unwrap_or(short)
        .to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_can_exist_are_accepted() {
        let digest = format!("alpine:3@sha256:{}", "a".repeat(64));
        for name in [
            "alpine",
            "alpine:3.20",
            "a/b/c_d-e.f",
            "localhost/x",
            "localhost:5000/x:Tag_1",
            "Host/x",
            "ghcr.io/o/r",
            &digest,
        ] {
            check_image_name(name).unwrap();
        }
    }

    #[test]
    fn names_that_cannot_exist_are_refused() {
        for name in [
            "Base",
            "a/B",
            "",
            "a//b",
            "a:",
            "a b",
            "-a",
            "a@sha256:12",
            "a@",
            "é",
            "a:b:c",
        ] {
            assert!(check_image_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn what_is_understood_is_dropped() {
        for name in [
            "alpine",
            "alpine:latest",
            "docker.io/library/alpine",
            "library/alpine:latest",
        ] {
            assert_eq!(normal_name(name), "alpine");
        }
        assert_eq!(normal_name("alpine:3"), "alpine:3");
    }
}
