//! Measures one transport between host and guest: `cargo xtask bench transport` runs this once for each
//! transport and round, and makes a table of the lines of JSON that it prints.
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
//! `MIB` is what each case transfers, a multiple of 4; `CHUNKS` are bytes of one send, separated by
//! commas. VMs are emulated, which works on every machine.

mod figures;
mod host;
mod plain;
mod stock;
mod vm;

use std::error::Error;
use std::thread;

use vsock_guest::bench::{BLOCK, STREAMS, serve_all};
use vsock_testbed::Testbed;

use crate::host::{Benchmark, HostStream};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// The host port to which the guest connects.
const PORT: u32 = 1024;

/// How much to send, and how.
#[derive(Debug)]
struct Plan {
    path: String,
    bytes: u64,
    chunks: Vec<usize>,
}

impl Plan {
    /// The size of sends where only one size is measured.
    fn largest(&self) -> usize {
        self.chunks.last().copied().unwrap_or(BLOCK)
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
            vm::run(&plan, kernel, initramfs, &cmdline, |benchmark, plan| {
                benchmark.run(plan)
            })
        }
        ["long", mib, kernel, initramfs, cmdline] => {
            let cmdline = format!("{cmdline} bench=ring");
            let plan = plan("ring", mib, "0")?;
            vm::run(&plan, kernel, initramfs, &cmdline, |benchmark, plan| {
                benchmark.run_long(plan)
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
    if bytes == 0 || bytes % BLOCK as u64 != 0 {
        return Err("the amount must be a multiple of 4 MiB".into());
    }
    Ok(bytes)
}

/// Host and guest in this process.
fn native(plan: &Plan) -> Outcome<()> {
    let testbed = Testbed::new();
    let pairs = (PORT..).take(STREAMS).map(|port| testbed.pair(port));
    let (guests, hosts): (Vec<_>, Vec<_>) = pairs.unzip();
    let guest = thread::spawn(move || serve_all(guests));
    let helpers = &[];
    let streams = streams(&hosts)?;
    Benchmark { streams, helpers }.run(plan)?;
    guest.join().map_err(|_| "the guest panicked")??;
    Ok(())
}

/// All connections of a guest.
fn streams(all: &[impl HostStream]) -> Outcome<[&dyn HostStream; STREAMS]> {
    let all: Vec<&dyn HostStream> = all.iter().map(|stream| stream as &dyn HostStream).collect();
    Ok(all.try_into().map_err(|_| "connections are missing")?)
}
