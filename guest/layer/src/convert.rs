//! From a header and its extensions to an entry.

use crate::header::{Header, Kind};
use crate::limits::{MAX_ID, MAX_MAJOR, MAX_MINOR};
use crate::path;
use crate::pax::Extensions;
use crate::{Digest, Entry, EntryKind, Mtime};

/// An entry at `path`, whose data, if it has any, begins at `offset` of the tar.
pub(crate) fn entry(
    path: Vec<u8>,
    kind: Kind,
    header: &Header,
    extensions: Extensions,
    offset: u64,
) -> Result<Entry, &'static str> {
    if path.is_empty() && kind != Kind::Directory {
        return Err("its name is that of a directory, but its type is not");
    }
    let id = |id: u64| {
        let small = u32::try_from(id).ok().filter(|id| *id <= MAX_ID);
        small.ok_or("its owner is not a user or group number")
    };
    Ok(Entry {
        path,
        kind: typed(kind, header, &extensions, offset)?,
        mode: header.mode,
        uid: id(extensions.uid.unwrap_or(header.uid))?,
        gid: id(extensions.gid.unwrap_or(header.gid))?,
        mtime: extensions.mtime.unwrap_or(Mtime {
            secs: header.mtime,
            nanos: 0,
        }),
        xattrs: extensions.xattrs,
    })
}

fn typed(
    kind: Kind,
    header: &Header,
    extensions: &Extensions,
    offset: u64,
) -> Result<EntryKind, &'static str> {
    let link = extensions.link.as_ref().unwrap_or(&header.link);
    Ok(match kind {
        Kind::File => {
            let size = extensions.size.unwrap_or(header.size);
            EntryKind::File {
                size,
                digest: Digest::UNKNOWN,
                offset,
            }
        }
        Kind::Directory => EntryKind::Directory,
        Kind::Fifo => EntryKind::Fifo,
        Kind::Hardlink => EntryKind::Hardlink {
            target: path::link_target(link)?,
        },
        Kind::Symlink => EntryKind::Symlink {
            target: path::link_text(link)?,
        },
        Kind::CharDevice if header.device == (0, 0) => {
            return Err("it is the device by which overlay file systems mark removed files");
        }
        Kind::CharDevice => {
            let (major, minor) = device(header.device)?;
            EntryKind::CharDevice { major, minor }
        }
        Kind::BlockDevice => {
            let (major, minor) = device(header.device)?;
            EntryKind::BlockDevice { major, minor }
        }
    })
}

fn device((major, minor): (u64, u64)) -> Result<(u32, u32), &'static str> {
    let fit = |number: u64, most| u32::try_from(number).ok().filter(|number| *number <= most);
    fit(major, MAX_MAJOR)
        .zip(fit(minor, MAX_MINOR))
        .ok_or("its device numbers are too large")
}
