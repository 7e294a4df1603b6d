//! What is done with foreign bytes, for any bytes.
//!
//! A [`Target`] takes bytes and does with them what a part of the product does with those of a
//! guest, a host, an image or a user; it panics if a law of that part does not hold. Two things call
//! it: the test `replay`, with its seeds and random changes of them, and libFuzzer, which is guided
//! by what the bytes reach (`cargo xtask fuzz`).
//!
//! Where a target is a sequence of calls, its bytes are read as a program: [`input::Input`] makes
//! numbers of them, most of which look nearly right, and is at its end when they are.
#![forbid(unsafe_code)]
#![expect(
    clippy::missing_panics_doc,
    reason = "a panic is how a target says that a law does not hold"
)]
#![expect(clippy::indexing_slicing, reason = "here, too, a panic is a finding")]

pub mod connections;
pub mod dockerfiles;
pub mod flows;
pub mod frames;
#[cfg(feature = "ignores")]
pub mod ignores;
pub mod input;
#[cfg(feature = "layers")]
pub mod layers;
pub mod mutate;
pub mod packets;
pub mod rings;

/// A part of the product that takes foreign bytes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, also that of its directory in `tests/fuzz/corpus`.
    pub name: &'static str,
    /// Does it.
    pub run: fn(&[u8]),
    /// Bytes to begin with, which get far.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "frames",
        run: frames::run,
        seeds: frames::seeds,
    },
    Target {
        name: "flows",
        run: flows::run,
        seeds: flows::seeds,
    },
    Target {
        name: "rings",
        run: rings::run,
        seeds: rings::seeds,
    },
    Target {
        name: "device",
        run: connections::device,
        seeds: connections::seeds,
    },
    Target {
        name: "driver",
        run: connections::driver,
        seeds: connections::seeds,
    },
    #[cfg(feature = "layers")]
    Target {
        name: "layers",
        run: layers::tars,
        seeds: layers::tar_seeds,
    },
    #[cfg(feature = "layers")]
    Target {
        name: "entries",
        run: layers::entries,
        seeds: layers::entry_seeds,
    },
    Target {
        name: "dockerfile",
        run: dockerfiles::run,
        seeds: dockerfiles::seeds,
    },
    #[cfg(feature = "ignores")]
    Target {
        name: "dockerignore",
        run: ignores::run,
        seeds: ignores::seeds,
    },
];

/// The target with this name.
#[must_use]
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|target| target.name == name)
}
