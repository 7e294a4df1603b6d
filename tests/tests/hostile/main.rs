//! Attempts to get through the walls, each with a control. `cargo xtask vm-test hostile` runs them and
//! says how many there were.
//!
//! | module | who attempts |
//! |---|---|
//! | `steps` | a build step |
//! | `guest` | a guest that was taken over, agent and kernel included: `tests/hostile-guest` |
//! | `inputs` | a Dockerfile, a build context, an archive, a base image |

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

mod guest;
mod inputs;
mod steps;

use std::path::PathBuf;

/// The guest image whose agent is hostile.
fn hostile_image() -> PathBuf {
    let image = std::env::var_os("COFFERDAM_HOSTILE_IMAGE");
    image
        .expect("COFFERDAM_HOSTILE_IMAGE is not set: run `cargo xtask vm-test hostile`")
        .into()
}
