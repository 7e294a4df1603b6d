//! Decides which entries a COPY or ADD adds, and where.
//!
//! The law: sources are processed from left to right, and each sees the result of those before it.
//! Only names and metadata are read.

use exec::Cancel;
use layer::Attributes;
use oci::decompress::UnpackLimits;
use store::Mtime;

use super::builder::{LayerBuilder, NodeRef};
use super::chmod::ModeChange;
use super::entry::{Body, Bytes, NewEntry};
use super::select;
use super::source::{Node, Source, SourceEntry, UNDATED, inline};
use super::walk::{Filter, Walk};
use super::{CopyError, CopySource, CopySpec};
use crate::context::ignore::Ignore;
use crate::context::matcher::Matcher;
use crate::download::{Downloads, WebSource};
use crate::rootfs::resolve::{Kind, ResolvedPath, Tree, resolve};
use crate::rootfs::{Rootfs, path};

/// Mode of a missing directory that is created.
const MADE_DIRECTORY: u32 = 0o755;
/// Mode of a file whose content is in the Dockerfile.
const MADE_FILE: u32 = 0o644;
/// Mode of a downloaded file; servers do not send one.
const DOWNLOADED: u32 = 0o600;

/// The values of `--chown` and `--chmod`.
#[derive(Debug, Clone, Default)]
pub(super) struct Overrides {
    pub(super) owner: Option<(u32, u32)>,
    pub(super) mode: Option<ModeChange>,
}

impl Overrides {
    /// The metadata of the copy of an entry with `meta`.
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

    /// The metadata of a missing directory that is created.
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
    /// Whether it must be a directory, by how it is written.
    directory: bool,
}

impl Destination {
    /// Parses it; a relative path is below `cwd`.
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
    pub(super) builder: LayerBuilder<'a>,
    pub(super) overrides: Overrides,
    pub(super) dest: Destination,
    pub(super) warnings: Vec<String>,
    /// Roots that files are copied from: the source root, or those of unpacked archives.
    pub(super) roots: Vec<Rootfs>,
    /// Number of sources so far; each match of a pattern counts.
    pub(super) n_sources: usize,
    /// How much archives may unpack to.
    pub(super) limits: UnpackLimits,
    pub(super) cancel: &'a Cancel,
    /// Runs the patterns of all sources.
    pub(super) matcher: Matcher<'a>,
    /// The patterns of `--exclude`, once they were needed.
    exclude: Option<Ignore>,
}

impl<'a> Planner<'a> {
    /// A planner that has not copied anything.
    pub(super) fn new(
        spec: &'a CopySpec,
        source: Source<'a>,
        downloads: &'a Downloads,
        builder: LayerBuilder<'a>,
        overrides: Overrides,
        limits: UnpackLimits,
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
            builder,
            overrides,
            dest,
            warnings,
            roots,
            n_sources,
            limits,
            cancel,
            matcher: Matcher::new(cancel),
            exclude: None,
        }
    }

    /// Processes all sources in order.
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

    fn warn_of_no_match(&mut self, written: &str) {
        self.warnings
            .push(format!("no file matches `{written}`; nothing was copied"));
    }

    /// The patterns of `--exclude`.
    fn exclude(&mut self) -> Result<Ignore, CopyError> {
        if let Some(exclude) = &self.exclude {
            return Ok(exclude.clone());
        }
        let exclude = Ignore::from_patterns("--exclude", &self.spec.exclude)?;
        Ok(self.exclude.insert(exclude).clone())
    }

    /// A path or a pattern.
    fn path(&mut self, written: &str) -> Result<(), CopyError> {
        let paths = select::paths(&self.source, written, &mut self.matcher)?;
        if paths.is_empty() {
            self.warn_of_no_match(written);
        }
        for path in paths {
            let node = select::find(&self.source, written, &path)?;
            self.n_sources += 1;
            match self.source.entry(node) {
                SourceEntry::Special(what) => {
                    return Err(CopyError::Special {
                        path: self.source.path(node),
                        what,
                    });
                }
                SourceEntry::Unreadable(source) => {
                    return Err(CopyError::Unreadable {
                        path: self.source.path(node),
                        source,
                    });
                }
                SourceEntry::Copyable(Body::Directory, _) => {
                    self.refuse_nothing()?;
                    let exclude = self.exclude()?;
                    self.directory(node, Filter::excluding(exclude))?;
                }
                SourceEntry::Copyable(Body::File(_), _)
                    if self.spec.unpack && self.unpack(node)? => {}
                SourceEntry::Copyable(body, same) => {
                    let meta = self.overrides.apply(self.source.meta(node), &body);
                    let same = same.map(|same| (self.n_sources, same));
                    let name = path::split(&path).1;
                    self.file(name, NewEntry { meta, body, same })?;
                }
            }
        }
        Ok(())
    }

    /// A path whose directories are kept (`--parents`): all of them, or those after `/./`.
    fn with_parents(&mut self, written: &str) -> Result<(), CopyError> {
        let (pivot, kept) = match written.split_once("/./") {
            Some((pivot, kept)) => (pivot, kept),
            None => ("", written),
        };
        let kept = path::clean(kept.as_bytes());
        let is_pattern = select::split_pattern(&kept).1 != b"";
        let mut found = false;
        for base in select::paths(&self.source, pivot, &mut self.matcher)? {
            let node = select::find(&self.source, written, &base)?;
            self.n_sources += 1;
            let exclude = self.exclude()?;
            let filter =
                Filter::only(&kept, is_pattern, exclude).map_err(|reason| CopyError::Pattern {
                    pattern: written.to_owned(),
                    reason,
                })?;
            found |= self.directory(node, filter)?;
        }
        if !found && is_pattern {
            self.warn_of_no_match(written);
        } else if !found {
            let whole = path::join(&path::clean(pivot.as_bytes()), &kept);
            return Err(select::missing(&self.source, written, &whole, &whole)?);
        }
        Ok(())
    }

    /// A file whose content is in the Dockerfile.
    fn heredoc(&mut self, name: &[u8], data: &[u8]) -> Result<(), CopyError> {
        let body = Body::File(inline(data));
        let meta = Attributes {
            mode: MADE_FILE,
            mtime: UNDATED,
            ..Attributes::default()
        };
        let meta = self.overrides.apply(meta, &body);
        let name = path::clean(name);
        self.file(
            path::split(&name).1,
            NewEntry {
                meta,
                body,
                same: None,
            },
        )
    }

    /// A downloaded file.
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
            Err(reason) if self.is_into(&self.resolve_dest()?) => {
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
        let meta = self.overrides.apply(meta, &body);
        let same = None;
        self.file(&name, NewEntry { meta, body, same })
    }

    /// The destination with all links resolved.
    fn resolve_dest(&self) -> Result<ResolvedPath<NodeRef<'a>>, CopyError> {
        Ok(resolve(&self.builder, &self.dest.path, true)?)
    }

    /// Whether a file is put into the destination instead of replacing it.
    fn is_into(&self, dest: &ResolvedPath<NodeRef<'a>>) -> bool {
        let is_directory = |node| self.builder.kind(node) == Kind::Directory;
        self.dest.directory || dest.node.is_some_and(is_directory)
    }

    /// Puts a non-directory at the destination, or into it if that is a directory.
    fn file(&mut self, name: &[u8], planned: NewEntry) -> Result<(), CopyError> {
        let dest = self.resolve_dest()?;
        let (dir, name) = if self.is_into(&dest) {
            (dest.path.as_slice(), name)
        } else {
            path::split(&dest.path)
        };
        let dir = self.builder.directory(dir, &self.overrides.made())?;
        self.builder.put_file(dir, name, planned)
    }

    /// Puts the content of a directory into the destination. Returns whether anything was selected.
    fn directory(&mut self, node: Node<'a>, filter: Filter) -> Result<bool, CopyError> {
        let dir = self.destination(&self.overrides.clone())?;
        let mtime = self.source.meta(node).mtime;
        self.touch(dir, mtime);
        Walk::new(self, filter, self.n_sources).run(node, dir)
    }

    /// The destination as a directory, created if it is missing.
    pub(super) fn destination(&mut self, overrides: &Overrides) -> Result<usize, CopyError> {
        let dest = self.resolve_dest()?;
        if dest
            .node
            .is_some_and(|node| self.builder.kind(node) != Kind::Directory)
        {
            return Err(CopyError::NonDirectory(path::show(&dest.path)));
        }
        Ok(self.builder.directory(&dest.path, &overrides.made())?)
    }

    /// Gives a directory the modification time of the one that is copied into it.
    fn touch(&mut self, dir: usize, mtime: Mtime) {
        if let Some(meta) = self.builder.meta(dir) {
            self.builder.set_meta(dir, Attributes { mtime, ..meta });
        }
    }

    /// Refuses a context of which everything is ignored: that is a mistake in the ignore file.
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
