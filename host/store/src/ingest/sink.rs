//! Where the bytes of a blob go: into its file and into its digest.
//!
//! Hashing is what ingest costs. A layer hashes each byte twice, once for its file and once for
//! the tar, so the second half is done here by a thread of its own, reached through a bounded
//! queue of large pieces. Small blobs never start it.

use std::fs::File;
use std::io;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::digest::{Digest, Hasher};
use crate::error::is_full;
use crate::{Store, disk, effect};

/// Unit of handing over. Large enough that the hand-over costs nothing.
const PIECE: usize = 1 << 20;
/// Pieces on their way. With the one that is filled and the one that is hashed, this bounds the
/// memory of one ingest.
const QUEUE: usize = 4;

/// How often room is made for one piece.
const TRIES: u32 = 8;

/// A file that is written and hashed.
#[derive(Debug)]
pub(crate) struct Sink {
    piece: Vec<u8>,
    target: Option<Target>,
    size: u64,
}

#[derive(Debug)]
enum Target {
    /// Nothing has left `piece` yet.
    Here(Output),
    There(Worker),
}

#[derive(Debug)]
struct Worker {
    full: Sender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
    thread: JoinHandle<io::Result<(File, Hasher)>>,
}

/// A file on a disk that may be full.
#[derive(Debug)]
struct Output {
    file: File,
    end: u64,
    store: Store,
}

impl Output {
    /// Writes all of it. On a full disk what nothing keeps makes room, a few times: others may take
    /// what was freed, and a quota or a lack of inodes looks like room.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut tries = 0;
        while let Err(error) = disk::write_at(&self.file, bytes, self.end) {
            tries += 1;
            if !is_full(&error) || tries > TRIES || !self.store.make_room() {
                return Err(error);
            }
        }
        self.end += bytes.len() as u64;
        Ok(())
    }
}

impl Sink {
    /// Writes to a new file of this store.
    pub(crate) fn new(store: &Store, file: File) -> Self {
        let output = Output {
            file,
            end: 0,
            store: store.clone(),
        };
        Self {
            piece: Vec::new(),
            target: Some(Target::Here(output)),
            size: 0,
        }
    }

    /// Bytes taken so far.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Takes the next bytes. Waits while the disk or the other thread is behind.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.size += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = PIECE - self.piece.len();
            let (taken, rest) = bytes.split_at(room.min(bytes.len()));
            self.piece.extend_from_slice(taken);
            if self.piece.len() == PIECE {
                self.hand_over()?;
            }
            bytes = rest;
        }
        Ok(())
    }

    /// The file, everything written but not yet durable, and the digest of all bytes.
    pub(crate) fn finish(mut self) -> io::Result<(File, Digest)> {
        match self.target.take() {
            Some(Target::Here(mut output)) => {
                output.write(&self.piece)?;
                Ok((output.file, Digest::of(&self.piece)))
            }
            Some(Target::There(worker)) => {
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
            Some(Target::Here(output)) => Worker::start(output)?,
            Some(Target::There(worker)) => worker,
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
        self.target = Some(Target::There(worker));
        Ok(())
    }
}

impl Worker {
    fn start(mut output: Output) -> io::Result<Self> {
        let (full, next) = bounded::<Vec<u8>>(QUEUE);
        let (back, empty) = bounded(QUEUE);
        let watch = effect::Watch::of_this_thread();
        let thread = thread::Builder::new()
            .name("ingest".to_owned())
            .spawn(move || {
                watch.enter();
                let mut hasher = Hasher::new();
                for mut piece in next {
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

    /// Why the thread does not take pieces any more.
    fn failure(self) -> io::Error {
        self.join().err().unwrap_or_else(gone)
    }
}

/// A write after a failed one.
fn gone() -> io::Error {
    io::Error::other("an earlier write failed")
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::OpenOptions;

    #[test]
    fn what_is_kept_is_what_was_pushed() {
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
            assert_eq!(kept, (Digest::of(bytes), size as u64));
            assert!(store.blob(kept.0).unwrap().unwrap() == bytes, "{size}");
        }
        store.close().unwrap();
    }
}
