//! Cache keys of steps.
//!
//! Keys are acyclic by construction: each is a digest of the operation and of the *content ids* of
//! its inputs, which exist before the step does. A content key never refers to another key. Content
//! ids leave out times, so a parent that was rebuilt with equal content keeps its children cached.

use exec::StepNetwork;
use oci::Platform;
use store::{ContentId, Hasher, StepKey};

use crate::plan::RunOp;

/// Collects the parts of a key. Every part carries its name and length, so that no two different
/// lists of parts give the same bytes.
#[derive(Debug)]
struct Parts(Hasher);

impl Parts {
    fn new(operation: &str) -> Self {
        // A new way to compute keys or to run steps gets a new version: old entries are then misses.
        let mut parts = Self(Hasher::new());
        parts.add("cofferdam step key 1", operation.as_bytes());
        parts
    }

    fn add(&mut self, name: &str, value: &[u8]) {
        for part in [name.as_bytes(), value] {
            self.0.update(&(part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
    }

    fn add_all<T: AsRef<[u8]>>(&mut self, name: &str, values: impl ExactSizeIterator<Item = T>) {
        self.add(name, &(values.len() as u64).to_le_bytes());
        for value in values {
            self.add("", value.as_ref());
        }
    }

    fn finish(self) -> StepKey {
        StepKey(self.0.finish())
    }
}

/// Key of a RUN: everything that the process can see and that the Dockerfile's author chose.
/// The user goes in as written, because what it resolves to is a function of the root.
#[must_use]
pub(crate) fn run(op: &RunOp, root: &[ContentId], platform: &Platform) -> StepKey {
    let mut parts = Parts::new("run");
    parts.add("platform", platform.to_string().as_bytes());
    parts.add_all("args", op.args.iter());
    parts.add_all("env", op.env.iter());
    parts.add("cwd", op.cwd.as_bytes());
    parts.add("user", op.user.as_bytes());
    parts.add(
        "network",
        match op.network {
            StepNetwork::None => b"none",
            StepNetwork::Default => b"default",
        },
    );
    // Addresses may differ from machine to machine; only the names are the author's choice.
    parts.add("hostname", op.hostname.as_bytes());
    parts.add_all("hosts", op.hosts.iter().map(|(_, name)| name));
    if let Some(script) = &op.script {
        // Its name is in the arguments.
        parts.add("script", script.data.as_bytes());
    }
    parts.add_all("root", root.iter().map(|id| id.digest().0));
    parts.finish()
}

/// Key of a COPY, ADD or WORKDIR whose layer is known in advance: the layer is a pure function of
/// its entries, so no parent takes part, and equal copies on different parents are one layer.
#[must_use]
pub(crate) fn content(id: ContentId) -> StepKey {
    let mut parts = Parts::new("content");
    parts.add("layer", &id.digest().0);
    parts.finish()
}
