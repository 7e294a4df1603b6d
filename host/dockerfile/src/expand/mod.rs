//! Expansion of variables, quotes and escapes, by the rules of Dockerfiles (not of a shell).
//!
//! ```
//! use dockerfile::expand::{Variables, word};
//!
//! struct One;
//! impl Variables for One {
//!     fn get(&self, name: &str) -> Option<&str> {
//!         (name == "VERSION").then_some("3.20")
//!     }
//! }
//!
//! let expanded = word("alpine:${VERSION:-latest}$SUFFIX", '\\', &One).unwrap();
//! assert_eq!(expanded.text, "alpine:3.20");
//! assert!(expanded.unset.contains("SUFFIX"));
//! ```
//!
//! The law: any text gives a value or a fault. Nesting and size have limits, so a Dockerfile that
//! doubles its variables exhausts neither the stack nor memory.

mod out;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::iter::Peekable;
use std::str::Chars;

use crate::error::Fault;
use crate::pattern::{Pattern, Steps};

use out::{Out, too_long};

/// Maximum nesting of `${a:-${b:-…}}`.
const MAX_DEPTH: usize = 100;
/// Maximum number of bytes by which a value can be longer than its source. Linux passes at most
/// 128 KiB per variable to a program.
const MAX_GROWTH: usize = 1 << 20;
/// Maximum number of unset variables that are reported for one text.
const MAX_UNSET: usize = 5;

/// The variables in scope.
pub trait Variables {
    /// The value of a variable, if it is set.
    fn get(&self, name: &str) -> Option<&str>;
}

/// How quotes, escapes and unset variables are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Quotes and escapes are removed; an unset variable is empty.
    Value,
    /// The same, but quotes are plain text: heredoc bodies.
    Body,
    /// Quotes, escapes and unset variables are kept: for display.
    Display,
}

/// An expanded text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expanded {
    /// The value.
    pub text: String,
    /// The value split at unquoted whitespace.
    pub words: Vec<String>,
    /// Variables that it refers to and that are not set; at most five.
    pub unset: BTreeSet<String>,
}

/// Expands an argument of an instruction.
///
/// # Errors
/// On bad syntax, an unset variable that is required (`${v:?}`), or a value that is too large.
pub fn word(text: &str, escape: char, env: &dyn Variables) -> Result<Expanded, Fault> {
    Lexer::new(text, escape, Mode::Value, env).run(text)
}

/// Expands the body of a heredoc: `\` is always the escape character, and quotes are plain text.
///
/// # Errors
/// As for [`word`].
pub fn body(text: &str, env: &dyn Variables) -> Result<Expanded, Fault> {
    Lexer::new(text, '\\', Mode::Body, env).run(text)
}

/// Replaces the variables that are set, for display. A text that cannot be expanded is returned
/// unchanged.
#[must_use]
pub fn display(text: &str, escape: char, env: &dyn Variables) -> String {
    let expanded = Lexer::new(text, escape, Mode::Display, env).run(text);
    expanded.map_or_else(|_| text.to_owned(), |expanded| expanded.text)
}

struct Lexer<'a> {
    chars: Peekable<Chars<'a>>,
    escape: char,
    mode: Mode,
    /// Escapes stay in the text, because it is a pattern or a replacement.
    raw: bool,
    depth: usize,
    /// Maximum length of the output, at any level of nesting.
    limit: usize,
    env: &'a dyn Variables,
    unset: BTreeSet<String>,
    /// What all patterns of the text may still cost.
    steps: Steps,
}

impl<'a> Lexer<'a> {
    fn new(text: &'a str, escape: char, mode: Mode, env: &'a dyn Variables) -> Self {
        let raw = mode == Mode::Display;
        Self {
            chars: text.chars().peekable(),
            escape,
            mode,
            raw,
            depth: 0,
            limit: text.len() + MAX_GROWTH,
            env,
            unset: BTreeSet::new(),
            steps: Steps::default(),
        }
    }

    fn run(mut self, source: &str) -> Result<Expanded, Fault> {
        let (text, words) = self.until(None).map_err(|fault| {
            let shown: String = source.chars().take(100).collect();
            Fault {
                message: format!("cannot expand \"{shown}\": {}", fault.message),
                ..fault
            }
        })?;
        Ok(Expanded {
            text,
            words,
            unset: self.unset,
        })
    }

    /// Expands everything up to `stop`, which is consumed; without one, up to the end.
    fn until(&mut self, stop: Option<char>) -> Result<(String, Vec<String>), Fault> {
        let mut out = Out::new(self.limit);
        while let Some(c) = self.chars.next() {
            if Some(c) == stop {
                return Ok(out.finish());
            }
            match c {
                '$' => out.push_str(&self.dollar()?)?,
                '\'' if self.mode != Mode::Body => out.push_quoted(&self.single_quoted()?)?,
                '"' if self.mode != Mode::Body => out.push_quoted(&self.double_quoted()?)?,
                c if c == self.escape => {
                    if self.raw {
                        out.push_quoted(c.encode_utf8(&mut [0; 4]))?;
                    }
                    if let Some(next) = self.chars.next() {
                        out.push_quoted(next.encode_utf8(&mut [0; 4]))?;
                    }
                }
                c => out.push_str(c.encode_utf8(&mut [0; 4]))?,
            }
        }
        match stop {
            Some(stop) => Err(Fault::new(format!(
                "unexpected end of statement while looking for matching {stop}"
            ))),
            None => Ok(out.finish()),
        }
    }

    /// Expands up to `stop`, one level deeper.
    fn nested(&mut self, stop: char, raw: bool) -> Result<String, Fault> {
        if self.depth == MAX_DEPTH {
            return Err(Fault::new(format!(
                "${{…}} is nested more than {MAX_DEPTH} levels deep"
            )));
        }
        let before = std::mem::replace(&mut self.raw, raw || self.mode == Mode::Display);
        self.depth += 1;
        let text = self.until(Some(stop));
        self.depth -= 1;
        self.raw = before;
        text.map(|(text, _)| text)
    }

    fn single_quoted(&mut self) -> Result<String, Fault> {
        let mut text = String::new();
        for c in self.chars.by_ref() {
            if c == '\'' {
                return Ok(self.with_quotes(text, '\''));
            }
            text.push(c);
        }
        Err(Fault::new(
            "unexpected end of statement while looking for matching single-quote",
        ))
    }

    fn double_quoted(&mut self) -> Result<String, Fault> {
        let mut text = String::new();
        while let Some(c) = self.chars.next() {
            match c {
                '"' => return Ok(self.with_quotes(text, '"')),
                '$' => text.push_str(&self.dollar()?),
                c if c == self.escape => {
                    let protects = |next: &char| matches!(next, '"' | '$') || *next == c;
                    match self.chars.next_if(protects) {
                        Some(next) if self.raw => text.extend([c, next]),
                        Some(next) => text.push(next),
                        None => text.push(c),
                    }
                }
                c => text.push(c),
            }
            if text.len() > self.limit {
                return Err(too_long(self.limit));
            }
        }
        Err(Fault::new(
            "unexpected end of statement while looking for matching double-quote",
        ))
    }

    fn with_quotes(&self, text: String, quote: char) -> String {
        match self.mode {
            Mode::Display => format!("{quote}{text}{quote}"),
            Mode::Value | Mode::Body => text,
        }
    }

    /// Expands what follows a `$`.
    fn dollar(&mut self) -> Result<String, Fault> {
        if self.chars.next_if_eq(&'{').is_some() {
            return self.braces();
        }
        let name = self.name();
        if name.is_empty() {
            return Ok("$".to_owned());
        }
        Ok(match self.lookup(&name) {
            Some(value) => value.to_owned(),
            None if self.mode == Mode::Display => format!("${name}"),
            None => String::new(),
        })
    }

    /// Expands what follows `${`.
    fn braces(&mut self) -> Result<String, Fault> {
        let name = self.name();
        let operator = self
            .chars
            .next()
            .ok_or_else(|| Fault::new("syntax error: missing '}'"))?;
        if name.is_empty() {
            return Err(Fault::new(
                "bad substitution: a variable name must follow ${",
            ));
        }
        match operator {
            '}' => Ok(match self.lookup(&name) {
                Some(value) => value.to_owned(),
                None if self.mode == Mode::Display => format!("${{{name}}}"),
                None => String::new(),
            }),
            ':' => {
                let next = self.chars.next_if(|c| matches!(c, '-' | '+' | '?'));
                let operator = next.ok_or_else(|| {
                    let shown = self.chars.peek().map_or_else(String::new, char::to_string);
                    unsupported(&format!(":{shown}"))
                })?;
                self.fallback(&name, operator, true)
            }
            '-' | '+' | '?' => self.fallback(&name, operator, false),
            '#' | '%' => self.cut(&name, operator),
            '/' => self.replace(&name),
            other => Err(unsupported(&other.to_string())),
        }
    }

    /// `${v:-w}`, `${v:+w}`, `${v:?m}`, with or without the colon. The word is expanded even if it
    /// is not used.
    fn fallback(&mut self, name: &str, operator: char, colon: bool) -> Result<String, Fault> {
        let word = self.nested('}', false)?;
        let value = self.lookup(name);
        let colon_text = if colon { ":" } else { "" };
        if value.is_none() && self.mode == Mode::Display {
            return Ok(format!("${{{name}{colon_text}{operator}{word}}}"));
        }
        let used = value.filter(|value| !colon || !value.is_empty());
        match (operator, used) {
            ('+', Some(_)) | ('-', None) => Ok(word),
            ('+', None) => Ok(String::new()),
            (_, Some(used)) => Ok(used.to_owned()),
            (_, None) if !word.is_empty() => Err(Fault::new(format!("{name}: {word}"))),
            (_, None) => {
                let state = if value.is_none() { "unset" } else { "empty" };
                Err(Fault::new(format!("{name}: is not allowed to be {state}")))
            }
        }
    }

    /// `${v#p}`, `${v##p}`, `${v%p}`, `${v%%p}`.
    fn cut(&mut self, name: &str, operator: char) -> Result<String, Fault> {
        let pattern = self.nested('}', true)?;
        let Some(value) = self.lookup(name) else {
            return Ok(self.unset_text(format!("${{{name}{operator}{pattern}}}")));
        };
        let longer = pattern.strip_prefix(operator);
        let compiled = Pattern::parse(longer.unwrap_or(&pattern))?;
        match operator {
            '#' => compiled.cut_prefix(value, longer.is_some(), &mut self.steps),
            _ => compiled.cut_suffix(value, longer.is_some(), &mut self.steps),
        }
    }

    /// `${v/p/r}` and `${v//p/r}`.
    fn replace(&mut self, name: &str) -> Result<String, Fault> {
        let all = self.chars.next_if_eq(&'/').is_some();
        let pattern = self.nested('/', true)?;
        let by = self.nested('}', true)?;
        let Some(value) = self.lookup(name) else {
            let slashes = if all { "//" } else { "/" };
            return Ok(self.unset_text(format!("${{{name}{slashes}{pattern}/{by}}}")));
        };
        Pattern::parse(&pattern)?.replace(value, &by, all, &mut self.steps)
    }

    fn unset_text(&self, source: String) -> String {
        if self.mode == Mode::Display {
            source
        } else {
            String::new()
        }
    }

    /// A variable name: letters, digits and `_`; only digits; or one special character.
    fn name(&mut self) -> String {
        let mut name = String::new();
        let first = |c: &char| {
            c.is_alphanumeric() || matches!(c, '_' | '@' | '*' | '#' | '?' | '-' | '$' | '!')
        };
        let Some(c) = self.chars.next_if(first) else {
            return name;
        };
        name.push(c);
        if !c.is_alphanumeric() && c != '_' {
            return name;
        }
        let digits = c.is_numeric();
        let more = |c: &char| {
            if digits {
                c.is_numeric()
            } else {
                c.is_alphanumeric() || *c == '_'
            }
        };
        while let Some(c) = self.chars.next_if(more) {
            name.push(c);
        }
        name
    }

    fn lookup(&mut self, name: &str) -> Option<&'a str> {
        let env = self.env;
        let value = env.get(name);
        if value.is_none() && self.unset.len() < MAX_UNSET {
            self.unset.insert(name.to_owned());
        }
        value
    }
}

fn unsupported(modifier: &str) -> Fault {
    Fault::new(format!("unsupported modifier ({modifier}) in substitution"))
}
