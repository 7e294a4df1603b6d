//! Random identifiers.

use std::io;
use std::path::Path;

use crate::StoreError;

/// 128 random bits: an identifier that nobody else has.
pub(crate) fn random() -> Result<[u8; 16], StoreError> {
    let mut bytes = [0; 16];
    match getrandom::fill(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(error) => Err(StoreError::io(
            "read random numbers from",
            Path::new("the system"),
            io::Error::other(error.to_string()),
        )),
    }
}
