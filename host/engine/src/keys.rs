//! Cache keys of steps.
//!
//! The law: keys are acyclic by construction. Each is a digest of the operation and of the *content
//! ids* of its inputs, which exist before the step does; no key refers to another key. Content ids
//! leave out times, so a parent that was rebuilt with equal content keeps its children cached.
//!
//! The bytes of keys are a stored format: changing them turns every cached step into a miss. Tests
//! below pin them.

use exec::StepNetwork;
use oci::Platform;
use store::{ContentId, Hasher, StepKey};

use crate::plan::RunOp;

/// Hashes the parts of a key. Each part has its name and lengths in front, so that no two different
/// lists of parts give the same bytes.
#[derive(Debug)]
struct Parts(Hasher);

impl Parts {
    fn new(operation: &str) -> Self {
        // Increase the version when keys are computed or steps are run differently: entries of
        // older versions are then misses.
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

/// Key of a RUN: everything that the process can see and that the author of the Dockerfile chose.
/// The user is used as written, because what it resolves to is a function of the root.
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
    // Addresses may differ between machines; only the names are the author's choice.
    parts.add("hostname", op.hostname.as_bytes());
    parts.add_all("hosts", op.hosts.iter().map(|(_, name)| name));
    if let Some(script) = &op.script {
        // Its name is one of the arguments.
        parts.add("script", script.data.as_bytes());
    }
    parts.add_all("root", root.iter().map(|id| id.digest().0));
    parts.finish()
}

/// Key of a COPY, ADD or WORKDIR. The layer is a pure function of its entries, so the parent is not
/// part of the key, and equal copies on different parents share one layer.
#[must_use]
pub(crate) fn content(id: ContentId) -> StepKey {
    let mut parts = Parts::new("content");
    parts.add("layer", &id.digest().0);
    parts.finish()
}

#[cfg(test)]
mod tests {
    use exec::{Cancel, StepScript};
    use oci::decompress::UnpackLimits;
    use store::Digest;

    use super::*;
    use crate::copy::{self, CopyFrom, CopyPlan, CopySource, CopySpec, SourceTree};
    use crate::download::Downloads;
    use crate::rootfs::Rootfs;

    fn make() -> RunOp {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        RunOp {
            args: texts(&["/bin/sh", "-c", "make"]),
            env: texts(&["PATH=/bin", "A=1"]),
            unkeyed_env: texts(&["http_proxy=http://p"]),
            cwd: "/src".into(),
            user: "1000:app".into(),
            network: StepNetwork::Default,
            hostname: "buildkitsandbox".into(),
            hosts: vec![("10.0.0.1".into(), "db".into())],
            script: None,
        }
    }

    fn run_key(op: &RunOp) -> String {
        let root = [1, 2].map(|byte| ContentId(Digest([byte; 32])));
        run(op, &root, &Platform::linux("amd64")).digest().hex()
    }

    fn layer_key(plan: &CopyPlan) -> String {
        content(plan.content_id().unwrap()).digest().hex()
    }

    #[test]
    fn keys_of_run_steps_are_pinned() {
        assert_eq!(
            run_key(&make()),
            "f4bab52fa560b8f7a0d8142b0c4f0668ff35e74db2ee80e88069d9f721229a2e"
        );
        let script = RunOp {
            network: StepNetwork::None,
            script: Some(StepScript {
                name: "EOF".into(),
                data: "#!/bin/sh\nmake\n".into(),
            }),
            ..make()
        };
        assert_eq!(
            run_key(&script),
            "dd1c7b4cb9c341d89be6a811213d7b8aaea201b4c843b17fd2501e774357e49d"
        );
    }

    #[test]
    fn keys_of_copy_steps_are_pinned() {
        let spec = CopySpec {
            from: CopyFrom::Context,
            sources: vec![CopySource::Heredoc {
                name: "a".into(),
                data: b"hello".to_vec(),
            }],
            dest: "/dst/".into(),
            cwd: "/".into(),
            chown: Some("1:2".into()),
            chmod: Some("640".into()),
            exclude: Vec::new(),
            parents: false,
            link: false,
            unpack: false,
        };
        let empty = Rootfs::empty();
        let source = SourceTree::Rootfs(&empty);
        let downloads = Downloads::default();
        let plan = copy::plan(
            &spec,
            &source,
            &downloads,
            &empty,
            UnpackLimits::USUAL,
            &Cancel::new(),
        )
        .unwrap();
        assert_eq!(
            layer_key(&plan),
            "9f29383814321115bf0de6a312ce7fbf0177a841be8c1e6055506e4e72b5376c"
        );
    }

    #[test]
    fn keys_of_workdir_steps_are_pinned() {
        let plan = copy::plan_workdir("/app/data", "", &Rootfs::empty()).unwrap();
        assert_eq!(
            layer_key(&plan.unwrap()),
            "54a58c3feb027636cc94cfe93612f60d67fe2df6efe3b113d3abb6759f420ed1"
        );
    }

    #[test]
    fn proxies_and_addresses_of_hosts_do_not_change_a_key() {
        let elsewhere = RunOp {
            unkeyed_env: Vec::new(),
            hosts: vec![("10.9.9.9".into(), "db".into())],
            ..make()
        };
        assert_eq!(run_key(&elsewhere), run_key(&make()));
    }
}
