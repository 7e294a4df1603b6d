//! PID 1 of the builder VM.
//!
//! The agent carries out the requests of the host and decides nothing: it unpacks layers onto the
//! guest disk, runs steps in sandboxes on top of them, and sends back their changes.
//!
//! **Laws** of the whole program:
//!
//! * PID 1 never returns, and a panic is reported on the console: every end is a power-off.
//! * The agent listens on nothing, and losing the control connection ends the VM.
//! * Exactly one thread reaps child processes.
//! * The guest disk is a cache: a name in `layers/` means a whole layer, and nothing else counts.
//! * Nothing of the agent, no descriptor and no memory, gets into a step.
//!
//! Start reading with [`control`] (how requests arrive), [`requests`] (what each of them does),
//! [`steps`] (the life of a step) and [`sandbox`] (what a step sees).
//!
//! | module | content |
//! |---|---|
//! | [`boot`], [`modules`], [`console`] | from the kernel's hand-over to a machine in which steps run |
//! | [`control`], [`requests`] | the control connection; one arm for each request |
//! | [`transport`] | connections and transfers, over our own vsock driver or the kernel's |
//! | [`disk`], [`layers`], [`tree`] | the guest disk, its layers, deleting trees |
//! | [`attributes`], [`diff`] | file attributes, the changes of a step as a layer |
//! | [`steps`], [`sandbox`], [`network`], [`output`] | running a step |
//! | [`reap`], [`stat`], [`fault`], [`sys`] | child processes, resource use, errors, system calls |

mod attributes;
mod boot;
mod console;
mod control;
mod diff;
mod disk;
mod fault;
mod layers;
mod modules;
mod network;
mod output;
mod reap;
mod requests;
mod sandbox;
mod stat;
mod steps;
mod sys;
#[cfg(test)]
mod testing;
mod transport;
mod tree;

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::disk::Disk;
use crate::modules::{ModuleGroups, Modules};
use crate::network::Net;
use crate::reap::Reaper;
use crate::requests::Guest;
use crate::sandbox::{Program, Sandboxes};
use crate::steps::Steps;
use crate::transport::{DriverChoice, Transfers};

fn main() {
    let mut args = std::env::args_os();
    match args.next() {
        Some(name) if name == sandbox::init::NAME => sandbox::init::main(args.next().as_deref()),
        Some(name) if name == network::child::NAME => network::child::main(),
        Some(_) | None => {}
    }
    if std::process::id() == 1 {
        console::install();
        console::pid1(serve);
    }
}

/// How long disk and network may take before the console says where the threads wait.
const LATE: Duration = Duration::from_secs(20);

/// Sets up the guest disk and the network.
fn devices(modules: Modules, program: &Program, reaper: &Reaper) -> Result<(Disk, Net)> {
    modules.load()?;
    let network = Net::start(program, reaper)?;
    let disk = Disk::attach()?;
    sandbox::make_skeleton(Path::new(disk::SKELETON)).context("cannot create the lowest layer")?;
    Ok((disk, network))
}

/// Logs where in the kernel each thread is, to find out why a VM hangs.
fn log_thread_stacks() {
    log::error!("disk and network are not ready after {} s", LATE.as_secs());
    for task in std::fs::read_dir("/proc/self/task").into_iter().flatten() {
        let Ok(task) = task else { continue };
        let read = |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let stack = read("stack");
        let frames: Vec<&str> = stack.lines().take(12).map(str::trim).collect();
        log::error!("thread {}: {}", read("comm").trim(), frames.join(" "));
    }
}

/// Sets up the machine and serves the host.
fn serve() -> Result<Infallible> {
    let modules = ModuleGroups::find()?;
    boot::boot(modules.first)?;
    let cmdline = std::fs::read_to_string("/proc/cmdline").context("/proc/cmdline")?;
    let choice = DriverChoice::from_cmdline(&cmdline);
    let reaper = Reaper::start()?;
    let program = Arc::new(Program::find()?);
    // Disk and network are set up while host and agent greet each other.
    let (tell, ready) = mpsc::sync_channel(1);
    let later = modules.later;
    let (starts, reaps) = (Arc::clone(&program), reaper.clone());
    thread::Builder::new()
        .name("devices".into())
        .spawn(move || tell.send(devices(later, &starts, &reaps)))?;
    let (connect, features) = transport::choose(choice, modules.ring, modules.fallback)?;
    let mut connection = connect.connect()?;
    let nonce = control::greet(&mut *connection, features).context("cannot greet the host")?;
    let (disk, network) = match ready.recv_timeout(LATE) {
        Err(RecvTimeoutError::Timeout) => {
            log_thread_stacks();
            ready.recv().context("cannot set up the devices")?
        }
        devices => devices.context("cannot set up the devices")?,
    }?;
    let (disk, sandboxes) = (Arc::new(disk), Sandboxes::new(program, network, reaper));
    let transfers = Arc::new(Transfers::new(connect, nonce));
    let steps = Steps::new(Arc::clone(&disk), sandboxes, Arc::clone(&transfers));
    let guest = Guest::new(disk, transfers, steps);
    control::serve(connection, Arc::new(guest))
}
