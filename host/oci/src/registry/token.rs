//! Anonymous tokens: most registries want one even for images that anybody may read (distribution
//! specification, "Token Authentication").

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::Url;
use serde::Deserialize;

/// The bearer token of one repository, shared by the connections to it.
#[derive(Clone, Default)]
pub(crate) struct Token(Arc<Mutex<Option<String>>>);

impl Token {
    /// The token, if there is one yet.
    pub(super) fn get(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn set(&self, token: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
    }
}

/// Without the token, which is a secret.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// Where a registry sends clients for a token: its answer to a request without one (RFC 6750,
/// section 3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    realm: Url,
    service: Option<String>,
}

impl Challenge {
    /// Reads the value of a `WWW-Authenticate` header. `None` if it does not ask for a bearer token.
    pub(super) fn parse(header: &str) -> Option<Self> {
        let (scheme, mut rest) = header.trim().split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service) = (None, None);
        while let Some((name, value, behind)) = parameter(rest) {
            match name.to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value),
                "service" => service = Some(value),
                _ => {}
            }
            rest = behind;
        }
        let realm = Url::parse(&realm?).ok()?;
        matches!(realm.scheme(), "http" | "https").then_some(Self { realm, service })
    }

    /// The address that gives a token for reading `repository`.
    pub(super) fn url(&self, repository: &str) -> Url {
        let mut url = self.realm.clone();
        let scope = format!("repository:{repository}:pull");
        url.query_pairs_mut().append_pair("scope", &scope);
        if let Some(service) = &self.service {
            url.query_pairs_mut().append_pair("service", service);
        }
        url
    }
}

/// Splits off the first of `name=value, name="value"` (RFC 9110, section 11.2).
fn parameter(text: &str) -> Option<(&str, String, &str)> {
    let text = text.trim_start_matches([' ', '\t', ',']);
    let (name, rest) = text.split_once('=')?;
    let Some(quoted) = rest.trim_start().strip_prefix('"') else {
        let end = rest.find(',').unwrap_or(rest.len());
        let (value, rest) = rest.split_at(end);
        return Some((name.trim(), value.trim().to_owned(), rest));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => {
                let rest = quoted.get(at + 1..).unwrap_or_default();
                return Some((name.trim(), value, rest));
            }
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    None
}

/// Reads the answer of a token server.
pub(super) fn parse_answer(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let answer: Answer = serde_json::from_slice(body).ok()?;
    answer.token.or(answer.access_token)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(header: &str, expected: Option<&str>) {
        let challenge = Challenge::parse(header);
        let url = challenge.map(|challenge| challenge.url("user/app").to_string());
        assert_eq!(url.as_deref(), expected, "{header}");
    }

    #[test]
    fn a_bearer_challenge_says_where_the_token_is() {
        let scope = "scope=repository%3Auser%2Fapp%3Apull";
        check(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="x""#,
            Some(&format!(
                "https://auth.docker.io/token?{scope}&service=registry.docker.io"
            )),
        );
        check(
            r#"bearer Service=s , realm="https://a/t?x=1""#,
            Some(&format!("https://a/t?x=1&{scope}&service=s")),
        );
        check(
            r#"Bearer realm="https://a/\t", error="say \"no\"""#,
            Some(&format!("https://a/t?{scope}")),
        );
    }

    #[test]
    fn other_challenges_give_none() {
        for header in [
            "",
            "Bearer",
            "Basic realm=\"https://a/\"",
            "Bearer service=\"s\"",
            "Bearer realm=\"no address\"",
            "Bearer realm=\"file:///etc/passwd\"",
            "Bearer realm=\"https://a/",
        ] {
            check(header, None);
        }
    }

    #[test]
    fn a_token_has_one_of_two_names() {
        let token = |body: &str| parse_answer(body.as_bytes());
        assert_eq!(token(r#"{"token":"a","expires_in":300}"#), Some("a".into()));
        assert_eq!(token(r#"{"access_token":"b"}"#), Some("b".into()));
        assert_eq!(
            token(r#"{"token":"a","access_token":"b"}"#),
            Some("a".into())
        );
        assert_eq!(token("{}"), None);
        assert_eq!(token("<html>"), None);
    }

    proptest! {
        #[test]
        fn no_header_panics(header in "(Bearer )?[a-z=\", \\\\é]{0,60}") {
            drop(Challenge::parse(&header));
        }
    }
}
