//! Whose fault an error is.
//!
//! Inside the agent, errors are chains of causes. An error that is sent to the host becomes a
//! [`Failure`], whose kind decides how the host reacts. The kind comes from the first cause in the
//! chain that tells it: a [`Fault`], a violation of the protocol or a full disk.

use std::io;

use nix::errno::Errno;
use thiserror::Error;
use wire::frame::ReadError;
use wire::{Failure, FailureKind, FrameError, MessageError, Violation};

/// A cause that tells whose fault it is.
#[derive(Debug, Error)]
#[error("{text}")]
pub(crate) struct Fault {
    kind: FailureKind,
    text: String,
}

/// The step cannot be set up as specified: the user must change something.
pub(crate) fn setup(text: impl Into<String>) -> anyhow::Error {
    Fault {
        kind: FailureKind::Setup,
        text: text.into(),
    }
    .into()
}

/// The step made something that no layer can hold: the user must change it.
pub(crate) fn unfit(text: impl Into<String>) -> anyhow::Error {
    Fault {
        kind: FailureKind::Unfit,
        text: text.into(),
    }
    .into()
}

/// The step made more than a layer can hold, or more than the host takes.
pub(crate) fn too_large(text: impl Into<String>) -> anyhow::Error {
    Fault {
        kind: FailureKind::TooLarge,
        text: text.into(),
    }
    .into()
}

/// The request makes no sense in this state.
pub(crate) fn violation(text: impl Into<String>) -> anyhow::Error {
    Fault {
        kind: FailureKind::Violation,
        text: text.into(),
    }
    .into()
}

/// The step was cancelled.
pub(crate) fn cancelled() -> anyhow::Error {
    Fault {
        kind: FailureKind::Cancelled,
        text: "cancelled".into(),
    }
    .into()
}

/// Passes on a failure that another process reported.
pub(crate) fn reported(failure: Failure) -> anyhow::Error {
    Fault {
        kind: failure.kind,
        text: failure.text,
    }
    .into()
}

/// The failure that the host is told.
pub(crate) fn failure(err: &anyhow::Error) -> Failure {
    let kind = err.chain().find_map(blame).unwrap_or(FailureKind::Internal);
    Failure::new(kind, format!("{err:#}"))
}

fn blame(cause: &(dyn std::error::Error + 'static)) -> Option<FailureKind> {
    if let Some(fault) = cause.downcast_ref::<Fault>() {
        return Some(fault.kind);
    }
    if let Some(layer::ReadError::Source(source)) = cause.downcast_ref() {
        return blame(source);
    }
    if is_violation(cause) {
        return Some(FailureKind::Violation);
    }
    let errno = match (
        cause.downcast_ref::<Errno>(),
        cause.downcast_ref::<io::Error>(),
    ) {
        (Some(errno), _) => *errno,
        (None, Some(err)) => match carried(err) {
            Some(carried) => return carried.chain().find_map(blame),
            None => Errno::from_raw(err.raw_os_error()?),
        },
        (None, None) => return None,
    };
    matches!(errno, Errno::ENOSPC | Errno::EDQUOT).then_some(FailureKind::DiskFull)
}

fn is_violation(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause.is::<Violation>()
        || cause.is::<MessageError>()
        || cause.is::<FrameError>()
        || cause.is::<ReadError<io::Error>>() && cause.source().is_none()
}

/// Wraps an error to pass it through an interface that only has I/O errors.
pub(crate) fn carry(err: anyhow::Error) -> io::Error {
    io::Error::other(Carried(err))
}

/// An error inside an [`io::Error`].
#[derive(Debug, Error)]
#[error("{0:#}")]
struct Carried(anyhow::Error);

fn carried(err: &io::Error) -> Option<&anyhow::Error> {
    err.get_ref()?
        .downcast_ref::<Carried>()
        .map(|carried| &carried.0)
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::*;

    #[track_caller]
    fn check(err: &anyhow::Error, kind: FailureKind, text: &str) {
        assert_eq!(failure(err), Failure::new(kind, text));
    }

    #[test]
    fn the_cause_that_tells_whose_fault_it_is_decides() {
        let err = setup("no such program").context("step 3");
        check(&err, FailureKind::Setup, "step 3: no such program");
        check(&cancelled(), FailureKind::Cancelled, "cancelled");
        check(&anyhow!("odd"), FailureKind::Internal, "odd");
    }

    #[test]
    fn a_full_disk_is_found_below_other_causes() {
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        let text = "writing: No space left on device (os error 28)";
        check(
            &anyhow::Error::from(full).context("writing"),
            FailureKind::DiskFull,
            text,
        );
        let full = Err::<(), _>(Errno::EDQUOT).context("mkdir").unwrap_err();
        assert_eq!(failure(&full).kind, FailureKind::DiskFull);
    }

    #[test]
    fn a_broken_transfer_below_a_tar_is_a_violation() {
        let cut = carry(Violation::NoEnd(7).into());
        let err = anyhow::Error::from(layer::ReadError::Source(cut)).context("layer");
        assert_eq!(failure(&err).kind, FailureKind::Violation);
    }

    #[test]
    fn a_broken_transfer_is_a_violation() {
        let err = anyhow::Error::from(Violation::NoEnd(7)).context("layer");
        assert_eq!(failure(&err).kind, FailureKind::Violation);
    }
}
