//! How long a guest that is alive may take for operations that run no user code.
//!
//! These limits do not detect a dead guest: the heartbeat does that. They end what a guest that
//! still answers heartbeats could otherwise delay for ever; a guest that exceeds one is lost.

use std::time::Duration;

/// Bounds of single waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// For the hello, counted from the first connection.
    pub(crate) hello: Duration,
    /// For a new connection to name its transfer.
    pub(crate) attach: Duration,
    /// For the guest to open a transfer that was requested.
    pub(crate) open: Duration,
    /// For the end of the stream after the end mark of a transfer.
    pub(crate) eof: Duration,
    /// For whatever is owed when the build is cancelled. An honest guest needs less for nearly
    /// everything, and what one loses that needs more is its disk, which is a cache.
    pub(crate) grace: Duration,
    /// For killing all processes of a step. The longest time seen is 0.4 s.
    pub(crate) kill: Duration,
    /// For requests that need little I/O.
    pub(crate) short: Duration,
    /// For removing or committing directories with many files.
    pub(crate) files: Duration,
    /// For the rest of a dead step's output to make progress.
    pub(crate) output: Duration,
    /// For the next frame of a layer to be accepted or to arrive. Unpacking may well pause for
    /// minutes while the guest's disk is busy.
    pub(crate) stall: Duration,
}

impl Limits {
    /// For a guest that runs under KVM.
    pub(crate) const fn native() -> Self {
        const fn seconds(n: u64) -> Duration {
            Duration::from_secs(n)
        }
        Self {
            hello: seconds(10),
            attach: seconds(15),
            open: seconds(30),
            eof: seconds(10),
            grace: seconds(1),
            kill: seconds(5),
            short: seconds(15),
            files: seconds(300),
            output: seconds(20),
            stall: seconds(600),
        }
    }

    /// For an emulated guest, which may be slower by an order of magnitude.
    pub(crate) fn emulated() -> Self {
        let Self {
            hello,
            attach,
            open,
            eof,
            grace,
            kill,
            short,
            files,
            output,
            stall,
        } = Self::native();
        Self {
            hello: hello * 4,
            attach: attach * 4,
            open: open * 4,
            eof: eof * 4,
            grace: grace * 4,
            kill: kill * 4,
            short: short * 4,
            files: files * 4,
            output: output * 4,
            stall: stall * 4,
        }
    }
}
