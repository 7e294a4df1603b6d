//! Where a redirection leads. Registries often redirect to where their blobs are stored.

use reqwest::header::{AUTHORIZATION, COOKIE, HeaderMap, LOCATION, PROXY_AUTHORIZATION};
use reqwest::{Response, StatusCode, Url};

/// Most redirections of one request.
const MAX_REDIRECTS: usize = 10;

/// The redirections of one request so far.
#[derive(Debug, Default)]
pub(super) struct Redirection {
    count: usize,
    was_tls: bool,
}

impl Redirection {
    pub(super) fn has_begun(&self) -> bool {
        self.count > 0
    }

    /// Where the answer from `from` leads, if it is a redirection, or why it must not be followed.
    pub(super) fn next(
        &mut self,
        from: &Url,
        response: &Response,
    ) -> Result<Option<Url>, &'static str> {
        match target(from, response) {
            Some(next) => self.follow(from, &next).map(|()| Some(next)),
            None => Ok(None),
        }
    }

    fn follow(&mut self, from: &Url, next: &Url) -> Result<(), &'static str> {
        self.was_tls |= from.scheme() == "https";
        if self.was_tls && next.scheme() != "https" {
            return Err("redirected from https to http");
        }
        if !matches!(next.scheme(), "http" | "https") {
            return Err("redirected to an address that is neither http nor https");
        }
        self.count += 1;
        if self.count > MAX_REDIRECTS {
            return Err("too many redirections");
        }
        Ok(())
    }
}

/// The address in the answer, if its status is a redirection (RFC 9110, section 15.4). Without a
/// usable address it is an answer like others.
fn target(from: &Url, response: &Response) -> Option<Url> {
    let redirects = matches!(
        response.status(),
        StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT
    );
    let location = response.headers().get(LOCATION).filter(|_| redirects)?;
    from.join(location.to_str().ok()?).ok()
}

/// Makes a request one to `next`. Secrets are for the server that they were meant for (RFC 9110,
/// section 15.4), and none comes from the address of a redirection.
pub(super) fn lead(headers: &mut HeaderMap, url: &mut Url, next: Url) {
    let origin = |url: &Url| {
        (
            url.host_str().map(str::to_owned),
            url.port_or_known_default(),
        )
    };
    let same = origin(url) == origin(&next);
    let before = std::mem::replace(url, next);
    let (user, password) = match same {
        true => (before.username(), before.password()),
        false => ("", None),
    };
    // Neither fails for an address with a host.
    url.set_username(user).ok();
    url.set_password(password).ok();
    if !same {
        for secret in [AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION] {
            headers.remove(secret);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(hops: &[&str], want: Result<(), &'static str>) {
        let urls: Vec<Url> = hops.iter().map(|url| url.parse().unwrap()).collect();
        let mut redirection = Redirection::default();
        let mut followed = urls
            .windows(2)
            .map(|pair| redirection.follow(&pair[0], &pair[1]));
        let outcome = followed.find(Result::is_err).unwrap_or(Ok(()));
        assert_eq!(outcome, want, "{hops:?}");
    }

    #[test]
    fn no_redirection_leads_from_https_to_http() {
        let down = Err("redirected from https to http");
        check(&["https://a/", "http://a/"], down);
        check(&["http://a/", "https://b/", "http://c/"], down);
        check(&["https://a/", "https://b/"], Ok(()));
        check(&["http://a/", "https://b/"], Ok(()));
        check(&["http://a/", "http://b/"], Ok(()));
    }

    #[test]
    fn no_redirection_leads_out_of_the_web() {
        let refused = Err("redirected to an address that is neither http nor https");
        check(&["http://a/", "file:///etc/passwd"], refused);
        check(&["http://a/", "ftp://a/"], refused);
    }

    #[test]
    fn redirections_are_limited() {
        let many = vec!["http://a/"; MAX_REDIRECTS + 1];
        check(&many, Ok(()));
        let more = vec!["http://a/"; MAX_REDIRECTS + 2];
        check(&more, Err("too many redirections"));
    }

    #[test]
    fn secrets_go_only_to_the_server_that_they_are_for() {
        let led = |from: &str, to: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, "Bearer x".parse().unwrap());
            let mut url: Url = from.parse().unwrap();
            lead(&mut headers, &mut url, to.parse().unwrap());
            (headers.contains_key(AUTHORIZATION), url.to_string())
        };
        let with = |kept: bool, url: &str| (kept, url.to_owned());
        assert_eq!(
            led("http://u:p@a/1", "http://a/2"),
            with(true, "http://u:p@a/2")
        );
        assert_eq!(
            led("http://u:p@a/1", "http://b/2"),
            with(false, "http://b/2")
        );
        assert_eq!(
            led("http://a/1", "http://a:81/2"),
            with(false, "http://a:81/2")
        );
        assert_eq!(led("http://a/1", "https://a/2"), with(false, "https://a/2"));
        assert_eq!(
            led("http://a/1", "http://u:p@b/2"),
            with(false, "http://b/2")
        );
        assert_eq!(
            led("http://a/1", "http://u:p@a/2"),
            with(true, "http://a/2")
        );
    }
}
