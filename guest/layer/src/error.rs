//! Why a tar cannot be a layer.

use std::fmt;

use crate::Unfit;

/// How much of a name is shown, in bytes.
const SHOWN: usize = 200;

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
    /// It is well-formed, but has something that no layer can hold, or too much.
    #[error("{}{why}", Shown(entry))]
    Unfit {
        /// The entry, if its name is known.
        entry: Option<Vec<u8>>,
        /// Why not.
        why: Unfit,
    },
}

impl LayerError {
    pub(crate) fn rejected(entry: Option<&[u8]>, reason: impl Into<String>) -> Self {
        Self::Rejected {
            entry: entry.map(<[u8]>::to_vec),
            reason: reason.into(),
        }
    }

    pub(crate) fn unfit(entry: Option<&[u8]>, why: Unfit) -> Self {
        Self::Unfit {
            entry: entry.map(<[u8]>::to_vec),
            why,
        }
    }
}

/// Puts the name of an entry in front of a reason.
struct Shown<'a>(&'a Option<Vec<u8>>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(path) => match path.get(..SHOWN) {
                Some(begin) if begin != path => write!(f, "`{}…`: ", begin.escape_ascii()),
                Some(_) | None => write!(f, "`{}`: ", path.escape_ascii()),
            },
            None => Ok(()),
        }
    }
}
