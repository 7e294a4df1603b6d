//! Obtains a kernel and its modules.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use vmimage::{Lookup, canonical};

use super::apt;
use crate::shell::{self, say};
use crate::workspace::{make_dir, read, update};

/// A kernel on disk.
#[derive(Debug)]
pub(super) struct Kernel {
    /// As in `uname -r`.
    pub(super) version: String,
    /// The file to boot.
    pub(super) image: PathBuf,
    /// The directory with `kernel/` and `modules.builtin`.
    tree: PathBuf,
}

impl Kernel {
    /// A kernel that the user has.
    pub(super) fn given(image: &Path, tree: &Path) -> Result<Self> {
        if !tree.join("kernel").is_dir() {
            bail!(
                "{} has no directory `kernel` with modules in it",
                tree.display()
            );
        }
        let version = tree.canonicalize()?;
        let version = version
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Ok(Self {
            version,
            image: image.to_owned(),
            tree: tree.to_owned(),
        })
    }

    /// Debian's cloud kernel, downloaded once and kept below `cache`.
    pub(super) fn debian(cache: &Path, refresh: bool) -> Result<Self> {
        make_dir(cache)?;
        let current = cache.join("current");
        let kept = std::fs::read_to_string(&current).unwrap_or_default();
        if !refresh && !kept.is_empty() && cache.join(&kept).is_dir() {
            return Self::unpacked(&cache.join(kept));
        }
        let name = fetch(cache)?;
        update(&current, name.as_bytes())?;
        Self::unpacked(&cache.join(name))
    }

    /// A kernel package that was unpacked into `root`.
    fn unpacked(root: &Path) -> Result<Self> {
        for modules in ["lib/modules", "usr/lib/modules"] {
            let Ok(mut versions) = std::fs::read_dir(root.join(modules)) else {
                continue;
            };
            let Some(version) = versions.next() else {
                continue;
            };
            let version = version?.file_name().to_string_lossy().into_owned();
            let image = root.join("boot").join(format!("vmlinuz-{version}"));
            if image.is_file() {
                return Ok(Self {
                    tree: root.join(modules).join(&version),
                    image,
                    version,
                });
            }
        }
        bail!(
            "{} holds no kernel; delete it and try again",
            root.display()
        );
    }

    /// What modules there are.
    pub(super) fn modules(&self) -> Result<Tree> {
        Tree::read(&self.tree)
    }
}

/// Downloads and unpacks the kernel; returns the name of its directory in `cache`.
fn fetch(cache: &Path) -> Result<String> {
    let package = format!("linux-image-cloud-{}", apt::architecture()?);
    say(format!("fetching Debian's kernel ({package})"));
    let file = apt::download_dependency(&package, "linux-image-", &cache.join("apt"))?;
    let name = file
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let fresh = cache.join(format!("unpacking-{}", std::process::id()));
    shell::run(
        shell::command("dpkg-deb", ["--extract"])
            .arg(&file)
            .arg(&fresh),
    )?;
    let place = cache.join(&name);
    if place.is_dir() {
        std::fs::remove_dir_all(&place)?;
    }
    // The directory appears whole or not at all.
    std::fs::rename(&fresh, &place).with_context(|| format!("cannot make {}", place.display()))?;
    std::fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    Ok(name)
}

/// The modules of a kernel by their canonical names.
#[derive(Debug)]
pub(super) struct Tree {
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

impl Tree {
    fn read(tree: &Path) -> Result<Self> {
        let listed = String::from_utf8_lossy(&read(&tree.join("modules.builtin"))?).into_owned();
        let built_in = listed
            .lines()
            .filter_map(|line| module_name(Path::new(line)))
            .collect();
        let mut files = BTreeMap::new();
        let mut pending = vec![tree.join("kernel")];
        while let Some(directory) = pending.pop() {
            let listing = std::fs::read_dir(&directory)
                .with_context(|| format!("cannot list {}", directory.display()))?;
            for entry in listing {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    pending.push(entry.path());
                } else if let Some(name) = module_name(&entry.path()) {
                    files.insert(name, entry.path());
                }
            }
        }
        Ok(Self { files, built_in })
    }

    /// Looks a module up by its canonical name. One that cannot be read is absent, with a message.
    pub(super) fn find(&self, name: &str) -> Lookup {
        match self.files.get(name).map(|path| unpack(path)) {
            Some(Ok(bytes)) => Lookup::Module(bytes),
            Some(Err(error)) => {
                say(format!("{error:#}"));
                Lookup::Absent
            }
            None if self.built_in.contains(name) => Lookup::BuiltIn,
            None => Lookup::Absent,
        }
    }
}

/// `…/virtio-rng.ko.xz` is `virtio_rng`; anything else has no name.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (name, packed) = file.split_once(".ko")?;
    matches!(packed, "" | ".gz" | ".xz" | ".zst").then(|| canonical(name))
}

/// The uncompressed bytes of a module.
fn unpack(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("gz") => "gzip",
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return read(path),
    };
    shell::output(shell::command(program, ["-dcq"]).arg(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_recognised_by_their_file_names() {
        let name = |path: &str| module_name(Path::new(path));
        assert_eq!(name("kernel/virtio-rng.ko").as_deref(), Some("virtio_rng"));
        assert_eq!(name("a/overlay.ko.xz").as_deref(), Some("overlay"));
        assert_eq!(name("a/overlay.ko.sig"), None);
        assert_eq!(name("a/modules.dep"), None);
    }
}
