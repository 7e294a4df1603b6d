//! One file, from the store or from its server.

use std::io;
use std::time::Instant;

use exec::{Cancel, CancelScope, Stopped};
use net_policy::Reach;
use oci::http::{self, ClientOptions, Http, Request, RequestError, Response};
use reqwest::StatusCode;
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, HeaderMap, HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    RANGE,
};
use store::{Digest, Store};

use super::entry::Entry;
use super::partial::Partial;
use super::{DownloadError, Fetched, Limits, Origin, WebSource};
use crate::event::{Progress, ProgressFn};

/// Kind of the blobs in the store.
const KIND: &str = "download";

type Failure = http::Failure<DownloadError>;
/// What to remember of a file, its length, and its origin.
type Done = (Entry, u64, Origin);

/// What [`fetch`] works with.
pub struct Job<'a> {
    /// The store that gets the file.
    pub store: &'a Store,
    /// The bounds.
    pub limits: Limits,
    /// Which servers may be reached; `None` if none may be asked.
    pub reach: Option<&'a Reach>,
    /// Receives progress.
    pub progress: &'a ProgressFn<'a>,
    /// Cancels the download.
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
    let entry = Entry::load(job.store, &source.address);
    if let Some(wanted) = source.checksum
        && let Some(size) = job.size(wanted)?
    {
        let entry = entry.filter(|entry| entry.content() == wanted);
        let entry = entry.unwrap_or_else(|| Entry::new(wanted, None, None));
        return Ok(fetched(&entry, size, Some(wanted), Origin::Store));
    }
    let shown = source.address.to_string();
    let Some(reach) = job.reach else {
        return Err(DownloadError::Offline { url: shown });
    };
    let before = entry.as_ref().map(Entry::content);
    let cached = job.cached(source, entry)?;
    let options = ClientOptions {
        reach: reach.clone(),
        read_timeout: job.limits.idle,
        min_rate: job.limits.rate,
    };
    let download = Download {
        job,
        source,
        cached,
        http: Http::open(options, &CancelScope::new(job.cancel)).map_err(DownloadError::Setup)?,
        shown,
        begun: Instant::now(),
    };
    let (entry, size, origin) = download.run()?;
    if origin == Origin::Server {
        entry.save(job.store, &source.address);
    }
    Ok(fetched(&entry, size, before, origin))
}

fn fetched(entry: &Entry, size: u64, before: Option<Digest>, origin: Origin) -> Fetched {
    Fetched {
        digest: entry.content(),
        size,
        mtime: entry.mtime(),
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

    /// An earlier download that the server may be asked about: its bytes are in the store. Not with a
    /// checksum: those bytes have another one.
    fn cached(
        &self,
        source: &WebSource,
        entry: Option<Entry>,
    ) -> Result<Option<(Entry, u64)>, DownloadError> {
        let asks = entry.filter(|entry| entry.can_ask() && source.checksum.is_none());
        let Some(entry) = asks else { return Ok(None) };
        let size = self.size(entry.content())?;
        Ok(size.map(|size| (entry, size)))
    }
}

/// A download in progress.
struct Download<'a> {
    job: &'a Job<'a>,
    source: &'a WebSource,
    /// An earlier download of it, and its length.
    cached: Option<(Entry, u64)>,
    http: Http,
    /// The address without secrets.
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

    /// One attempt. It resumes what an earlier one has `begun`, if the server agrees.
    fn attempt(&self, begun: &mut Option<Partial>) -> Result<Done, Failure> {
        let mut response = self.send(begun.as_ref())?;
        let status = response.status();
        let rest = begun.take().and_then(|mut old| {
            let continues = status == StatusCode::PARTIAL_CONTENT && old.continues(&response);
            if continues {
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
        match self.receive(&mut response, &mut partial) {
            Ok(()) => self.complete(partial),
            Err(failure) => {
                *begun = Some(partial);
                Err(failure)
            }
        }
    }

    /// An answer without content.
    fn without_body(&self, status: StatusCode) -> Result<Done, Failure> {
        match &self.cached {
            Some((entry, size)) if status == StatusCode::NOT_MODIFIED => {
                Ok((entry.clone(), *size, Origin::Unchanged))
            }
            Some(_) | None => Err(self.refused(status)),
        }
    }

    fn send(&self, begun: Option<&Partial>) -> Result<Response, Failure> {
        let left = self.job.limits.whole.saturating_sub(self.begun.elapsed());
        if left.is_zero() {
            return Err(self.too_slow());
        }
        let mut request = Request::get(self.source.address.url())
            .header(ACCEPT, "*/*")
            .header(ACCEPT_ENCODING, "identity")
            .timeout(left);
        if let Some((begun, tag)) = begun.and_then(|begun| Some((begun, begun.strong_tag()?))) {
            request = request
                .header(RANGE, &format!("bytes={}-", begun.received))
                .header(IF_RANGE, tag);
        } else if let Some((entry, _)) = &self.cached {
            request = request.headers(conditions(entry));
        }
        let sent = self.http.send(request).map_err(stopped)?;
        sent.map_err(|error| self.broken(error))
    }

    /// Begins to store the content. It is not visible before it is complete and verified.
    fn begin(&self, response: &Response) -> Result<Partial, Failure> {
        if response.content_length().unwrap_or_default() > self.job.limits.bytes {
            return Err(self.too_large());
        }
        let writer = self.job.store.blob_writer(KIND);
        let writer = writer.map_err(|error| Failure::Final(error.into()))?;
        Ok(Partial::new(writer, response))
    }

    /// Stores all content that arrives.
    fn receive(&self, response: &mut Response, partial: &mut Partial) -> Result<(), Failure> {
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

    /// Makes the content visible, if it is complete and has the requested digest.
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
        let (entry, size) = finished.map_err(|error| Failure::Final(error.into()))?;
        Ok((entry, size, Origin::Server))
    }

    fn chunk(&self, response: &mut Response) -> Result<Option<Vec<u8>>, Failure> {
        let chunk = self.http.chunk(response).map_err(stopped)?;
        chunk.map_err(|error| self.broken(error))
    }
}

// What the failures mean.
impl Download<'_> {
    fn refused(&self, status: StatusCode) -> Failure {
        let (url, code) = (self.shown.clone(), status.as_u16());
        let transient = status.is_server_error()
            || matches!(
                status,
                // The last two are about the rest of a file; the next attempt asks for all of it.
                StatusCode::TOO_MANY_REQUESTS
                    | StatusCode::REQUEST_TIMEOUT
                    | StatusCode::RANGE_NOT_SATISFIABLE
                    | StatusCode::PARTIAL_CONTENT
            );
        if transient {
            return Failure::Transient(DownloadError::Failing { url, status: code });
        }
        Failure::Final(DownloadError::Refused { url, status: code })
    }

    /// The connection broke, or there was none.
    fn broken(&self, error: RequestError) -> Failure {
        if self.begun.elapsed() >= self.job.limits.whole {
            return self.too_slow();
        }
        let url = self.shown.clone();
        match error {
            RequestError::Denied(source) => {
                Failure::Final(DownloadError::OutOfReach { url, source })
            }
            RequestError::Redirect(reason) => {
                Failure::Final(DownloadError::Redirect { url, reason })
            }
            RequestError::TooSlow(source) => {
                Failure::Transient(DownloadError::Trickles { url, source })
            }
            RequestError::Connection(_) => {
                let source = Box::new(error);
                Failure::Transient(DownloadError::Unreachable { url, source })
            }
        }
    }

    fn cut(&self, received: u64, total: u64) -> Failure {
        let url = self.shown.clone();
        let source = format!("received {received} bytes instead of {total}").into();
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

/// Asks for the content only if it changed. With a tag, servers ignore the date (RFC 9110, section
/// 13.1.3).
fn conditions(entry: &Entry) -> HeaderMap {
    let pairs = [
        (IF_NONE_MATCH, &entry.tag),
        (IF_MODIFIED_SINCE, &entry.date),
    ];
    let pairs = pairs.into_iter().filter_map(|(name, text)| {
        let value = HeaderValue::from_str(text.as_deref()?).ok()?;
        Some((name, value))
    });
    pairs.collect()
}
