//! Frames: a fixed header read in place, and a body.
