//! The reader of an image that is exported to standard output: it takes one byte, and more when it is told
//! to. So an export waits as long as a test wants it to.

use std::io::Read as _;
use std::process::ChildStdout;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

#[derive(Debug, Clone, Default)]
pub(crate) struct Archive(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// How many were read.
    bytes: AtomicU64,
    /// At how many to stop.
    wanted: AtomicU64,
}

impl Archive {
    pub(crate) fn of(mut stdout: ChildStdout) -> Self {
        let archive = Self::default();
        archive.want(1);
        let inner = Arc::clone(&archive.0);
        thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            let mut bytes = 0;
            loop {
                // Nobody wants anything any more once the build is forgotten.
                let wanted = inner.wanted.load(Ordering::SeqCst);
                let room = wanted.saturating_sub(bytes).min(1 << 16);
                if room == 0 && Arc::strong_count(&inner) > 1 {
                    thread::sleep(Duration::from_millis(1));
                    continue;
                }
                let room = usize::try_from(room).unwrap();
                let Ok(count @ 1..) = stdout.read(&mut buffer[..room]) else {
                    return;
                };
                bytes += count as u64;
                inner.bytes.store(bytes, Ordering::SeqCst);
            }
        });
        archive
    }

    /// Reads on, up to so many bytes.
    pub(crate) fn want(&self, bytes: u64) {
        self.0.wanted.store(bytes, Ordering::SeqCst);
    }

    /// Whether it has as many as were wanted, and the export goes on.
    pub(crate) fn waits(&self) -> bool {
        self.0.bytes.load(Ordering::SeqCst) == self.0.wanted.load(Ordering::SeqCst)
    }
}
