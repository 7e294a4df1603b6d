//! Measures one way for bytes between host and guest: `cargo xtask bench transport` runs this once
//! for each way and round, and makes a table of the lines of JSON that come out.
//!
//! | arguments | path |
//! |---|---|
//! | `ring MIB CHUNKS KERNEL INITRAMFS CMDLINE` | our device and the guest's own driver, in a VM |
//! | `kernel MIB CHUNKS KERNEL INITRAMFS CMDLINE` | our device and `AF_VSOCK`, in a VM |
//! | `stock MIB CHUNKS KERNEL INITRAMFS CMDLINE DEVICE` | `vhost-device-vsock` and `AF_VSOCK`, in a VM |
//! | `long MIB KERNEL INITRAMFS CMDLINE` | as `ring`: the memory that 1 GiB takes, and that `MIB` take |
//! | `native MIB CHUNKS` | our device and the guest's own driver in this process, without a VM |
//! | `socketpair MIB` | a pair of Unix sockets, read 4 MiB at a time |
//! | `memcpy MIB` | from one buffer to another, both larger than the processor's caches |
//!
//! `MIB` goes through in each case, a multiple of 4; `CHUNKS` are bytes of one send, with commas. VMs
//! run under emulation, which every machine has.

#[path = "../../tests/ring/bed.rs"]
#[expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test bed that does not work has nothing to measure"
)]
mod bed;
mod figures;
mod host;
#[path = "../../../../guest/vsock-driver/examples/bench_guest/obey.rs"]
mod obey;
mod plain;
#[path = "../../tests/ring/qemu.rs"]
mod qemu;
mod stock;
mod vm;

use std::error::Error;
use std::thread;

use crate::bed::Bed;
use crate::host::{Lab, Link};
use crate::obey::{STREAMS, obey_all};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// The guest's port of the host.
const PORT: u32 = 1024;

/// How much to send, and how.
#[derive(Debug)]
struct Plan {
    path: String,
    bytes: u64,
    chunks: Vec<usize>,
}

impl Plan {
    /// The size of sends of which only one is measured.
    fn largest(&self) -> usize {
        self.chunks.last().copied().unwrap_or(obey::BLOCK)
    }
}

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        [
            path @ ("ring" | "kernel"),
            mib,
            chunks,
            kernel,
            initramfs,
            cmdline,
        ] => {
            let cmdline = format!("{cmdline} bench={path}");
            let plan = plan(path, mib, chunks)?;
            vm::run(&plan, kernel, initramfs, &cmdline, |lab, plan| {
                lab.run(plan)
            })
        }
        ["long", mib, kernel, initramfs, cmdline] => {
            let cmdline = format!("{cmdline} bench=ring");
            let plan = plan("ring", mib, "0")?;
            vm::run(&plan, kernel, initramfs, &cmdline, |lab, plan| {
                lab.run_long(plan)
            })
        }
        ["stock", mib, chunks, kernel, initramfs, cmdline, device] => {
            let cmdline = format!("{cmdline} bench=kernel");
            let plan = plan("stock", mib, chunks)?;
            stock::run(&plan, [kernel, initramfs, &cmdline], device)
        }
        ["native", mib, chunks] => native(&plan("native", mib, chunks)?),
        ["socketpair", mib] => plain::socketpair(mebibytes(mib)?),
        ["memcpy", mib] => {
            plain::memcpy(mebibytes(mib)?);
            Ok(())
        }
        _ => Err("usage: transport PATH MIB [CHUNKS [KERNEL INITRAMFS CMDLINE [DEVICE]]]".into()),
    }
}

fn plan(path: &str, mib: &str, chunks: &str) -> Outcome<Plan> {
    Ok(Plan {
        path: path.to_owned(),
        bytes: mebibytes(mib)?,
        chunks: chunks
            .split(',')
            .map(str::parse)
            .collect::<Result<_, _>>()?,
    })
}

fn mebibytes(mib: &str) -> Outcome<u64> {
    let bytes = mib.parse::<u32>().map(|mib| u64::from(mib) << 20)?;
    if bytes == 0 || bytes % obey::BLOCK as u64 != 0 {
        return Err("the amount is no multiple of 4 MiB".into());
    }
    Ok(bytes)
}

/// Host and guest in this process.
fn native(plan: &Plan) -> Outcome<()> {
    let bed = Bed::new();
    let pairs = (PORT..).take(STREAMS).map(|port| bed.pair(port));
    let (guests, hosts): (Vec<_>, Vec<_>) = pairs.unzip();
    let guest = thread::spawn(move || obey_all(guests));
    let helpers = &[];
    let links = links(&hosts)?;
    Lab { links, helpers }.run(plan)?;
    guest.join().map_err(|_| "the guest panicked")??;
    Ok(())
}

/// All connections of a guest.
fn links(streams: &[impl Link]) -> Outcome<[&dyn Link; STREAMS]> {
    let links: Vec<&dyn Link> = streams.iter().map(|stream| stream as &dyn Link).collect();
    Ok(links.try_into().map_err(|_| "connections are missing")?)
}
