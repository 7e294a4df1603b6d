//! The format as its users see it.

mod golden;
mod lookup;
mod property;
mod raw;
mod round_trip;
mod rules;
mod sample;
