//! COPY, ADD and WORKDIR: layers that the host makes without a VM.
//!
//! The law: [`plan()`] decides everything that a layer will contain, from names and metadata alone;
//! [`CopyPlan::ingest`] only carries it out. The plan depends on nothing but the instruction, the
//! files it names and the root it is copied into; not on a clock, the umask or the order of
//! directories. Where Docker uses the current time (created directories, files whose content is in
//! the Dockerfile, WORKDIR), a fixed time is used.
//!
//! Paths are resolved inside the root they belong to, both in the source and in the target, so no
//! link of an image leads to a file of the host.
//!
//! ```
//! use engine::context::Context;
//! use engine::copy::{self, CopyFrom, CopySource, CopySpec, SourceTree};
//! use engine::download::Downloads;
//! use engine::rootfs::Rootfs;
//! use exec::Cancel;
//! use oci::decompress::UnpackLimits;
//! use store::{OpenOptions, Store};
//!
//! let dir = tempfile::tempdir()?;
//! let files = dir.path().join("context");
//! std::fs::create_dir(&files)?;
//! std::fs::write(files.join("hello"), "Hello!\n")?;
//! let context = Context::open(&files, None, None)?;
//! let store = Store::open(&dir.path().join("store"), &OpenOptions::default())?;
//!
//! // COPY hello /etc/
//! let spec = CopySpec {
//!     from: CopyFrom::Context,
//!     sources: vec![CopySource::Path("hello".to_owned())],
//!     dest: "/etc/".to_owned(),
//!     cwd: "/".to_owned(),
//!     chown: None,
//!     chmod: None,
//!     exclude: Vec::new(),
//!     parents: false,
//!     link: false,
//!     unpack: false,
//! };
//! let (source, target) = (SourceTree::Context(&context), Rootfs::scratch(&store));
//! let (downloads, cancel) = (Downloads::new(&store), Cancel::new());
//! let plan = copy::plan(&spec, &source, &downloads, &target, UnpackLimits::USUAL, &cancel)?;
//! let layer = plan.ingest(&store, "COPY hello /etc/", &cancel)?;
//!
//! let root = target.with_layer(layer.diff_id)?;
//! assert_eq!(root.read(b"etc/hello", 100)?, b"Hello!\n");
//! store.close()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod archive;
mod builder;
mod chmod;
mod entry;
mod error;
mod ingest;
mod plan;
mod planner;
mod select;
mod source;
mod spec;
#[cfg(test)]
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test that meets a new variant may fail"
)]
mod tests;
mod unpack;
mod walk;
mod write;

pub use error::{CopyError, MissingSource};
pub use plan::{CopyPlan, plan, plan_workdir};
pub use source::SourceTree;
pub use spec::{CopyFrom, CopySource, CopySpec};
