//! Root file systems and sources for the larger examples, from Debian's own archive.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::shell::{self, say};
use crate::workspace::make_dir;

/// Debian's release that the examples use.
const SUITE: &str = "bookworm";

/// Makes a minimal Debian root as a tar, unless it is there already.
pub(super) fn root(tar: &Path, include: &[&str]) -> Result<()> {
    if tar.is_file() {
        return Ok(());
    }
    say(format!(
        "making {} with mmdebstrap (about a minute)",
        tar.display()
    ));
    let partial = tar.with_extension("partial.tar");
    let mut command = shell::command("mmdebstrap", ["--quiet", "--variant=minbase"]);
    if !include.is_empty() {
        command.arg(format!("--include={}", include.join(",")));
    }
    shell::output(command.arg(SUITE).arg(&partial))?;
    std::fs::rename(&partial, tar).context("cannot name the finished tar")
}

/// Downloads the file of a source package that ends in `ending`, unless it is there already.
/// apt checks its signatures; private package lists make root unnecessary.
pub(super) fn source(package: &str, ending: &str, to: &Path, work: &Path) -> Result<()> {
    if to.is_file() {
        return Ok(());
    }
    let place = work.join("apt");
    let (parts, download) = (place.join("sources.list.d"), place.join("download"));
    for dir in [
        "state/lists/partial",
        "cache/archives/partial",
        "sources.list.d",
        "download",
    ] {
        make_dir(&place.join(dir))?;
    }
    let sources = format!(
        "Types: deb-src\nURIs: http://deb.debian.org/debian\nSuites: {SUITE}\nComponents: main\n\
         Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    );
    std::fs::write(parts.join("debian.sources"), sources).context("sources for apt")?;
    let apt = |words: &[&str]| {
        let mut command = shell::command("apt-get", ["--quiet=2"]);
        for (key, value) in [
            ("APT::Sandbox::User", "root".into()),
            ("Dir::Etc::sourcelist", "/dev/null".into()),
            ("Dir::Etc::sourceparts", parts.clone().into_os_string()),
            ("Dir::State", place.join("state").into_os_string()),
            ("Dir::Cache", place.join("cache").into_os_string()),
            ("Dir::State::status", "/dev/null".into()),
        ] {
            command
                .arg("-o")
                .arg(format!("{key}={}", value.to_string_lossy()));
        }
        command.args(words).current_dir(&download);
        command
    };
    say(format!("downloading the source package {package}"));
    shell::output(&mut apt(&["update"]))?;
    shell::output(&mut apt(&["source", "--download-only", package]))?;
    let file = std::fs::read_dir(&download)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.to_string_lossy().ends_with(ending))
        .with_context(|| format!("{package} has no file that ends in {ending}"))?;
    std::fs::copy(&file, to).context("cannot copy the source")?;
    Ok(())
}
