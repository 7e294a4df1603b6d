//! The Dockerfile language: from the bytes of a file to instructions with their lines.
//!
//! Reading goes in layers, each a module of its own: the directives at the top of the file,
//! physical lines joined to logical ones, heredoc bodies, flags and words, instructions. Nothing is
//! expanded here; [`crate::plan`] does that, since values depend on the stage.
//!
//! The laws: reading is pure; any bytes give a [`Dockerfile`] or a [`DockerfileError`] with a line,
//! never a panic; what is valid but cannot be built yet is refused when a build needs it, never
//! passed over.

mod ast;
mod checks;
mod directive;
mod error;
mod expand;
mod heredoc;
mod instruction;
mod lines;
mod pattern;
mod suggest;
mod words;

use std::collections::BTreeSet;

pub use ast::{Command, Copy, From, Health, Instruction, Kind, Pairs, Run};
pub use checks::Checks;
pub use error::{DockerfileError, excerpt};
pub use heredoc::Heredoc;

pub(crate) use error::Fault;
pub(crate) use expand::{Expanded, Variables, body, display, word};
pub(crate) use suggest::closest;

use lines::{LineFault, Lines};

/// The longest file that is read, in bytes.
const MAX_FILE: usize = 16 << 20;
/// The most instructions in a file. Each can become a layer, and no file system stacks so many.
const MAX_INSTRUCTIONS: usize = 10_000;

/// The most stages in a file.
const MAX_STAGES: usize = 1_000;

/// A Dockerfile that was read: instructions by stage, nothing expanded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    /// Name of the file, for messages.
    pub file: String,
    /// The text it was read from.
    pub source: Vec<u8>,
    /// The escape character.
    pub escape: char,
    /// The front end's image that the file asks for, and the line that does.
    pub syntax: Option<(String, usize)>,
    /// Which build checks are reported.
    pub checks: Checks,
    /// The `ARG` instructions before the first stage.
    pub global: Vec<Instruction>,
    /// The stages, at least one.
    pub stages: Vec<StageText>,
    /// Lines of instructions that have blank lines inside.
    pub blank_inside: BTreeSet<usize>,
}

/// One stage: a `FROM` and what follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageText {
    /// Arguments of `FROM`.
    pub from: From,
    /// The `FROM` instruction itself.
    pub head: Instruction,
    /// What follows.
    pub instructions: Vec<Instruction>,
}

impl StageText {
    /// The stage's name in lower case, if it has one.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        self.from
            .name
            .as_ref()
            .map(|name| name.to_ascii_lowercase())
    }
}

impl Dockerfile {
    /// An error about the lines `first..=last`; zero for none.
    pub(crate) fn error(&self, first: usize, last: usize, fault: Fault) -> DockerfileError {
        DockerfileError::new(&self.file, &self.source, first, last, fault)
    }
}

/// Reads a Dockerfile. `file` is its name for messages.
///
/// # Errors
/// The first thing that is wrong with the syntax. A file for another front end is not read any
/// further than its `syntax` directive, and is no error here: the plan may override the directive.
pub fn parse(file: &str, text: &[u8]) -> Result<Dockerfile, DockerfileError> {
    let fail =
        |(first, last, fault): LineFault| DockerfileError::new(file, text, first, last, fault);
    if text.is_empty() {
        return Err(fail((0, 0, Fault::new("the Dockerfile cannot be empty"))));
    }
    if text.len() > MAX_FILE {
        let message = format!("the Dockerfile is larger than {} MiB", MAX_FILE >> 20);
        return Err(fail((0, 0, Fault::new(message))));
    }
    let directives = directive::read(text).map_err(fail)?;
    let mut dockerfile = Dockerfile {
        file: file.to_owned(),
        source: text.to_owned(),
        escape: directives.escape,
        syntax: directives.syntax,
        checks: directives.checks,
        global: Vec::new(),
        stages: Vec::new(),
        blank_inside: BTreeSet::new(),
    };
    match dockerfile.read(text) {
        Ok(()) => Ok(dockerfile),
        Err(fault) => Err(fail(foreign(dockerfile.syntax).unwrap_or(fault))),
    }
}

/// If the file is for a front end that is not ours, that explains every syntax error.
fn foreign(syntax: Option<(String, usize)>) -> Option<LineFault> {
    let (image, line) = syntax?;
    (!is_own_syntax(&image)).then(|| (line, line, unsupported_syntax(&image)))
}

/// Whether a front end's image is the standard one, whose language is understood here.
pub(crate) fn is_own_syntax(image: &str) -> bool {
    let name = image.strip_prefix("docker.io/").unwrap_or(image);
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    let name = name.split_once(':').map_or(name, |(name, _)| name);
    matches!(name, "docker/dockerfile" | "docker/dockerfile-upstream")
}

pub(crate) fn unsupported_syntax(image: &str) -> Fault {
    Fault::unsupported(&format!("the external front end \"{image}\""))
}

impl Dockerfile {
    fn read(&mut self, text: &[u8]) -> Result<(), LineFault> {
        let mut lines = Lines::new(text);
        let mut count = 0;
        while let Some((instruction, blank_inside)) = next_instruction(&mut lines, self.escape)? {
            count += 1;
            let (first, last) = (instruction.first, instruction.last);
            if count > MAX_INSTRUCTIONS {
                let message = format!("more than {MAX_INSTRUCTIONS} instructions");
                return Err((first, last, Fault::new(message)));
            }
            if blank_inside {
                self.blank_inside.insert(first);
            }
            self.add(instruction)
                .map_err(|fault| (first, last, fault))?;
        }
        if !self.stages.is_empty() {
            return Ok(());
        }
        let message = match self.global.is_empty() {
            true => "file with no instructions",
            false => "dockerfile contains no stages to build",
        };
        Err((0, 0, Fault::new(message)))
    }

    fn add(&mut self, instruction: Instruction) -> Result<(), Fault> {
        if let Kind::From(from) = &instruction.kind {
            if self.stages.len() == MAX_STAGES {
                return Err(Fault::new(format!("more than {MAX_STAGES} stages")));
            }
            let from = from.clone();
            self.stages.push(StageText {
                from,
                head: instruction,
                instructions: Vec::new(),
            });
        } else if let Some(stage) = self.stages.last_mut() {
            stage.instructions.push(instruction);
        } else if matches!(instruction.kind, Kind::Arg(_)) {
            self.global.push(instruction);
        } else {
            return Err(Fault::new(
                "no build stage in current context: only ARG may stand before FROM",
            ));
        }
        Ok(())
    }
}

/// The next instruction with its heredocs, and whether it has blank lines inside.
fn next_instruction(
    lines: &mut Lines<'_>,
    escape: char,
) -> Result<Option<(Instruction, bool)>, LineFault> {
    let Some(logical) = lines::next_logical(lines, escape)? else {
        return Ok(None);
    };
    let first = logical.first;
    let mut heredocs = instruction::heredocs_of(&logical.text, escape);
    for heredoc in &mut heredocs {
        heredoc.read_body(lines, first)?;
    }
    let last = lines.number;
    let kind = instruction::parse(&logical.text, heredocs, escape)
        .map_err(|fault| (first, last, fault))?;
    let text = logical.text.trim().to_owned();
    let instruction = Instruction {
        first,
        last,
        text,
        comments: logical.comments,
        kind,
    };
    Ok(Some((instruction, logical.blank_inside)))
}

/// Reads the text of an `ONBUILD` trigger: exactly one instruction.
pub(crate) fn parse_trigger(text: &str) -> Result<Instruction, Fault> {
    let mut lines = Lines::new(text.as_bytes());
    let read = |lines: &mut Lines<'_>| {
        next_instruction(lines, '\\').map_err(|(_, _, fault)| Fault {
            message: format!(
                "ONBUILD trigger \"{}\": {}",
                first_line(text),
                fault.message
            ),
            ..fault
        })
    };
    let one = read(&mut lines)?;
    match (one, read(&mut lines)?) {
        (Some((instruction, _)), None) => Ok(instruction),
        _ => Err(Fault::new(format!(
            "ONBUILD trigger \"{}\" is not a single instruction",
            first_line(text)
        ))),
    }
}

fn first_line(text: &str) -> String {
    text.lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(100)
        .collect()
}
