//! Downloads Debian packages without root and without installing anything.
//!
//! apt itself checks the signatures: package lists against the archive's keys, packages against
//! the lists. Where the machine's own lists are absent or too old, a private copy is made from
//! the machine's own sources.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::shell::{self, say};
use crate::workspace::make_dir;

/// Debian's name for this machine's architecture.
pub(super) fn architecture() -> Result<String> {
    let printed = shell::text(&mut shell::command("dpkg", ["--print-architecture"])).context(
        "Debian's tools are needed to fetch a kernel; elsewhere give one with --kernel and --modules",
    )?;
    Ok(printed.trim().to_owned())
}

/// Downloads the package on which `package` depends and whose name starts with `prefix`, in
/// exactly the version that it asks for. Returns the file.
pub(super) fn download_dependency(package: &str, prefix: &str, work: &Path) -> Result<PathBuf> {
    let attempt = |lists: &Lists| {
        let wanted = lists.dependency(package, prefix)?;
        lists.download(&wanted, work)
    };
    make_dir(work)?;
    attempt(&Lists::Machine).or_else(|error| {
        say(format!(
            "the system's package lists do not work ({error}); making private ones"
        ));
        attempt(&Lists::update(work)?)
    })
}

/// Package lists: the machine's, or private ones in a directory of ours.
#[derive(Debug)]
enum Lists {
    Machine,
    Private(PathBuf),
}

impl Lists {
    /// Fetches private lists.
    fn update(work: &Path) -> Result<Self> {
        let lists = Self::Private(work.canonicalize()?);
        for directory in ["state/lists/partial", "cache/archives/partial"] {
            make_dir(&work.join(directory))?;
        }
        shell::output(lists.tool("apt-get").arg("update"))
            .context("cannot fetch package lists; is there a network?")?;
        Ok(lists)
    }

    fn tool(&self, program: &str) -> Command {
        // apt would otherwise drop to a user that may not write into our directories.
        let mut command = shell::command(program, ["--quiet=2", "-o", "APT::Sandbox::User=root"]);
        if let Self::Private(work) = self {
            for (key, place) in [("Dir::State", "state"), ("Dir::Cache", "cache")] {
                command
                    .arg("-o")
                    .arg(format!("{key}={}", work.join(place).display()));
            }
            command.args(["-o", "Dir::State::status=/dev/null"]);
        }
        command
    }

    /// `name=version` of the dependency.
    fn dependency(&self, package: &str, prefix: &str) -> Result<String> {
        let mut show = self.tool("apt-cache");
        let record = shell::text(show.args(["show", "--no-all-versions", package]))?;
        parse_dependency(&record, prefix)
            .with_context(|| format!("{package} depends on nothing called {prefix}…"))
    }

    fn download(&self, wanted: &str, work: &Path) -> Result<PathBuf> {
        let place = work.join("download");
        if place.is_dir() {
            std::fs::remove_dir_all(&place)?;
        }
        make_dir(&place)?;
        shell::output(
            self.tool("apt-get")
                .args(["download", wanted])
                .current_dir(&place),
        )?;
        let file = std::fs::read_dir(&place)?.next();
        let Some(file) = file else {
            bail!("apt-get downloaded nothing for {wanted}")
        };
        Ok(file?.path())
    }
}

/// Finds `Depends: …, NAME (= VERSION), …` with NAME starting with `prefix`.
fn parse_dependency(record: &str, prefix: &str) -> Option<String> {
    let depends = record
        .lines()
        .find_map(|line| line.strip_prefix("Depends: "))?;
    let found = depends
        .split(',')
        .map(str::trim)
        .find(|one| one.starts_with(prefix))?;
    match found.split_once(" (= ") {
        Some((name, version)) => Some(format!("{name}={}", version.strip_suffix(')')?)),
        None => found.split_whitespace().next().map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_is_found_with_its_version() {
        let check = |depends: &str, want: Option<&str>| {
            let record = format!("Package: linux-image-cloud-amd64\nDepends: {depends}\nSize: 1\n");
            assert_eq!(parse_dependency(&record, "linux-image-").as_deref(), want);
        };
        check(
            "linux-image-6.1-cloud (= 6.1.2-1)",
            Some("linux-image-6.1-cloud=6.1.2-1"),
        );
        check(
            "kmod, linux-image-6.1-cloud (= 1), x",
            Some("linux-image-6.1-cloud=1"),
        );
        check("linux-image-6.1-cloud", Some("linux-image-6.1-cloud"));
        check("kmod", None);
    }
}
