//! One file, from wherever it can be had.

use std::io;
use std::time::Instant;

use exec::{Cancel, CancelScope, Stopped};
use oci::http::{self, ClientOptions, Http};
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, HeaderMap, HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    RANGE,
};
use reqwest::{Response, StatusCode};
use store::{Digest, Store};

use super::known::Known;
use super::partial::Partial;
use super::{DownloadError, Fetched, Limits, Origin, WebSource};
use crate::event::{Progress, ProgressFn};

/// Kind of the blobs.
const KIND: &str = "download";

type Failure = http::Failure<DownloadError>;
/// What to remember of a file, its length, and where it comes from.
type Done = (Known, u64, Origin);

/// What [`fetch`] works with.
pub struct Job<'a> {
    /// Where the file goes.
    pub store: &'a Store,
    /// How much is too much.
    pub limits: Limits,
    /// Is told how far it is.
    pub progress: &'a ProgressFn<'a>,
    /// Ends it.
    pub cancel: &'a Cancel,
}

impl std::fmt::Debug for Job<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// Takes a file out of the store, or downloads it into the store.
///
/// # Errors
/// See [`DownloadError`]. Nothing of the file is in the store then.
pub fn fetch(job: &Job<'_>, source: &WebSource) -> Result<Fetched, DownloadError> {
    let known = Known::load(job.store, &source.address);
    if let Some(wanted) = source.checksum
        && let Some(size) = job.size(wanted)?
    {
        let known = known.filter(|known| known.content() == wanted);
        let known = known.unwrap_or_else(|| Known::new(wanted, None, None));
        return Ok(fetched(&known, size, Some(wanted), Origin::Store));
    }
    let before = known.as_ref().map(Known::content);
    let held = job.held(source, known)?;
    let options = ClientOptions {
        local: source.address.is_local(),
        read_timeout: job.limits.idle,
    };
    let download = Download {
        job,
        source,
        held,
        http: Http::open(options, &CancelScope::new(job.cancel)).map_err(DownloadError::Setup)?,
        shown: source.address.to_string(),
        begun: Instant::now(),
    };
    let (known, size, origin) = download.run()?;
    if origin == Origin::Server {
        known.save(job.store, &source.address);
    }
    Ok(fetched(&known, size, before, origin))
}

fn fetched(known: &Known, size: u64, before: Option<Digest>, origin: Origin) -> Fetched {
    Fetched {
        digest: known.content(),
        size,
        mtime: known.mtime(),
        before,
        origin,
    }
}

impl Job<'_> {
    /// Length of a blob, which is leased, if the store has it.
    fn size(&self, digest: Digest) -> Result<Option<u64>, DownloadError> {
        let opened = self.store.open_blob(digest)?;
        Ok(opened.map(|(_, size)| size))
    }

    /// What the server may be asked about: its bytes are here. A digest that was asked for is not
    /// among them, so with one there is nothing to ask.
    fn held(
        &self,
        source: &WebSource,
        known: Option<Known>,
    ) -> Result<Option<(Known, u64)>, DownloadError> {
        let asks = known.filter(|known| known.can_ask() && source.checksum.is_none());
        let Some(known) = asks else { return Ok(None) };
        let size = self.size(known.content())?;
        Ok(size.map(|size| (known, size)))
    }
}

/// One file on its way.
struct Download<'a> {
    job: &'a Job<'a>,
    source: &'a WebSource,
    /// What is in the store of it.
    held: Option<(Known, u64)>,
    http: Http,
    /// The address as it may be shown.
    shown: String,
    begun: Instant,
}

impl Download<'_> {
    fn run(&self) -> Result<Done, DownloadError> {
        let mut begun = None;
        let done = self.http.retry(&self.shown, || self.attempt(&mut begun));
        if let Some(partial) = begun {
            partial.abandon();
        }
        done
    }

    /// Tries it once. What an earlier try has `begun` is gone on with, if the server agrees.
    fn attempt(&self, begun: &mut Option<Partial>) -> Result<Done, Failure> {
        let mut response = self.send(begun.as_ref())?;
        let status = response.status();
        let rest = begun.take().and_then(|mut old| {
            let goes_on = status == StatusCode::PARTIAL_CONTENT && old.goes_on_with(&response);
            if goes_on {
                return Some(old);
            }
            old.abandon();
            None
        });
        let mut partial = match (status, rest) {
            (_, Some(rest)) => rest,
            (StatusCode::OK | StatusCode::NON_AUTHORITATIVE_INFORMATION, None) => {
                self.begin(&response)?
            }
            (_, None) => return self.without_body(status),
        };
        match self.pour(&mut response, &mut partial) {
            Ok(()) => self.complete(partial),
            Err(failure) => {
                *begun = Some(partial);
                Err(failure)
            }
        }
    }

    /// An answer that brings nothing.
    fn without_body(&self, status: StatusCode) -> Result<Done, Failure> {
        match &self.held {
            Some((known, size)) if status == StatusCode::NOT_MODIFIED => {
                Ok((known.clone(), *size, Origin::Unchanged))
            }
            Some(_) | None => Err(self.refused(status)),
        }
    }

    fn send(&self, begun: Option<&Partial>) -> Result<Response, Failure> {
        let left = self.job.limits.whole.saturating_sub(self.begun.elapsed());
        if left.is_zero() {
            return Err(self.too_slow());
        }
        let mut request = self
            .http
            .get(self.source.address.url())
            .header(ACCEPT, "*/*")
            .header(ACCEPT_ENCODING, "identity")
            .timeout(left);
        if let Some((begun, tag)) = begun.and_then(|begun| Some((begun, begun.strong_tag()?))) {
            request = request
                .header(RANGE, format!("bytes={}-", begun.received))
                .header(IF_RANGE, tag);
        } else if let Some((known, _)) = &self.held {
            request = request.headers(conditions(known));
        }
        let sent = self.http.send(request).map_err(stopped)?;
        sent.map_err(|error| self.broken(error))
    }

    /// Begins to take a body into the store. Until it is whole and right nothing of it can be seen
    /// there.
    fn begin(&self, response: &Response) -> Result<Partial, Failure> {
        if response.content_length().unwrap_or_default() > self.job.limits.bytes {
            return Err(self.too_large());
        }
        let writer = self.job.store.blob_writer(KIND);
        let writer = writer.map_err(|error| Failure::Final(error.into()))?;
        Ok(Partial::new(writer, response))
    }

    /// Takes all that comes.
    fn pour(&self, response: &mut Response, partial: &mut Partial) -> Result<(), Failure> {
        while let Some(chunk) = self.chunk(response)? {
            let received = partial.received.saturating_add(chunk.len() as u64);
            if received > self.job.limits.bytes {
                return Err(self.too_large());
            }
            partial.push(&chunk).map_err(|error| self.full(error))?;
            (self.job.progress)(Progress {
                what: format!("downloading {}", self.shown),
                current: received,
                total: partial.total,
            });
        }
        Ok(())
    }

    /// Makes a body visible, if it is what was asked for.
    fn complete(&self, partial: Partial) -> Result<Done, Failure> {
        let actual = partial.digest();
        let wrong = self.source.checksum.filter(|wanted| *wanted != actual);
        if !partial.is_whole() {
            let (received, total) = (partial.received, partial.total);
            partial.abandon();
            return Err(self.cut(received, total));
        }
        if let Some(expected) = wrong {
            partial.abandon();
            let url = self.shown.clone();
            return Err(Failure::Final(DownloadError::Mismatch {
                url,
                expected,
                actual,
            }));
        }
        let finished = partial.finish();
        let (known, size) = finished.map_err(|error| Failure::Final(error.into()))?;
        Ok((known, size, Origin::Server))
    }

    fn chunk(&self, response: &mut Response) -> Result<Option<Vec<u8>>, Failure> {
        let chunk = self.http.chunk(response).map_err(stopped)?;
        chunk.map_err(|error| self.broken(error))
    }
}

// What failures mean.
impl Download<'_> {
    fn refused(&self, status: StatusCode) -> Failure {
        let (url, code) = (self.shown.clone(), status.as_u16());
        let passing = status.is_server_error()
            || matches!(
                status,
                // The last two are about the rest of a file; the next try asks for all of it.
                StatusCode::TOO_MANY_REQUESTS
                    | StatusCode::REQUEST_TIMEOUT
                    | StatusCode::RANGE_NOT_SATISFIABLE
                    | StatusCode::PARTIAL_CONTENT
            );
        if passing {
            return Failure::Transient(DownloadError::Failing { url, status: code });
        }
        Failure::Final(DownloadError::Refused { url, status: code })
    }

    /// The connection broke, or there was none.
    fn broken(&self, error: reqwest::Error) -> Failure {
        if self.begun.elapsed() >= self.job.limits.whole {
            return self.too_slow();
        }
        let url = self.shown.clone();
        // Its own text would show the address, and where that led to.
        let error = error.without_url();
        if error.is_redirect() {
            let reason = innermost(&error);
            return Failure::Final(DownloadError::Redirect { url, reason });
        }
        let source = Box::new(error);
        Failure::Transient(DownloadError::Unreachable { url, source })
    }

    fn cut(&self, received: u64, total: u64) -> Failure {
        let url = self.shown.clone();
        let source = format!("{received} bytes came instead of {total}").into();
        Failure::Transient(DownloadError::Unreachable { url, source })
    }

    fn too_large(&self) -> Failure {
        Failure::Final(DownloadError::TooLarge {
            url: self.shown.clone(),
            limit: self.job.limits.bytes,
        })
    }

    fn too_slow(&self) -> Failure {
        Failure::Final(DownloadError::TooSlow {
            url: self.shown.clone(),
            limit: self.job.limits.whole,
        })
    }

    fn full(&self, source: io::Error) -> Failure {
        let url = self.shown.clone();
        Failure::Final(DownloadError::Write { url, source })
    }
}

fn stopped(stopped: Stopped) -> Failure {
    Failure::Final(stopped.into())
}

/// Asks for the content only if it is another one. A tag tells more than a date, which is ignored
/// beside it (RFC 9110, section 13.1.3).
fn conditions(known: &Known) -> HeaderMap {
    let pairs = [
        (IF_NONE_MATCH, &known.tag),
        (IF_MODIFIED_SINCE, &known.date),
    ];
    let pairs = pairs.into_iter().filter_map(|(name, text)| {
        let value = HeaderValue::from_str(text.as_deref()?).ok()?;
        Some((name, value))
    });
    pairs.collect()
}

/// The text of the cause of all causes.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut at = error;
    while let Some(below) = at.source() {
        at = below;
    }
    at.to_string()
}
