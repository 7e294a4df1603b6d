//! Root file systems and sources for the larger examples, from Debian's own archive.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::shell::{self, say};
use crate::workspace::make_dir;

/// Debian's release that the examples use.
const SUITE: &str = "bookworm";

/// Time of the files that are made for the examples, in seconds since 1970.
pub(super) const EPOCH: u64 = 1_700_000_000;

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
    command.env("SOURCE_DATE_EPOCH", EPOCH.to_string());
    shell::output(command.arg(SUITE).arg(&partial))?;
    std::fs::rename(&partial, tar).context("cannot name the finished tar")
}

/// Downloads the file of a source package that ends in `ending`, unless it is there already.
pub(super) fn source(package: &str, ending: &str, to: &Path, work: &Path) -> Result<()> {
    if to.is_file() {
        return Ok(());
    }
    let file = download(&["source", "--download-only", package], ending, work)?;
    std::fs::copy(&file, to).context("cannot copy the source")?;
    Ok(())
}

/// Downloads a binary package.
pub(super) fn package(package: &str, work: &Path) -> Result<PathBuf> {
    download(&["download", package], ".deb", work)
}

/// The directories that a binary package has.
pub(super) fn directories(package: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut list = shell::command("dpkg-deb", ["--contents"]);
    let listing = shell::text(list.arg(package))?;
    let of_directory = |line: &str| {
        let name = line.strip_prefix('d')?.rsplit(' ').next()?;
        Some(PathBuf::from(name.trim_matches(['.', '/'])))
    };
    Ok(listing.lines().filter_map(of_directory).collect())
}

/// Lets apt-get download something, of which the file that ends in `ending` is returned. apt checks
/// signatures; private package lists make root unnecessary.
fn download(words: &[&str], ending: &str, work: &Path) -> Result<PathBuf> {
    let place = work.join("apt");
    let (parts, download) = (place.join("sources.list.d"), place.join("download"));
    for dir in ["state/lists/partial", "cache/archives/partial"] {
        make_dir(&place.join(dir))?;
    }
    for dir in [&parts, &download] {
        make_dir(dir)?;
    }
    let sources = format!(
        "Types: deb deb-src\nURIs: http://deb.debian.org/debian\nSuites: {SUITE}\nComponents: main\n\
         Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    );
    std::fs::write(parts.join("debian.sources"), sources).context("sources for apt")?;
    let apt = |words: &[&str]| {
        let mut command = shell::command("apt-get", ["--quiet=2"]);
        for (key, value) in [
            ("APT::Sandbox::User", Path::new("root")),
            ("Dir::Etc::sourcelist", Path::new("/dev/null")),
            ("Dir::Etc::sourceparts", &parts),
            ("Dir::State", &place.join("state")),
            ("Dir::Cache", &place.join("cache")),
            ("Dir::State::status", Path::new("/dev/null")),
        ] {
            command.arg("-o").arg(format!("{key}={}", value.display()));
        }
        command.args(words).current_dir(&download);
        command
    };
    say(format!("apt-get {}", words.join(" ")));
    shell::output(&mut apt(&["update"]))?;
    shell::output(&mut apt(words))?;
    std::fs::read_dir(&download)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.to_string_lossy().ends_with(ending))
        .with_context(|| format!("nothing came that ends in {ending}"))
}
