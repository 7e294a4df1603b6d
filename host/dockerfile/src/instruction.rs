//! Parses a logical line into an instruction.

use crate::ast::{Command, Copy, From, Health, Kind, Pairs, Run};
use crate::error::Fault;
use crate::heredoc::{self, Heredoc};
use crate::suggest::closest;
use crate::words::{self, FlagKind, Flags, json_list, split_blanks, split_first, take_flags};

/// Names of all instructions.
const NAMES: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// The heredocs of an instruction. Only `RUN`, `COPY` and `ADD` can have them, and not in JSON form.
pub(crate) fn heredocs_of(text: &str, escape: char) -> Vec<Heredoc> {
    let (mut name, mut rest) = split_first(text);
    if name.eq_ignore_ascii_case("ONBUILD") {
        (name, rest) = split_first(rest);
    }
    let takes = ["RUN", "COPY", "ADD"]
        .iter()
        .any(|taker| taker.eq_ignore_ascii_case(name));
    let (_, arguments) = take_flags(rest, escape);
    if !takes || !matches!(json_list(arguments), Ok(None)) {
        return Vec::new();
    }
    heredoc::heads(text)
}

/// Parses an instruction; `heredocs` already have their bodies.
pub(crate) fn parse(text: &str, heredocs: Vec<Heredoc>, escape: char) -> Result<Kind, Fault> {
    let (name, rest) = split_first(text);
    let upper = name.to_ascii_uppercase();
    let (flags, rest) = match upper.as_str() {
        "ONBUILD" => (Vec::new(), rest),
        _ => take_flags(rest, escape),
    };
    let line = Line {
        name: &upper,
        flags: &flags,
        rest,
        escape,
    };
    match upper.as_str() {
        "FROM" => from(&line),
        "ARG" => arg(&line),
        "ENV" => line.pairs().map(Kind::Env),
        "LABEL" => line.pairs().map(Kind::Label),
        "RUN" => run(&line, heredocs),
        "CMD" => line.command().map(Kind::Cmd),
        "ENTRYPOINT" => line.command().map(Kind::Entrypoint),
        "SHELL" => shell(&line),
        "COPY" | "ADD" => copy(&line, &heredocs),
        "EXPOSE" => line.words().map(Kind::Expose),
        "VOLUME" => volume(&line),
        "USER" => line.value().map(Kind::User),
        "WORKDIR" => line.value().map(Kind::Workdir),
        // Flags of STOPSIGNAL are ignored, as in Docker.
        "STOPSIGNAL" => line.argument().map(Kind::StopSignal),
        "MAINTAINER" => line.value().map(Kind::Maintainer),
        "HEALTHCHECK" => healthcheck(&line),
        "ONBUILD" => onbuild(&line, heredocs),
        _ => Err(unknown(name)),
    }
}

fn unknown(name: &str) -> Fault {
    let shown: String = name.chars().take(50).collect();
    Fault::new(format!("unknown instruction: {shown}")).did_you_mean(closest(name, NAMES))
}

/// A logical line split into its parts.
struct Line<'l> {
    name: &'l str,
    flags: &'l [String],
    rest: &'l str,
    escape: char,
}

impl Line<'_> {
    fn flags(&self, known: &[(&'static str, FlagKind)]) -> Result<Flags, Fault> {
        Flags::read(self.flags, known)
    }

    /// The rest of the line as one argument.
    fn argument(&self) -> Result<String, Fault> {
        match self.rest {
            "" => Err(Fault::new(format!(
                "{} requires exactly one argument",
                self.name
            ))),
            rest => Ok(rest.to_owned()),
        }
    }

    fn value(&self) -> Result<String, Fault> {
        self.flags(&[])?;
        self.argument()
    }

    fn words(&self) -> Result<Vec<String>, Fault> {
        self.flags(&[])?;
        match self.rest {
            "" => Err(Fault::new(format!(
                "{} requires at least one argument",
                self.name
            ))),
            rest => Ok(split_blanks(rest)),
        }
    }

    fn too_few_words(&self) -> Fault {
        let name = self.name;
        Fault::new(format!(
            "{name} requires at least two arguments: a source and a destination"
        ))
    }

    fn pairs(&self) -> Result<Pairs, Fault> {
        self.flags(&[])?;
        let (pairs, legacy) = words::pairs(self.name, self.rest, self.escape)?;
        Ok(Pairs { pairs, legacy })
    }

    fn command(&self) -> Result<Command, Fault> {
        self.flags(&[])?;
        command(self.rest)
    }
}

fn command(text: &str) -> Result<Command, Fault> {
    Ok(json_list(text)?.map_or_else(|| Command::Shell(text.to_owned()), Command::Exec))
}

fn from(line: &Line<'_>) -> Result<Kind, Fault> {
    let words = split_blanks(line.rest);
    let (base, name) = match words.as_slice() {
        [base] => (base, None),
        [base, word, name] if word.eq_ignore_ascii_case("AS") => (base, Some((word, name))),
        _ => return Err(Fault::new("FROM requires either one or three arguments")),
    };
    if let Some((_, name)) = name {
        check_stage_name(name)?;
    }
    let mut flags = line.flags(&[("platform", FlagKind::Text)])?;
    Ok(Kind::From(From {
        base: base.clone(),
        platform: flags.text("platform"),
        name: name.map(|(_, name)| name.clone()),
        as_word: name.map(|(word, _)| word.clone()),
    }))
}

fn check_stage_name(name: &str) -> Result<(), Fault> {
    let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(letters) {
        return Ok(());
    }
    let text = format!(
        "invalid name for build stage: \"{name}\", name must start with a letter and contain only \
         letters, digits, '-', '_' and '.'"
    );
    Err(Fault::new(text))
}

/// Flags of ARG are ignored, as in Docker.
fn arg(line: &Line<'_>) -> Result<Kind, Fault> {
    let words = words::split_quoted(line.rest, line.escape);
    if words.is_empty() {
        return Err(Fault::new("ARG requires at least one argument"));
    }
    let args = words.into_iter().map(|word| match word.split_once('=') {
        Some(("", _)) => Err(Fault::new("ARG names can not be blank")),
        Some((name, value)) => Ok((name.to_owned(), Some(value.to_owned()))),
        None => Ok((word, None)),
    });
    args.collect::<Result<_, _>>().map(Kind::Arg)
}

fn run(line: &Line<'_>, heredocs: Vec<Heredoc>) -> Result<Kind, Fault> {
    let mut flags = line.flags(&[
        ("mount", FlagKind::List),
        ("network", FlagKind::Text),
        ("security", FlagKind::Text),
        ("device", FlagKind::List),
    ])?;
    let command = command(line.rest)?;
    if command == Command::Exec(Vec::new()) {
        return Err(Fault::new("RUN requires at least one argument"));
    }
    Ok(Kind::Run(Run {
        command,
        heredocs,
        mounts: flags.list("mount"),
        network: flags.text("network"),
        security: flags.text("security"),
        devices: flags.list("device"),
    }))
}

fn shell(line: &Line<'_>) -> Result<Kind, Fault> {
    match line.command()? {
        Command::Exec(words) if words.is_empty() => {
            Err(Fault::new("SHELL requires at least one argument"))
        }
        Command::Exec(words) => Ok(Kind::Shell(words)),
        Command::Shell(_) => Err(Fault::new(
            "SHELL requires the arguments to be in JSON form: SHELL [\"/bin/sh\", \"-c\"]",
        )),
    }
}

fn list(text: &str) -> Result<Vec<String>, Fault> {
    Ok(json_list(text)?.unwrap_or_else(|| split_blanks(text)))
}

fn volume(line: &Line<'_>) -> Result<Kind, Fault> {
    line.flags(&[])?;
    match list(line.rest)? {
        volumes if volumes.is_empty() => Err(Fault::new("VOLUME requires at least one argument")),
        volumes => Ok(Kind::Volume(volumes)),
    }
}

fn copy(line: &Line<'_>, heredocs: &[Heredoc]) -> Result<Kind, Fault> {
    let add = line.name == "ADD";
    let mut flags = line.flags(if add { ADD_FLAGS } else { COPY_FLAGS })?;
    let words = list(line.rest)?;
    let [sources @ .., dest] = words.as_slice() else {
        return Err(line.too_few_words());
    };
    if sources.is_empty() {
        return Err(line.too_few_words());
    }
    if Heredoc::of_word(dest).is_some() {
        let text = format!("{} cannot accept a heredoc as a destination", line.name);
        return Err(Fault::new(text));
    }
    let (bodies, sources) = split_sources(sources, heredocs);
    let dest = dest.clone();
    Ok(Kind::Copy(Box::new(Copy {
        add,
        heredocs: bodies,
        sources,
        dest,
        from: flags.text("from"),
        chown: flags.text("chown"),
        chmod: flags.text("chmod"),
        exclude: flags.list("exclude"),
        parents: flags.boolean("parents").unwrap_or_default(),
        link: flags.boolean("link").unwrap_or_default(),
        checksum: flags.text("checksum"),
        keep_git_dir: flags.boolean("keep-git-dir").unwrap_or_default(),
        unpack: flags.boolean("unpack"),
    })))
}

/// The sources that are heredocs, and the others. If several heredocs have the same name, only the
/// last one is used.
fn split_sources(words: &[String], heredocs: &[Heredoc]) -> (Vec<Heredoc>, Vec<String>) {
    let (mut bodies, mut others): (Vec<Heredoc>, Vec<String>) = (Vec::new(), Vec::new());
    for word in words {
        let head = Heredoc::of_word(word);
        let body = head.and_then(|head| heredocs.iter().rfind(|body| body.name == head.name));
        match body {
            None => others.push(word.clone()),
            Some(body) if bodies.iter().any(|other| other.name == body.name) => {}
            Some(body) => bodies.push(body.clone()),
        }
    }
    (bodies, others)
}

const COPY_FLAGS: &[(&str, FlagKind)] = &[
    ("from", FlagKind::Text),
    ("chown", FlagKind::Text),
    ("chmod", FlagKind::Text),
    ("exclude", FlagKind::List),
    ("parents", FlagKind::Bool),
    ("link", FlagKind::Bool),
];

const ADD_FLAGS: &[(&str, FlagKind)] = &[
    ("chown", FlagKind::Text),
    ("chmod", FlagKind::Text),
    ("exclude", FlagKind::List),
    ("link", FlagKind::Bool),
    ("checksum", FlagKind::Text),
    ("keep-git-dir", FlagKind::Bool),
    ("unpack", FlagKind::Bool),
];

fn healthcheck(line: &Line<'_>) -> Result<Kind, Fault> {
    let (kind, rest) = split_first(line.rest);
    match kind.to_ascii_uppercase().as_str() {
        "" => Err(Fault::new("HEALTHCHECK requires at least one argument")),
        // Flags of NONE are ignored, as in Docker.
        "NONE" if rest.is_empty() => Ok(Kind::Healthcheck(Health::None)),
        "NONE" => Err(Fault::new("HEALTHCHECK NONE takes no arguments")),
        "CMD" => {
            let names = [
                "interval",
                "timeout",
                "start-period",
                "start-interval",
                "retries",
            ];
            let mut flags = line.flags(&names.map(|name| (name, FlagKind::Text)))?;
            let command = command(rest)?;
            if matches!(&command, Command::Shell(text) if text.is_empty())
                || command == Command::Exec(Vec::new())
            {
                return Err(Fault::new("missing command after HEALTHCHECK CMD"));
            }
            Ok(Kind::Healthcheck(Health::Check {
                command,
                interval: flags.text("interval"),
                timeout: flags.text("timeout"),
                start_period: flags.text("start-period"),
                start_interval: flags.text("start-interval"),
                retries: flags.text("retries"),
            }))
        }
        _ => Err(Fault::new(format!(
            "unknown type \"{kind}\" in HEALTHCHECK (try CMD or NONE)"
        ))),
    }
}

fn onbuild(line: &Line<'_>, heredocs: Vec<Heredoc>) -> Result<Kind, Fault> {
    let (name, _) = split_first(line.rest);
    match name.to_ascii_uppercase().as_str() {
        "" => return Err(Fault::new("ONBUILD requires at least one argument")),
        "ONBUILD" => return Err(Fault::new("ONBUILD ONBUILD is not allowed")),
        name @ ("FROM" | "MAINTAINER") => {
            return Err(Fault::new(format!(
                "{name} is not allowed as an ONBUILD trigger"
            )));
        }
        _ => {}
    }
    let mut text = line.rest.to_owned();
    for heredoc in &heredocs {
        let body = std::str::from_utf8(&heredoc.body)
            .map_err(|_| Fault::new("the heredoc of an ONBUILD trigger is not valid UTF-8"))?;
        text.push('\n');
        text.push_str(body);
        text.push_str(&heredoc.name);
    }
    // Report a wrong trigger now, not in the first build on top of the image.
    parse(line.rest, heredocs, line.escape)?;
    Ok(Kind::OnBuild(text))
}
