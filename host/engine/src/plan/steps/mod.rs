//! Evaluates each instruction.

mod copy;
mod health;
mod run;

use std::collections::BTreeSet;

use dockerfile::expand::Variables as _;
use dockerfile::{Command, Fault, Instruction, Kind, Pairs};

use super::Op;
use super::eval::StageEvaluator;
use super::ports::{check_signal, ports};
use super::scope::Scope;
use super::text::{clean_path, plain_list, quoted_list};

/// Size of a port in a plan beyond its text: an entry in two sets.
const PORT_WEIGHT: usize = 64;

impl StageEvaluator<'_, '_> {
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
            Kind::User(user) => self.user(at, user),
            Kind::Workdir(path) => self.workdir(at, path),
            Kind::StopSignal(signal) => self.stop_signal(at, signal),
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

    fn user(&mut self, at: &Instruction, user: &str) -> Result<(), Fault> {
        let user = self.expand(user, at)?;
        self.push_meta(at, format!("USER {user}"))?;
        self.state.config.user = user;
        Ok(())
    }

    fn stop_signal(&mut self, at: &Instruction, signal: &str) -> Result<(), Fault> {
        let signal = self.expand(signal, at)?;
        check_signal(&signal)?;
        self.push_meta(at, format!("STOPSIGNAL {signal}"))?;
        self.state.config.stop_signal = signal;
        Ok(())
    }

    /// Names are evaluated in order: a default value can use the names before it.
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

    /// Names and values, expanded with the variables before the instruction.
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

    fn cmd(&mut self, at: &Instruction, command: &Command) -> Result<(), Fault> {
        self.check_command("CMD", at, command);
        let args = self.argv(command);
        self.push_meta(at, format!("CMD {}", quoted_list(&args)))?;
        self.state.config.cmd = args;
        self.state.config.args_escaped = true;
        Ok(())
    }

    /// Resets an inherited CMD, because it was written for another entry point.
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
        self.all.charge(known.len() * PORT_WEIGHT)?;
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

    /// An absolute path is stored as written, a relative one is joined and normalized.
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
}

fn shown_pairs(name: &str, pairs: &[(String, String)]) -> String {
    let pairs = pairs.iter().map(|(name, value)| format!(" {name}={value}"));
    format!("{name}{}", pairs.collect::<String>())
}
