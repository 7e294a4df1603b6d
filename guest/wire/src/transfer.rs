//! Sending and receiving the frames of one transfer, as state machines without I/O.
