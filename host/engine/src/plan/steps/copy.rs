//! COPY and ADD.

use dockerfile::expand::body;
use dockerfile::{Copy, Fault, Heredoc, Instruction};
use store::{Digest, NotADigest};

use super::super::Op;
use super::super::eval::StageEvaluator;
use super::super::refs::{FromRef, copy_from};
use super::super::text::clean_path;
use crate::copy::{CopyFrom, CopySource, CopySpec};
use crate::download::{WebAddress, WebSource};

impl StageEvaluator<'_, '_> {
    pub(super) fn copy(&mut self, at: &Instruction, copy: &Copy) -> Result<(), Fault> {
        let checksum = self.checksum(at, copy)?;
        let mut sources = Vec::new();
        for source in &copy.sources {
            let source = self.expand(source, at)?;
            let unpack = copy.unpack.unwrap_or_default();
            sources.push(source_of(copy.add, source, checksum, unpack)?);
        }
        for heredoc in &copy.heredocs {
            let (name, data) = (heredoc.name.clone(), self.heredoc(at, heredoc)?);
            sources.push(CopySource::Heredoc { name, data });
        }
        let dest = self.expand(&copy.dest, at)?;
        let chown = copy.chown.as_ref();
        let chmod = copy.chmod.as_ref();
        let spec = CopySpec {
            chown: chown.map(|text| self.expand(text, at)).transpose()?,
            chmod: chmod.map(|text| self.expand(text, at)).transpose()?,
            from: self.copied_from(at)?,
            sources,
            dest,
            cwd: clean_path(&self.state.config.working_dir),
            exclude: copy.exclude.clone(),
            parents: copy.parents,
            link: copy.link,
            unpack: copy.add && copy.unpack.unwrap_or(true),
        };
        let name = if copy.add { "ADD" } else { "COPY" };
        self.push_counted(at, shown_copy(name, &spec), Op::Copy(spec))
    }

    /// The digest that the source must have.
    fn checksum(&mut self, at: &Instruction, copy: &Copy) -> Result<Option<Digest>, Fault> {
        let Some(text) = &copy.checksum else {
            return Ok(None);
        };
        let text = self.expand(text, at)?;
        if copy.sources.len() + copy.heredocs.len() > 1 {
            return Err(Fault::new(
                "checksum can't be specified for multiple sources",
            ));
        }
        if !copy.heredocs.is_empty() {
            return Err(not_for_checksum());
        }
        let digest = text.to_ascii_lowercase().parse();
        digest
            .map(Some)
            .map_err(|error: NotADigest| Fault::new(format!("invalid --checksum: {error}")))
    }

    /// The content of a heredoc, expanded unless its delimiter is quoted.
    fn heredoc(&mut self, at: &Instruction, heredoc: &Heredoc) -> Result<Vec<u8>, Fault> {
        let data = heredoc.content();
        if !heredoc.expand {
            return Ok(data);
        }
        let text = String::from_utf8(data).map_err(|_| {
            Fault::new("the heredoc is not valid UTF-8: quote its delimiter to disable expansion")
        })?;
        let expanded = body(&text, &self.state.env)?;
        self.all.charge(expanded.text.len())?;
        self.report_unset(&expanded.unset, at);
        Ok(expanded.text.into_bytes())
    }

    fn copied_from(&self, at: &Instruction) -> Result<CopyFrom, Fault> {
        let found = copy_from(self.all.d, self.all.o, self.index, at)?;
        Ok(match found {
            None => CopyFrom::Context,
            Some(FromRef::Image(name)) => CopyFrom::Image(name),
            Some(FromRef::Stage(index)) => {
                CopyFrom::Stage(self.all.places.get(&index).copied().unwrap_or_default())
            }
        })
    }
}

fn shown_copy(name: &str, spec: &CopySpec) -> String {
    let mut words = vec![name.to_owned()];
    words.extend(spec.parents.then(|| "--parents".to_owned()));
    words.extend(spec.chown.as_ref().map(|owner| format!("--chown={owner}")));
    words.extend(spec.chmod.as_ref().map(|mode| format!("--chmod={mode}")));
    words.extend(spec.sources.iter().map(|source| match source {
        CopySource::Path(path) => path.clone(),
        CopySource::Heredoc { name, .. } => format!("<<{name}"),
        CopySource::Web(source) => source.address.to_string(),
    }));
    words.extend([spec.dest.clone(), "# buildkit".to_owned()]);
    words.join(" ")
}

/// Classifies a source. COPY accepts no URLs; ADD does not support git repositories yet.
fn source_of(
    add: bool,
    source: String,
    checksum: Option<Digest>,
    unpack: bool,
) -> Result<CopySource, Fault> {
    let web = source.starts_with("http://") || source.starts_with("https://");
    let path = source.split(['#', '?']).next().unwrap_or_default();
    let git = source.starts_with("git@")
        || source.starts_with("ssh://")
        || source.starts_with("git://")
        || web && path.ends_with(".git");
    match (git, web, add) {
        (true, _, true) => Err(Fault::unsupported("ADD of a git repository")),
        (true, _, false) => Err(Fault::new("source can't be a git ref for COPY")),
        (false, true, false) => Err(Fault::new("source can't be a URL for COPY")),
        (false, true, true) => {
            let address = WebAddress::parse(&source)
                .map_err(|error| Fault::new(format!("invalid URL: {error}")))?;
            Ok(CopySource::Web(WebSource {
                address,
                checksum,
                unpack,
            }))
        }
        (false, false, _) if checksum.is_some() => Err(not_for_checksum()),
        (false, false, _) => Ok(CopySource::Path(source)),
    }
}

fn not_for_checksum() -> Fault {
    Fault::new("checksum can't be specified for non-HTTP(S) sources")
}
