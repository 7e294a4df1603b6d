//! The build engine: plan, cache keys, solver, build context, COPY, pulls and exports.
//!
//! The law: a build decides everything here, and does its work through others: steps run in an
//! [`exec::Executor`], everything that lasts is in the [`store::Store`], images are read with [`oci`].
//! Nothing here reads the environment or the home directory, or prints. Dockerfiles are parsed by the
//! crate [`dockerfile`].
//!
//! | module | what it does |
//! |---|---|
//! | [`build`] | a whole build, from the request to the result |
//! | [`plan`] | instructions become stages and steps |
//! | `solver`, `keys` | which step runs when, and the key of its result |
//! | [`context`], [`copy`], [`rootfs`] | files of the context and of layers, and layers made of them |
//! | [`download`] | files from servers, for ADD |
//! | [`pull`], [`assemble`], [`export`] | images into the store, in the store, and out of it |
//! | [`event`], [`changes`] | what a build tells its observers |
//!
//! # Example
//!
//! A build without `RUN`, which needs no VM:
//!
//! ```
//! use std::fs;
//!
//! use engine::build::{BuildRequest, DockerfileSource, build};
//! use engine::event::{Outcome, Silent};
//! use engine::rootfs::Rootfs;
//! use exec::{Cancel, Executor, Output, StepDone, StepError, StepNetwork, StepSpec};
//! use oci::Platform;
//! use store::{OpenOptions, Store, TrustDomain};
//!
//! /// In place of `launcher::VmExecutor`.
//! struct NoVm;
//!
//! impl Executor for NoVm {
//!     fn prepare(&self) {}
//!
//!     fn run(&self, _: &StepSpec, _: &mut dyn Output, _: &Cancel) -> Result<StepDone, StepError> {
//!         Err(StepError::Setup("there is no VM".to_owned()))
//!     }
//! }
//!
//! let dir = tempfile::tempdir()?;
//! let context = dir.path().join("context");
//! fs::create_dir(&context)?;
//! fs::write(context.join("hello"), "Hello!\n")?;
//! let store = Store::open(&dir.path().join("store"), &OpenOptions::default())?;
//!
//! let request = BuildRequest {
//!     context: Some(context),
//!     dockerfile: DockerfileSource::Text(b"FROM scratch\nCOPY hello /etc/motd\n".to_vec()),
//!     platform: Platform::linux("amd64"),
//!     tags: vec!["hello:1".to_owned()],
//!     trust_domain: TrustDomain::new("the project").expect("it has a name"),
//!     // … and the defaults of `cofferdam build`.
//!     # build_args: Vec::new(),
//!     # target: None,
//!     # no_cache: false,
//!     # rebuild: None,
//!     # explain: false,
//!     # timeout: None,
//!     # step_timeout: None,
//!     # idle_timeout: None,
//!     # log_limit: store::StepLog::DEFAULT_LIMIT,
//!     # pull: false,
//!     # labels: Vec::new(),
//!     # outputs: Vec::new(),
//!     # jobs: 2,
//!     # named_contexts: Vec::new(),
//!     # hosts: Vec::new(),
//!     # network: StepNetwork::Default,
//!     # reach: net_policy::Reach::default(),
//!     # unpack: oci::decompress::UnpackLimits::USUAL,
//!     # epoch: None,
//! };
//! let cancel = Cancel::new();
//! let built = build(&request, &store, &NoVm, &Silent, &cancel)?;
//! let root = Rootfs::new(&store, &built.image.layers)?;
//! assert_eq!(root.read(b"etc/motd", 100)?, b"Hello!\n");
//!
//! // The second time everything is cached.
//! let again = build(&request, &store, &NoVm, &Silent, &cancel)?;
//! assert_eq!(again.image, built.image);
//! assert!(again.steps.iter().all(|step| step.outcome == Outcome::Cached));
//! store.close()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

pub mod assemble;
pub mod build;
pub mod changes;
pub mod context;
pub mod copy;
pub mod download;
pub mod event;
pub mod export;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod keys;
pub mod plan;
pub mod pull;
pub mod rootfs;
mod similar;
mod solver;
