//! Reads from registries (OCI distribution specification), anonymously.
//!
//! A [`Connection`] belongs to one thread and gives blobs as readers, so a slow disk slows the download
//! down and nothing is buffered. It resumes interrupted blobs, stops on a cancel and limits every
//! answer, which `oci-client` does not do; of that crate only tokens would be left.
//!
//! The law: requests have the time-outs and retries of [`crate::http`]. No answer is held in memory
//! beyond a limit. Answers are not trusted: the callers compare every digest.

mod blob;
mod connection;
mod token;

use std::error::Error;

pub(crate) use connection::Connection;
pub(crate) use token::Token;

use exec::Stopped;

use crate::http::{HostDenied, TooSlow};

/// Why a registry did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// It does not have it.
    #[error("registry {registry} does not have {what}{message}")]
    NotFound {
        /// The registry.
        registry: String,
        /// The manifest or blob.
        what: String,
        /// Its message, if any.
        message: RegistryMessage,
    },
    /// It wants a login, or says so instead of "not found".
    #[error(
        "registry {registry} denies access to {what}{message}; check the spelling (repositories that require a login are not supported yet)"
    )]
    Denied {
        /// The registry.
        registry: String,
        /// The manifest or blob.
        what: String,
        /// Its message, if any.
        message: RegistryMessage,
    },
    /// No answer, after several attempts.
    #[error(
        "registry {registry} cannot be reached; check that it is running and that the network is up, then retry"
    )]
    Unreachable {
        /// The registry.
        registry: String,
        /// The last failure.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// It sends too little, after several attempts.
    #[error("registry {registry} is too slow; retry later")]
    TooSlow {
        /// The registry.
        registry: String,
        /// What it sends.
        #[source]
        source: TooSlow,
    },
    /// It, its token server or a server that it redirects to must not be reached.
    #[error("registry {registry} is out of reach")]
    OutOfReach {
        /// The registry.
        registry: String,
        /// Which server, and why.
        #[source]
        source: HostDenied,
    },
    /// It answered, after several attempts, that it cannot serve the request now.
    #[error(
        "registry {registry} answered the request for {what} with status {status}{message}; retry later"
    )]
    Failing {
        /// The registry.
        registry: String,
        /// The manifest or blob.
        what: String,
        /// HTTP status.
        status: u16,
        /// Its message, if any.
        message: RegistryMessage,
    },
    /// Its answer breaks the protocol.
    #[error("registry {registry} violates the protocol: {reason}")]
    Protocol {
        /// The registry.
        registry: String,
        /// How.
        reason: String,
    },
    /// The client could not be set up.
    #[error("cannot set up the registry client")]
    Setup(#[source] Box<dyn Error + Send + Sync>),
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl From<Stopped> for RegistryError {
    fn from(_: Stopped) -> Self {
        Self::Cancelled
    }
}

/// The first message of a registry's error answer, fit for display; may be empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistryMessage(String);

impl std::fmt::Display for RegistryMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        write!(f, " ({})", self.0)
    }
}

impl RegistryMessage {
    /// Reads the body of an error answer (distribution specification, "Error Codes").
    fn parse(body: &[u8]) -> Self {
        #[derive(serde::Deserialize)]
        struct Envelope {
            errors: Vec<One>,
        }
        #[derive(serde::Deserialize)]
        struct One {
            #[serde(default)]
            code: String,
            #[serde(default)]
            message: String,
        }
        let first = serde_json::from_slice::<Envelope>(body)
            .ok()
            .and_then(|envelope| envelope.errors.into_iter().next());
        Self(first.map_or_else(String::new, |one| {
            let text = if one.message.is_empty() {
                one.code
            } else {
                one.message
            };
            crate::printable(&text)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_of_a_registry_is_shown_without_control_characters() {
        let body = br#"{"errors":[{"code":"DENIED","message":"no\u001b[31m way"}]}"#;
        assert_eq!(
            RegistryMessage::parse(body).to_string(),
            " (no\u{fffd}[31m way)"
        );
        assert_eq!(
            RegistryMessage::parse(br#"{"errors":[{"code":"DENIED"}]}"#).to_string(),
            " (DENIED)"
        );
        assert_eq!(RegistryMessage::parse(b"<html>").to_string(), "");
        assert_eq!(RegistryMessage::parse(br#"{"errors":[]}"#).to_string(), "");
    }
}
