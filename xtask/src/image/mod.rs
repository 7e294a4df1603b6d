//! `cargo xtask image`: builds what the builder VM boots.
//!
//! The result is three files: `vmlinuz`, `initramfs.cpio`, and `image.json`, which describes
//! them. They are assembled anew each time, which takes some tens of milliseconds, and written
//! only where they differ, so no stamp can be out of date.

mod agent;
mod apt;
mod kernel;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use vmimage::{Load, Module, ModuleError, Recipe, sha256_hex};
use vmimage_manifest::{INITRAMFS, KERNEL, MANIFEST, Manifest};

pub(crate) use agent::compile_static;

use crate::shell::say;
use crate::workspace::{Workspace, make_dir, read, update};
use kernel::Kernel;

/// Build the guest image: kernel, modules, agent.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Use this kernel instead of Debian's cloud kernel.
    #[arg(long, value_name = "FILE", requires = "modules")]
    kernel: Option<PathBuf>,
    /// Modules of that kernel: the directory that holds `kernel/`, such as /lib/modules/VERSION.
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,
    /// Use this static program as the agent instead of compiling it.
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Ask Debian for a newer kernel even though one was downloaded before.
    #[arg(long, conflicts_with = "kernel")]
    refresh: bool,
    /// Where to put the guest image [default: vmimage in cargo's target directory].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Args {
    /// The guest image that has this program as its agent, in this directory.
    pub(crate) fn of(agent: PathBuf, out: PathBuf) -> Self {
        Self {
            agent: Some(agent),
            out: Some(out),
            ..Self::default()
        }
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let workspace = Workspace::find()?;
    build(&workspace, args).map(drop)
}

/// Builds the guest image and returns the directory it is in.
pub(crate) fn build(workspace: &Workspace, args: &Args) -> Result<PathBuf> {
    let out = args.out.clone().unwrap_or_else(|| workspace.image());
    let agent = agent::obtain(workspace, args.agent.as_deref())?;
    let kernel = match (&args.kernel, &args.modules) {
        (Some(image), Some(modules)) => Kernel::given(image, modules)?,
        _ => Kernel::debian(&workspace.target.join("kernel"), args.refresh)?,
    };
    let recipe = Recipe::built_in()?;
    let parts = Parts::assemble(&kernel, &recipe, read(&agent.program)?)?;
    let manifest = describe(&parts, &kernel, &agent, &recipe);
    let changed = write(&out, &parts, &manifest)?;
    summary(&out, &parts, &manifest, changed);
    Ok(out)
}

/// The bytes of a guest image.
struct Parts {
    kernel: Vec<u8>,
    initramfs: Vec<u8>,
    program: Vec<u8>,
    modules: Vec<Module>,
}

impl Parts {
    /// The guest image of this kernel in which `program` is the first one.
    fn assemble(kernel: &Kernel, recipe: &Recipe, program: Vec<u8>) -> Result<Self> {
        let tree = kernel.modules()?;
        let mut names: Vec<&str> = Vec::new();
        let mut groups = Vec::new();
        let mut n = 0;
        for (load, wanted) in recipe.groups() {
            let longer = [names.as_slice(), &wanted].concat();
            let ordered = vmimage::in_load_order(longer.iter().copied(), |name| tree.find(name));
            if let (Load::Ring, Err(why @ ModuleError::Absent { .. })) = (load, &ordered) {
                say(format!(
                    "{why}: its VMs will use the kernel's own vsock driver"
                ));
                continue;
            }
            let ordered = ordered.with_context(|| format!("modules of kernel {}", kernel.version));
            let group = ordered?.split_off(n);
            n += group.len();
            names = longer;
            groups.push((load, group));
        }
        Ok(Self {
            initramfs: vmimage::initramfs(&program, &groups),
            kernel: read(&kernel.image)?,
            program,
            modules: groups.into_iter().flat_map(|(_, group)| group).collect(),
        })
    }
}

/// Files that a VM boots with another program in the agent's place.
#[derive(Debug)]
pub(crate) struct Other {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    pub(crate) cmdline: String,
}

/// Makes a guest image of the same kernel and modules in `out`, in which `program` is the first one.
pub(crate) fn with_program(workspace: &Workspace, program: &Path, out: &Path) -> Result<Other> {
    let kernel = Kernel::debian(&workspace.target.join("kernel"), false)?;
    let recipe = Recipe::built_in()?;
    let parts = Parts::assemble(&kernel, &recipe, read(program)?)?;
    let initramfs = out.join(INITRAMFS);
    update(&initramfs, &parts.initramfs)?;
    Ok(Other {
        kernel: kernel.image,
        initramfs,
        cmdline: recipe.command_line(),
    })
}

/// The kernel of guest images, and these modules of it with what they need, in load order.
pub(crate) fn kernel_with(workspace: &Workspace, names: &[&str]) -> Result<(PathBuf, Vec<Module>)> {
    let kernel = Kernel::debian(&workspace.target.join("kernel"), false)?;
    let tree = kernel.modules()?;
    let modules = vmimage::in_load_order(names.iter().copied(), |name| tree.find(name))
        .with_context(|| format!("modules of kernel {}", kernel.version))?;
    Ok((kernel.image, modules))
}

fn describe(parts: &Parts, kernel: &Kernel, agent: &agent::Agent, recipe: &Recipe) -> Manifest {
    Manifest {
        format: Manifest::FORMAT,
        kernel_version: kernel.version.clone(),
        agent_version: agent.version.clone(),
        protocol: agent.protocol,
        cmdline: recipe.command_line(),
        modules: parts
            .modules
            .iter()
            .map(|module| module.name.clone())
            .collect(),
        kernel_sha256: sha256_hex(&parts.kernel),
        kernel_size: parts.kernel.len() as u64,
        agent_sha256: sha256_hex(&parts.program),
        initramfs_sha256: sha256_hex(&parts.initramfs),
        initramfs_size: parts.initramfs.len() as u64,
    }
}

/// Writes the three files, the description last: whoever sees it finds the others. Returns whether
/// anything was different.
fn write(out: &Path, parts: &Parts, manifest: &Manifest) -> Result<bool> {
    make_dir(out)?;
    let kernel = update(&out.join(KERNEL), &parts.kernel)?;
    let initramfs = update(&out.join(INITRAMFS), &parts.initramfs)?;
    let described = update(&out.join(MANIFEST), manifest.to_json()?.as_bytes())?;
    Ok(kernel || initramfs || described)
}

fn summary(out: &Path, parts: &Parts, manifest: &Manifest, changed: bool) {
    let state = if changed { "written" } else { "up to date" };
    say(format!("guest image in {}: {state}", out.display()));
    say(format!(
        "  vmlinuz         {:>9}  Linux {}",
        size(parts.kernel.len()),
        manifest.kernel_version
    ));
    say(format!(
        "  initramfs.cpio  {:>9}  sha256:{}",
        size(parts.initramfs.len()),
        manifest.initramfs_sha256
    ));
    say(format!(
        "    /init         {:>9}  agent {}, protocol {}",
        size(parts.program.len()),
        manifest.agent_version,
        manifest.protocol
    ));
    for module in &parts.modules {
        say(format!("    {:<13} {:>9}", "module", size(module.bytes.len())) + "  " + &module.name);
    }
    say(format!("  command line: {}", manifest.cmdline));
}

fn size(bytes: usize) -> String {
    format!("{} KiB", bytes.div_ceil(1024))
}
