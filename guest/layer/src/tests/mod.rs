//! The format as its users see it.

mod fit;
mod golden;
mod lookup;
mod property;
mod raw;
mod round_trip;
mod rules;
mod sample;
