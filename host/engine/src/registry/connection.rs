//! One thread's connection to a repository of a registry.

use std::pin::pin;
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, RANGE};
use reqwest::{Response, StatusCode};
use store::Digest;
use tokio::runtime::Runtime;

use super::{
    BlobReader, CONNECT_TIMEOUT, PAUSES, READ_TIMEOUT, RegistryError, Said, Token, USER_AGENT,
    token,
};
use crate::halt::{Halt, TICK};
use crate::image::{ImageRef, MAX_JSON, media_type};

/// Where `docker.io` really is.
const DOCKER_HUB: &str = "registry-1.docker.io";
/// Longest error answer that is read for its message.
const MAX_ERROR_BODY: u64 = 16 << 10;
/// Longest time for getting a token.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(60);
/// Most redirections of one request.
const MAX_REDIRECTS: usize = 10;

/// See the module.
pub(crate) struct Connection {
    /// Some until dropped.
    runtime: Option<Runtime>,
    client: reqwest::Client,
    image: ImageRef,
    token: Token,
    halt: Halt,
}

/// How a try failed.
enum Failure {
    /// Another try may help.
    Transient(RegistryError),
    Final(RegistryError),
}

impl Connection {
    /// Gets ready; nothing is sent yet.
    pub(crate) fn open(
        image: &ImageRef,
        token: &Token,
        halt: &Halt,
    ) -> Result<Self, RegistryError> {
        // An error means that a provider is installed already.
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| RegistryError::Setup(error.into()))?;
        let mut builder = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .redirect(redirects());
        if image.is_local() {
            builder = builder.no_proxy();
        }
        Ok(Self {
            runtime: Some(runtime),
            client: builder
                .build()
                .map_err(|error| RegistryError::Setup(error.into()))?,
            image: image.clone(),
            token: token.clone(),
            halt: halt.clone(),
        })
    }

    /// Reads a manifest or index; `reference` is a tag or a digest.
    pub(crate) fn document(&self, reference: &str) -> Result<Vec<u8>, RegistryError> {
        let accept = [
            media_type::MANIFEST,
            media_type::INDEX,
            media_type::DOCKER_MANIFEST,
            media_type::DOCKER_INDEX,
        ]
        .join(", ");
        let path = format!("manifests/{reference}");
        self.retry(|| {
            let response = self.try_get(&path, &accept, 0)?;
            self.body(response, MAX_JSON)
        })
    }

    /// Opens a blob for reading from its beginning.
    pub(crate) fn blob(&self, digest: Digest, size: u64) -> BlobReader<'_> {
        BlobReader::new(self, digest, size)
    }

    /// Begins to read a blob at `from`.
    pub(super) fn get_blob(&self, digest: Digest, from: u64) -> Result<Response, RegistryError> {
        let path = format!("blobs/{digest}");
        self.retry(|| self.try_get(&path, "*/*", from))
    }

    /// The next bytes of an answer; `None` at its end.
    pub(super) fn chunk(&self, response: &mut Response) -> Result<Option<Vec<u8>>, RegistryError> {
        let chunk = self
            .wait(async { response.chunk().await })?
            .map_err(|error| self.unreachable(error))?;
        Ok(chunk.map(Vec::from))
    }

    /// Name of the registry, for messages.
    pub(super) fn registry(&self) -> String {
        self.image.registry().to_owned()
    }

    /// Sleeps before a blob is taken up again.
    pub(super) fn pause(&self, time: Duration) -> Result<(), RegistryError> {
        if self.halt.sleep(time) {
            return Err(RegistryError::Cancelled);
        }
        Ok(())
    }

    fn retry<T>(&self, mut work: impl FnMut() -> Result<T, Failure>) -> Result<T, RegistryError> {
        let mut last = RegistryError::Cancelled;
        for pause in PAUSES {
            self.pause(pause)?;
            match work() {
                Ok(done) => return Ok(done),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Transient(error)) => {
                    log::debug!("registry {}: {error}, trying again", self.image.registry());
                    last = error;
                }
            }
        }
        Err(last)
    }

    fn try_get(&self, path: &str, accept: &str, from: u64) -> Result<Response, Failure> {
        let response = self.send(path, accept, from)?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return self.judge(response, path);
        }
        if !self.authenticate()? {
            return self.judge(response, path);
        }
        let response = self.send(path, accept, from)?;
        self.judge(response, path)
    }

    fn send(&self, path: &str, accept: &str, from: u64) -> Result<Response, Failure> {
        let mut request = self.client.get(self.url(path)).header(ACCEPT, accept);
        if let Some(token) = self.token.get() {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        self.wait(async { request.send().await })
            .map_err(Failure::Final)?
            .map_err(|error| Failure::Transient(self.unreachable(error)))
    }

    /// Gets a token. Returns whether there is one now.
    fn authenticate(&self) -> Result<bool, Failure> {
        let asked = async {
            let answer = token::request(&self.image, self.host());
            tokio::time::timeout(TOKEN_TIMEOUT, answer).await
        };
        match self.wait(asked).map_err(Failure::Final)? {
            Ok(Ok(Some(token))) => {
                self.token.set(token);
                Ok(true)
            }
            Ok(Ok(None)) => Ok(false),
            Ok(Err(error)) => Err(Failure::Transient(self.unreachable(error))),
            Err(elapsed) => Err(Failure::Transient(self.unreachable(elapsed))),
        }
    }

    /// Sorts answers by status (distribution specification, "Error Codes").
    fn judge(&self, response: Response, path: &str) -> Result<Response, Failure> {
        let status = response.status();
        if status == StatusCode::OK || status == StatusCode::PARTIAL_CONTENT {
            return Ok(response);
        }
        let registry = self.registry();
        let what = format!("{}/{path}", self.image.repository());
        let said = self.said(response)?;
        Err(match status {
            StatusCode::NOT_FOUND => Failure::Final(RegistryError::NotFound {
                registry,
                what,
                said,
            }),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Failure::Final(RegistryError::Denied {
                    registry,
                    what,
                    said,
                })
            }
            other => {
                let status = other.as_u16();
                let error = RegistryError::Failing {
                    registry,
                    what,
                    status,
                    said,
                };
                let passing = other.is_server_error()
                    || matches!(
                        other,
                        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
                    );
                if passing {
                    Failure::Transient(error)
                } else {
                    Failure::Final(error)
                }
            }
        })
    }

    /// The message of an error answer. If it cannot be read, the status says enough.
    fn said(&self, response: Response) -> Result<Said, Failure> {
        match self.body(response, MAX_ERROR_BODY) {
            Ok(body) => Ok(Said::parse(&body)),
            Err(Failure::Final(error)) if matches!(error, RegistryError::Cancelled) => {
                Err(Failure::Final(error))
            }
            Err(Failure::Final(_) | Failure::Transient(_)) => Ok(Said::default()),
        }
    }

    /// Reads a short answer whole.
    fn body(&self, mut response: Response, limit: u64) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(&mut response).map_err(failure)? {
            if body.len().saturating_add(chunk.len()) as u64 > limit {
                return Err(Failure::Final(RegistryError::Protocol {
                    registry: self.registry(),
                    reason: format!("it sent a manifest of more than {limit} bytes"),
                }));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// Runs `future` to its end, looking at the stop flag every tick. It must be lazy (an `async`
    /// block), since what it makes belongs to the runtime.
    fn wait<F: Future>(&self, future: F) -> Result<F::Output, RegistryError> {
        self.runtime().block_on(async {
            let mut future = pin!(future);
            loop {
                // Nothing is lost when the tick wins: the future stays and is polled again.
                tokio::select! {
                    done = &mut future => return Ok(done),
                    () = tokio::time::sleep(TICK) => {}
                }
                if self.halt.is_stopped() {
                    return Err(RegistryError::Cancelled);
                }
            }
        })
    }

    #[expect(clippy::expect_used, reason = "only drop() takes the runtime")]
    fn runtime(&self) -> &Runtime {
        self.runtime
            .as_ref()
            .expect("the runtime lives as long as its connection")
    }

    fn unreachable(
        &self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> RegistryError {
        RegistryError::Unreachable {
            registry: self.registry(),
            source: source.into(),
        }
    }

    fn host(&self) -> &str {
        match self.image.registry() {
            "docker.io" => DOCKER_HUB,
            other => other,
        }
    }

    fn url(&self, path: &str) -> String {
        let scheme = if self.image.is_local() {
            "http"
        } else {
            "https"
        };
        format!(
            "{scheme}://{}/v2/{}/{path}",
            self.host(),
            self.image.repository()
        )
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // A name look-up that hangs has a thread of its own; do not wait for it.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// While an answer is read, everything but a cancel may pass.
fn failure(error: RegistryError) -> Failure {
    if matches!(error, RegistryError::Cancelled) {
        Failure::Final(error)
    } else {
        Failure::Transient(error)
    }
}

/// Blobs are often kept elsewhere. What began encrypted stays encrypted.
fn redirects() -> reqwest::redirect::Policy {
    reqwest::redirect::Policy::custom(|attempt| {
        let was_tls = attempt
            .previous()
            .first()
            .is_some_and(|url| url.scheme() == "https");
        if was_tls && attempt.url().scheme() != "https" {
            return attempt.error("redirected from https to http");
        }
        if attempt.previous().len() > MAX_REDIRECTS {
            return attempt.error("too many redirections");
        }
        attempt.follow()
    })
}
