//! What is sent and what comes back.

use std::time::{Duration, Instant};

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{StatusCode, Url};

use super::pace::Pace;

/// A request, which [`Http::send`](super::Http::send) sends.
#[derive(Debug, Clone)]
pub struct Request {
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    /// When all of the answer must have come.
    pub(super) deadline: Option<Instant>,
}

impl Request {
    /// Asks for what is at `url`.
    #[must_use]
    pub fn get(url: Url) -> Self {
        Self {
            url,
            headers: HeaderMap::new(),
            deadline: None,
        }
    }

    /// Adds a header; one whose value cannot be sent is left out.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    /// Adds headers.
    #[must_use]
    pub fn headers(mut self, headers: HeaderMap) -> Self {
        self.headers.extend(headers);
        self
    }

    /// Limits the time for the whole answer, redirections included.
    #[must_use]
    pub fn timeout(mut self, time: Duration) -> Self {
        self.deadline = Instant::now().checked_add(time);
        self
    }
}

/// The answer of a server. [`Http::chunk`](super::Http::chunk) reads its content.
#[derive(Debug)]
pub struct Response {
    pub(super) inner: reqwest::Response,
    pub(super) pace: Pace,
}

impl Response {
    /// The status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.inner.status()
    }

    /// The headers.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        self.inner.headers()
    }

    /// The address of the server that answered, after redirections.
    #[must_use]
    pub fn url(&self) -> &Url {
        self.inner.url()
    }

    /// The length that the server announces.
    #[must_use]
    pub fn content_length(&self) -> Option<u64> {
        self.inner.content_length()
    }
}
