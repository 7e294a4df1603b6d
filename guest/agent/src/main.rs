//! PID 1 of the builder VM.
//!
//! The agent carries out what the host asks and decides nothing: it unpacks layers onto the guest
//! disk, runs steps in sandboxes over them, and sends back what they changed. Where to start
//! reading: [`control`] for how requests come in, [`steps`] for what becomes of them, [`sandbox`]
//! for what a step sees.
//!
//! Laws of the whole program:
//!
//! * PID 1 never returns and never panics into nothing: every end is a power off.
//! * It listens on nothing, and the loss of the control connection ends the VM.
//! * Exactly one thread reaps child processes.
//! * The guest disk is a cache: a name in `layers/` means a whole layer, and nothing else counts.
//! * Nothing of the agent, no descriptor and no word of memory, gets into a step.

mod archive;
mod boot;
mod console;
mod control;
mod diff;
mod disk;
mod fault;
mod layers;
mod network;
mod output;
mod reap;
mod sandbox;
mod stat;
mod steps;
mod sys;
mod transport;
mod tree;
mod verbs;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::boot::Modules;
use crate::disk::Disk;
use crate::network::Uplink;
use crate::reap::Reaper;
use crate::sandbox::Sandboxes;
use crate::steps::Steps;
use crate::transport::{Transfers, Wanted};
use crate::verbs::Guest;

fn main() {
    let mut args = std::env::args_os();
    if args.next().is_some_and(|name| name == sandbox::init::NAME) {
        sandbox::init::main(args.next().as_deref());
    }
    if std::process::id() == 1 {
        console::install();
        console::pid1(serve);
    }
}

/// How long disk and network may take before the console says what they wait for.
const LATE: Duration = Duration::from_secs(20);

fn devices(modules: Modules) -> Result<(Disk, Option<Uplink>)> {
    modules.load()?;
    Ok((Disk::attach()?, Uplink::set_up()?))
}

/// Tells where in the kernel each thread is, for whoever has to find out why a VM hangs.
fn tell_where_threads_are() {
    log::error!("disk and network are not ready after {} s", LATE.as_secs());
    for task in std::fs::read_dir("/proc/self/task").into_iter().flatten() {
        let Ok(task) = task else { continue };
        let read = |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let stack = read("stack");
        let frames: Vec<&str> = stack.lines().take(12).map(str::trim).collect();
        log::error!("thread {}: {}", read("comm").trim(), frames.join(" "));
    }
}

/// Makes the machine ready and serves the host.
fn serve() -> Result<Infallible> {
    let modules = boot::boot()?;
    let cmdline = std::fs::read_to_string("/proc/cmdline").context("/proc/cmdline")?;
    let wanted = Wanted::from_cmdline(&cmdline);
    let reaper = Reaper::start()?;
    // Disk and network become ready while host and agent greet each other.
    let (tell, ready) = mpsc::sync_channel(1);
    thread::Builder::new()
        .name("devices".into())
        .spawn(move || tell.send(devices(modules.later)))?;
    let (connect, features) = transport::choose(wanted, modules.ring, modules.fallback)?;
    let mut connection = connect.connect()?;
    let nonce = control::greet(&mut *connection, features).context("greeting")?;
    let (disk, uplink) = match ready.recv_timeout(LATE) {
        Err(RecvTimeoutError::Timeout) => {
            tell_where_threads_are();
            ready.recv().context("the devices")?
        }
        devices => devices.context("the devices")?,
    }?;
    let (disk, sandboxes) = (Arc::new(disk), Sandboxes::new(uplink, reaper)?);
    let transfers = Arc::new(Transfers::new(connect, nonce));
    let steps = Steps::new(Arc::clone(&disk), sandboxes, Arc::clone(&transfers));
    let guest = Guest::new(disk, transfers, steps);
    control::serve(connection, Arc::new(guest))
}
