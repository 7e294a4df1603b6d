//! PID 1 of the builder VM
fn main() {}
