//! PID 1 of the builder VM.
mod archive;
mod console;
mod diff;
mod fault;
mod layers;
mod sys;
mod transport;
mod tree;
fn main() {}
