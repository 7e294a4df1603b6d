//! What a conformance test asks of the two sides of a vsock device, and how it reaches a side that is
//! in a VM.

mod command;
mod side;

pub use command::{Command, reply_from_line, reply_to_line};
pub use side::{ByteStream, Connection, Listener, Side, TIMEOUT};
