//! The log of a step: segments of frames.
//!
//! The law: a log that was cut off is readable up to the cut, and readers read the files at their own
//! pace. A full disk stops neither the writer nor the step: lost bytes are counted, and the count is
//! written as soon as the disk accepts it.
//!
//! ```text
//! 1.log   1.1.log   1.2.log   (removed)   1.7.log   1.8.log
//!     first half of the limit             last half  └ grows
//! ```
//!
//! Output is appended to the last segment as it comes, so it can be followed. A segment that is long
//! enough is replaced by its compressed form; whoever reads the old file reads on in it. What is beyond
//! the limit goes by removing segments from the middle, which rewrites nothing. Each segment says how
//! much text precedes it, so a reader knows what it missed.

mod frame;
mod names;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use frame::LogFrame;
pub use reader::LogReader;
pub use writer::StepLog;
