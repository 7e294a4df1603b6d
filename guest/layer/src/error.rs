//! Why a tar cannot be a layer.

use std::fmt;

/// A tar cannot be a layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayerError {
    /// It breaks a rule of the format.
    #[error("{}{reason}", Shown(entry))]
    Rejected {
        /// The entry at fault, if its name is known.
        entry: Option<Vec<u8>>,
        /// What is wrong with it.
        reason: String,
    },
    /// It exceeds one of the [`limits`](crate::limits).
    #[error("{}more than {limit} {unit}", Shown(entry))]
    TooLarge {
        /// The entry that exceeds it, if its name is known.
        entry: Option<Vec<u8>>,
        /// What is counted.
        unit: &'static str,
        /// The limit.
        limit: u64,
    },
}

impl LayerError {
    pub(crate) fn rejected(entry: Option<&[u8]>, reason: impl Into<String>) -> Self {
        Self::Rejected {
            entry: entry.map(<[u8]>::to_vec),
            reason: reason.into(),
        }
    }

    pub(crate) fn too_large(entry: Option<&[u8]>, unit: &'static str, limit: u64) -> Self {
        Self::TooLarge {
            entry: entry.map(<[u8]>::to_vec),
            unit,
            limit,
        }
    }
}

/// Puts the name of an entry in front of a reason.
struct Shown<'a>(&'a Option<Vec<u8>>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(path) => write!(f, "`{}`: ", path.escape_ascii()),
            None => Ok(()),
        }
    }
}
