//! The sink for the content of a blob, which writes its file and computes its digest.
//!
//! Hashing is the main cost of an ingest. Each byte of a layer is hashed twice, for the digest of its
//! file and for that of the whole tar, so the latter is done by a separate thread, behind a bounded
//! queue of large pieces. Small blobs do not start the thread.

use std::fs::File;
use std::io;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::budget::Charge;
use crate::error::is_full;
use crate::failpoint::Hooks;
use crate::object::PendingObject;
use crate::{Digest, Hasher, Store, disk};

/// Size of a piece in the queue, in bytes: so large that the queue costs nothing.
const PIECE: usize = 1 << 20;
/// Pieces in the queue. With the piece that is being filled and the one that is being hashed, this
/// bounds the memory of an ingest.
const QUEUE: usize = 4;

/// How often disk space is freed for one piece.
const ATTEMPTS: u32 = 8;

/// Writes and hashes a new file.
#[derive(Debug)]
pub(crate) struct Sink {
    piece: Vec<u8>,
    target: Option<Target>,
    size: u64,
    charge: Charge,
}

#[derive(Debug)]
enum Target {
    /// No piece is full yet.
    Direct(Output),
    Thread(Worker),
}

#[derive(Debug)]
struct Worker {
    full: Sender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
    thread: JoinHandle<io::Result<(File, Hasher)>>,
}

/// A file on a disk that can become full.
#[derive(Debug)]
struct Output {
    file: File,
    end: u64,
    store: Store,
}

impl Output {
    /// Writes all of `bytes`. If the disk is full, frees space by pruning and tries again, a few times:
    /// other processes may take what was freed, and with a quota or without free inodes there seems to
    /// be space.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut attempts = 0;
        while let Err(error) = disk::write_at(&self.file, bytes, self.end) {
            attempts += 1;
            if !is_full(&error) || attempts > ATTEMPTS || !self.store.free_space() {
                return Err(error);
            }
        }
        self.end += bytes.len() as u64;
        Ok(())
    }
}

impl Sink {
    /// A sink that writes to the new file of an object of this store.
    pub(crate) fn new(store: &Store, pending: &PendingObject, file: File) -> Self {
        let output = Output {
            file,
            end: 0,
            store: store.clone(),
        };
        Self {
            piece: Vec::new(),
            target: Some(Target::Direct(output)),
            size: 0,
            charge: pending.charge.clone(),
        }
    }

    /// Number of bytes so far.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Appends bytes. Waits while the disk or the other thread is behind.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let n_bytes = bytes.len() as u64;
        self.charge.take(n_bytes).map_err(io::Error::other)?;
        self.size += n_bytes;
        while !bytes.is_empty() {
            let missing = PIECE - self.piece.len();
            let (taken, rest) = bytes.split_at(missing.min(bytes.len()));
            self.piece.extend_from_slice(taken);
            if self.piece.len() == PIECE {
                self.hand_over()?;
            }
            bytes = rest;
        }
        Ok(())
    }

    /// Writes what is left. Returns the file, which is not durable yet, and the digest of all bytes.
    pub(crate) fn finish(mut self) -> io::Result<(File, Digest)> {
        match self.target.take() {
            Some(Target::Direct(mut output)) => {
                output.write(&self.piece)?;
                Ok((output.file, crate::sha256(&self.piece)))
            }
            Some(Target::Thread(worker)) => {
                if !self.piece.is_empty() && worker.full.send(self.piece).is_err() {
                    return Err(worker.failure());
                }
                let (file, hasher) = worker.join()?;
                Ok((file, hasher.finish()))
            }
            None => Err(gone()),
        }
    }

    fn hand_over(&mut self) -> io::Result<()> {
        let worker = match self.target.take() {
            Some(Target::Direct(output)) => Worker::start(output)?,
            Some(Target::Thread(worker)) => worker,
            None => return Err(gone()),
        };
        let next = worker
            .empty
            .try_recv()
            .unwrap_or_else(|_| Vec::with_capacity(PIECE));
        let full = std::mem::replace(&mut self.piece, next);
        if worker.full.send(full).is_err() {
            return Err(worker.failure());
        }
        self.target = Some(Target::Thread(worker));
        Ok(())
    }
}

impl Worker {
    fn start(mut output: Output) -> io::Result<Self> {
        let (full, next) = bounded::<Vec<u8>>(QUEUE);
        let (back, empty) = bounded(QUEUE);
        let hooks = Hooks::of_this_thread();
        let thread = thread::Builder::new()
            .name("ingest".to_owned())
            .spawn(move || {
                hooks.install();
                let mut hasher = Hasher::new();
                for mut piece in next {
                    // What is shorter than a piece is always written: results of others and metadata
                    // are not what fills a disk.
                    if let Some(low) = output.store.low_space() {
                        return Err(io::Error::other(low));
                    }
                    output.write(&piece)?;
                    hasher.update(&piece);
                    piece.clear();
                    back.try_send(piece).ok(); // only to spare an allocation
                }
                Ok((output.file, hasher))
            })?;
        Ok(Self {
            full,
            empty,
            thread,
        })
    }

    fn join(self) -> io::Result<(File, Hasher)> {
        drop(self.full);
        self.thread.join().unwrap_or_else(|_| Err(gone()))
    }

    /// Why the thread takes no more pieces.
    fn failure(self) -> io::Error {
        self.join().err().unwrap_or_else(gone)
    }
}

/// The error of a write after a failed one.
fn gone() -> io::Error {
    io::Error::other("an earlier write failed")
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::OpenOptions;

    #[test]
    fn the_blob_is_what_was_pushed_in_pieces_of_any_size() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path(), &OpenOptions::default()).unwrap();
        let bytes: Vec<u8> = (0..3 * PIECE + 5)
            .map(|at| (at / 3).to_le_bytes()[0])
            .collect();
        for size in [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, bytes.len()] {
            let bytes = &bytes[..size];
            let mut writer = store.blob_writer("test").unwrap();
            for piece in bytes.chunks(PIECE / 3) {
                writer.write_all(piece).unwrap();
            }
            let kept = writer.finish().unwrap();
            assert_eq!(kept, (crate::sha256(bytes), size as u64));
            assert!(store.blob(kept.0).unwrap().unwrap() == bytes, "{size}");
        }
        store.close().unwrap();
    }
}
