//! Frames survive any split of the stream, and no bytes make the decoder panic.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::limits::MAX_BODY;

const KINDS: [Kind; 16] = [
    Kind::Hello,
    Kind::Request,
    Kind::Reply,
    Kind::Ping,
    Kind::Pong,
    Kind::Attach,
    Kind::Data,
    Kind::End,
    Kind::Abort,
    Kind::FlowOpen,
    Kind::FlowOpened,
    Kind::FlowRefused,
    Kind::FlowData,
    Kind::FlowCredit,
    Kind::FlowEnd,
    Kind::FlowReset,
];

#[track_caller]
fn check(bytes: &[u8], want: Result<Option<Frame<'_>>, FrameError>) {
    assert_eq!(
        decode(bytes).map(|split| split.map(|(frame, _)| frame)),
        want
    );
}

#[test]
fn the_bytes_of_a_frame_are_pinned() {
    let frame = encode(Kind::Data, 1, 0x0102, 0x0304, b"abc").unwrap();
    let golden = [
        b'c', b'd', 7, 1, 3, 0, 0, 0, // magic, kind, flags, length
        2, 1, 0, 0, 0, 0, 0, 0, // id
        4, 3, 0, 0, 0, 0, 0, 0, // offset
        238, 108, 72, 22, 47, 182, 248, 104, // check
        b'a', b'b', b'c',
    ];
    assert_eq!(frame, golden);
}

proptest! {
    #[test]
    fn a_body_in_pieces_is_as_good_as_a_whole_one(
        bytes in vec(any::<u8>(), 0..1000),
        size in 1_usize..300,
        flip in any::<Option<proptest::sample::Index>>(),
    ) {
        let frame = encode(Kind::Data, 1, 2, 3, &bytes).unwrap();
        let (header, sent) = frame.split_first_chunk().unwrap();
        let mut sent = sent.to_vec();
        let flipped = flip.filter(|_| !sent.is_empty());
        if let Some(at) = flipped {
            let at = at.index(sent.len());
            sent[at] ^= 0x10;
        }
        let header = Header::parse(header).unwrap();
        let mut body = header.body();
        let mut got = Vec::new();
        for piece in sent.chunks(size) {
            prop_assert_eq!(body.clone().finish(), Err(FrameError::Corrupt(Kind::Data)));
            got.extend_from_slice(body.take(piece));
        }
        prop_assert_eq!(body.left(), 0);
        prop_assert!(body.take(b"what follows is not of this body").is_empty());
        prop_assert_eq!(got, sent);
        let want = if flipped.is_some() {
            Err(FrameError::Corrupt(Kind::Data))
        } else {
            Ok(header)
        };
        prop_assert_eq!(body.finish(), want);
    }
}

#[test]
fn a_wrong_start_is_told_before_any_body_is_awaited() {
    let mut bytes = encode(Kind::Ping, 0, 1, 0, b"").unwrap();
    bytes[0] = b'X';
    check(
        &bytes,
        Err(FrameError::BadMagic(u16::from_le_bytes(*b"Xd"))),
    );
    let mut bytes = encode(Kind::Ping, 0, 1, 0, b"").unwrap();
    bytes[2] = 77;
    check(&bytes, Err(FrameError::UnknownKind(77)));
}

#[test]
fn a_length_above_the_limit_of_the_kind_is_refused_by_its_header_alone() {
    for (kind, len) in [(Kind::Data, MAX_BODY + 1), (Kind::Ping, 1), (Kind::End, 9)] {
        let mut header = encode_header(kind, 0, 0, 0, &[]).unwrap();
        header[4..8].copy_from_slice(&len.to_le_bytes());
        check(&header, Err(FrameError::TooLong { kind, len }));
    }
    assert!(encode(Kind::Pong, 0, 0, 0, b"x").is_err());
}

#[test]
fn every_flipped_bit_is_an_error() {
    let frame = encode(Kind::Data, 1, 7, 4096, b"some bytes of a layer").unwrap();
    for bit in 0..frame.len() * 8 {
        let mut broken = frame.clone();
        broken[bit / 8] ^= 1 << (bit % 8);
        // A longer length reads as "more needed"; then the end of the stream is the error.
        assert!(!matches!(decode(&broken), Ok(Some(_))), "bit {bit}");
        let mut source = broken.as_slice();
        assert!(read_all(&mut source).is_err(), "bit {bit}");
    }
}

/// The body of a flow is not hashed, its header is, and its length is part of that.
#[test]
fn of_a_flow_every_flipped_bit_of_the_header_is_an_error() {
    let frame = encode(Kind::FlowData, 0, 7, 4096, b"some bytes of a flow").unwrap();
    for bit in 0..HEADER_LEN * 8 {
        let mut broken = frame.clone();
        broken[bit / 8] ^= 1 << (bit % 8);
        assert!(!matches!(decode(&broken), Ok(Some(_))), "bit {bit}");
    }
    let mut other = frame.clone();
    other[HEADER_LEN] ^= 1;
    let (header, body) = other.split_first_chunk().unwrap();
    let header = Header::parse(header).unwrap();
    assert_eq!(header.verify(body).unwrap().body, body);
    let mut pieces = header.body();
    for piece in body.chunks(3) {
        assert_eq!(pieces.take(piece), piece);
    }
    assert_eq!(pieces.finish(), Ok(header));
}

fn read_all(source: &mut &[u8]) -> Result<usize, ReadError<std::convert::Infallible>> {
    let mut buf = Vec::new();
    let mut n = 0;
    while read(&mut buf, |buf| Ok(take(source, buf)))?.is_some() {
        n += 1;
    }
    Ok(n)
}

fn take(source: &mut &[u8], buf: &mut [u8]) -> usize {
    let n = buf.len().min(source.len()).min(5);
    buf[..n].copy_from_slice(&source[..n]);
    *source = &source[n..];
    n
}

fn frames() -> impl Strategy<Value = Vec<(Kind, u8, u64, u64, Vec<u8>)>> {
    let frame = (
        0..KINDS.len(),
        any::<u8>(),
        any::<u64>(),
        any::<u64>(),
        vec(any::<u8>(), 0..200),
    )
        .prop_map(|(kind, flags, id, offset, mut body)| {
            body.truncate(KINDS[kind].max_body() as usize);
            (KINDS[kind], flags, id, offset, body)
        });
    vec(frame, 1..6)
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(frames in frames()) {
        let mut stream = Vec::new();
        for (kind, flags, id, offset, body) in &frames {
            stream.extend(encode(*kind, *flags, *id, *offset, body).unwrap());
        }
        let mut rest = stream.as_slice();
        for (kind, flags, id, offset, body) in &frames {
            let (frame, after) = decode(rest).unwrap().unwrap();
            prop_assert_eq!(
                (frame.kind, frame.flags, frame.id, frame.offset, frame.body),
                (*kind, *flags, *id, *offset, body.as_slice())
            );
            rest = after;
        }
        prop_assert!(rest.is_empty());
        prop_assert_eq!(read_all(&mut stream.as_slice()), Ok(frames.len()));
    }

    #[test]
    fn a_stream_cut_anywhere_asks_for_more_or_ends_between_frames(frames in frames()) {
        let mut stream = Vec::new();
        let mut boundaries = vec![0];
        for (kind, flags, id, offset, body) in &frames {
            stream.extend(encode(*kind, *flags, *id, *offset, body).unwrap());
            boundaries.push(stream.len());
        }
        for cut in 0..stream.len() {
            let mut rest = &stream[..cut];
            while let Some((_, after)) = decode(rest).unwrap() {
                rest = after;
            }
            prop_assert_eq!(boundaries.contains(&cut), rest.is_empty());
            let read = read_all(&mut &stream[..cut]);
            prop_assert_eq!(boundaries.contains(&cut), read.is_ok());
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..300)) {
        let _frame_or_not = decode(&bytes).is_ok();
        let mut headed = b"cd".to_vec();
        headed.extend_from_slice(&bytes);
        let _frame_or_not = decode(&headed).is_ok();
    }
}
