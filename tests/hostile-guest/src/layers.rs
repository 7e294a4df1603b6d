//! Layers that no honest agent would send.

use std::fs::File;
use std::io::{self, Read, Write as _};

use tar::{Builder, EntryType, Header};
use vsock_guest::init::Outcome;
use wire::{Kind, Sender, frame};

use crate::session;

/// What is sent in place of the changes of a step.
#[derive(Debug, Clone)]
pub(crate) enum Lie {
    /// An empty layer, whatever the step did.
    Nothing,
    /// A layer with this file and this text in it.
    Forged(String, String),
    /// A file whose name leads out of the tree.
    Escape,
    /// A link that leads out of the tree, and a file below it.
    Through,
    /// A hard link to a file that is not in the image.
    HardLink,
    /// Bytes that are no tar.
    Garbage,
    /// A file that never ends.
    Endless,
    /// An end mark that names more bytes than were sent.
    Short,
    /// The stream ends without its end mark.
    Cut,
    /// A file in a header whose checksum is wrong.
    Checksum,
    /// A whiteout of the root directory.
    Root,
}

impl Lie {
    /// The lie with this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "escape" => Self::Escape,
            "through" => Self::Through,
            "hard-link" => Self::HardLink,
            "garbage" => Self::Garbage,
            "endless" => Self::Endless,
            "short" => Self::Short,
            "cut" => Self::Cut,
            "checksum" => Self::Checksum,
            "root" => Self::Root,
            _ => return None,
        })
    }
}

/// Sends a lie. Returns the length that the reply shall name.
pub(crate) fn send(to: File, transfer: u64, lie: Lie) -> Outcome<u64> {
    match lie {
        Lie::Nothing => entries(to, transfer, &[]),
        Lie::Garbage => session::send(to, transfer, &mut [0xa5; 4096].as_slice()),
        Lie::Endless => {
            let header = header(EntryType::Regular, "endless", "", 1 << 62)?;
            let mut endless = header.as_bytes().as_slice().chain(io::repeat(0));
            session::send(to, transfer, &mut endless)
        }
        Lie::Short | Lie::Cut => cut(to, transfer, matches!(lie, Lie::Short)),
        Lie::Checksum => {
            let mut tar = tree(&[(EntryType::Regular, "file", "", "text")])?;
            if let Some(byte) = tar.first_mut() {
                *byte = byte.wrapping_add(1);
            }
            session::send(to, transfer, &mut tar.as_slice())
        }
        Lie::Forged(path, text) => entries(to, transfer, &[(EntryType::Regular, &path, "", &text)]),
        Lie::Escape => entries(
            to,
            transfer,
            &[(EntryType::Regular, "../escaped", "", "out")],
        ),
        Lie::Through => entries(
            to,
            transfer,
            &[
                (EntryType::Symlink, "way", "/tmp", ""),
                (EntryType::Regular, "way/cofferdam-escaped", "", "out"),
            ],
        ),
        Lie::HardLink => entries(
            to,
            transfer,
            &[(EntryType::Link, "shadow", "etc/shadow", "")],
        ),
        Lie::Root => entries(to, transfer, &[(EntryType::Regular, ".wh...", "", "")]),
    }
}

type Entry<'a> = (EntryType, &'a str, &'a str, &'a str);

fn entries(to: File, transfer: u64, entries: &[Entry<'_>]) -> Outcome<u64> {
    session::send(to, transfer, &mut tree(entries)?.as_slice())
}

fn tree(entries: &[Entry<'_>]) -> io::Result<Vec<u8>> {
    let mut builder = Builder::new(Vec::new());
    for (kind, path, target, text) in entries {
        let header = header(*kind, path, target, text.len() as u64)?;
        builder.append(&header, text.as_bytes())?;
    }
    builder.into_inner()
}

/// A header whose fields are filled as they are given: the library would refuse such paths.
fn header(kind: EntryType, path: &str, target: &str, size: u64) -> io::Result<Header> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    let fields = header.as_old_mut();
    fill(&mut fields.name, path);
    fill(&mut fields.linkname, target);
    header.set_cksum();
    Ok(header)
}

fn fill(field: &mut [u8], text: &str) {
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = from;
    }
}

/// Sends a piece of a layer, and then an end mark that says more, or none.
fn cut(mut to: File, transfer: u64, with_end: bool) -> Outcome<u64> {
    let bytes = [0; 1024];
    let mut sender = Sender::new(transfer);
    to.write_all(&sender.data(0, &bytes)?)?;
    to.write_all(&bytes)?;
    if with_end {
        to.write_all(&frame::encode(Kind::End, 0, transfer, 2048, &[0; 8])?)?;
    }
    Ok(2048)
}
