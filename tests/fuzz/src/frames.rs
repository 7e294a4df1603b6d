//! Frames and messages between host and guest.

use std::convert::Infallible;
use std::fmt::Debug;

use wire::{Attach, Event, Failure, Frame, HEADER_LEN, Hello, Kind, Message, Receiver, Reply};
use wire::{FailureKind, Request, Sender, frame, message};

use crate::input::Input;

/// Most bytes that a transfer may have here.
const LIMIT: u64 = 1000;

/// Reads the bytes as they are if the first one is even; otherwise they become frames whose
/// checksums are right, since those would stop any guess.
pub fn run(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else {
        return;
    };
    if first % 2 == 0 {
        hear(rest);
    } else {
        hear(&compose(rest));
    }
}

fn compose(program: &[u8]) -> Vec<u8> {
    let mut input = Input::new(program);
    let mut stream = Vec::new();
    let mut offset = 0;
    while !input.is_empty() {
        let kind = u8::try_from(input.nearly(&[7, 7, 8, 1, 2, 3, 4, 5, 6, 9]) & 0xFF);
        let kind = Kind::try_from(kind.unwrap_or(0)).unwrap_or(Kind::Data);
        let id = input.nearly(&[1, 1, 1, 2]);
        let at = input.nearly(&[offset, offset, 0, LIMIT]);
        let n = input.roll(64);
        let body = input.bytes(n);
        if let Ok(frame) = frame::encode(kind, 0, id, at, body) {
            stream.extend(frame);
            offset += body.len() as u64;
        }
    }
    stream
}

fn hear(stream: &[u8]) {
    let mut rest = stream;
    let mut receiver = Some(Receiver::new(1, LIMIT));
    let mut data = 0;
    let mut frames = Vec::new();
    let error = loop {
        match frame::decode(rest) {
            Ok(Some((frame, behind))) => {
                read_all(&frame);
                receiver = receiver.and_then(|receiver| take(receiver, &frame, &mut data));
                frames.push(frame);
                rest = behind;
            }
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    // Read from a stream, the same bytes are the same frames.
    let (mut source, mut buf) = (stream, Vec::new());
    for frame in frames {
        let read = frame::read(&mut buf, |to| fill(&mut source, to));
        assert_eq!(read.expect("a frame"), Some(frame));
    }
    let read = frame::read(&mut buf, |to| fill(&mut source, to));
    assert!(read != Ok(None) || (rest.is_empty() && !error), "an end");
    assert!(buf.len() <= stream.len().max(HEADER_LEN) + wire::limits::MAX_BODY as usize);
}

fn fill(source: &mut &[u8], to: &mut [u8]) -> Result<usize, Infallible> {
    // In pieces, as a connection gives them.
    let n = to.len().min(source.len()).min(7);
    let (now, later) = source.split_at(n);
    to[..n].copy_from_slice(now);
    *source = later;
    Ok(n)
}

fn take(mut receiver: Receiver, frame: &Frame<'_>, data: &mut u64) -> Option<Receiver> {
    match receiver.handle(frame).ok()? {
        Event::Data { bytes, .. } => *data += bytes.len() as u64,
        Event::End { total } => assert_eq!(total, *data),
        Event::Abort(_) => {}
    }
    assert_eq!(receiver.received(), *data);
    assert!(*data <= LIMIT);
    assert_eq!(receiver.handle_eof().is_ok(), receiver.ended());
    Some(receiver)
}

fn read_all(frame: &Frame<'_>) {
    read::<Hello>(frame);
    read::<Attach>(frame);
    read::<Request>(frame);
    read::<Reply>(frame);
    read::<Failure>(frame);
}

/// A message that can be read can be written, and is the same when it is read again.
fn read<M: Message + PartialEq + Debug>(frame: &Frame<'_>) {
    let Ok(said) = message::decode::<M>(frame) else {
        return;
    };
    let again = message::encode(frame.id, &said).expect("a message that was read");
    let (again, rest) = frame::decode(&again).expect("a frame").expect("all of it");
    assert!(rest.is_empty());
    assert_eq!(message::decode::<M>(&again).expect("a message"), said);
}

/// A transfer, and one of each small message.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let mut sender = Sender::new(1);
    let mut transfer = vec![0];
    for piece in [&b"some"[..], b"bytes"] {
        transfer.extend(sender.data(0, piece).expect("small"));
        transfer.extend(piece);
    }
    let aborted = Sender::new(1).abort(&Failure::new(FailureKind::Internal, "no"));
    transfer.extend(sender.end().expect("small"));
    let hello = Hello {
        protocol: wire::PROTOCOL,
        features: 1,
        max_body: 1 << 20,
        software: "seed".to_owned(),
        nonce: [7; 16],
    };
    let attach = Attach {
        nonce: [7; 16],
        transfer: 1,
    };
    let messages = [
        message::encode(0, &hello).expect("small"),
        message::encode(0, &attach).expect("small"),
        aborted.expect("small"),
    ];
    let mut all = vec![transfer];
    for message in messages {
        let body = &message[HEADER_LEN..];
        let mut program = vec![1, message[2], 0, 0];
        program.push(u8::try_from(body.len().min(63)).unwrap_or(0));
        program.extend(body);
        all.push(program);
        all.push([&[0], message.as_slice()].concat());
    }
    all
}
