//! Pulls from registries (OCI distribution specification), anonymously.
//!
//! A [`Connection`] belongs to one thread and gives blobs as readers, so that a slow disk slows the
//! download down and nothing is buffered.
//!
//! The law: requests end as those of `crate::http` do; no answer is kept in memory beyond a limit;
//! what came is not trusted here, since callers compare every digest.

mod blob;
mod connection;
mod token;

use std::error::Error;

pub(crate) use blob::BlobReader;
pub(crate) use connection::Connection;
pub(crate) use token::Token;

use exec::Stopped;

/// Why a registry gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// It has no such thing.
    #[error("registry {registry} has no {what}{said}")]
    NotFound {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// What it said, if anything.
        said: Said,
    },
    /// It wants a login, or says so instead of "not found".
    #[error(
        "registry {registry} refuses {what}{said}. The name may be misspelt, or the repository may need a login, which is not supported yet"
    )]
    Denied {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// What it said, if anything.
        said: Said,
    },
    /// No answer, after several tries.
    #[error(
        "registry {registry} cannot be reached. Check that it runs and that the network is up, then try again"
    )]
    Unreachable {
        /// The registry.
        registry: String,
        /// The last failure.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// It answered, after several tries, that it cannot serve us now.
    #[error("registry {registry} answered with status {status} to {what}{said}. Try again later")]
    Failing {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// HTTP status.
        status: u16,
        /// What it said, if anything.
        said: Said,
    },
    /// It answered something that no registry should.
    #[error("registry {registry} does not behave like a registry: {reason}")]
    Protocol {
        /// The registry.
        registry: String,
        /// In what.
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
pub struct Said(String);

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        write!(f, " (it says: {})", self.0)
    }
}

impl Said {
    /// Reads an error answer (distribution specification, "Error Codes").
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
            crate::image::short(&text)
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
            Said::parse(body).to_string(),
            " (it says: no\u{fffd}[31m way)"
        );
        assert_eq!(
            Said::parse(br#"{"errors":[{"code":"DENIED"}]}"#).to_string(),
            " (it says: DENIED)"
        );
        assert_eq!(Said::parse(b"<html>").to_string(), "");
        assert_eq!(Said::parse(br#"{"errors":[]}"#).to_string(), "");
    }
}
