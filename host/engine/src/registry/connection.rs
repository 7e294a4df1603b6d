//! One thread's connection to a repository of a registry.

use std::time::Duration;

use exec::CancelScope;
use reqwest::header::{ACCEPT, AUTHORIZATION, RANGE};
use reqwest::{Response, StatusCode};
use store::Digest;

use super::{BlobReader, RegistryError, Said, Token, token};
use crate::http::{self, Http, READ_TIMEOUT, Reach};
use crate::image::{ImageRef, MAX_JSON, media_type};

/// Where `docker.io` really is.
const DOCKER_HUB: &str = "registry-1.docker.io";
/// Longest error answer that is read for its message.
const MAX_ERROR_BODY: u64 = 16 << 10;
/// Longest time for getting a token.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(60);

/// See the module.
pub(crate) struct Connection {
    http: Http,
    image: ImageRef,
    token: Token,
}

type Failure = http::Failure<RegistryError>;

impl Connection {
    /// Gets ready; nothing is sent yet.
    pub(crate) fn open(
        image: &ImageRef,
        token: &Token,
        scope: &CancelScope,
    ) -> Result<Self, RegistryError> {
        let reach = Reach {
            local: image.is_local(),
            idle: READ_TIMEOUT,
        };
        Ok(Self {
            http: Http::open(reach, scope).map_err(RegistryError::Setup)?,
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
        let chunk = self.http.chunk(response)?;
        chunk.map_err(|error| self.unreachable(error))
    }

    /// Name of the registry, for messages.
    pub(super) fn registry(&self) -> String {
        self.image.registry().to_owned()
    }

    /// Sleeps before a blob is taken up again.
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
        if !self.authenticate()? {
            return self.judge(response, path);
        }
        let response = self.send(path, accept, from)?;
        self.judge(response, path)
    }

    fn send(&self, path: &str, accept: &str, from: u64) -> Result<Response, Failure> {
        let mut request = self.http.get(self.url(path)).header(ACCEPT, accept);
        if let Some(token) = self.token.get() {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        self.http
            .send(request)
            .map_err(|stopped| Failure::Final(stopped.into()))?
            .map_err(|error| Failure::Transient(self.unreachable(error)))
    }

    /// Gets a token. Returns whether there is one now.
    fn authenticate(&self) -> Result<bool, Failure> {
        let asked = async {
            let answer = token::request(&self.image, self.host());
            tokio::time::timeout(TOKEN_TIMEOUT, answer).await
        };
        let asked = self.http.wait(asked);
        match asked.map_err(|stopped| Failure::Final(stopped.into()))? {
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

/// While an answer is read, everything but a cancel may pass.
fn failure(error: RegistryError) -> Failure {
    if matches!(error, RegistryError::Cancelled) {
        Failure::Final(error)
    } else {
        Failure::Transient(error)
    }
}
