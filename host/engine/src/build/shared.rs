//! What the parts of a build share.

use std::collections::BTreeMap;

use exec::{Cancel, Executor};
use store::Store;

use super::request::BuildRequest;
use super::track::Tracker;
use crate::plan::ImageKey;
use crate::pull::BaseImage;

/// The images that a build uses.
pub(super) type Images = BTreeMap<ImageKey, BaseImage>;

/// A build that runs.
pub(super) struct Build<'a> {
    pub(super) request: &'a BuildRequest,
    pub(super) store: &'a Store,
    pub(super) executor: &'a dyn Executor,
    pub(super) cancel: &'a Cancel,
    pub(super) id: store::BuildId,
    pub(super) tracker: &'a Tracker<'a>,
}
