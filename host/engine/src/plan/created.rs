//! Entries of the image history, in the format of Docker.

use dockerfile::expand::Variables as _;
use oci::Healthcheck;

use super::env::Env;
use super::text::duration;

/// `RUN |1 X=2 /bin/sh -c make # buildkit`: the arguments declared so far, with their current values.
pub(super) fn run(args: &[String], declared: &[String], env: &Env) -> String {
    let mut words = vec!["RUN".to_owned()];
    if !declared.is_empty() {
        words.push(format!("|{}", declared.len()));
        let values = declared
            .iter()
            .map(|name| format!("{name}={}", env.get(name).unwrap_or("")));
        words.extend(values);
    }
    words.extend(args.iter().cloned());
    words.push("# buildkit".to_owned());
    words.join(" ")
}

/// `HEALTHCHECK {Test:[CMD-SHELL x] Interval:5s …}`.
pub(super) fn healthcheck(check: &Healthcheck) -> String {
    format!(
        "HEALTHCHECK {{Test:[{}] Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
        check.test.join(" "),
        duration(check.interval),
        duration(check.timeout),
        duration(check.start_period),
        duration(check.start_interval),
        check.retries
    )
}
