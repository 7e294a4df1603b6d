//! The result files of a build, `--iidfile` and `--metadata-file`, and the output of `--quiet`.

use std::fmt::Display;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use ::store::{ResourceId, ResourceKind, Store};
use anyhow::Context as _;
use engine::build::{BuildError, BuildResult};
use engine::event::Outcome;
use serde_json::{Value, json};

use super::args::Args;
use crate::exit::{Class, Failure, chain};
use crate::output::try_print;
use crate::progress::{comparison, explanation, with};

/// Removes the files of an earlier build, so that scripts do not mistake them for those of this one.
pub(super) fn remove_old(args: &Args) -> Result<(), Failure> {
    for path in [&args.iidfile, &args.metadata_file].into_iter().flatten() {
        check_directory(path)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let error = anyhow::Error::new(error);
                return Err(Failure::host(
                    error.context(format!("cannot replace {}", path.display())),
                ));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Checks before the build that the file can be written after it.
fn check_directory(path: &Path) -> Result<(), Failure> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        Some(_) | None => Path::new("."),
    };
    if dir.is_dir() {
        return Ok(());
    }
    let text = format!(
        "cannot write {}: the directory {} does not exist",
        path.display(),
        dir.display()
    );
    Err(Failure::new(Class::User, anyhow::Error::msg(text)))
}

/// Writes the requested result files of a successful build.
pub(super) fn write(
    args: &Args,
    store: &Store,
    built: &BuildResult,
    vm: Option<&Value>,
) -> Result<(), BuildError> {
    if let Some(path) = &args.metadata_file {
        describe(Some(store), path, of_success(built), vm)
            .map_err(|source| cannot(path.display(), source))?;
    }
    let id = built.image.config.to_string();
    if let Some(path) = &args.iidfile {
        // Without a newline, as `docker build` does.
        replace(Some(store), path, id.as_bytes())
            .map_err(|source| cannot(path.display(), source))?;
    }
    if args.quiet {
        try_print(|out| writeln!(out, "{id}"))
            .map_err(|source| cannot("standard output", source))?;
    }
    Ok(())
}

fn cannot(to: impl Display, source: io::Error) -> BuildError {
    let to = to.to_string();
    BuildError::Report { to, source }
}

/// Writes the metadata file of a failed build and removes its image ID file. There may be no store.
pub(super) fn write_failure(
    args: &Args,
    store: Option<&Store>,
    failure: &Failure,
    vm: Option<&Value>,
) -> Result<(), Failure> {
    if let Some(path) = &args.iidfile {
        // It exists only if the build failed after writing it.
        fs::remove_file(path).ok();
    }
    let Some(path) = &args.metadata_file else {
        return Ok(());
    };
    let log = failure.log.as_ref().map(|log| log.display().to_string());
    let member = json!({
        "status": failure.class.name(),
        "exit": failure.class.status(),
        "error": chain(&failure.error),
        "log": log,
    });
    describe(store, path, json!({ "cofferdam.build": member }), vm)
        .with_context(|| format!("cannot write {}", path.display()))
        .map_err(Failure::host)
}

fn of_success(built: &BuildResult) -> Value {
    let steps = built.steps.iter().map(|step| {
        let outcome = if step.outcome == Outcome::Cached {
            "cached"
        } else {
            "done"
        };
        let seconds = step.took.as_secs_f64();
        let mut value = json!({"name": step.name, "outcome": outcome, "seconds": seconds});
        if let Some(why) = &step.why {
            value = with(value, json!({"why": explanation(why)}));
        }
        if let Some(compared) = &step.compared {
            value = with(value, json!({"rebuilt": comparison(compared)}));
        }
        value
    });
    let (status, exit) = match built.differing() {
        0 => ("success", 0),
        _ => (Class::Differs.name(), Class::Differs.status()),
    };
    let mut value = json!({
        "containerimage.digest": built.image.manifest.to_string(),
        "containerimage.config.digest": built.image.config.to_string(),
        "cofferdam.build": {"status": status, "exit": exit, "steps": steps.collect::<Vec<_>>()},
    });
    if let (Value::Object(members), false) = (&mut value, built.names.is_empty()) {
        members.insert("image.name".into(), built.names.join(",").into());
    }
    value
}

/// Writes the metadata file, with the description of the VM if there was one.
fn describe(
    store: Option<&Store>,
    path: &Path,
    mut value: Value,
    vm: Option<&Value>,
) -> io::Result<()> {
    if let (Value::Object(members), Some(vm)) = (&mut value, vm) {
        members.insert("cofferdam.vm".into(), vm.clone());
    }
    replace(store, path, format!("{value:#}\n").as_bytes())
}

/// Writes a temporary file next to `path` and renames it to `path`. The temporary file is recorded
/// before it exists, so if this process is killed, the next command removes it.
fn replace(store: Option<&Store>, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = std::path::absolute(path)?.into_os_string();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = Path::new(&temporary);
    // How a build failed is also written where there is no store, or none that can be written.
    let record = store.and_then(|store| record(store, temporary));
    let written = match fs::File::create_new(temporary) {
        // There is no temporary file, or it is not ours.
        Err(error) => Err(error),
        Ok(mut file) => {
            let done = file
                .write_all(bytes)
                .and_then(|()| fs::rename(temporary, path));
            if done.is_err() && fs::remove_file(temporary).is_err() {
                // The record stays, and the next command tries again.
                return done;
            }
            done
        }
    };
    if let Some((store, id)) = record
        && let Err(error) = store.drop_resource(id)
    {
        log::debug!("cannot forget {}: {error}", temporary.display());
    }
    written
}

/// Records a temporary file that is about to be made; `None` if the store cannot be written.
fn record<'a>(store: &'a Store, temporary: &Path) -> Option<(&'a Store, ResourceId)> {
    match store.add_resource(ResourceKind::File(temporary.to_owned())) {
        Ok(id) => Some((store, id)),
        Err(error) => {
            log::debug!("cannot record {}: {error}", temporary.display());
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temporary(path: &Path) -> std::path::PathBuf {
        format!("{}.{}", path.display(), std::process::id()).into()
    }

    /// As a kill would leave it: the file is there, and its record too.
    #[test]
    fn a_temporary_file_that_stays_is_removed_by_the_next_command() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        let store = Store::open(&root, &::store::OpenOptions::default()).unwrap();
        let path = dir.path().join("iid");
        record(&store, &temporary(&path)).unwrap();
        fs::write(temporary(&path), "half").unwrap();
        store.close().unwrap();
        let store = Store::open(&root, &::store::OpenOptions::default()).unwrap();
        assert!(!temporary(&path).exists());
        assert!(store.check(false).unwrap().is_clean());
        replace(Some(&store), &path, b"text").unwrap();
        replace(None, &path, b"other").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "other");
        assert!(!temporary(&path).exists());
        // What is not ours is neither written to nor removed, now or later.
        fs::write(temporary(&path), "of somebody else").unwrap();
        replace(Some(&store), &path, b"text").unwrap_err();
        let long = dir.path().join("i".repeat(255));
        replace(Some(&store), &long, b"text").unwrap_err();
        store.close().unwrap();
        let store = Store::open(&root, &::store::OpenOptions::default()).unwrap();
        assert!(store.check(false).unwrap().is_clean());
        assert!(temporary(&path).exists());
        store.close().unwrap();
    }
}
