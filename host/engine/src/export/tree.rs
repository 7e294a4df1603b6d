//! Writes the files of a result as one tar archive.
//!
//! The law: the archive is a function of the layers. Members are in order of paths, so parents come
//! before their content, and a file with several names is written under the first of them.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use exec::CancelScope;
use layer::{Style, Writer};
use store::{EntryKind, Mtime};

use super::ExportError;
use crate::rootfs::{Found, Inode, Rootfs};

/// Unit of copying.
const PIECE: usize = 256 << 10;

/// Writes all of `root`. `epoch` replaces all modification times.
pub(super) fn write(
    root: &Rootfs,
    epoch: Option<i64>,
    scope: &CancelScope,
    report: &dyn Fn(u64),
    out: &mut dyn Write,
) -> Result<(), ExportError> {
    let mut names: HashMap<Inode, Vec<u8>> = HashMap::new();
    let mut archive = Writer::new(out, Style::Copy);
    let mut done = 0;
    for (path, found) in root.walk() {
        if scope.is_stopped() {
            return Err(ExportError::Cancelled);
        }
        if path.is_empty() {
            continue;
        }
        let mut meta = found.entry.attributes();
        meta.mtime = epoch.map_or(meta.mtime, |secs| Mtime { secs, nanos: 0 });
        if let Some(target) = first_name(&mut names, &path, found) {
            meta.xattrs.clear();
            let kind = EntryKind::Hardlink { target };
            archive
                .header(&path, &meta, &kind)
                .map_err(ExportError::Output)?;
            continue;
        }
        archive
            .header(&path, &meta, &found.entry.kind)
            .map_err(ExportError::Output)?;
        if let EntryKind::File { size, .. } = found.entry.kind {
            copy(root, found, scope, &mut archive, &mut |count| {
                done += count;
                report(done);
            })?;
            archive.pad(size).map_err(ExportError::Output)?;
        }
    }
    archive.finish().map_err(ExportError::Output)?;
    Ok(())
}

/// The first name of a file that has several, if this is not it.
pub(super) fn first_name(
    names: &mut HashMap<Inode, Vec<u8>>,
    path: &[u8],
    found: Found<'_>,
) -> Option<Vec<u8>> {
    if found.is_directory() {
        return None;
    }
    let inode = found.inode()?;
    if let Some(first) = names.get(&inode) {
        return Some(first.clone());
    }
    names.insert(inode, path.to_vec());
    None
}

/// Copies the content of a file.
pub(super) fn copy(
    root: &Rootfs,
    found: Found<'_>,
    scope: &CancelScope,
    out: &mut (impl Write + ?Sized),
    count: &mut dyn FnMut(u64),
) -> Result<(), ExportError> {
    let mut data = root.open_data(found)?;
    let mut piece = vec![0; PIECE];
    loop {
        if scope.is_stopped() {
            return Err(ExportError::Cancelled);
        }
        let read = match data.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(ExportError::ReadStore(error)),
        };
        out.write_all(piece.get(..read).unwrap_or_default())
            .map_err(ExportError::Output)?;
        count(read as u64);
    }
}
