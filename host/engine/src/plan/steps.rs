//! What each instruction does.

use std::collections::BTreeSet;

use super::created;
use super::eval::Work;
use super::graph::{FromRef, copy_from};
use super::ports::{check_signal, ports};
use super::scope::Scope;
use super::text::{clean_path, parse_duration, plain_list, quoted_list};
use super::{Op, RunOp};
use crate::copy::{CopyFrom, CopySource, CopySpec};
use crate::dockerfile::{
    Command, Copy, Fault, Health, Heredoc, Instruction, Kind, Pairs, Run, Variables as _, body,
};
use crate::executor::StepNetwork;
use crate::image::Healthcheck;

/// The shell of the shell form, unless SHELL says otherwise.
const DEFAULT_SHELL: [&str; 2] = ["/bin/sh", "-c"];
/// Host name of a RUN, unless the user chooses one.
const DEFAULT_HOSTNAME: &str = "buildkitsandbox";
/// The shortest time that a HEALTHCHECK can ask for, in nanoseconds.
const MIN_DURATION: i64 = 1_000_000;

impl Work<'_, '_> {
    /// Evaluates one instruction.
    pub(super) fn step(&mut self, at: &Instruction) -> Result<(), Fault> {
        match &at.kind {
            Kind::From(_) => Err(Fault::new("FROM is not allowed here")),
            Kind::Arg(args) => self.arg(at, args),
            Kind::Env(pairs) => self.env(at, pairs),
            Kind::Label(pairs) => self.label(at, pairs),
            Kind::Run(run) => self.run(at, run),
            Kind::Cmd(command) => self.cmd(at, command),
            Kind::Entrypoint(command) => self.entrypoint(at, command),
            Kind::Shell(words) => {
                self.state.config.shell.clone_from(words);
                self.push_meta(at, format!("SHELL {}", plain_list(words)))
            }
            Kind::Copy(copy) => self.copy(at, copy),
            Kind::Expose(words) => self.expose(at, words),
            Kind::Volume(volumes) => self.volume(at, volumes),
            Kind::User(user) => {
                let user = self.expand(user, at)?;
                self.push_meta(at, format!("USER {user}"))?;
                self.state.config.user = user;
                Ok(())
            }
            Kind::Workdir(path) => self.workdir(at, path),
            Kind::StopSignal(signal) => {
                let signal = self.expand(signal, at)?;
                check_signal(&signal)?;
                self.push_meta(at, format!("STOPSIGNAL {signal}"))?;
                self.state.config.stop_signal = signal;
                Ok(())
            }
            Kind::Healthcheck(health) => self.healthcheck(at, health),
            Kind::OnBuild(text) => {
                self.state.config.on_build.push(text.clone());
                Ok(())
            }
            Kind::Maintainer(author) => {
                self.state.author = Some(author.clone());
                self.push_meta(at, format!("MAINTAINER {author}"))
            }
        }
    }

    /// One name after the other: a default sees the names before it.
    fn arg(&mut self, at: &Instruction, args: &[(String, Option<String>)]) -> Result<(), Fault> {
        let mut shown = vec!["ARG".to_owned()];
        for (name, default) in args {
            let value = match (self.all.scope.given.get(name), default) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => Some(self.expand(default, at)?),
                (None, None) => self.all.scope.global.get(name).map(str::to_owned),
            };
            if !self.state.declared.contains(name) {
                self.state.declared.push(name.clone());
            }
            let Some(value) = value else {
                shown.push(name.clone());
                continue;
            };
            if Scope::is_environment(name) {
                self.state.env.set(name, &value);
            }
            shown.push(format!("{name}={value}"));
        }
        self.push_meta(at, shown.join(" "))
    }

    /// Names and values, all expanded with the variables before the instruction.
    fn pairs(&mut self, at: &Instruction, pairs: &Pairs) -> Result<Vec<(String, String)>, Fault> {
        let mut expanded = Vec::with_capacity(pairs.pairs.len());
        for (name, value) in &pairs.pairs {
            expanded.push((self.expand(name, at)?, self.expand(value, at)?));
        }
        Ok(expanded)
    }

    fn env(&mut self, at: &Instruction, pairs: &Pairs) -> Result<(), Fault> {
        let pairs = self.pairs(at, pairs)?;
        self.push_meta(at, shown_pairs("ENV", &pairs))?;
        for (name, value) in pairs {
            if name.is_empty() {
                return Err(Fault::new("ENV names can not be blank"));
            }
            self.state.env.set(&name, &value);
            let entry = format!("{name}={value}");
            let is_same = |old: &&mut String| old.split_once('=').is_some_and(|(n, _)| n == name);
            match self.state.config.env.iter_mut().find(is_same) {
                Some(old) => *old = entry,
                None => self.state.config.env.push(entry),
            }
        }
        Ok(())
    }

    fn label(&mut self, at: &Instruction, pairs: &Pairs) -> Result<(), Fault> {
        let pairs = self.pairs(at, pairs)?;
        self.push_meta(at, shown_pairs("LABEL", &pairs))?;
        self.state.config.labels.extend(pairs);
        Ok(())
    }

    fn shell(&self) -> Vec<String> {
        match self.state.config.shell.as_slice() {
            [] => DEFAULT_SHELL.map(str::to_owned).to_vec(),
            shell => shell.to_vec(),
        }
    }

    /// Program and arguments of a command in either form.
    fn argv(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(args) => args.clone(),
            Command::Shell(text) => {
                let mut args = self.shell();
                args.push(text.clone());
                args
            }
        }
    }

    fn run(&mut self, at: &Instruction, run: &Run) -> Result<(), Fault> {
        let network = run_flags(run, self.all.o.network)?;
        let args = self.argv(&with_heredocs(run)?);
        let env = self.state.env.entries();
        self.all.charge(env.iter().map(String::len).sum())?;
        let given = &self.all.scope.given;
        let hostname = given
            .get("BUILDKIT_SANDBOX_HOSTNAME")
            .map_or(DEFAULT_HOSTNAME, String::as_str);
        let op = RunOp {
            unkeyed_env: self.all.scope.proxies(&self.state.env),
            env,
            cwd: clean_path(&self.state.config.working_dir),
            user: self.state.config.user.clone(),
            network,
            hostname: hostname.to_owned(),
            hosts: self.all.o.hosts.clone(),
            args,
        };
        let created_by = created::run(&op.args, &self.state.declared, &self.state.env);
        self.push_counted(at, created_by, Op::Run(op))?;
        if let (Some(heredoc), Some(step)) = (script(run), self.steps.last_mut()) {
            step.display.push_str(&summary(&heredoc.body));
        }
        Ok(())
    }

    fn cmd(&mut self, at: &Instruction, command: &Command) -> Result<(), Fault> {
        self.check_command("CMD", at, command);
        let args = self.argv(command);
        self.push_meta(at, format!("CMD {}", quoted_list(&args)))?;
        self.state.config.cmd = args;
        self.state.config.args_escaped = true;
        Ok(())
    }

    /// An inherited CMD belongs to the entry point it was written for, and goes with it.
    fn entrypoint(&mut self, at: &Instruction, command: &Command) -> Result<(), Fault> {
        self.check_command("ENTRYPOINT", at, command);
        let args = self.argv(command);
        self.push_meta(at, format!("ENTRYPOINT {}", quoted_list(&args)))?;
        self.state.config.entrypoint = args;
        if !self.seen.last.contains_key("CMD") {
            self.state.config.cmd.clear();
        }
        Ok(())
    }

    fn copy(&mut self, at: &Instruction, copy: &Copy) -> Result<(), Fault> {
        let name = if copy.add { "ADD" } else { "COPY" };
        let mut sources = Vec::new();
        for source in &copy.sources {
            let source = self.expand(source, at)?;
            check_local(copy.add, &source)?;
            sources.push(CopySource::Path(source));
        }
        if copy.checksum.is_some() {
            return Err(Fault::new("--checksum is for sources that are URLs"));
        }
        for heredoc in &copy.heredocs {
            let mut data = heredoc.content();
            if heredoc.expand {
                let text = String::from_utf8(data).map_err(|_| {
                    Fault::new("the heredoc is not valid UTF-8; quote its delimiter")
                })?;
                let expanded = body(&text, &self.state.env)?;
                self.all.charge(expanded.text.len())?;
                self.report_unset(&expanded.unset, at);
                data = expanded.text.into_bytes();
            }
            sources.push(CopySource::Heredoc {
                name: heredoc.name.clone(),
                data,
            });
        }
        let dest = self.expand(&copy.dest, at)?;
        let mut optional =
            |text: &Option<String>| text.as_ref().map(|text| self.expand(text, at)).transpose();
        let spec = CopySpec {
            chown: optional(&copy.chown)?,
            chmod: optional(&copy.chmod)?,
            from: self.copied_from(at)?,
            sources,
            dest,
            cwd: clean_path(&self.state.config.working_dir),
            exclude: copy.exclude.clone(),
            parents: copy.parents,
            link: copy.link,
            unpack: copy.add && copy.unpack.unwrap_or(true),
        };
        self.push_counted(at, shown_copy(name, &spec), Op::Copy(spec))
    }

    fn copied_from(&self, at: &Instruction) -> Result<CopyFrom, Fault> {
        let found = copy_from(self.all.d, self.all.o, self.index, at).map_err(|err| Fault {
            message: err.message,
            hint: err.hint,
        })?;
        Ok(match found {
            None => CopyFrom::Context,
            Some(FromRef::Image(name)) => CopyFrom::Image(name),
            Some(FromRef::Stage(index)) => {
                CopyFrom::Stage(self.all.places.get(&index).copied().unwrap_or_default())
            }
        })
    }

    fn expose(&mut self, at: &Instruction, words: &[String]) -> Result<(), Fault> {
        let mut words = words.to_vec();
        words.sort();
        let (mut all, mut known) = (Vec::new(), BTreeSet::new());
        for word in &words {
            for word in self.expand_all(word, at)?.words {
                let found = ports(&word)?;
                self.check_ports(at, &word, &found);
                let new = found
                    .ports
                    .into_iter()
                    .filter(|port| known.insert(port.clone()));
                all.extend(new);
            }
        }
        self.state.config.exposed_ports.extend(known);
        self.push_meta(at, format!("EXPOSE {}", plain_list(&all)))
    }

    fn volume(&mut self, at: &Instruction, volumes: &[String]) -> Result<(), Fault> {
        let mut expanded = Vec::with_capacity(volumes.len());
        for volume in volumes {
            let volume = self.expand(volume, at)?;
            if volume.is_empty() {
                return Err(Fault::new("VOLUME specified can not be an empty string"));
            }
            expanded.push(volume);
        }
        self.push_meta(at, format!("VOLUME {}", plain_list(&expanded)))?;
        self.state.config.volumes.extend(expanded);
        Ok(())
    }

    /// An absolute path is stored as written, a relative one is joined and cleaned.
    fn workdir(&mut self, at: &Instruction, path: &str) -> Result<(), Fault> {
        let path = self.expand(path, at)?;
        self.check_workdir(at, &path);
        let before = self.state.config.working_dir.clone();
        let stored = match path.as_str() {
            "" if before.is_empty() => "/".to_owned(),
            "" => before,
            absolute if absolute.starts_with('/') => absolute.to_owned(),
            relative => clean_path(&format!("{before}/{relative}")),
        };
        let path = clean_path(&stored);
        let created_by = format!("WORKDIR {stored}");
        self.state.config.working_dir = stored;
        let op = match path.as_str() {
            "/" => Op::Meta,
            _ => Op::Workdir {
                path,
                user: self.state.config.user.clone(),
            },
        };
        self.push_counted(at, created_by, op)
    }

    fn healthcheck(&mut self, at: &Instruction, health: &Health) -> Result<(), Fault> {
        self.check_repeated("HEALTHCHECK", at);
        let check = match health {
            Health::None => Healthcheck {
                test: vec!["NONE".to_owned()],
                ..Healthcheck::default()
            },
            Health::Check {
                command,
                interval,
                timeout,
                start_period,
                start_interval,
                retries,
            } => {
                let (kind, words) = match command {
                    Command::Shell(text) => ("CMD-SHELL", vec![text.clone()]),
                    Command::Exec(words) => ("CMD", words.clone()),
                };
                Healthcheck {
                    test: [vec![kind.to_owned()], words].concat(),
                    interval: check_time("interval", interval.as_deref())?,
                    timeout: check_time("timeout", timeout.as_deref())?,
                    start_period: check_time("start-period", start_period.as_deref())?,
                    start_interval: check_time("start-interval", start_interval.as_deref())?,
                    retries: check_retries(retries.as_deref())?,
                }
            }
        };
        self.push_meta(at, created::healthcheck(&check))?;
        self.state.config.healthcheck = Some(check);
        Ok(())
    }
}

fn shown_pairs(name: &str, pairs: &[(String, String)]) -> String {
    let pairs = pairs.iter().map(|(name, value)| format!(" {name}={value}"));
    format!("{name}{}", pairs.collect::<String>())
}

fn shown_copy(name: &str, spec: &CopySpec) -> String {
    let mut words = vec![name.to_owned()];
    words.extend(spec.parents.then(|| "--parents".to_owned()));
    words.extend(spec.chown.as_ref().map(|owner| format!("--chown={owner}")));
    words.extend(spec.chmod.as_ref().map(|mode| format!("--chmod={mode}")));
    words.extend(spec.sources.iter().map(|source| match source {
        CopySource::Path(path) => path.clone(),
        CopySource::Heredoc { name, .. } => format!("<<{name}"),
    }));
    words.extend([spec.dest.clone(), "# buildkit".to_owned()]);
    words.join(" ")
}

/// Refuses what cannot be run yet; gives the network.
fn run_flags(run: &Run, default: StepNetwork) -> Result<StepNetwork, Fault> {
    if !run.mounts.is_empty() {
        return Err(Fault::unsupported("RUN --mount"));
    }
    if !run.devices.is_empty() {
        return Err(Fault::unsupported("RUN --device"));
    }
    match run.security.as_deref() {
        None | Some("sandbox") => {}
        Some("insecure") => return Err(Fault::unsupported("RUN --security=insecure")),
        Some(other) => {
            return Err(Fault::new(format!(
                "--security takes sandbox or insecure, not \"{other}\""
            )));
        }
    }
    match run.network.as_deref() {
        None => Ok(default),
        Some("default") => Ok(StepNetwork::Default),
        Some("none") => Ok(StepNetwork::None),
        Some("host") => Err(Fault::unsupported("RUN --network=host")),
        Some(other) => Err(Fault::new(format!(
            "--network takes default, none or host, not \"{other}\""
        ))),
    }
}

/// The heredoc that is the whole script of a RUN.
fn script(run: &Run) -> Option<&Heredoc> {
    match (&run.command, run.heredocs.as_slice()) {
        (Command::Shell(line), [heredoc]) if heredoc.is_word(line) => Some(heredoc),
        _ => None,
    }
}

/// The first line of a script, for display.
fn summary(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let mut lines = text.trim().lines();
    let first = lines.next().unwrap_or_default();
    let more = if lines.next().is_some() { "..." } else { "" };
    format!(" ({first}{more})")
}

/// The command with its heredocs: a single one alone is the script itself; otherwise the shell
/// reads line and bodies as they stand in the file.
fn with_heredocs(run: &Run) -> Result<Command, Fault> {
    let (Command::Shell(line), [_, ..]) = (&run.command, run.heredocs.as_slice()) else {
        return Ok(run.command.clone());
    };
    let utf8 = |data: Vec<u8>| match String::from_utf8(data) {
        Ok(text) if !text.contains('\0') => Ok(text),
        Ok(_) => Err(Fault::new("the heredoc holds a NUL byte")),
        Err(_) => Err(Fault::new("the heredoc is not valid UTF-8")),
    };
    if let Some(script) = script(run) {
        if script.body.starts_with(b"#!") {
            return Err(Fault::unsupported("a heredoc that begins with #!"));
        }
        return Ok(Command::Shell(utf8(script.content())?));
    }
    let mut text = line.clone();
    for heredoc in &run.heredocs {
        text.push('\n');
        text.push_str(&utf8(heredoc.body.clone())?);
        text.push_str(&heredoc.name);
    }
    Ok(Command::Shell(text))
}

/// Refuses URLs and git repositories: COPY never takes them, ADD does not yet.
fn check_local(add: bool, source: &str) -> Result<(), Fault> {
    let web = source.starts_with("http://") || source.starts_with("https://");
    let path = source.split(['#', '?']).next().unwrap_or_default();
    let git = source.starts_with("git@")
        || source.starts_with("ssh://")
        || source.starts_with("git://")
        || web && path.ends_with(".git");
    match (git, web, add) {
        (true, _, true) => Err(Fault::unsupported("ADD of a git repository")),
        (true, _, false) => Err(Fault::new("source can't be a git ref for COPY")),
        (false, true, true) => Err(Fault::unsupported("ADD of a URL")),
        (false, true, false) => Err(Fault::new("source can't be a URL for COPY")),
        (false, false, _) => Ok(()),
    }
}

fn check_time(flag: &str, text: Option<&str>) -> Result<i64, Fault> {
    let time = text
        .filter(|text| !text.is_empty())
        .map_or(Ok(0), parse_duration)?;
    if time != 0 && time < MIN_DURATION {
        return Err(Fault::new(format!("--{flag} cannot be less than 1ms")));
    }
    Ok(time)
}

fn check_retries(text: Option<&str>) -> Result<i64, Fault> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(0);
    };
    match text.parse::<i32>() {
        Ok(retries) if retries >= 0 => Ok(i64::from(retries)),
        _ => Err(Fault::new(format!(
            "--retries takes a number from 0 up, not \"{text}\""
        ))),
    }
}
