//! Steps as processes of the host.

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use exec::{Cancel, Executor, Output, StepDone, StepError, StepSpec, Stream};
use store::{Layer, ResourceKind, Store};

/// How often a step checks its cancel.
const TICK: Duration = Duration::from_millis(5);

/// Runs each step in a directory of its own, which becomes its layer.
#[derive(Debug)]
pub(crate) struct OnHost<'a> {
    pub(crate) store: &'a Store,
    /// Where the directories are made.
    pub(crate) dirs: &'a Path,
    pub(crate) next: AtomicU64,
}

impl Executor for OnHost<'_> {
    fn prepare(&self) {}

    fn run(
        &self,
        step: &StepSpec,
        output: &mut dyn Output,
        cancel: &Cancel,
    ) -> Result<StepDone, StepError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let dir = self
            .dirs
            .join(format!("{}-{number}", self.store.instance()));
        // As in the launcher: the record is there before the directory, and removed after it.
        let record = self
            .store
            .add_resource(ResourceKind::Directory(dir.clone()));
        let record = record.map_err(host)?;
        fs::create_dir(&dir).map_err(host)?;
        let vm = self.store.record_vm().map_err(host)?;
        vm.begin(step.key, &step.name).map_err(host)?;
        let done = self.step(step, &dir, output, cancel);
        fs::remove_dir_all(&dir).map_err(host)?;
        self.store.drop_resource(record).map_err(host)?;
        Ok(StepDone {
            layer: done?,
            provenance: vm.so_far(),
            peak_memory: 0,
        })
    }
}

impl OnHost<'_> {
    fn step(
        &self,
        step: &StepSpec,
        dir: &Path,
        output: &mut dyn Output,
        cancel: &Cancel,
    ) -> Result<Layer, StepError> {
        let (program, args) = step
            .args
            .split_first()
            .ok_or_else(|| StepError::Setup("a step without a command".to_owned()))?;
        let mut command = Command::new(program);
        command.args(args).current_dir(dir);
        for (name, value) in step.env.iter().filter_map(|line| line.split_once('=')) {
            command.env(name, value);
        }
        let (said, stdout) = io::pipe().map_err(host)?;
        let stderr = stdout.try_clone().map_err(host)?;
        let command = command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let child = command.spawn().map_err(host)?;
        // Closes our writing ends of the pipe, so that reading ends.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let (status, said) = wait(child, said, cancel)?;
        output.write(Stream::Stdout, said.as_bytes());
        if status != 0 && said.contains("No space left") {
            return Err(host(said));
        } else if status != 0 {
            return Err(StepError::Failed {
                status,
                out_of_memory: None,
            });
        }
        let mut tar = tar::Builder::new(self.store.layer_writer(&step.name).map_err(host)?);
        tar.mode(tar::HeaderMode::Deterministic);
        tar.follow_symlinks(false);
        append(&mut tar, dir, Path::new("")).map_err(host)?;
        tar.into_inner().map_err(host)?.finish().map_err(host)
    }
}

/// Adds the files of a directory, sorted: the same files must give the same bytes.
fn append(tar: &mut tar::Builder<impl io::Write>, root: &Path, below: &Path) -> io::Result<()> {
    let mut names: Vec<_> = fs::read_dir(root.join(below))?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()?;
    names.sort();
    for name in names {
        let path = below.join(name);
        tar.append_path_with_name(root.join(&path), &path)?;
        if fs::symlink_metadata(root.join(&path))?.is_dir() {
            append(tar, root, &path)?;
        }
    }
    Ok(())
}

/// Waits for the end of a step. Returns its status and its output.
fn wait(
    mut child: Child,
    mut said: io::PipeReader,
    cancel: &Cancel,
) -> Result<(i32, String), StepError> {
    std::thread::scope(|scope| {
        let reading = scope.spawn(move || {
            let mut text = String::new();
            said.read_to_string(&mut text).map(|_| text)
        });
        let status = loop {
            if let Some(status) = child.try_wait().map_err(host)? {
                break status;
            }
            if cancel.sleep(TICK) {
                child.kill().and_then(|()| child.wait()).map_err(host)?;
                return Err(StepError::Cancelled);
            }
        };
        let text = reading.join().map_err(|_| host("the reader panicked"))?;
        Ok((status.code().unwrap_or(128), text.map_err(host)?))
    })
}

fn host(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StepError {
    StepError::Host(error.into())
}
