//! The clock, for display and order of use only. Nothing is decided by it but what goes first.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Something uneven, to keep processes from trying in step.
pub(crate) fn jitter() -> u8 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let [low, ..] = (since.subsec_nanos() ^ std::process::id())
        .wrapping_mul(0x9E37_79B9)
        .to_le_bytes();
    low
}
