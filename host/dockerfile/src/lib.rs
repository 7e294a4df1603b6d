//! The Dockerfile front end: text in, instructions with their positions out.
//!
//! ```
//! use dockerfile::{Kind, parse};
//!
//! let text = b"FROM alpine AS build\nRUN apk add make && \\\n    make\n";
//! let dockerfile = parse("Dockerfile", text)?;
//! let stage = &dockerfile.stages[0];
//! assert_eq!(stage.from.base, "alpine");
//!
//! let run = &stage.instructions[0];
//! assert!(matches!(run.kind, Kind::Run(_)));
//! assert_eq!((run.first, run.last), (2, 3));
//!
//! let error = parse("Dockerfile", b"FROM alpine\nRNU make\n").unwrap_err();
//! assert_eq!(error.to_string(), "Dockerfile:2: unknown instruction: RNU");
//! assert_eq!(error.hint.as_deref(), Some("did you mean RUN?"));
//! # Ok::<(), dockerfile::DockerfileError>(())
//! ```
//!
//! Laws:
//!
//! - Parsing is pure: no I/O, no environment, no clock.
//! - Any bytes give a [`Dockerfile`] or a [`DockerfileError`] that names a line. Nothing panics, and
//!   file size, instructions, stages, nesting and expansion have limits.
//! - The parser expands no variables, because their values depend on the stage and on build
//!   arguments. The caller does that with [`expand`].
//! - Valid syntax that cannot be built yet is parsed. The caller reports it when a build needs it.
//!
//! Parsing goes through these modules, in this order:
//!
//! | module | from | to |
//! |---|---|---|
//! | `directive` | the top of the file | `escape`, `syntax` and `check` directives |
//! | `lines` | physical lines | logical lines, with comments and continuations resolved |
//! | `heredoc` | the lines below an instruction | heredoc bodies |
//! | `words` | the rest of a logical line | flags, words, pairs, JSON arrays |
//! | `instruction` | a logical line and its heredocs | an `ast` instruction |
//! | [`expand`], `pattern` | a word and variables | its value (called by the user of this crate) |
//!
//! `error` says what is wrong and where, `checks` which build checks are enabled, `suggest` adds
//! "did you mean", and [`redact`] hides credentials before a URL is shown.
#![forbid(unsafe_code)]

mod ast;
mod checks;
mod directive;
mod error;
pub mod expand;
mod heredoc;
mod instruction;
mod lines;
mod pattern;
pub mod redact;
mod suggest;
#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeSet;

pub use ast::{Command, Copy, From, Health, Instruction, Kind, Pairs, Run};
pub use checks::Checks;
pub use error::{DockerfileError, Fault, excerpt};
pub use heredoc::Heredoc;
pub use suggest::closest;

use lines::{LineFault, Lines};

/// Maximum size of a file, in bytes.
const MAX_FILE: usize = 16 << 20;
/// Maximum number of instructions in a file. Each can become a layer, and no file system stacks so
/// many.
const MAX_INSTRUCTIONS: usize = 10_000;
/// Maximum number of stages in a file.
const MAX_STAGES: usize = 1_000;

/// A parsed Dockerfile: instructions by stage, with no variables expanded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    /// Name of the file, for messages.
    pub file: String,
    /// The text it was parsed from.
    pub source: Vec<u8>,
    /// The escape character.
    pub escape: char,
    /// The front end image that the `syntax` directive names, and the line of the directive.
    pub syntax: Option<(String, usize)>,
    /// Which build checks are reported.
    pub checks: Checks,
    /// The `ARG` instructions before the first stage.
    pub global: Vec<Instruction>,
    /// The stages, at least one.
    pub stages: Vec<StageText>,
    /// First lines of the instructions that contain blank lines.
    pub blank_inside: BTreeSet<usize>,
}

/// One stage: a `FROM` and the instructions below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageText {
    /// Arguments of `FROM`.
    pub from: From,
    /// The `FROM` instruction itself.
    pub head: Instruction,
    /// The instructions below `FROM`.
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
    /// An error about the lines `first..=last` (one-based), with an excerpt of them; zero means no
    /// particular line.
    #[must_use]
    pub fn error(&self, first: usize, last: usize, fault: Fault) -> DockerfileError {
        DockerfileError::new(&self.file, &self.source, first, last, fault)
    }
}

/// Parses a Dockerfile. `file` is its name in messages.
///
/// # Errors
/// The first syntax error. If the `syntax` directive names a front end other than the standard one,
/// any syntax error is reported as that instead. A file that parses is accepted whatever its
/// directive says, because the caller may override the directive.
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

/// The error for a file that is written for another front end, which explains any syntax error.
fn foreign(syntax: Option<(String, usize)>) -> Option<LineFault> {
    let (image, line) = syntax?;
    (!is_own_syntax(&image)).then(|| (line, line, unsupported_syntax(&image)))
}

/// Whether a front end image is the standard one, `docker/dockerfile`, whose language this crate
/// parses.
#[must_use]
pub fn is_own_syntax(image: &str) -> bool {
    let name = image.strip_prefix("docker.io/").unwrap_or(image);
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    let name = name.split_once(':').map_or(name, |(name, _)| name);
    matches!(name, "docker/dockerfile" | "docker/dockerfile-upstream")
}

/// The fault for a front end image other than the standard one.
#[must_use]
pub fn unsupported_syntax(image: &str) -> Fault {
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
                let message = format!("the file has more than {MAX_INSTRUCTIONS} instructions");
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
                let message = format!("the file has more than {MAX_STAGES} stages");
                return Err(Fault::new(message));
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
                "no build stage in current context: only ARG can come before the first FROM",
            ));
        }
        Ok(())
    }
}

/// The next instruction with its heredocs, and whether it contains blank lines.
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

/// Parses the text of an `ONBUILD` trigger.
///
/// # Errors
/// If it is not exactly one valid instruction.
pub fn parse_trigger(text: &str) -> Result<Instruction, Fault> {
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
