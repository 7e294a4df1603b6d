//! Programs from crates.io that xtask uses: taken from the search path, else installed once below the
//! target directory.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::build::cargo;
use crate::setup;
use crate::shell::say;
use crate::workspace::{Workspace, make_dir};

/// A crate with a program of the same name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    name: &'static str,
    version: &'static str,
    /// Whether only this version will do, optimised; another one behaves or measures differently.
    exact: bool,
}

/// The vsock device that somebody else wrote. Another version has other faults, which the conformance
/// suite lists.
pub(crate) const STOCK_DEVICE: Tool = Tool {
    name: "vhost-device-vsock",
    version: "0.3.0",
    exact: true,
};

/// Finds dependencies that nothing uses.
pub(crate) const MACHETE: Tool = Tool {
    name: "cargo-machete",
    version: "0.9.2",
    exact: false,
};

/// Checks licences, sources and advisories of dependencies.
pub(crate) const DENY: Tool = Tool {
    name: "cargo-deny",
    version: "0.20.2",
    exact: false,
};

impl Tool {
    /// The program, installed if need be.
    ///
    /// # Errors
    /// If it cannot be installed.
    pub(crate) fn obtain(&self, workspace: &Workspace) -> Result<PathBuf> {
        if !self.exact
            && let Some(program) = setup::find(self.name)
        {
            return Ok(program);
        }
        let directory = format!("tools/{}-{}", self.name, self.version);
        let root = workspace.target.join(directory);
        let program = root.join("bin").join(self.name);
        if !program.is_file() {
            self.install(workspace, &root)?;
        }
        Ok(program)
    }

    fn install(&self, workspace: &Workspace, root: &Path) -> Result<()> {
        let (name, version) = (self.name, self.version);
        say(format!("installing {name} {version} in {}", root.display()));
        make_dir(root)?;
        let build = root.join("build");
        let [to, with] =
            [root, build.as_path()].map(|path| path.to_str().context("a path is not valid UTF-8"));
        // What is not measured need not be fast, but soon there.
        let profile = if self.exact { "release" } else { "dev" };
        let words = ["install", "--quiet", "--locked", "--version", version, name];
        let places = ["--root", to?, "--target-dir", with?, "--profile", profile];
        cargo(workspace, &[&words[..], &places].concat())?;
        // Hundreds of megabytes that nobody needs again.
        fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))
    }
}
