//! No wake-up is lost between driver and device, in every order of their loads and stores.
//!
//! Each of the two publishes something and then reads whether the other wants to be told; the other
//! says so and then reads whether something was published. One of both must see what the other
//! wrote (virtio 1.2, 2.7.10 and 2.7.7.1). These are the steps of the real code, which works on
//! memory that is shared with a machine and so cannot run under [loom] itself. Beside each protocol
//! stands what it would be with a step left out, and the orders in which that hangs are found.

#![expect(
    clippy::unwrap_used,
    reason = "loom runs closures, which clippy does not take for tests"
)]

mod bell;
mod rings;

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Whether some order of `run` fails.
fn some_order_fails(run: impl Fn() + Send + Sync + 'static) -> bool {
    catch_unwind(AssertUnwindSafe(|| loom::model(run))).is_err()
}
