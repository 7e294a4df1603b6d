//! Build checks: warnings about a Dockerfile, with the names and texts of Docker's checks.

use dockerfile::{Checks, Command, Dockerfile, Instruction, Kind, Pairs, StageText, closest};
use oci::{ImageConfigFile, Platform};

use super::eval::{Evaluator, StageEvaluator};
use super::graph::Node;
use super::ports::Ports;
use super::{ImageKey, Warning};

/// Words in names of secrets, and words that mean it is not a secret.
const SECRET: [&str; 10] = [
    "apikey",
    "auth",
    "credential",
    "credentials",
    "key",
    "password",
    "pword",
    "passwd",
    "secret",
    "token",
];
const NOT_SECRET: [&str; 3] = ["public", "file", "version"];

/// Whether a variable is a secret, by its name.
pub(crate) fn looks_secret(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let has = |words: &[&str]| lower.split('_').any(|word| words.contains(&word));
    has(&SECRET) && !has(&NOT_SECRET)
}

/// The checks that need no expanded values.
pub(super) fn of_file(d: &Dockerfile, checks: &Checks) -> Vec<Warning> {
    let mut found = Found {
        checks,
        warnings: Vec::new(),
    };
    let mut names: Vec<String> = Vec::new();
    for instruction in &d.global {
        found.instruction(d, instruction);
    }
    for stage in &d.stages {
        found.stage(d, stage, &mut names);
        for instruction in &stage.instructions {
            found.instruction(d, instruction);
        }
    }
    found.casing(d);
    found.warnings
}

struct Found<'c> {
    checks: &'c Checks,
    warnings: Vec<Warning>,
}

impl Found<'_> {
    fn warn(&mut self, rule: &'static str, at: &Instruction, text: &str) {
        if !self.checks.with_comments(&at.comments).skips(rule) {
            let text = format!("{rule}: {text}");
            self.warnings.push(Warning {
                rule: Some(rule),
                text,
                line: Some(at.first),
            });
        }
    }

    fn stage(&mut self, d: &Dockerfile, stage: &StageText, names: &mut Vec<String>) {
        let at = &stage.head;
        self.instruction(d, at);
        if let Some(word) = &stage.from.as_word {
            let from = at.text.get(..4).unwrap_or_default();
            let fits = match (is_upper(from), is_lower(from)) {
                (true, _) => is_upper(word),
                (_, true) => is_lower(word),
                (false, false) => true,
            };
            if !fits {
                let text = format!("'{word}' and '{from}' keywords' casing do not match");
                self.warn("FromAsCasing", at, &text);
            }
        }
        let (Some(name), Some(lower)) = (&stage.from.name, stage.name()) else {
            return;
        };
        if *name != lower {
            self.warn(
                "StageNameCasing",
                at,
                &format!("Stage name '{name}' should be lowercase"),
            );
        }
        if matches!(lower.as_str(), "scratch" | "context") {
            let text = format!("'{lower}' is reserved and should not be used as a stage name");
            self.warn("ReservedStageName", at, &text);
        }
        if names.contains(&lower) {
            let text = format!("Duplicate stage name '{lower}', stage names should be unique");
            self.warn("DuplicateStageName", at, &text);
        }
        names.push(lower);
    }

    fn instruction(&mut self, d: &Dockerfile, at: &Instruction) {
        if d.blank_inside.contains(&at.first) {
            self.warn("NoEmptyContinuation", at, "Empty continuation line");
        }
        match &at.kind {
            Kind::Maintainer(_) => {
                let text = "Maintainer instruction is deprecated in favor of using label";
                self.warn("MaintainerDeprecated", at, text);
            }
            Kind::Env(pairs) => {
                self.legacy("ENV", at, pairs);
                for (name, _) in &pairs.pairs {
                    self.secret("ENV", at, name);
                }
            }
            Kind::Label(pairs) => self.legacy("LABEL", at, pairs),
            Kind::Arg(args) => {
                for (name, _) in args {
                    self.secret("ARG", at, name);
                }
            }
            Kind::From(_)
            | Kind::Run(_)
            | Kind::Cmd(_)
            | Kind::Entrypoint(_)
            | Kind::Shell(_)
            | Kind::Copy(_)
            | Kind::Expose(_)
            | Kind::Volume(_)
            | Kind::User(_)
            | Kind::Workdir(_)
            | Kind::StopSignal(_)
            | Kind::Healthcheck(_)
            | Kind::OnBuild(_) => {}
        }
    }

    fn legacy(&mut self, name: &str, at: &Instruction, pairs: &Pairs) {
        if pairs.legacy {
            let text = format!(
                "\"{name} key=value\" should be used instead of legacy \"{name} key value\" format"
            );
            self.warn("LegacyKeyValueFormat", at, &text);
        }
    }

    fn secret(&mut self, instruction: &str, at: &Instruction, name: &str) {
        if looks_secret(name) {
            let text = format!(
                "Do not use ARG or ENV instructions for sensitive data ({instruction} \"{name}\")"
            );
            self.warn("SecretsUsedInArgOrEnv", at, &text);
        }
    }

    /// All instructions should have the case of the majority.
    fn casing(&mut self, d: &Dockerfile) {
        let all: Vec<&Instruction> = d
            .stages
            .iter()
            .flat_map(|stage| std::iter::once(&stage.head).chain(&stage.instructions))
            .collect();
        let name = |at: &Instruction| {
            at.text
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        let lower = all.iter().filter(|at| is_lower(&name(at))).count();
        let upper = all.iter().filter(|at| is_upper(&name(at))).count();
        let (fits, majority): (fn(&str) -> bool, _) = if lower > upper {
            (is_lower, "lowercase")
        } else {
            (is_upper, "uppercase")
        };
        for at in all {
            let name = name(at);
            if !fits(&name) {
                let text = format!(
                    "Command '{name}' should match the case of the command majority ({majority})"
                );
                self.warn("ConsistentInstructionCasing", at, &text);
            }
        }
    }
}

fn is_upper(word: &str) -> bool {
    !word.bytes().any(|byte| byte.is_ascii_lowercase())
}

fn is_lower(word: &str) -> bool {
    !word.bytes().any(|byte| byte.is_ascii_uppercase())
}

impl Evaluator<'_> {
    /// `FROM` uses names that are not declared, or sets the default platform.
    pub(super) fn check_from(&mut self, node: &Node, stage: &StageText) {
        for name in &node.unset {
            let declared = self.d.global.iter().any(|at| {
                matches!(&at.kind, Kind::Arg(args) if args.iter().any(|(other, _)| other == name))
            });
            if declared {
                continue;
            }
            let close = closest(name, self.scope.global.names());
            let hint = close.map_or_else(String::new, |close| format!(" (did you mean {close}?)"));
            let text = format!("FROM argument '{name}' is not declared{hint}");
            self.warn("UndefinedArgInFrom", &stage.head, &text);
        }
        let platform = stage.from.platform.as_deref();
        if matches!(platform, Some("$TARGETPLATFORM" | "${TARGETPLATFORM}")) {
            let text = "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this \
                        is the default behavior";
            self.warn("RedundantTargetPlatform", &stage.head, text);
        }
    }

    /// The base image has another platform than requested.
    pub(super) fn check_platform(
        &mut self,
        key: &ImageKey,
        file: &ImageConfigFile,
        head: &Instruction,
    ) {
        if file.os.is_empty() && file.architecture.is_empty() {
            return; // a directory, not an image
        }
        let got = Platform::linux(&file.architecture).architecture;
        if file.os != key.platform.os || got != key.platform.architecture {
            let text = format!(
                "Base image {} was pulled with platform \"{}/{got}\", expected \"{}\" for current build",
                key.name, file.os, key.platform
            );
            self.warn("InvalidBaseImagePlatform", head, &text);
        }
    }
}

impl StageEvaluator<'_, '_> {
    /// CMD and ENTRYPOINT: repeated, or in shell form without SHELL.
    pub(super) fn check_command(
        &mut self,
        name: &'static str,
        at: &Instruction,
        command: &Command,
    ) {
        self.check_repeated(name, at);
        if matches!(command, Command::Shell(_)) && self.state.config.shell.is_empty() {
            let text = format!(
                "JSON arguments recommended for {name} to prevent unintended behavior related to OS \
                 signals"
            );
            self.all.warn("JSONArgsRecommended", at, &text);
        }
    }

    /// Only the last one in a stage is used; reports the earlier one.
    pub(super) fn check_repeated(&mut self, name: &'static str, at: &Instruction) {
        if let Some(earlier) = self.seen.last.insert(name, at.first) {
            let text = format!(
                "Multiple {name} instructions should not be used in the same stage because only the \
                 last one will be used"
            );
            let at = Instruction {
                first: earlier,
                ..at.clone()
            };
            self.all.warn("MultipleInstructionsDisallowed", &at, &text);
        }
    }

    /// The first WORKDIR is relative to that of the base image.
    pub(super) fn check_workdir(&mut self, at: &Instruction, path: &str) {
        if !self.state.workdir_set && !path.starts_with('/') {
            let text = format!(
                "Relative workdir \"{path}\" can have unexpected results if the base image changes"
            );
            self.all.warn("WorkdirRelativePath", at, &text);
        }
        self.state.workdir_set = true;
    }

    /// Ports with an upper-case protocol or a host part.
    pub(super) fn check_ports(&mut self, at: &Instruction, word: &str, ports: &Ports) {
        if ports.upper_protocol {
            let text =
                format!("Defined protocol '{word}' in EXPOSE instruction should be lowercase");
            self.all.warn("ExposeProtoCasing", at, &text);
        }
        if ports.has_host {
            let text = format!(
                "EXPOSE instruction should not define an IP address or host-port mapping, found '{word}'"
            );
            self.all.warn("ExposeInvalidFormat", at, &text);
        }
    }
}
