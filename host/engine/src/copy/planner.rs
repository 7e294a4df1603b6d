//! Decides what a COPY or ADD puts where.
//!
//! Sources are taken from left to right, and each sees what those in front of it left. Nothing
//! is read but names and metadata.

use exec::Cancel;
use layer::Attributes;
use store::Mtime;

use super::chmod::ModeChange;
use super::draft::{Body, Bytes, Draft, Planned, Spot};
use super::select;
use super::source::{Node, Source, Thing, UNDATED, inline};
use super::walk::{Filter, Walk};
use super::{CopyError, CopySource, CopySpec};
use crate::context::ignore::Ignore;
use crate::download::{Downloads, WebSource};
use crate::rootfs::resolve::{Kind, Place, Tree, resolve};
use crate::rootfs::{Rootfs, path};

/// Mode of a directory that is made on the way.
const MADE_DIRECTORY: u32 = 0o755;
/// Mode of a file whose content stands in the Dockerfile.
const MADE_FILE: u32 = 0o644;
/// Mode of a file from a server, which says nothing of modes.
const DOWNLOADED: u32 = 0o600;

/// What the flags change about everything that is copied.
#[derive(Debug, Clone, Default)]
pub(super) struct Changes {
    pub(super) owner: Option<(u32, u32)>,
    pub(super) mode: Option<ModeChange>,
}

impl Changes {
    /// The metadata that a copy of something with `meta` gets.
    pub(super) fn apply(&self, meta: Attributes, body: &Body) -> Attributes {
        let (uid, gid) = self.owner.unwrap_or((meta.uid, meta.gid));
        let mode = match (&self.mode, body) {
            (None, _) | (Some(_), Body::Link(_)) => meta.mode,
            (Some(change), Body::Directory) => change.apply(meta.mode, true),
            (
                Some(change),
                Body::File(_) | Body::CharDevice { .. } | Body::BlockDevice { .. } | Body::Fifo,
            ) => change.apply(meta.mode, false),
        };
        Attributes {
            mode,
            uid,
            gid,
            ..meta
        }
    }

    /// The metadata of a directory that is made because it is missing.
    pub(super) fn made(&self) -> Attributes {
        let (uid, gid) = self.owner.unwrap_or_default();
        let octal = self.mode.as_ref().and_then(ModeChange::octal);
        let mode = octal.unwrap_or(MADE_DIRECTORY);
        Attributes {
            mode,
            uid,
            gid,
            mtime: UNDATED,
            xattrs: Vec::new(),
        }
    }
}

/// The destination of a COPY.
#[derive(Debug)]
pub(super) struct Destination {
    /// From the root.
    path: Vec<u8>,
    /// As written it can only be a directory.
    directory: bool,
}

impl Destination {
    /// Reads it as written, relative to `cwd`.
    pub(super) fn new(dest: &str, cwd: &str) -> Self {
        let directory = ["", "."].contains(&dest) || dest.ends_with('/') || dest.ends_with("/.");
        let whole = if dest.starts_with('/') {
            dest.to_owned()
        } else {
            format!("{cwd}/{dest}")
        };
        Self {
            path: path::clean(whole.as_bytes()),
            directory,
        }
    }
}

/// The state of planning one instruction.
#[derive(Debug)]
pub(super) struct Planner<'a> {
    pub(super) spec: &'a CopySpec,
    pub(super) source: Source<'a>,
    pub(super) downloads: &'a Downloads,
    pub(super) draft: Draft<'a>,
    pub(super) changes: Changes,
    pub(super) dest: Destination,
    pub(super) warnings: Vec<String>,
    /// Roots that files are taken from: that of the source, or those of unpacked archives.
    pub(super) roots: Vec<Rootfs>,
    /// Sources taken so far, each match of a pattern by itself.
    pub(super) n_sources: usize,
    pub(super) cancel: &'a Cancel,
}

impl<'a> Planner<'a> {
    /// Begins with nothing copied.
    pub(super) fn new(
        spec: &'a CopySpec,
        source: Source<'a>,
        downloads: &'a Downloads,
        draft: Draft<'a>,
        changes: Changes,
        cancel: &'a Cancel,
    ) -> Self {
        let dest = Destination::new(&spec.dest, &spec.cwd);
        let roots = match source {
            Source::Rootfs(rootfs) => vec![rootfs.clone()],
            Source::Context(..) => Vec::new(),
        };
        let (warnings, n_sources) = (Vec::new(), 0);
        Self {
            spec,
            source,
            downloads,
            draft,
            changes,
            dest,
            warnings,
            roots,
            n_sources,
            cancel,
        }
    }

    /// Takes all sources in order.
    pub(super) fn run(&mut self) -> Result<(), CopyError> {
        let spec = self.spec;
        for source in &spec.sources {
            match source {
                CopySource::Heredoc { name, data } => self.heredoc(name.as_bytes(), data)?,
                CopySource::Web(source) => self.web(source)?,
                CopySource::Path(written) if spec.parents => self.with_parents(written)?,
                CopySource::Path(written) => self.path(written)?,
            }
        }
        Ok(())
    }

    /// A named path or a pattern.
    fn path(&mut self, written: &str) -> Result<(), CopyError> {
        let paths = select::paths(&self.source, written)?;
        if paths.is_empty() {
            self.warnings
                .push(format!("`{written}` matches nothing; nothing is copied"));
        }
        for path in paths {
            let node = select::find(&self.source, written, &path)?;
            self.n_sources += 1;
            match self.source.thing(node) {
                Thing::Special(what) => {
                    return Err(CopyError::Special {
                        path: self.source.path(node),
                        what,
                    });
                }
                Thing::Unreadable(source) => {
                    return Err(CopyError::Unreadable {
                        path: self.source.path(node),
                        source,
                    });
                }
                Thing::Copy(Body::Directory, _) => {
                    self.refuse_nothing()?;
                    let exclude = Ignore::from_patterns("--exclude", &self.spec.exclude)?;
                    self.directory(node, Filter::excluding(exclude))?;
                }
                Thing::Copy(Body::File(_), _) if self.spec.unpack && self.unpack(node)? => {}
                Thing::Copy(body, same) => {
                    let meta = self.changes.apply(self.source.meta(node), &body);
                    let same = same.map(|same| (self.n_sources, same));
                    let name = path::split(&path).1;
                    self.file(name, Planned { meta, body, same })?;
                }
            }
        }
        Ok(())
    }

    /// A path that keeps its directories: the whole of it, or what stands behind `/./`.
    fn with_parents(&mut self, written: &str) -> Result<(), CopyError> {
        let (pivot, kept) = match written.split_once("/./") {
            Some((pivot, kept)) => (pivot, kept),
            None => ("", written),
        };
        let kept = path::clean(kept.as_bytes());
        let is_pattern = select::split_pattern(&kept).1 != b"";
        let mut found = false;
        for base in select::paths(&self.source, pivot)? {
            let node = select::find(&self.source, written, &base)?;
            self.n_sources += 1;
            let exclude = Ignore::from_patterns("--exclude", &self.spec.exclude)?;
            let filter =
                Filter::only(&kept, is_pattern, exclude).map_err(|reason| CopyError::Pattern {
                    pattern: written.to_owned(),
                    reason,
                })?;
            found |= self.directory(node, filter)?;
        }
        if !found && is_pattern {
            self.warnings
                .push(format!("`{written}` matches nothing; nothing is copied"));
        } else if !found {
            let whole = path::join(&path::clean(pivot.as_bytes()), &kept);
            return Err(select::missing(&self.source, written, &whole, &whole)?);
        }
        Ok(())
    }

    /// A file whose content stands in the Dockerfile.
    fn heredoc(&mut self, name: &[u8], data: &[u8]) -> Result<(), CopyError> {
        let body = Body::File(inline(data));
        let meta = Attributes {
            mode: MADE_FILE,
            mtime: UNDATED,
            ..Attributes::default()
        };
        let meta = self.changes.apply(meta, &body);
        let name = path::clean(name);
        self.file(
            path::split(&name).1,
            Planned {
                meta,
                body,
                same: None,
            },
        )
    }

    /// A file from a server.
    fn web(&mut self, source: &WebSource) -> Result<(), CopyError> {
        let url = || source.address.to_string();
        let file = self.downloads.get(source);
        let file = file.ok_or_else(|| CopyError::NotDownloaded(url()))?;
        self.n_sources += 1;
        if source.unpack && self.unpack_download(&url(), file.digest)? {
            return Ok(());
        }
        let name = match source.address.name() {
            Ok(name) => name,
            Err(reason) if self.is_into(&self.place()?) => {
                return Err(CopyError::NoName { url: url(), reason });
            }
            Err(_) => Vec::new(),
        };
        let body = Body::File(Bytes::Blob {
            digest: file.digest,
            size: file.size,
        });
        let meta = Attributes {
            mode: DOWNLOADED,
            mtime: file.mtime,
            ..Attributes::default()
        };
        let meta = self.changes.apply(meta, &body);
        let same = None;
        self.file(&name, Planned { meta, body, same })
    }

    /// Where the destination leads.
    fn place(&self) -> Result<Place<Spot<'a>>, CopyError> {
        Ok(resolve(&self.draft, &self.dest.path, true)?)
    }

    /// Whether a file goes into the destination and not into its place.
    fn is_into(&self, place: &Place<Spot<'a>>) -> bool {
        let is_directory = |spot| self.draft.kind(spot) == Kind::Directory;
        self.dest.directory || place.node.is_some_and(is_directory)
    }

    /// Puts anything but a directory at the destination, or into it if that is a directory.
    fn file(&mut self, name: &[u8], planned: Planned) -> Result<(), CopyError> {
        let place = self.place()?;
        let (dir, name) = if self.is_into(&place) {
            (place.path.as_slice(), name)
        } else {
            path::split(&place.path)
        };
        let dir = self.draft.directory(dir, &self.changes.made())?;
        self.draft.put_file(dir, name, planned)
    }

    /// Puts what is in a directory into the destination. Returns whether anything was taken.
    fn directory(&mut self, node: Node<'a>, filter: Filter) -> Result<bool, CopyError> {
        let dir = self.destination(&self.changes.clone())?;
        let mtime = self.source.meta(node).mtime;
        self.touch(dir, mtime);
        Walk::new(self, filter, self.n_sources).run(node, dir)
    }

    /// The destination as a directory, made if it is missing.
    pub(super) fn destination(&mut self, changes: &Changes) -> Result<usize, CopyError> {
        let place = self.place()?;
        if place
            .node
            .is_some_and(|spot| self.draft.kind(spot) != Kind::Directory)
        {
            return Err(CopyError::NonDirectory(path::show(&place.path)));
        }
        Ok(self.draft.directory(&place.path, &changes.made())?)
    }

    /// Gives a directory the time of the one that is copied into it.
    fn touch(&mut self, dir: usize, mtime: Mtime) {
        if let Some(meta) = self.draft.meta(dir) {
            self.draft.set_meta(dir, Attributes { mtime, ..meta });
        }
    }

    /// An ignore file that leaves nothing at all is a mistake, not a wish.
    fn refuse_nothing(&self) -> Result<(), CopyError> {
        let Source::Context(context, scan) = self.source else {
            return Ok(());
        };
        match context.first_ignored() {
            Some((_, rule)) if scan.all().next().is_none() => Err(CopyError::AllIgnored(rule)),
            Some(_) | None => Ok(()),
        }
    }
}
