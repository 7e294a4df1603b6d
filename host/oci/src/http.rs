//! The HTTP client for images and for files.
//!
//! This is the only module with an async runtime. Outside, everything blocks: an [`Http`] belongs to
//! one thread and runs its requests on a runtime of its own in that thread, so a slow disk slows a
//! download down and nothing is buffered.
//!
//! The law: no request waits longer than its time-outs, is repeated or redirected more than a few
//! times, or continues after a cancel. A redirection never leads from https to http.

use std::error::Error;
use std::fmt;
use std::pin::pin;
use std::time::Duration;

use exec::{CancelScope, Stopped, TICK};
use reqwest::{IntoUrl, RequestBuilder, Response, Url};
use tokio::runtime::Runtime;

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest wait for the next bytes of an answer, unless the caller chooses another one.
pub const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Waits before each attempt at a request. The user decides about failures that last longer.
pub(crate) const RETRY_DELAYS: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(3),
];
/// The name that servers get.
const USER_AGENT: &str = concat!("cofferdam/", env!("CARGO_PKG_VERSION"));
/// Most redirections of one request.
const MAX_REDIRECTS: usize = 10;

/// Any error of the libraries below.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// How to reach a server.
#[derive(Debug, Clone, Copy)]
pub struct ClientOptions {
    /// The server is on this machine: use no proxy.
    pub local: bool,
    /// Longest wait for the next bytes of an answer.
    pub read_timeout: Duration,
}

/// How an attempt failed.
#[derive(Debug)]
pub enum Failure<E> {
    /// Another attempt may help.
    Transient(E),
    /// Another attempt would fail, too.
    Final(E),
}

/// A client for one thread. Its waits end with a [`CancelScope`].
pub struct Http {
    /// Some until dropped.
    runtime: Option<Runtime>,
    client: reqwest::Client,
    scope: CancelScope,
}

impl Http {
    /// A new client. Nothing is sent yet.
    ///
    /// # Errors
    /// If the client cannot be set up.
    pub fn open(options: ClientOptions, scope: &CancelScope) -> Result<Self, BoxError> {
        // An error means that a provider is installed already.
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let mut builder = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(options.read_timeout)
            // An address may contain what its owner would not tell the next server.
            .referer(false)
            .redirect(redirects());
        if options.local {
            builder = builder.no_proxy();
        }
        Ok(Self {
            runtime: Some(runtime),
            client: builder.build()?,
            scope: scope.clone(),
        })
    }

    /// A new request; see [`Self::send`].
    pub fn get(&self, url: impl IntoUrl) -> RequestBuilder {
        self.client.get(url)
    }

    /// Sends a request and waits for the head of the answer.
    ///
    /// # Errors
    /// When stopped.
    pub fn send(
        &self,
        request: RequestBuilder,
    ) -> Result<Result<Response, reqwest::Error>, Stopped> {
        self.wait(async { request.send().await })
    }

    /// The next bytes of an answer; `None` at its end.
    ///
    /// # Errors
    /// When stopped.
    pub fn chunk(
        &self,
        response: &mut Response,
    ) -> Result<Result<Option<Vec<u8>>, reqwest::Error>, Stopped> {
        let chunk = self.wait(async { response.chunk().await })?;
        Ok(chunk.map(|chunk| chunk.map(Vec::from)))
    }

    /// Sleeps for `time`.
    ///
    /// # Errors
    /// When stopped meanwhile.
    pub fn pause(&self, time: Duration) -> Result<(), Stopped> {
        self.scope.sleep(time)
    }

    /// Repeats `work` until it succeeds, fails for good, or has failed often enough. `what` is for the
    /// log.
    ///
    /// # Errors
    /// The last one of `work`, or when stopped.
    pub fn retry<T, E: Error + From<Stopped>>(
        &self,
        what: &str,
        mut work: impl FnMut() -> Result<T, Failure<E>>,
    ) -> Result<T, E> {
        let mut last = E::from(Stopped);
        for delay in RETRY_DELAYS {
            self.pause(delay)?;
            match work() {
                Ok(done) => return Ok(done),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Transient(error)) => {
                    log::debug!("{what}: {error}; trying again");
                    last = error;
                }
            }
        }
        Err(last)
    }

    /// Runs `future` to its end, and looks at the scope once per tick. The future must be lazy (an
    /// `async` block), since its resources belong to the runtime.
    fn wait<F: Future>(&self, future: F) -> Result<F::Output, Stopped> {
        self.runtime().block_on(async {
            let mut future = pin!(future);
            loop {
                // A tick loses nothing: the future stays and is polled again.
                tokio::select! {
                    done = &mut future => return Ok(done),
                    () = tokio::time::sleep(TICK) => {}
                }
                self.scope.check()?;
            }
        })
    }

    #[expect(clippy::expect_used, reason = "only drop() takes the runtime")]
    fn runtime(&self) -> &Runtime {
        self.runtime
            .as_ref()
            .expect("the runtime lives as long as its client")
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http")
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        // A name look-up that hangs has a thread of its own, which is not waited for.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Registries often redirect to where their blobs are stored.
fn redirects() -> reqwest::redirect::Policy {
    reqwest::redirect::Policy::custom(|attempt| match refused(attempt.previous(), attempt.url()) {
        Some(reason) => attempt.error(reason),
        None => attempt.follow(),
    })
}

/// Why a redirection is not followed.
fn refused(previous: &[Url], next: &Url) -> Option<&'static str> {
    let was_tls = previous.iter().any(|url| url.scheme() == "https");
    if was_tls && next.scheme() != "https" {
        return Some("redirected from https to http");
    }
    (previous.len() > MAX_REDIRECTS).then_some("too many redirections")
}

/// Whether a host is this machine: `localhost` or a loopback address, without brackets.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(previous: &[&str], next: &str, want: Option<&str>) {
        let previous: Vec<Url> = previous.iter().map(|url| url.parse().unwrap()).collect();
        assert_eq!(refused(&previous, &next.parse().unwrap()), want);
    }

    #[test]
    fn no_redirection_leads_from_https_to_http() {
        let down = Some("redirected from https to http");
        check(&["https://a/"], "http://a/", down);
        check(&["http://a/", "https://b/"], "http://c/", down);
        check(&["https://a/"], "https://b/", None);
        check(&["http://a/"], "https://b/", None);
        check(&["http://a/"], "http://b/", None);
    }

    #[test]
    fn redirections_are_limited() {
        let many = vec!["http://a/"; MAX_REDIRECTS];
        check(&many, "http://a/", None);
        let more = vec!["http://a/"; MAX_REDIRECTS + 1];
        check(&more, "http://a/", Some("too many redirections"));
    }
}
