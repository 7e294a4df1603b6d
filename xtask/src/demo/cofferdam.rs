//! The finished program, used as a user would.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::shell::{self, say};
use crate::workspace::{make_dir, read};

/// The program, the VM image, and a directory for stores, contexts and results.
#[derive(Debug)]
pub(crate) struct Cofferdam {
    pub(crate) program: PathBuf,
    pub(crate) image: PathBuf,
    pub(crate) place: PathBuf,
}

/// What a build came to.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) took: Duration,
    /// Digest of the manifest.
    pub(crate) digest: String,
    /// How many steps were cached, and how many there were.
    pub(crate) cached: (usize, usize),
}

impl Cofferdam {
    /// The store of the demo.
    pub(crate) fn store(&self) -> PathBuf {
        self.place.join("store")
    }

    /// A command on that store.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = shell::command(&self.program, arguments);
        command
            .env("COFFERDAM_STORE", self.store())
            .env("COFFERDAM_VM_IMAGE", &self.image);
        command
    }

    /// Builds a context, with progress shown as it comes.
    pub(crate) fn build(&self, context: &Path, arguments: &[&str]) -> Result<Built> {
        make_dir(&self.place)?;
        let metadata = self.place.join("metadata.json");
        let mut command = self.command(&["build"]);
        command
            .args(arguments)
            .arg("--metadata-file")
            .arg(&metadata)
            .arg(context);
        say(format!(
            "$ cofferdam build {} {}",
            arguments.join(" "),
            context.display()
        ));
        let began = Instant::now();
        shell::run(&mut command)?;
        let took = began.elapsed();
        let facts: Value = serde_json::from_slice(&read(&metadata)?)?;
        let steps = facts
            .pointer("/cofferdam.build/steps")
            .and_then(Value::as_array);
        let steps = steps.context("the description of the build lacks its steps")?;
        let is_cached = |step: &&Value| step.get("outcome").is_some_and(|how| how == "cached");
        let digest = facts.get("containerimage.digest").and_then(Value::as_str);
        Ok(Built {
            took,
            digest: digest
                .context("the description of the build lacks a digest")?
                .to_owned(),
            cached: (steps.iter().filter(is_cached).count(), steps.len()),
        })
    }

    /// The store's own check: nothing missing, nothing left over.
    pub(crate) fn check(&self) -> Result<()> {
        shell::run(&mut self.command(&["store", "check"]))
    }
}
