//! HTTP as a client, for images and for files.
//!
//! This is the only module of the engine that knows an async runtime. Outside, everything blocks:
//! an [`Http`] belongs to one thread and runs its requests on a runtime of its own in that thread,
//! so that a slow disk slows a download down and nothing is buffered.
//!
//! The law: no request waits longer than its time-outs, is repeated more than a few times, follows
//! more than a few redirections, or goes on after a cancel; what began encrypted stays encrypted.

use std::error::Error;
use std::pin::pin;
use std::time::Duration;

use exec::{CancelScope, Stopped, TICK};
use reqwest::{IntoUrl, RequestBuilder, Response, Url};
use tokio::runtime::Runtime;

/// Longest wait for a connection.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest wait for the next bytes of an answer.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Waits before each try of a request. Trouble that lasts longer is for the user to judge.
pub(crate) const PAUSES: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(3),
];
/// How servers see us.
pub(crate) const USER_AGENT: &str = concat!("cofferdam/", env!("CARGO_PKG_VERSION"));
/// Most redirections of one request.
const MAX_REDIRECTS: usize = 10;

/// Any error of what lies below.
pub(crate) type Cause = Box<dyn Error + Send + Sync>;

/// How to reach a server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reach {
    /// It is on this machine, so no proxy stands between.
    pub(crate) local: bool,
    /// Longest wait for the next bytes of an answer.
    pub(crate) idle: Duration,
}

/// How a try failed.
#[derive(Debug)]
pub(crate) enum Failure<E> {
    /// Another try may help.
    Transient(E),
    Final(E),
}

/// See the module.
pub(crate) struct Http {
    /// Some until dropped.
    runtime: Option<Runtime>,
    client: reqwest::Client,
    scope: CancelScope,
}

impl Http {
    /// Gets ready; nothing is sent yet.
    pub(crate) fn open(reach: Reach, scope: &CancelScope) -> Result<Self, Cause> {
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
            .read_timeout(reach.idle)
            // An address may hold what its owner would not tell the next server.
            .referer(false)
            .redirect(redirects());
        if reach.local {
            builder = builder.no_proxy();
        }
        Ok(Self {
            runtime: Some(runtime),
            client: builder.build()?,
            scope: scope.clone(),
        })
    }

    /// Begins to put a request together.
    pub(crate) fn get(&self, url: impl IntoUrl) -> RequestBuilder {
        self.client.get(url)
    }

    /// Sends a request and waits for the head of the answer.
    pub(crate) fn send(
        &self,
        request: RequestBuilder,
    ) -> Result<Result<Response, reqwest::Error>, Stopped> {
        self.wait(async { request.send().await })
    }

    /// The next bytes of an answer; `None` at its end.
    pub(crate) fn chunk(
        &self,
        response: &mut Response,
    ) -> Result<Result<Option<Vec<u8>>, reqwest::Error>, Stopped> {
        let chunk = self.wait(async { response.chunk().await })?;
        Ok(chunk.map(|chunk| chunk.map(Vec::from)))
    }

    /// Sleeps.
    pub(crate) fn pause(&self, time: Duration) -> Result<(), Stopped> {
        self.scope.sleep(time)
    }

    /// Does `work` until it works, fails for good, or was tried often enough. `what` is for the log.
    pub(crate) fn retry<T, E: Error + From<Stopped>>(
        &self,
        what: &str,
        mut work: impl FnMut() -> Result<T, Failure<E>>,
    ) -> Result<T, E> {
        let mut last = E::from(Stopped);
        for pause in PAUSES {
            self.pause(pause)?;
            match work() {
                Ok(done) => return Ok(done),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Transient(error)) => {
                    log::debug!("{what}: {error}, trying again");
                    last = error;
                }
            }
        }
        Err(last)
    }

    /// Runs `future` to its end, looking at the stop flag every tick. It must be lazy (an `async`
    /// block), since what it makes belongs to the runtime.
    pub(crate) fn wait<F: Future>(&self, future: F) -> Result<F::Output, Stopped> {
        self.runtime().block_on(async {
            let mut future = pin!(future);
            loop {
                // Nothing is lost when the tick wins: the future stays and is polled again.
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

impl Drop for Http {
    fn drop(&mut self) {
        // A name look-up that hangs has a thread of its own; do not wait for it.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What is asked for is often kept elsewhere.
fn redirects() -> reqwest::redirect::Policy {
    reqwest::redirect::Policy::custom(|attempt| match refused(attempt.previous(), attempt.url()) {
        Some(reason) => attempt.error(reason),
        None => attempt.follow(),
    })
}

/// Why a redirection is not followed. What once was encrypted stays encrypted.
fn refused(previous: &[Url], next: &Url) -> Option<&'static str> {
    let was_tls = previous.iter().any(|url| url.scheme() == "https");
    if was_tls && next.scheme() != "https" {
        return Some("redirected from https to http");
    }
    (previous.len() > MAX_REDIRECTS).then_some("too many redirections")
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
    fn what_once_was_encrypted_stays_encrypted() {
        let down = Some("redirected from https to http");
        check(&["https://a/"], "http://a/", down);
        check(&["http://a/", "https://b/"], "http://c/", down);
        check(&["https://a/"], "https://b/", None);
        check(&["http://a/"], "https://b/", None);
        check(&["http://a/"], "http://b/", None);
    }

    #[test]
    fn redirections_are_counted() {
        let many = vec!["http://a/"; MAX_REDIRECTS];
        check(&many, "http://a/", None);
        let more = vec!["http://a/"; MAX_REDIRECTS + 1];
        check(&more, "http://a/", Some("too many redirections"));
    }
}
