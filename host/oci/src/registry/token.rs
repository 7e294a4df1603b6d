//! Anonymous tokens: most registries want one even for images that anybody may read (distribution
//! specification, "Token Authentication").

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use http_auth::ChallengeRef;
use http_auth::parser::ChallengeParser;
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
    /// Reads the value of a `WWW-Authenticate` header, which may have several challenges. `None` if
    /// none of them asks for a bearer token.
    pub(super) fn parse(header: &str) -> Option<Self> {
        let challenges = ChallengeParser::new(header).map_while(Result::ok);
        challenges
            .filter(|challenge| challenge.scheme.eq_ignore_ascii_case("bearer"))
            .find_map(|challenge| Self::of(&challenge))
    }

    fn of(challenge: &ChallengeRef<'_>) -> Option<Self> {
        let parameter = |wanted: &str| {
            let mut all = challenge.params.iter();
            all.find(|(name, _)| name.eq_ignore_ascii_case(wanted))
                .map(|(_, value)| value.to_unescaped())
        };
        let realm = Url::parse(&parameter("realm")?).ok()?;
        let service = parameter("service");
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
    fn the_first_bearer_challenge_of_several_is_taken() {
        let url = "https://a/t?scope=repository%3Auser%2Fapp%3Apull&service=s";
        for header in [
            r#"Basic realm="R", Bearer realm="https://a/t",service="s""#,
            r#"Negotiate, Bearer realm="https://a/t",service="s""#,
            r#"Bearer realm="https://a/t",service="s", Digest realm="R", service="z""#,
            r#"Bearer realm="https://a/t", service=s, Basic realm="R""#,
        ] {
            check(header, Some(url));
        }
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
