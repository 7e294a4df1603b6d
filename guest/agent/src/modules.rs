//! Kernel modules in the initramfs.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Where the initramfs has the modules and the file that lists them in load order.
const DIRECTORY: &str = "/modules";

/// The modules of the guest image, by the time when they are loaded.
#[derive(Debug)]
pub(crate) struct ModuleGroups {
    /// Needed by everything else.
    pub(crate) first: Modules,
    /// Needed by our own vsock driver.
    pub(crate) ring: Modules,
    /// The kernel's vsock driver.
    pub(crate) fallback: Modules,
    /// All others.
    pub(crate) later: Modules,
}

impl ModuleGroups {
    /// Reads the list of modules. Each line has the word for the group and the name of the file.
    pub(crate) fn find() -> Result<Self> {
        let dir = open(
            DIRECTORY,
            OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .context("the initramfs has no modules")?;
        let order = Path::new(DIRECTORY).join("order");
        let order = fs::read_to_string(order).context("cannot read the list of modules")?;
        let group = |word: &str| -> Result<Modules> {
            let lines = order.lines().filter_map(|line| line.split_once(' '));
            let names = lines.filter(|(found, _)| *found == word);
            Ok(Modules {
                dir: dir.try_clone()?,
                names: names.map(|(_, name)| name.to_owned()).collect(),
            })
        };
        Ok(Self {
            first: group("first")?,
            ring: group("ring")?,
            fallback: group("fallback")?,
            later: group("later")?,
        })
    }
}

/// Kernel modules that are not loaded yet.
#[derive(Debug)]
pub(crate) struct Modules {
    /// Their directory, which has no path any more once the agent has left the initramfs.
    dir: OwnedFd,
    /// Their files, in load order.
    names: Vec<String>,
}

impl Modules {
    /// Loads the modules and deletes their files, which frees memory.
    pub(crate) fn load(self) -> Result<()> {
        for name in &self.names {
            let name = name.as_str();
            let file = openat(&self.dir, name, OFlag::O_CLOEXEC, Mode::empty())
                .with_context(|| format!("cannot open module {name}"))?;
            match finit_module(&file, c"", ModuleInitFlags::empty()) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => {
                    return Err(errno).with_context(|| format!("cannot load module {name}"));
                }
            }
            unlinkat(&self.dir, name, UnlinkatFlags::NoRemoveDir)?;
        }
        Ok(())
    }
}
