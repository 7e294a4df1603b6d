//! Files and directories that appear complete or not at all.
//!
//! The law: a result is written under a hidden name beside its target and replaces the target by one
//! rename, after its bytes are durable. The hidden name is recorded in the store before it exists, so if
//! this process is killed, the next command removes it. Devices and pipes are written in place, because
//! they cannot be replaced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};

use exec::InterruptibleFile;
use store::{ResourceKind, Store};

use super::compress::Job;
use super::{Destination, ExportError};

/// Buffer in front of files.
const BUFFER: usize = 1 << 20;

/// Runs `work` with a writer for `dest`.
pub(super) fn write(
    job: &Job<'_>,
    dest: &Destination,
    stdout: &mut dyn Write,
    work: impl FnOnce(&mut dyn Write) -> Result<(), ExportError>,
) -> Result<(), ExportError> {
    match dest {
        Destination::Stdout => {
            let mut out = BufWriter::with_capacity(BUFFER, stdout);
            work(&mut out).map_err(|error| error.at(ExportError::Stdout))?;
            out.flush().map_err(ExportError::Stdout)
        }
        Destination::Path(path) => write_path(job, path, work),
    }
}

fn write_path(
    job: &Job<'_>,
    path: &Path,
    work: impl FnOnce(&mut dyn Write) -> Result<(), ExportError>,
) -> Result<(), ExportError> {
    check_file(path)?;
    let path = real(path)?;
    match fs::metadata(&path) {
        Ok(metadata) if !metadata.is_file() => in_place(job, &path, work),
        Ok(_) | Err(_) => beside(job.store, &path, work),
    }
}

/// The path with links followed as far as it exists: the target of a link is replaced, not the link.
fn real(path: &Path) -> Result<PathBuf, ExportError> {
    if let Ok(real) = fs::canonicalize(path) {
        return Ok(real);
    }
    let name = path.file_name().ok_or_else(|| ExportError::Target {
        path: path.to_owned(),
        reason: "it has no file name".to_owned(),
    })?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    let parent = fs::canonicalize(parent).map_err(|source| ExportError::Target {
        path: path.to_owned(),
        reason: format!("cannot access its directory ({source})"),
    })?;
    Ok(parent.join(name))
}

fn in_place(
    job: &Job<'_>,
    path: &Path,
    work: impl FnOnce(&mut dyn Write) -> Result<(), ExportError>,
) -> Result<(), ExportError> {
    let stop = || job.scope.is_stopped();
    let file = InterruptibleFile::create(path, &stop).map_err(|e| write_error(path, e))?;
    let mut out = BufWriter::with_capacity(BUFFER, file);
    work(&mut out).map_err(|error| error.at(|source| write_error(path, source)))?;
    out.flush().map_err(|error| write_error(path, error))
}

fn beside(
    store: &Store,
    path: &Path,
    work: impl FnOnce(&mut dyn Write) -> Result<(), ExportError>,
) -> Result<(), ExportError> {
    let hidden = hidden_name(path)?;
    let record = store.add_resource(ResourceKind::File(hidden.clone()))?;
    let outcome = fill(&hidden, work).and_then(|()| appear(&hidden, path));
    if outcome.is_err() {
        match fs::remove_file(&hidden) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // The record stays, and the next command tries again.
            Err(_) => return outcome,
        }
    }
    store.drop_resource(record)?;
    outcome
}

fn fill(
    hidden: &Path,
    work: impl FnOnce(&mut dyn Write) -> Result<(), ExportError>,
) -> Result<(), ExportError> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(hidden)
        .map_err(|error| write_error(hidden, error))?;
    let mut out = BufWriter::with_capacity(BUFFER, file);
    work(&mut out).map_err(|error| error.at(|source| write_error(hidden, source)))?;
    let file = out
        .into_inner()
        .map_err(|error| write_error(hidden, error.into_error()))?;
    file.sync_all().map_err(|error| write_error(hidden, error))
}

/// Renames a durable file or directory, durably.
pub(super) fn appear(hidden: &Path, path: &Path) -> Result<(), ExportError> {
    fs::rename(hidden, path).map_err(|error| write_error(path, error))?;
    sync_dir(path.parent().unwrap_or(path))
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), ExportError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|error| write_error(dir, error))
}

/// Makes everything below a directory durable. One sync of the file system is much faster than one per
/// file.
pub(super) fn sync_all(dir: &Path) -> Result<(), ExportError> {
    File::open(dir)
        .and_then(|dir| Ok(nix::unistd::syncfs(&dir)?))
        .map_err(|error| write_error(dir, error))
}

/// Checks that a file can be written there, as far as possible without writing.
pub(super) fn check_file(path: &Path) -> Result<(), ExportError> {
    let path = real(path)?;
    match fs::metadata(&path) {
        Ok(metadata) if metadata.is_dir() => Err(ExportError::Target {
            path,
            reason: "it is a directory; choose a file name".to_owned(),
        }),
        Ok(metadata) if metadata.file_type().is_socket() => Err(ExportError::Target {
            path,
            reason: "it is a socket; choose another file name".to_owned(),
        }),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Runs `work` with a new directory, which then appears as `path`. `path` must not exist; its parents are
/// created.
pub(super) fn new_dir<T>(
    store: &Store,
    path: &Path,
    work: impl FnOnce(&Path) -> Result<T, ExportError>,
) -> Result<T, ExportError> {
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        fs::create_dir_all(parent).map_err(|error| write_error(parent, error))?;
    }
    let path = real(path)?;
    let hidden = hidden_name(&path)?;
    let record = store.add_resource(ResourceKind::Directory(hidden.clone()))?;
    let outcome = fs::DirBuilder::new()
        .mode(0o700)
        .create(&hidden)
        .map_err(|error| write_error(&hidden, error))
        .and_then(|()| work(&hidden))
        .and_then(|done| sync_all(&hidden).map(|()| done))
        .and_then(|done| appear(&hidden, &path).map(|()| done));
    if outcome.is_err() {
        match fs::remove_dir_all(&hidden) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // The record stays, and the next command tries again.
            Err(_) => return outcome,
        }
    }
    store.drop_resource(record)?;
    outcome
}

/// An unused name beside `path`.
fn hidden_name(path: &Path) -> Result<PathBuf, ExportError> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| write_error(path, io::Error::other(error)))?;
    let mut name = std::ffi::OsString::from(".");
    // Keep the length below the limit of file systems.
    let own = path.file_name().unwrap_or_default();
    name.push(if own.len() > 200 {
        "image".as_ref()
    } else {
        own
    });
    name.push(format!(".{}.partial", hex::encode(random)));
    Ok(path.with_file_name(name))
}

/// An error while writing `path`.
pub(super) fn write_error(path: &Path, source: io::Error) -> ExportError {
    ExportError::Write {
        path: path.to_owned(),
        source,
    }
}
