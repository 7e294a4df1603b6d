//! Whole instructions, from a context or a root to the listing of the layer.

mod archives;
mod context;
mod flags;
mod limits;
mod measure;
mod model;
mod places;
mod roots;
mod sources;

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use exec::Cancel;
use layer::{Style, Writer};
use oci::decompress::UnpackLimits;
use store::{Entry, EntryKind, Layer, Mtime, OpenOptions, Store};
use tempfile::TempDir;

use super::{CopyError, CopyFrom, CopyPlan, CopySource, CopySpec, SourceTree, plan};
use crate::context::Context;
use crate::download::Downloads;
use crate::rootfs::Rootfs;

/// Tests do not have to write a gigabyte to exceed this.
pub(super) const UNPACK: UnpackLimits = UnpackLimits {
    base: 16 << 20,
    ..UnpackLimits::USUAL
};

/// A store, a context and a target root.
pub(super) struct Kit {
    dir: TempDir,
    pub(super) store: Store,
    pub(super) target: Rootfs,
}

/// A path, and what it is: `a/` a directory, `a -> b` a link, `a = text` a file, `a == b` a
/// hard link; `[MODE]` or `[MODE UID:GID]` may stand behind it.
struct Line {
    path: String,
    kind: LineKind,
    mode: Option<u32>,
    owner: (u32, u32),
}

enum LineKind {
    Directory,
    Link(String),
    File(String),
    HardLink(String),
    Whiteout,
    Opaque,
}

impl Line {
    fn parse(text: &str) -> Self {
        let (text, attributes) = match text.split_once(" [") {
            Some((text, rest)) => (text, rest.trim_end_matches(']')),
            None => (text, ""),
        };
        let mut words = attributes.split_whitespace();
        let mode = words
            .next()
            .map(|mode| u32::from_str_radix(mode, 8).expect("a mode"));
        let owner = words.next().and_then(|owner| owner.split_once(':'));
        let owner = owner
            .map(|(u, g)| (u.parse().expect("uid"), g.parse().expect("gid")))
            .unwrap_or_default();
        let (path, kind) = if let Some((path, target)) = text.split_once(" -> ") {
            (path, LineKind::Link(target.into()))
        } else if let Some((path, target)) = text.split_once(" == ") {
            (path, LineKind::HardLink(target.into()))
        } else if let Some((path, data)) = text.split_once(" = ") {
            (path, LineKind::File(data.into()))
        } else if let Some(path) = text.strip_suffix('/') {
            (path, LineKind::Directory)
        } else if let Some(path) = text.strip_prefix("-") {
            (path, LineKind::Whiteout)
        } else if let Some(path) = text.strip_prefix("!") {
            (path, LineKind::Opaque)
        } else {
            (text, LineKind::File(text.into()))
        };
        Self {
            path: path.into(),
            kind,
            mode,
            owner,
        }
    }

    /// The text of a file; by itself its own name.
    fn data(&self, text: &str) -> String {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        if text == self.path {
            name.into()
        } else {
            text.into()
        }
    }

    fn entry(&self) -> (Entry, Vec<u8>) {
        let (kind, mode, data) = match &self.kind {
            LineKind::Directory => (EntryKind::Directory, 0o755, Vec::new()),
            LineKind::Link(target) => (
                EntryKind::Symlink {
                    target: target.clone().into(),
                },
                0o777,
                Vec::new(),
            ),
            LineKind::HardLink(target) => (
                EntryKind::Hardlink {
                    target: target.clone().into(),
                },
                0o644,
                Vec::new(),
            ),
            LineKind::File(data) => {
                let data = self.data(data).into_bytes();
                let digest = store::sha256(&data);
                (
                    EntryKind::File {
                        size: data.len() as u64,
                        digest,
                        offset: 0,
                    },
                    0o644,
                    data,
                )
            }
            LineKind::Whiteout => (EntryKind::Whiteout, 0, Vec::new()),
            LineKind::Opaque => (EntryKind::Opaque, 0, Vec::new()),
        };
        let entry = Entry {
            path: self.path.clone().into_bytes(),
            kind,
            mode: self.mode.unwrap_or(mode),
            uid: self.owner.0,
            gid: self.owner.1,
            mtime: Mtime {
                secs: 1_000,
                nanos: 0,
            },
            xattrs: Vec::new(),
        };
        (entry, data)
    }
}

impl Kit {
    pub(super) fn new(context: &[&str], target: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let options = OpenOptions {
            command: "test".into(),
            read_only: false,
        };
        let store = Store::open(&dir.path().join("store"), &options).expect("a store");
        let target = root(&store, &[target]);
        let kit = Self { dir, store, target };
        fs::create_dir(kit.path()).expect("a context");
        kit.add(context);
        kit
    }

    /// Where the context lies.
    pub(super) fn path(&self) -> PathBuf {
        self.dir.path().join("context")
    }

    /// Adds files to the context.
    pub(super) fn add(&self, lines: &[&str]) {
        for line in lines {
            put_on_disk(&self.path(), &Line::parse(line));
        }
    }

    pub(super) fn context(&self) -> Context {
        Context::open(&self.path(), None, Some(&self.store)).expect("a context")
    }

    /// Plans an instruction over the target.
    pub(super) fn plan(&self, instruction: &str) -> Result<CopyPlan, CopyError> {
        self.plan_from(&self.context(), instruction)
    }

    pub(super) fn plan_from(
        &self,
        context: &Context,
        instruction: &str,
    ) -> Result<CopyPlan, CopyError> {
        plan(
            &spec(instruction),
            &SourceTree::Context(context),
            &Downloads::default(),
            &self.target,
            UNPACK,
            &Cancel::new(),
        )
    }

    /// Writes the layer of a plan into the store.
    pub(super) fn ingest(&self, plan: &CopyPlan) -> Layer {
        let layer = plan.ingest(&self.store, "test", &Cancel::new());
        let layer = layer.expect("a layer");
        assert_eq!(
            plan.content_id(),
            Some(layer.content_id),
            "the layer is what was planned"
        );
        layer
    }

    /// What is in a layer.
    pub(super) fn list(&self, layer: &Layer) -> Vec<String> {
        list(&self.store, layer)
    }

    /// Error of an instruction, with its causes.
    #[track_caller]
    pub(super) fn error(&self, instruction: &str) -> String {
        match self.plan(instruction) {
            Ok(plan) => panic!("{instruction} works: {:?}", self.list(&self.ingest(&plan))),
            Err(error) => error.to_string(),
        }
    }
}

/// Copies and lists the layer, with the directories of the target that lead to it.
#[track_caller]
pub(super) fn check(context: &[&str], target: &[&str], instruction: &str, want: &[&str]) {
    let kit = Kit::new(context, target);
    let plan = match kit.plan(instruction) {
        Ok(plan) => plan,
        Err(error) => panic!("{instruction}: {error}"),
    };
    let layer = kit.ingest(&plan);
    assert_eq!(kit.list(&layer), want, "{instruction}");
    // A second build, with everything learnt, knows the result without reading.
    let again = kit.plan_from(plan.context.as_ref().expect("a context"), instruction);
    assert_eq!(again.expect("a plan").content_id(), Some(layer.content_id));
}

/// Asserts how an instruction fails.
#[track_caller]
pub(super) fn fails(context: &[&str], target: &[&str], instruction: &str, want: &str) {
    assert_eq!(
        Kit::new(context, target).error(instruction),
        want,
        "{instruction}"
    );
}

/// The root that layers make, each a list of lines.
pub(super) fn root(store: &Store, layers: &[&[&str]]) -> Rootfs {
    let mut ids = Vec::new();
    for lines in layers.iter().filter(|lines| !lines.is_empty()) {
        let entries: Vec<_> = lines.iter().map(|line| Line::parse(line).entry()).collect();
        ids.push(layer(store, &entries).diff_id);
    }
    Rootfs::new(store, &ids).expect("a root")
}

/// Puts entries with their data into the store as a layer.
pub(super) fn layer(store: &Store, entries: &[(Entry, Vec<u8>)]) -> Layer {
    let mut writer = store.layer_writer("test").expect("a writer");
    let mut tar = Writer::new(&mut writer, Style::Copy);
    for (entry, data) in entries {
        tar.header(&entry.path, &entry.attributes(), &entry.kind)
            .expect("a header");
        tar.write_all(data).expect("data");
        tar.pad(data.len() as u64).expect("padding");
    }
    tar.finish().expect("an end");
    writer.finish().expect("a layer")
}

/// Lines as [`Line`] reads them, attributes only where they are not the usual ones.
pub(super) fn list(store: &Store, layer: &Layer) -> Vec<String> {
    let index = store.index(layer.diff_id).expect("an index");
    let root = Rootfs::new(store, &[layer.diff_id]).expect("a root");
    index
        .entries()
        .iter()
        .map(|entry| show(&root, entry))
        .collect()
}

fn show(root: &Rootfs, entry: &Entry) -> String {
    let path = String::from_utf8_lossy(&entry.path);
    let (text, usual) = match &entry.kind {
        EntryKind::Directory => (format!("{path}/"), 0o755),
        EntryKind::Symlink { target } => (
            format!("{path} -> {}", String::from_utf8_lossy(target)),
            0o777,
        ),
        EntryKind::Hardlink { target } => (
            format!("{path} == {}", String::from_utf8_lossy(target)),
            0o644,
        ),
        EntryKind::File { .. } => {
            let mut data = String::new();
            let found = root.find(&entry.path).expect("a file");
            root.open_data(found)
                .expect("data")
                .read_to_string(&mut data)
                .expect("text");
            let plain = path.rsplit('/').next() == Some(data.as_str());
            (
                if plain {
                    path.to_string()
                } else {
                    format!("{path} = {data}")
                },
                0o644,
            )
        }
        other => (format!("{path} {other:?}"), 0o644),
    };
    match (entry.mode == usual, (entry.uid, entry.gid)) {
        (true, (0, 0)) => text,
        (_, (0, 0)) => format!("{text} [{:o}]", entry.mode),
        (_, (uid, gid)) => format!("{text} [{:o} {uid}:{gid}]", entry.mode),
    }
}

fn put_on_disk(root: &Path, line: &Line) {
    let path = root.join(&line.path);
    fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
    let mode = |usual| {
        let mode = line.mode.unwrap_or(usual);
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("a mode");
    };
    match &line.kind {
        LineKind::Directory => {
            fs::create_dir_all(&path).expect("a directory");
            mode(0o755);
        }
        LineKind::Link(target) => symlink(target, &path).expect("a link"),
        LineKind::HardLink(target) => fs::hard_link(root.join(target), &path).expect("a link"),
        LineKind::File(data) => {
            let mut file = fs::File::create(&path).expect("a file");
            file.write_all(line.data(data).as_bytes()).expect("data");
            mode(0o644);
        }
        LineKind::Whiteout | LineKind::Opaque => panic!("only layers have these"),
    }
}

/// Reads an instruction: flags, words, and `<<NAME=text` for a file that stands in it.
pub(super) fn spec(instruction: &str) -> CopySpec {
    let mut spec = CopySpec {
        from: CopyFrom::Context,
        sources: Vec::new(),
        dest: String::new(),
        cwd: "/".into(),
        chown: None,
        chmod: None,
        exclude: Vec::new(),
        parents: false,
        link: false,
        unpack: instruction.starts_with("ADD"),
    };
    let mut words: Vec<&str> = instruction.split(' ').skip(1).collect();
    spec.dest = words.pop().expect("a destination").into();
    for word in words {
        let value = word.split_once('=').map(|(_, value)| value.to_owned());
        match word.split('=').next().unwrap_or_default() {
            "--chown" => spec.chown = value,
            "--chmod" => spec.chmod = word.strip_prefix("--chmod=").map(str::to_owned),
            "--exclude" => spec.exclude.extend(value),
            "--parents" => spec.parents = true,
            "--link" => spec.link = true,
            "--cwd" => spec.cwd = value.expect("a directory"),
            here if here.starts_with("<<") => spec.sources.push(CopySource::Heredoc {
                name: here.trim_start_matches('<').into(),
                data: value.unwrap_or_default().into_bytes(),
            }),
            _ => spec.sources.push(CopySource::Path(word.into())),
        }
    }
    spec
}
