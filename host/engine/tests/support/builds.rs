//! What whole builds without a VM share.

use engine::build::{BuildRequest, DockerfileSource};
use exec::{Cancel, Executor, Output, StepDone, StepError, StepNetwork, StepSpec};

use oci::decompress::UnpackLimits;
use store::TrustDomain;

use super::{TestStore, amd64, test_servers};

/// For builds that need no VM.
pub struct VmForbidden;

impl Executor for VmForbidden {
    fn prepare(&self) {
        panic!("a VM is started");
    }

    fn run(&self, _: &StepSpec, _: &mut dyn Output, _: &Cancel) -> Result<StepDone, StepError> {
        panic!("a VM is used");
    }
}

/// Builds with what servers of tests may be reached.
pub fn request(store: &TestStore, dockerfile: &str) -> BuildRequest {
    let context = store.path("context");
    std::fs::create_dir_all(&context).unwrap();
    std::fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    BuildRequest {
        context: Some(context),
        dockerfile: DockerfileSource::Default,
        build_args: Vec::new(),
        target: None,
        no_cache: false,
        rebuild: None,
        trust_domain: TrustDomain::new("test").unwrap(),
        timeout: None,
        step_timeout: None,
        idle_timeout: None,
        log_limit: store::StepLog::DEFAULT_LIMIT,
        explain: true,
        pull: false,
        labels: Vec::new(),
        tags: Vec::new(),
        outputs: Vec::new(),
        jobs: 4,
        platform: amd64(),
        named_contexts: Vec::new(),
        hosts: Vec::new(),
        network: StepNetwork::Default,
        reach: test_servers(),
        unpack: UnpackLimits::USUAL,
        epoch: None,
    }
}
