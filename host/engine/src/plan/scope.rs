//! Build arguments: the global scope, automatic arguments, names that need no `ARG`.

use std::collections::{BTreeMap, BTreeSet};

use dockerfile::expand::{Variables as _, word};
use dockerfile::{Dockerfile, DockerfileError, Kind, StageText, closest};
use oci::Platform;

use super::env::Env;
use super::{PlanOptions, Warning};

/// Proxy arguments, in lower case. Every RUN gets them in both cases; they are not part of keys.
const PROXIES: [&str; 5] = [
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "no_proxy",
    "all_proxy",
];

/// Arguments of the front end itself, which need no ARG.
const FRONT_END: [&str; 10] = [
    "BUILDKIT_SYNTAX",
    "BUILDKIT_CACHE_MOUNT_NS",
    "BUILDKIT_MULTI_PLATFORM",
    "BUILDKIT_SANDBOX_HOSTNAME",
    "BUILDKIT_DOCKERFILE_CHECK",
    "BUILDKIT_CONTEXT_KEEP_GIT_DIR",
    "BUILDKIT_INLINE_CACHE",
    "BUILDKIT_BUILD_NAME",
    "BUILDKIT_SBOM_SCAN_CONTEXT",
    "BUILDKIT_SBOM_SCAN_STAGE",
];

/// Arguments that never become environment variables, even if they are declared.
const NO_ENVIRONMENT: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// The values of `--build-arg`, and the variables before the first stage.
#[derive(Debug, Clone, Default)]
pub(super) struct Scope {
    /// The values of `--build-arg`; the last value of a name is used.
    pub(super) given: BTreeMap<String, String>,
    /// Global and automatic arguments.
    pub(super) global: Env,
}

impl Scope {
    pub(super) fn new(d: &Dockerfile, o: &PlanOptions) -> Result<Self, DockerfileError> {
        let given: BTreeMap<String, String> = o.build_args.iter().cloned().collect();
        let mut global = Env::default();
        for (name, value) in automatic(d, o) {
            global.set(name, given.get(name).unwrap_or(&value));
        }
        for instruction in &d.global {
            let Kind::Arg(args) = &instruction.kind else {
                continue;
            };
            for (name, default) in args {
                let value = match (given.get(name), default) {
                    (Some(value), _) => value.clone(),
                    (None, Some(default)) => {
                        word(default, d.escape, &global)
                            .map_err(|f| d.error(instruction.first, instruction.last, f))?
                            .text
                    }
                    (None, None) => continue,
                };
                global.set(name, &value);
            }
        }
        Ok(Self { given, global })
    }

    /// The proxy variables, in both cases, that are not in `env`.
    pub(super) fn proxies(&self, env: &Env) -> Vec<String> {
        let mut found = BTreeMap::new();
        for (name, value) in &self.given {
            let lower = name.to_ascii_lowercase();
            if PROXIES.contains(&lower.as_str()) && !value.is_empty() {
                found.insert(lower.to_ascii_uppercase(), value);
                found.insert(lower, value);
            }
        }
        let wanted = found
            .into_iter()
            .filter(|(name, _)| env.get(name).is_none());
        wanted
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }

    /// Whether a declared argument becomes an environment variable.
    pub(super) fn is_environment(name: &str) -> bool {
        !NO_ENVIRONMENT.contains(&name)
    }
}

/// The arguments that have a value without `--build-arg`.
fn automatic(d: &Dockerfile, o: &PlanOptions) -> Vec<(&'static str, String)> {
    let stage = o
        .target
        .clone()
        .or_else(|| d.stages.last().and_then(StageText::name));
    let variant = |platform: &Platform| platform.variant.clone().unwrap_or_default();
    let (target, build) = (&o.platform, &o.build_platform);
    vec![
        ("BUILDPLATFORM", build.to_string()),
        ("BUILDOS", build.os.clone()),
        ("BUILDOSVERSION", String::new()),
        ("BUILDARCH", build.architecture.clone()),
        ("BUILDVARIANT", variant(build)),
        ("TARGETPLATFORM", target.to_string()),
        ("TARGETOS", target.os.clone()),
        ("TARGETOSVERSION", String::new()),
        ("TARGETARCH", target.architecture.clone()),
        ("TARGETVARIANT", variant(target)),
        ("TARGETSTAGE", stage.unwrap_or_else(|| "default".to_owned())),
    ]
}

/// A warning for each `--build-arg` that no ARG uses. `triggers` are names that ONBUILD triggers
/// declare.
pub(super) fn unused(d: &Dockerfile, o: &PlanOptions, triggers: &BTreeSet<String>) -> Vec<Warning> {
    let mut declared: BTreeSet<&str> = triggers.iter().map(String::as_str).collect();
    for instruction in d
        .global
        .iter()
        .chain(d.stages.iter().flat_map(|s| &s.instructions))
    {
        if let Kind::Arg(args) = &instruction.kind {
            declared.extend(args.iter().map(|(name, _)| name.as_str()));
        }
    }
    let automatic: Vec<&str> = automatic(d, o).into_iter().map(|(name, _)| name).collect();
    let known = |name: &str| {
        declared.contains(name)
            || automatic.contains(&name)
            || FRONT_END.contains(&name)
            || name == "SOURCE_DATE_EPOCH"
            || PROXIES.contains(&name.to_ascii_lowercase().as_str())
    };
    let names: BTreeSet<&str> = o.build_args.iter().map(|(name, _)| name.as_str()).collect();
    let unused = names.into_iter().filter(|name| !known(name));
    unused
        .map(|name| {
            let close = closest(name, declared.iter().copied());
            let hint = close.map_or_else(String::new, |close| format!(" (did you mean {close}?)"));
            Warning {
                rule: None,
                text: format!("no ARG uses --build-arg {name}{hint}"),
                line: None,
            }
        })
        .collect()
}
