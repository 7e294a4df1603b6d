//! What to compare with: Unix sockets, and copying memory.

use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::{fs, thread};

use vsock_guest::bench::{BLOCK, Checker, TIMEOUT, block};

use crate::Outcome;
use crate::figures::{Case, Meter};

/// A pair of Unix sockets between two threads.
pub(crate) fn socketpair(bytes: u64) -> Outcome<()> {
    let block = block();
    let mut buffer = vec![0; BLOCK];
    for consume in ["discard", "verify"] {
        let (mut writer, mut reader) = UnixStream::pair()?;
        writer.set_write_timeout(Some(TIMEOUT))?;
        reader.set_read_timeout(Some(TIMEOUT))?;
        let mut checker = Checker::default();
        let meter = Meter::start(&[]);
        thread::scope(|scope| -> Outcome<()> {
            let block = &block;
            // It closes its end when it is done, which ends the loop below.
            scope
                .spawn(move || (0..bytes / BLOCK as u64).try_for_each(|_| writer.write_all(block)));
            loop {
                let n = reader.read(&mut buffer)?;
                if n == 0 {
                    return Ok(());
                }
                if consume == "verify" {
                    checker.take(buffer.get(..n).unwrap_or_default());
                }
            }
        })?;
        if checker.is_wrong {
            return Err("a socket changed bytes".into());
        }
        let case = Case {
            path: "socketpair",
            direction: "-",
            consume,
            chunk: BLOCK,
        };
        meter.stop().report(case, bytes);
    }
    Ok(())
}

/// Copies between two buffers that are larger than the caches.
pub(crate) fn memcpy(bytes: u64) {
    let size = (2 * last_level_cache())
        .clamp(256 << 20, 1 << 30)
        .next_multiple_of(BLOCK);
    // Not zeros: their pages would all be the same one.
    let from = vec![1_u8; size];
    let mut to = vec![2_u8; size];
    let mut left = bytes;
    let meter = Meter::start(&[]);
    while left > 0 {
        for (to, from) in to.chunks_mut(BLOCK).zip(from.chunks(BLOCK)) {
            if left == 0 {
                break;
            }
            to.copy_from_slice(from);
            left = left.saturating_sub(from.len() as u64);
        }
        black_box(&mut to);
    }
    let case = Case {
        path: "memcpy",
        direction: "-",
        consume: "-",
        chunk: BLOCK,
    };
    meter.stop().report(case, bytes);
}

/// Bytes of the largest cache, or zero if the kernel does not say.
fn last_level_cache() -> usize {
    let size = fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index3/size");
    let kib = size.unwrap_or_default();
    let kib = kib.trim().trim_end_matches('K').parse::<usize>();
    kib.map_or(0, |kib| kib << 10)
}
