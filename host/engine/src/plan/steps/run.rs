//! RUN, and commands of other instructions.

use dockerfile::{Command, Fault, Heredoc, Instruction, Run};
use exec::{StepNetwork, StepScript};

use super::super::created;
use super::super::eval::StageEvaluator;
use super::super::text::clean_path;
use super::super::{Op, RunOp};

/// The shell of the shell form, unless SHELL says otherwise.
const DEFAULT_SHELL: [&str; 2] = ["/bin/sh", "-c"];
/// Default host name of a RUN.
const DEFAULT_HOSTNAME: &str = "buildkitsandbox";
/// Maximum size of a heredoc script with `#!`, in bytes: the limit of the executor.
const MAX_SCRIPT: usize = 1 << 20;

impl StageEvaluator<'_, '_> {
    fn shell(&self) -> Vec<String> {
        match self.state.config.shell.as_slice() {
            [] => DEFAULT_SHELL.map(str::to_owned).to_vec(),
            shell => shell.to_vec(),
        }
    }

    /// Program and arguments of a command in either form.
    pub(super) fn argv(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(args) => args.clone(),
            Command::Shell(text) => {
                let mut args = self.shell();
                args.push(text.clone());
                args
            }
        }
    }

    pub(super) fn run(&mut self, at: &Instruction, run: &Run) -> Result<(), Fault> {
        let network = run_flags(run, self.all.o.network)?;
        let script = shebang(run)?;
        let args = match &script {
            Some(script) => vec![script.path()],
            None => self.argv(&with_heredocs(run)?),
        };
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
            script,
        };
        let created_by = created::run(&op.args, &self.state.declared, &self.state.env);
        self.push_counted(at, created_by, Op::Run(op))?;
        if let (Some(heredoc), Some(step)) = (alone(run), self.steps.last_mut()) {
            step.display.push_str(&summary(&heredoc.body));
        }
        Ok(())
    }
}

/// Refuses flags that are not supported yet; returns the network.
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
                "security mode \"{other}\" is not valid: use sandbox or insecure"
            )));
        }
    }
    match run.network.as_deref() {
        None => Ok(default),
        Some("default") => Ok(StepNetwork::Default),
        Some("none") => Ok(StepNetwork::None),
        Some("host") => Err(Fault::unsupported("RUN --network=host")),
        Some(other) => Err(Fault::new(format!(
            "network mode \"{other}\" is not valid: use default, none or host"
        ))),
    }
}

/// The heredoc that is the whole command of a RUN.
fn alone(run: &Run) -> Option<&Heredoc> {
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

/// The script of a RUN that is a single heredoc with its own interpreter: it is run as a program,
/// without a shell.
fn shebang(run: &Run) -> Result<Option<StepScript>, Fault> {
    let Some(heredoc) = alone(run).filter(|heredoc| heredoc.body.starts_with(b"#!")) else {
        return Ok(None);
    };
    let name = &heredoc.name;
    if matches!(name.as_str(), "" | "." | "..") || name.contains(['/', '\0']) || name.len() > 255 {
        return Err(Fault::new(format!(
            "\"{name}\" is not a valid file name: a heredoc that starts with #! becomes a file with its \
             name"
        )));
    }
    let data = utf8(heredoc.content())?;
    if data.len() > MAX_SCRIPT {
        return Err(Fault::new(format!(
            "the script has {} bytes: a heredoc that starts with #! can have at most {MAX_SCRIPT}",
            data.len()
        )));
    }
    Ok(Some(StepScript {
        name: name.clone(),
        data,
    }))
}

fn utf8(data: Vec<u8>) -> Result<String, Fault> {
    match String::from_utf8(data) {
        Ok(text) if !text.contains('\0') => Ok(text),
        Ok(_) => Err(Fault::new("the heredoc contains a NUL byte")),
        Err(_) => Err(Fault::new("the heredoc is not valid UTF-8")),
    }
}

/// The command with its heredocs. A single heredoc is the script itself; otherwise the shell gets the
/// line and the bodies as they are in the file.
fn with_heredocs(run: &Run) -> Result<Command, Fault> {
    let (Command::Shell(line), [_, ..]) = (&run.command, run.heredocs.as_slice()) else {
        return Ok(run.command.clone());
    };
    if let Some(script) = alone(run) {
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
