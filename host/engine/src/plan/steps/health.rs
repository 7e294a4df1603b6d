//! HEALTHCHECK.

use dockerfile::{Command, Fault, Health, Instruction};
use oci::Healthcheck;

use super::super::created;
use super::super::eval::StageEvaluator;
use super::super::text::parse_duration;

/// Minimum duration in a HEALTHCHECK, in nanoseconds.
const MIN_DURATION: i64 = 1_000_000;

impl StageEvaluator<'_, '_> {
    pub(super) fn healthcheck(&mut self, at: &Instruction, health: &Health) -> Result<(), Fault> {
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
            "--retries must be a non-negative integer, not \"{text}\""
        ))),
    }
}
