//! Forwards the output of a step to the host.
//!
//! One thread per step reads both pipes and sends every byte. It waits only for the pipes and the
//! host: if the host reads slowly, the pipes fill up, and then the step waits, as it would for a
//! terminal.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::Result;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::transport::{Outgoing, retry};

/// Size of a read in bytes: the capacity of a pipe.
const PIECE: usize = 64 << 10;

/// Flags of a data frame: its stream.
const STDOUT: u8 = 0;
const STDERR: u8 = 1;

/// Sends everything from both pipes, then the end of the transfer.
pub(crate) fn pump(stdout: OwnedFd, stderr: OwnedFd, mut to: Outgoing) -> Result<()> {
    let mut open = vec![(STDOUT, File::from(stdout)), (STDERR, File::from(stderr))];
    let mut buf = vec![0; PIECE];
    while !open.is_empty() {
        let ready = wait(&open)?;
        let mut ended = Vec::new();
        for (at, (stream, pipe)) in open.iter_mut().enumerate() {
            if !ready.contains(&at) {
                continue;
            }
            let n = retry(|| pipe.read(&mut buf))?;
            match buf.get(..n).filter(|piece| !piece.is_empty()) {
                Some(piece) => to.send_flagged(*stream, piece)?,
                None => ended.push(*stream),
            }
        }
        open.retain(|(stream, _)| !ended.contains(stream));
    }
    to.finish().map(drop)
}

/// Waits until a pipe has data or has ended; returns the indexes of these pipes.
fn wait(open: &[(u8, File)]) -> Result<Vec<usize>> {
    let mut polled: Vec<PollFd<'_>> = open
        .iter()
        .map(|(_, pipe)| PollFd::new(pipe.as_fd(), PollFlags::POLLIN))
        .collect();
    loop {
        match poll(&mut polled, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            done => {
                done?;
                let any = |fd: &PollFd<'_>| fd.any() == Some(true);
                let ready = polled.iter().enumerate().filter(|(_, fd)| any(fd));
                return Ok(ready.map(|(at, _)| at).collect());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::thread;

    use nix::fcntl::OFlag;
    use nix::unistd::pipe2;
    use wire::{Event, Receiver, frame};

    use super::*;
    use crate::testing::host;

    #[test]
    fn every_byte_arrives_on_its_own_stream() {
        let (transfers, accepted) = host();
        let (out_reader, out) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (err_reader, err) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let outgoing = transfers.send(9).unwrap();
        let pumping = thread::spawn(move || pump(out_reader, err_reader, outgoing));
        let write = |pipe: OwnedFd, byte: u8| {
            thread::spawn(move || {
                let mut pipe = File::from(pipe);
                for _ in 0..1000 {
                    pipe.write_all(&[byte; 333]).unwrap();
                }
            })
        };
        let writers = [write(out, b'o'), write(err, b'e')];
        let mut connection = accepted.recv().unwrap();
        let mut buf = Vec::new();
        frame::read(&mut buf, |buf| connection.read(buf))
            .unwrap()
            .unwrap();
        let mut receiver = Receiver::new(9, u64::MAX);
        let mut counts = [0, 0];
        while let Some(frame) = frame::read(&mut buf, |buf| connection.read(buf)).unwrap() {
            if let Event::Data { flags, bytes } = receiver.handle(&frame).unwrap() {
                let want = [b'o', b'e'][usize::from(flags)];
                assert!(bytes.iter().all(|byte| *byte == want));
                counts[usize::from(flags)] += bytes.len();
            }
        }
        receiver.handle_eof().unwrap();
        assert_eq!(counts, [333_000, 333_000]);
        for writer in writers {
            writer.join().unwrap();
        }
        pumping.join().unwrap().unwrap();
    }
}
