//! Tars of layers, and the index that is made of them.

use store::Entry;
use store::fuzzing::{decode, encode, index};

use crate::input::Input;

const BLOCK: usize = 512;

/// Reads the bytes as a tar if the first one is even; otherwise they become entries whose checksums
/// are right, since those would stop any guess.
pub fn run(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else {
        return;
    };
    if first % 2 == 0 {
        take(rest);
    } else {
        take(&compose(rest));
    }
}

fn take(tar: &[u8]) {
    let made = index([tar]);
    // However it comes, it is the same.
    let in_pieces = index(tar.chunks(111));
    assert_eq!(
        made.as_ref().map(|made| made.entries()),
        in_pieces.as_ref().map(|made| made.entries())
    );
    // The bytes of an index file are not trusted either.
    decode(tar);
    let Some(made) = made else {
        return;
    };
    let again = decode(&encode(&made)).expect("an index that was written");
    assert_eq!(again.entries(), made.entries());
    made.entries().iter().for_each(check);
    assert!(made.entries().is_sorted_by(|a, b| a.path <= b.path));
}

/// No path leaves the root or has two spellings.
fn check(entry: &Entry) {
    let bad = |element: &[u8]| {
        element.is_empty() || element == b"." || element == b".." || element.contains(&0)
    };
    let mut elements = entry.path.split(|byte| *byte == b'/');
    assert!(entry.path.is_empty() || !elements.any(bad), "{entry:?}");
    assert!(entry.path.len() <= 4095, "{entry:?}");
}

fn compose(program: &[u8]) -> Vec<u8> {
    let mut input = Input::new(program);
    let mut tar = Vec::new();
    while !input.is_empty() {
        entry(&mut input, &mut tar);
    }
    if tar.len() % 1024 == 0 {
        tar.extend([0; 2 * BLOCK]);
    }
    tar
}

fn entry(input: &mut Input<'_>, tar: &mut Vec<u8>) {
    let mut header = match input.roll(3) {
        0 => tar::Header::new_gnu(),
        1 => tar::Header::new_ustar(),
        _ => tar::Header::new_old(),
    };
    let kinds = b"0055123467xgLKS\0";
    header.set_entry_type(tar::EntryType::new(input.pick(kinds)));
    let mut body = text(input);
    match input.byte() {
        255 => header.set_size(input.number()),
        200..255 => {
            body.clear();
            header.set_size(0);
        }
        _ => header.set_size(body.len() as u64),
    }
    header.set_mode(cut(input.nearly(&[0o644, 0o755, 0o7777, 0])));
    header.set_uid(input.nearly(&[0, 1000, u64::MAX]));
    header.set_mtime(input.nearly(&[0, 1, u64::MAX]));
    let name = text(input);
    let link = text(input);
    let old = header.as_old_mut();
    fill(&mut old.name, &name);
    fill(&mut old.linkname, &link);
    header.set_cksum();
    tar.extend_from_slice(header.as_bytes());
    tar.extend_from_slice(&body);
    let padding = tar.len().next_multiple_of(BLOCK) - tar.len();
    tar.extend(vec![0; padding]);
}

/// A name, the records of an extended header, or any bytes.
fn text(input: &mut Input<'_>) -> Vec<u8> {
    let words: [&[u8]; 16] = [
        b"a",
        b"b/",
        b"a/b",
        b"./",
        b"../x",
        b"/etc",
        b".wh.a",
        b".wh..wh..opq",
        b"a//b",
        b"",
        b"11 path=a/c\n",
        b"14 linkpath=a\n",
        b"12 size=100\n",
        b"30 SCHILY.xattr.user.a=contents\n",
        b"21 mtime=1.123456789\n",
        b"26 GNU.sparse.name=sparse\n",
    ];
    let mut made = Vec::new();
    for _ in 0..input.roll(4) {
        match input.byte() {
            255 => {
                let n = input.roll(100);
                made.extend_from_slice(input.bytes(n));
            }
            n => made.extend_from_slice(words[usize::from(n) % words.len()]),
        }
    }
    made
}

fn fill(field: &mut [u8], with: &[u8]) {
    let n = field.len().min(with.len());
    field.fill(0);
    field[..n].copy_from_slice(&with[..n]);
}

fn cut(number: u64) -> u32 {
    u32::try_from(number & 0xFFFF_FFFF).unwrap_or(0)
}

/// A small tar, and programs for others.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let mut tar = tar::Builder::new(vec![0]);
    for (path, contents) in [("a", &b"one"[..]), ("b/c", b"two"), ("b/.wh.d", b"")] {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, contents)
            .expect("memory");
    }
    vec![
        tar.into_inner().expect("memory"),
        vec![1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0],
        vec![1, 0, 2, 0, 0, 1, 0, 0, 1, 1, 0],
        vec![
            1, 1, 10, 1, 10, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 1, 1, 0,
        ],
        vec![
            1, 1, 10, 1, 13, 0, 0, 0, 0, 1, 0, 0, 1, 4, 1, 0, 0, 0, 0, 0, 1, 1, 1, 0,
        ],
    ]
}
