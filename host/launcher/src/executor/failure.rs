//! Why a step made no layer in a VM, and whether another VM may do it.

use std::io;

use exec::StepError;
use store::{IngestError, LayerError};
use wire::FailureKind;

use crate::session::SessionError;

/// Why a step made no layer in this VM.
#[derive(Debug)]
pub(super) enum StepFailure {
    /// The VM is lost; the step may run in another one.
    Lost(SessionError),
    /// Final.
    Step(StepError),
}

impl From<StepError> for StepFailure {
    fn from(error: StepError) -> Self {
        Self::Step(error)
    }
}

impl From<SessionError> for StepFailure {
    fn from(error: SessionError) -> Self {
        Self::Step(match error {
            SessionError::Lost(_) => return Self::Lost(error),
            SessionError::Cancelled => StepError::Cancelled,
            SessionError::Refused(failure) => match failure.kind {
                FailureKind::Setup => StepError::Setup(failure.text),
                FailureKind::Cancelled => StepError::Cancelled,
                FailureKind::Unfit => StepError::Unfit(failure.text),
                FailureKind::TooLarge => StepError::Limit(format!(
                    "{}; that is the limit of --step-disk, or what is free on the host's disk",
                    failure.text
                )),
                FailureKind::DiskFull => StepError::Limit(format!(
                    "the builder VM's disk is full, not the host disk: {}; use less space in this \
                     step and the layers below it",
                    failure.text
                )),
                FailureKind::Violation | FailureKind::Internal => {
                    StepError::Host(SessionError::Refused(failure).into())
                }
            },
            SessionError::Host { .. } => StepError::Host(error.into()),
        })
    }
}

/// The rejection of a layer by the store, if that is why it could not be received.
pub(super) fn rejection(error: &SessionError) -> Option<&IngestError> {
    let SessionError::Host { source, .. } = error else {
        return None;
    };
    let source = source.downcast_ref::<io::Error>()?.get_ref()?;
    source.downcast_ref::<IngestError>()
}

/// Why the changes of a step are no layer, if that is said in a way that a step can cause. The agent
/// knows the same limits and says so itself, so here its guest does not tell the truth; but running
/// the step again would not change what it made.
pub(super) fn unfit(refused: &LayerError) -> Option<StepError> {
    let LayerError::Unfit { why, .. } = refused else {
        return None;
    };
    let text = format!("the step made {refused}; {}", why.advice());
    Some(if why.is_limit() {
        StepError::Limit(text)
    } else {
        StepError::Unfit(text)
    })
}
