//! One thread's connection to a repository of a registry.

use std::time::Duration;

use exec::CancelScope;
use reqwest::header::{ACCEPT, AUTHORIZATION, RANGE, WWW_AUTHENTICATE};
use reqwest::{StatusCode, Url};
use store::Digest;

use super::blob::BlobReader;
use super::token::{self, Challenge};
use super::{RegistryError, RegistryMessage, Token};
use crate::http::{self, ClientOptions, Http, Request, RequestError, Response};
use crate::manifest::MAX_JSON;
use crate::media_type;
use crate::reference::ImageRef;

/// The host of the registry `docker.io`.
const DOCKER_HUB: &str = "registry-1.docker.io";
/// Longest error answer that is read for its message, in bytes.
const MAX_ERROR_BODY: u64 = 16 << 10;
/// Longest answer of a token server, in bytes.
const MAX_TOKEN_BODY: u64 = 64 << 10;
/// Longest time for getting a token.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(crate) struct Connection {
    http: Http,
    image: ImageRef,
    token: Token,
}

type Failure = http::Failure<RegistryError>;

impl Connection {
    /// A new connection. Nothing is sent yet.
    pub(crate) fn open(
        image: &ImageRef,
        token: &Token,
        options: &ClientOptions,
        scope: &CancelScope,
    ) -> Result<Self, RegistryError> {
        Ok(Self {
            http: Http::open(options.clone(), scope).map_err(RegistryError::Setup)?,
            image: image.clone(),
            token: token.clone(),
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
            self.body(response, MAX_JSON, "manifest")
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
        let chunk = self.http.chunk(response)?;
        chunk.map_err(|error| self.broken(error))
    }

    /// Name of the registry, for messages.
    pub(super) fn registry(&self) -> String {
        self.image.registry().to_owned()
    }

    /// Sleeps before a blob is resumed.
    pub(super) fn pause(&self, time: Duration) -> Result<(), RegistryError> {
        Ok(self.http.pause(time)?)
    }

    fn retry<T>(&self, work: impl FnMut() -> Result<T, Failure>) -> Result<T, RegistryError> {
        let what = format!("registry {}", self.image.registry());
        self.http.retry(&what, work)
    }

    fn try_get(&self, path: &str, accept: &str, from: u64) -> Result<Response, Failure> {
        let response = self.send(path, accept, from)?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return self.judge(response, path);
        }
        let Some(challenge) = challenge(&response).filter(|_| self.is_own(&response)) else {
            return self.judge(response, path);
        };
        self.authenticate(&challenge)?;
        let response = self.send(path, accept, from)?;
        self.judge(response, path)
    }

    fn send(&self, path: &str, accept: &str, from: u64) -> Result<Response, Failure> {
        let url = Url::parse(&self.url(path));
        let url = url.map_err(|error| Failure::Final(self.unreachable(error)))?;
        let mut request = Request::get(url).header(ACCEPT, accept);
        if let Some(token) = self.token.get() {
            request = request.header(AUTHORIZATION, &format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header(RANGE, &format!("bytes={from}-"));
        }
        self.answer(request)
    }

    fn answer(&self, request: Request) -> Result<Response, Failure> {
        let answer = self.http.send(request);
        answer
            .map_err(|stopped| Failure::Final(stopped.into()))?
            .map_err(|error| failure(self.broken(error)))
    }

    /// Whether the registry itself sent this, and not another server that it redirects to.
    fn is_own(&self, response: &Response) -> bool {
        let own = Url::parse(&self.url(""));
        own.is_ok_and(|own| own.host() == response.url().host())
    }

    /// Gets a token from the server that the registry names.
    fn authenticate(&self, challenge: &Challenge) -> Result<(), Failure> {
        let url = challenge.url(self.image.repository());
        let response = self.answer(Request::get(url).timeout(TOKEN_TIMEOUT))?;
        let status = response.status();
        if status != StatusCode::OK {
            let reason = format!("its token server answered with status {status}");
            return Err(Failure::Transient(self.unreachable(reason)));
        }
        let body = self.body(response, MAX_TOKEN_BODY, "token")?;
        let token = token::parse_answer(&body).ok_or_else(|| {
            Failure::Transient(self.unreachable("its token server did not send a token"))
        })?;
        self.token.set(token);
        Ok(())
    }

    /// Sorts answers by status (distribution specification, "Error Codes").
    fn judge(&self, response: Response, path: &str) -> Result<Response, Failure> {
        let status = response.status();
        if status == StatusCode::OK || status == StatusCode::PARTIAL_CONTENT {
            return Ok(response);
        }
        let registry = self.registry();
        let what = format!("{}/{path}", self.image.repository());
        let message = self.message(response)?;
        Err(match status {
            StatusCode::NOT_FOUND => Failure::Final(RegistryError::NotFound {
                registry,
                what,
                message,
            }),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Failure::Final(RegistryError::Denied {
                    registry,
                    what,
                    message,
                })
            }
            other => {
                let status = other.as_u16();
                let error = RegistryError::Failing {
                    registry,
                    what,
                    status,
                    message,
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

    /// The message of an error answer. If it cannot be read, the status must do.
    fn message(&self, response: Response) -> Result<RegistryMessage, Failure> {
        match self.body(response, MAX_ERROR_BODY, "message") {
            Ok(body) => Ok(RegistryMessage::parse(&body)),
            Err(Failure::Final(error)) if matches!(error, RegistryError::Cancelled) => {
                Err(Failure::Final(error))
            }
            Err(Failure::Final(_) | Failure::Transient(_)) => Ok(RegistryMessage::default()),
        }
    }

    /// Reads a short answer to its end.
    fn body(&self, mut response: Response, limit: u64, what: &str) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(&mut response).map_err(failure)? {
            if body.len().saturating_add(chunk.len()) as u64 > limit {
                return Err(Failure::Final(RegistryError::Protocol {
                    registry: self.registry(),
                    reason: format!("it sent a {what} of more than {limit} bytes"),
                }));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// The request has no answer, or no whole one.
    fn broken(&self, error: RequestError) -> RegistryError {
        let registry = self.registry();
        match error {
            RequestError::Denied(source) => RegistryError::OutOfReach { registry, source },
            RequestError::TooSlow(source) => RegistryError::TooSlow { registry, source },
            RequestError::Redirect(_) | RequestError::Connection(_) => self.unreachable(error),
        }
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

/// What the answer asks for, if it is a bearer token.
fn challenge(response: &Response) -> Option<Challenge> {
    let headers = response.headers().get_all(WWW_AUTHENTICATE).iter();
    headers
        .filter_map(|header| header.to_str().ok())
        .find_map(Challenge::parse)
}

/// Everything but a cancel and a server that must not be reached may be transient.
fn failure(error: RegistryError) -> Failure {
    if matches!(
        error,
        RegistryError::Cancelled | RegistryError::OutOfReach { .. }
    ) {
        Failure::Final(error)
    } else {
        Failure::Transient(error)
    }
}
