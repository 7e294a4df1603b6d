//! The HTTP client for images and for files.
//!
//! This is the only module with an async runtime. Outside, everything blocks: an [`Http`] belongs to
//! one thread and runs its requests on a runtime of its own in that thread, so a slow disk slows a
//! download down and nothing is buffered.
//!
//! The law: no request waits longer than its time-outs, is repeated or redirected more than a few
//! times, or continues after a cancel. No server is reached that must not be, and none is waited for
//! that sends too little. A redirection never leads from https to http.
//!
//! | module | what it holds |
//! |---|---|
//! | `message` | [`Request`] and [`Response`] |
//! | `reach` | which servers may be reached, and how |
//! | `redirect` | where a redirection leads |
//! | `pace` | [`MinRate`], the least that a server must send |

mod message;
mod pace;
mod reach;
mod redirect;

use std::cell::OnceCell;
use std::error::Error;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use exec::{CancelScope, Stopped, TICK};
use hyper_util::client::proxy::matcher::Matcher;
use net_policy::Reach;
use reqwest::Client;
use tokio::runtime::Runtime;

pub use message::{Request, Response};
pub use pace::{MinRate, TooSlow};
pub use reach::HostDenied;

use pace::Pace;
use reach::{Lookup, Resolver, Route, Router, system_lookup};
use redirect::Redirection;

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

/// Any error of the libraries below.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// How to reach servers.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Which servers may be reached.
    pub reach: Reach,
    /// Longest wait for the next bytes of an answer.
    pub read_timeout: Duration,
    /// The least that a server must send.
    pub min_rate: MinRate,
}

impl ClientOptions {
    /// The usual limits.
    #[must_use]
    pub fn new(reach: Reach) -> Self {
        Self {
            reach,
            read_timeout: READ_TIMEOUT,
            min_rate: MinRate::USUAL,
        }
    }
}

/// Why a request has no answer, or no whole one. Addresses are not in the text, since they may
/// contain secrets.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The server must not be reached.
    #[error(transparent)]
    Denied(#[from] HostDenied),
    /// The server redirects to where a client must not follow.
    #[error("{0}")]
    Redirect(&'static str),
    /// The server sends too little.
    #[error(transparent)]
    TooSlow(#[from] TooSlow),
    /// The connection failed.
    #[error(transparent)]
    Connection(reqwest::Error),
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
    router: Router,
    options: ClientOptions,
    lookup: Lookup,
    clients: Clients,
    scope: CancelScope,
}

/// The clients for the routes, each made when it is first needed. They share no connection: one that
/// may be anywhere is never used for a server that must be checked.
#[derive(Default)]
struct Clients {
    allowed: OnceCell<Client>,
    checked: OnceCell<Client>,
    proxied: OnceCell<Client>,
}

impl Http {
    /// A new client. Nothing is sent yet.
    ///
    /// # Errors
    /// If the client cannot be set up.
    pub fn open(options: ClientOptions, scope: &CancelScope) -> Result<Self, BoxError> {
        Self::open_with(options, scope, system_lookup())
    }

    fn open_with(
        options: ClientOptions,
        scope: &CancelScope,
        lookup: Lookup,
    ) -> Result<Self, BoxError> {
        // An error means that a provider is installed already.
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(Self {
            runtime: Some(runtime),
            router: Router::new(options.reach.clone(), Matcher::from_env()),
            options,
            lookup,
            clients: Clients::default(),
            scope: scope.clone(),
        })
    }

    /// Sends a request and waits for the head of the answer. Redirections are followed.
    ///
    /// # Errors
    /// When stopped.
    pub fn send(&self, request: Request) -> Result<Result<Response, RequestError>, Stopped> {
        let mut redirection = Redirection::default();
        let mut request = request;
        loop {
            let response = match self.hop(&request)? {
                Ok(response) => response,
                Err(RequestError::Denied(denied)) => {
                    let redirected = redirection.has_begun();
                    return Ok(Err(HostDenied {
                        redirected,
                        ..denied
                    }
                    .into()));
                }
                Err(error) => return Ok(Err(error)),
            };
            match redirection.next(&request.url, &response) {
                Ok(None) => {
                    let pace = Pace::new(self.options.min_rate);
                    return Ok(Ok(Response {
                        inner: response,
                        pace,
                    }));
                }
                Ok(Some(next)) => redirect::lead(&mut request.headers, &mut request.url, next),
                Err(reason) => return Ok(Err(RequestError::Redirect(reason))),
            }
        }
    }

    /// Sends a request to one server.
    fn hop(&self, request: &Request) -> Result<Result<reqwest::Response, RequestError>, Stopped> {
        let route = match self.router.route(&request.url) {
            Ok(route) => route,
            Err(denied) => return Ok(Err(denied.into())),
        };
        let client = match self.client(route) {
            Ok(client) => client,
            Err(error) => return Ok(Err(RequestError::Connection(error))),
        };
        let mut sent = client
            .get(request.url.clone())
            .headers(request.headers.clone());
        if let Some(deadline) = request.deadline {
            sent = sent.timeout(deadline.saturating_duration_since(Instant::now()));
        }
        let answer = self.wait(async { sent.send().await }, || Ok(()))?;
        Ok(answer.and_then(|answer| {
            answer.map_err(|error| match reach::denial(&request.url, &error) {
                Some(denied) => denied.into(),
                None => RequestError::Connection(error.without_url()),
            })
        }))
    }

    /// The next bytes of an answer; `None` at its end.
    ///
    /// # Errors
    /// When stopped.
    pub fn chunk(
        &self,
        response: &mut Response,
    ) -> Result<Result<Option<Vec<u8>>, RequestError>, Stopped> {
        // A server whose bytes never let it wait for a tick is no reason to go on.
        self.scope.check()?;
        let Response { inner, pace } = response;
        let mut since = Instant::now();
        let mut lap = || {
            let now = Instant::now();
            now.duration_since(std::mem::replace(&mut since, now))
        };
        let chunk = self.wait(async { inner.chunk().await }, || pace.waited(lap()))?;
        let chunk = match chunk {
            Ok(Ok(Some(chunk))) => Vec::from(chunk),
            Ok(Ok(None)) => return Ok(Ok(None)),
            Ok(Err(error)) => return Ok(Err(RequestError::Connection(error.without_url()))),
            Err(slow) => return Ok(Err(slow)),
        };
        pace.received(chunk.len());
        Ok(match pace.waited(lap()) {
            Ok(()) => Ok(Some(chunk)),
            Err(slow) => Err(slow.into()),
        })
    }

    /// The client for a route.
    fn client(&self, route: Route) -> Result<&Client, reqwest::Error> {
        let (cell, policy) = match route {
            Route::Allowed => (&self.clients.allowed, None),
            // The only names that are looked up are those of proxies.
            Route::Proxied => (&self.clients.proxied, None),
            Route::Checked => {
                let policy = self.options.reach.policy.addresses.clone();
                (&self.clients.checked, Some(policy))
            }
        };
        if let Some(client) = cell.get() {
            return Ok(client);
        }
        let lookup = Arc::clone(&self.lookup);
        let mut builder = Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(self.options.read_timeout)
            .dns_resolver(Arc::new(Resolver { lookup, policy }))
            // They are followed here, where each is judged.
            .redirect(reqwest::redirect::Policy::none());
        if route != Route::Proxied {
            builder = builder.no_proxy();
        }
        let client = builder.build()?;
        Ok(cell.get_or_init(|| client))
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

    /// Runs `future` to its end. Once per tick it looks at the scope, and asks `check` whether to go
    /// on. The future must be lazy (an `async` block), since its resources belong to the runtime.
    fn wait<F: Future>(
        &self,
        future: F,
        mut check: impl FnMut() -> Result<(), TooSlow>,
    ) -> Result<Result<F::Output, RequestError>, Stopped> {
        self.runtime().block_on(async {
            let mut future = pin!(future);
            loop {
                // A tick loses nothing: the future stays and is polled again.
                tokio::select! {
                    done = &mut future => return Ok(Ok(done)),
                    () = tokio::time::sleep(TICK) => {}
                }
                self.scope.check()?;
                if let Err(slow) = check() {
                    return Ok(Err(slow.into()));
                }
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

/// Whether a host is this machine: `localhost` or a loopback address, without brackets.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests;
