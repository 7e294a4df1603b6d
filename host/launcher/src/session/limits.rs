//! How long a guest that is alive may take for things that run no user code.
//!
//! These are not how a guest is found dead: the heartbeat does that. They end what a guest that
//! answers heartbeats might otherwise delay for ever, and a guest that exceeds one is lost.

use std::time::Duration;

/// Bounds of single waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// For the hello, counted from the first connection.
    pub(crate) hello: Duration,
    /// For a new connection to say which transfer it is.
    pub(crate) attach: Duration,
    /// For a transfer to be opened that was asked for.
    pub(crate) open: Duration,
    /// For the end of the stream after the end mark of a transfer.
    pub(crate) eof: Duration,
    /// For killing all processes of a step. It took 0.4 s at worst in trials.
    pub(crate) kill: Duration,
    /// For what needs no user code and little I/O.
    pub(crate) short: Duration,
    /// For removing or sealing directories with many files.
    pub(crate) remove: Duration,
    /// For the rest of a dead step's output to make progress.
    pub(crate) output: Duration,
    /// For the next frame of a layer to be taken or to come. Whoever unpacks may well stand still for
    /// minutes while its disk is busy.
    pub(crate) stall: Duration,
}

impl Limits {
    /// For a guest that runs on the processor.
    pub(crate) const fn native() -> Self {
        const fn seconds(n: u64) -> Duration {
            Duration::from_secs(n)
        }
        Self {
            hello: seconds(10),
            attach: seconds(15),
            open: seconds(30),
            eof: seconds(10),
            kill: seconds(5),
            short: seconds(15),
            remove: seconds(300),
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
            kill,
            short,
            remove,
            output,
            stall,
        } = Self::native();
        Self {
            hello: hello * 4,
            attach: attach * 4,
            open: open * 4,
            eof: eof * 4,
            kill: kill * 4,
            short: short * 4,
            remove: remove * 4,
            output: output * 4,
            stall: stall * 4,
        }
    }
}
