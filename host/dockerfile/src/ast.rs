//! Instructions as written, before any variable is expanded.

use crate::heredoc::Heredoc;

/// One instruction with its position in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// First line, one-based.
    pub first: usize,
    /// Last line, including heredoc bodies.
    pub last: usize,
    /// The logical line: continuation lines joined, without heredoc bodies.
    pub text: String,
    /// Comments directly above it, without `#`.
    pub comments: Vec<String>,
    /// What kind of instruction it is, with its arguments.
    pub kind: Kind,
}

/// The instructions with their arguments as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// `FROM`
    From(From),
    /// `ARG`: names with their default values
    Arg(Vec<(String, Option<String>)>),
    /// `ENV`
    Env(Pairs),
    /// `LABEL`
    Label(Pairs),
    /// `RUN`
    Run(Run),
    /// `CMD`
    Cmd(Command),
    /// `ENTRYPOINT`
    Entrypoint(Command),
    /// `SHELL`
    Shell(Vec<String>),
    /// `COPY` and `ADD`
    Copy(Box<Copy>),
    /// `EXPOSE`
    Expose(Vec<String>),
    /// `VOLUME`
    Volume(Vec<String>),
    /// `USER`
    User(String),
    /// `WORKDIR`
    Workdir(String),
    /// `STOPSIGNAL`
    StopSignal(String),
    /// `HEALTHCHECK`
    Healthcheck(Health),
    /// `ONBUILD`: the instruction's text with its heredoc bodies
    OnBuild(String),
    /// `MAINTAINER`
    Maintainer(String),
}

/// Arguments of `FROM`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct From {
    /// The image or stage to start from.
    pub base: String,
    /// `--platform`
    pub platform: Option<String>,
    /// The name after `AS`, as written.
    pub name: Option<String>,
    /// The keyword `AS`, as written.
    pub as_word: Option<String>,
}

/// Names and values of `ENV` and `LABEL`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pairs {
    /// The pairs, in order.
    pub pairs: Vec<(String, String)>,
    /// Whether they were written as `NAME value`, without `=`.
    pub legacy: bool,
}

/// A command in shell form or exec form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Shell form: text for the shell.
    Shell(String),
    /// Exec form: program and arguments.
    Exec(Vec<String>),
}

/// Arguments of `RUN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The command.
    pub command: Command,
    /// The heredocs of the line.
    pub heredocs: Vec<Heredoc>,
    /// `--mount`, as written.
    pub mounts: Vec<String>,
    /// `--network`
    pub network: Option<String>,
    /// `--security`
    pub security: Option<String>,
    /// `--device`, as written.
    pub devices: Vec<String>,
}

/// Arguments of `COPY` and `ADD`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Whether it is `ADD`.
    pub add: bool,
    /// Paths and URLs.
    pub sources: Vec<String>,
    /// Sources whose content is in the Dockerfile.
    pub heredocs: Vec<Heredoc>,
    /// Destination.
    pub dest: String,
    /// `--from`
    pub from: Option<String>,
    /// `--chown`
    pub chown: Option<String>,
    /// `--chmod`
    pub chmod: Option<String>,
    /// `--exclude`
    pub exclude: Vec<String>,
    /// `--parents`
    pub parents: bool,
    /// `--link`
    pub link: bool,
    /// `--checksum`
    pub checksum: Option<String>,
    /// `--keep-git-dir`
    pub keep_git_dir: bool,
    /// `--unpack`, if it is given
    pub unpack: Option<bool>,
}

/// Arguments of `HEALTHCHECK`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// `NONE`
    None,
    /// `CMD` with its flags, as written.
    Check {
        /// The command.
        command: Command,
        /// `--interval`
        interval: Option<String>,
        /// `--timeout`
        timeout: Option<String>,
        /// `--start-period`
        start_period: Option<String>,
        /// `--start-interval`
        start_interval: Option<String>,
        /// `--retries`
        retries: Option<String>,
    },
}
