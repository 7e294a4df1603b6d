//! Tars that are made entry by entry and field by field, as a program says.

use crate::input::Input;

const BLOCK: usize = 512;

/// Words of which names, links and values are made.
const WORDS: [&[u8]; 16] = [
    b"a",
    b"b",
    b"/",
    b"./",
    b"c/",
    b"..",
    b".wh.",
    b".wh..wh..opq",
    b".wh..wh.",
    b"//",
    b"\0",
    b"\n",
    b"=",
    b"-1.25",
    b"100",
    b"long-long-long-long-long-long-long-long-long-long-long-long-long-long-long",
];

/// Keys of extended headers.
const KEYS: [&[u8]; 11] = [
    b"path",
    b"linkpath",
    b"size",
    b"uid",
    b"gid",
    b"mtime",
    b"SCHILY.xattr.user.a",
    b"SCHILY.xattr.user.b",
    b"SCHILY.xattr.trusted.overlay.opaque",
    b"GNU.sparse.name",
    b"comment",
];

/// The tar that a program makes.
pub(super) fn tar(program: &[u8]) -> Vec<u8> {
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

/// A header and its body. Zeros make an empty file `a`.
fn entry(input: &mut Input<'_>, tar: &mut Vec<u8>) {
    let mut header = match input.roll(4) {
        0 | 1 => tar::Header::new_ustar(),
        2 => tar::Header::new_gnu(),
        _ => tar::Header::new_old(),
    };
    let flag = input.pick(b"0055551122346\x007xxxxgLKS?");
    header.as_old_mut().linkflag = [flag];
    let body = match flag {
        b'x' | b'g' => records(input),
        b'L' | b'K' => [text(input), b"\0".to_vec()].concat(),
        b'0' | b'7' | 0 if input.roll(2) == 1 => text(input),
        _ => Vec::new(),
    };
    let size = match input.byte() {
        255 => input.number(),
        _ => body.len() as u64,
    };
    header.set_size(size);
    let old = header.as_old_mut();
    fill(&mut old.name, &name(input));
    if input.roll(2) == 1 || matches!(flag, b'1' | b'2') {
        fill(&mut old.linkname, &name(input));
    }
    number(input, &mut old.mode, &[0o644, 0o755, 0o7777, 0]);
    number(input, &mut old.uid, &[0, 1000, 0o7_777_777]);
    number(input, &mut old.gid, &[0, 1000, 0o7_777_777]);
    number(input, &mut old.mtime, &[0, 1, 1_700_000_000]);
    if let Some(ustar) = header.as_ustar_mut() {
        number(input, &mut ustar.dev_major, &[1, 0, 4095, 4096]);
        number(input, &mut ustar.dev_minor, &[3, 0, 0o7_777_777]);
        if input.byte() == 1 {
            fill(&mut ustar.prefix, &name(input));
        }
    }
    header.set_cksum();
    tar.extend_from_slice(header.as_bytes());
    tar.extend_from_slice(&body);
    tar.resize(tar.len().next_multiple_of(BLOCK), 0);
}

/// A number in octal digits, or sometimes in the binary form, blank, or any bytes.
fn number(input: &mut Input<'_>, field: &mut [u8], usual: &[u64]) {
    let digits = field.len() - 1;
    match input.byte() {
        255 => {
            let bytes = input.bytes(field.len());
            fill(field, bytes);
        }
        254 => {
            field.fill(0);
            field[0] = 0x80;
            let [.., a, b, c] = field else { return };
            [*a, *b, *c] = [input.byte(), input.byte(), input.byte()];
        }
        253 => field.fill(b' '),
        n => {
            let number = usual[usize::from(n) % usual.len()];
            fill(field, format!("{number:0digits$o}").as_bytes());
        }
    }
}

/// Records of an extended header; the length of one is wrong now and then.
fn records(input: &mut Input<'_>) -> Vec<u8> {
    let mut records = Vec::new();
    for _ in 0..1 + input.roll(4) {
        let key = input.pick(&KEYS);
        let value = match key {
            b"size" | b"uid" | b"gid" => input.nearly(&[0, 3, 100, 3_000_000]).to_string().into(),
            b"mtime" if input.roll(2) == 0 => b"1700000000.123456789".to_vec(),
            _ => text(input),
        };
        let rest = [b" ", key, b"=", &value, b"\n"].concat();
        let mut length = rest.len();
        while length != rest.len() + length.to_string().len() {
            length = rest.len() + length.to_string().len();
        }
        match input.byte() {
            255 => length += 1,
            254 => length = length.saturating_sub(1),
            253 => records.push(b'+'),
            _ => {}
        }
        records.extend_from_slice(length.to_string().as_bytes());
        records.extend_from_slice(&rest);
    }
    records
}

/// A path of two elements at most, or any text.
fn name(input: &mut Input<'_>) -> Vec<u8> {
    let names: [&[u8]; 16] = [
        b"a",
        b"b",
        b"a/a",
        b"a/b",
        b"b/a",
        b"a/",
        b"./b/",
        b"/",
        b".wh.a",
        b".wh.b",
        b"a/.wh.a",
        b"a/.wh..wh..opq",
        b".wh..wh..opq",
        b"a/.wh..wh.x",
        b"..",
        b"a//b/.",
    ];
    match input.byte() {
        240..=255 => text(input),
        n => names[usize::from(n) % names.len()].to_vec(),
    }
}

/// Some words, and now and then any bytes.
fn text(input: &mut Input<'_>) -> Vec<u8> {
    let mut made = Vec::new();
    for _ in 0..1 + input.roll(3) {
        match input.byte() {
            255 => {
                let n = input.roll(100);
                made.extend_from_slice(input.bytes(n));
            }
            n => made.extend_from_slice(WORDS[usize::from(n) % WORDS.len()]),
        }
    }
    made
}

fn fill(field: &mut [u8], with: &[u8]) {
    let n = field.len().min(with.len());
    field.fill(0);
    field[..n].copy_from_slice(&with[..n]);
}

/// Programs for small tars.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    vec![
        // A file, and the same again.
        vec![0; 30],
        // A directory, a file in it, a hard link to that.
        [
            &[0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &[0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0, 6, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat(),
        // A path in an extended header, then the entry.
        [
            &[0, 15, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &[0; 12],
        ]
        .concat(),
        // A whiteout and an opaque mark.
        [
            &[0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &[0, 0, 0, 0, 11, 0, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat(),
    ]
}
