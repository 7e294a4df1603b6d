//! Turns the options into a request for the engine. Everything that comes from the environment, the
//! current directory or standard input is read here.

use std::env;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::Error;
use engine::build::{BuildRequest, DockerfileSource, Rebuild};
use engine::pull::ImageSource;
use exec::StepNetwork;
use oci::Platform;
use oci::decompress::UnpackLimits;

use super::args::{self, Args};
use super::{reach, trust};
use crate::exit::{Class, Failure};
use crate::values::Pair;

/// Maximum size of a Dockerfile on standard input, in bytes. The engine has the same limit for files.
const MAX_DOCKERFILE: u64 = 16 << 20;
/// The environment variable and build argument that sets the times in the image.
const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// The request that `args` describe.
pub(super) fn from(args: &Args) -> Result<BuildRequest, Failure> {
    let build_args = build_args(&args.build_args, |name| env::var(name).ok());
    let epoch = epoch(&build_args)?;
    let network = network(&args.network)?;
    let named_contexts: Result<Vec<_>, Failure> = args.build_contexts.iter().map(named).collect();
    let named_contexts = named_contexts?;
    // This comes last because it may read standard input.
    let (context, dockerfile) = sources(args)?;
    let home = env::var_os("HOME").map(PathBuf::from);
    let trust_domain = trust::domain(
        args.trust_domain.as_deref(),
        context.as_deref(),
        &dockerfile,
        home.as_deref(),
    )?;
    let reach = reach::from(args, &build_args);
    Ok(BuildRequest {
        context,
        dockerfile,
        epoch,
        build_args,
        target: args.target.clone(),
        no_cache: args.no_cache,
        rebuild: args.rebuild.map(|how| match how {
            args::Rebuild::Content => Rebuild::Content,
            args::Rebuild::Strict => Rebuild::Strict,
        }),
        trust_domain,
        timeout: args.timeout,
        step_timeout: args.step_timeout,
        idle_timeout: args.idle_timeout,
        log_limit: args.log_limit,
        explain: args.explain,
        pull: args.pull,
        labels: labels(&args.labels),
        tags: args.tags.iter().map(ToString::to_string).collect(),
        outputs: args.outputs.clone(),
        jobs: args.jobs.map_or_else(processors, usize::from),
        platform: args.platform.clone().unwrap_or_else(Platform::host),
        named_contexts,
        hosts: args.hosts.clone(),
        network,
        reach,
        unpack: UnpackLimits {
            size: args.layer_size,
            ratio: args.layer_ratio,
            ..UnpackLimits::USUAL
        },
    })
}

/// Number of CPUs that this process may use.
pub(super) fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Build context and Dockerfile.
fn sources(args: &Args) -> Result<(Option<PathBuf>, DockerfileSource), Failure> {
    let stdin = Path::new("-");
    let context = args.context.as_path();
    match (context == stdin, args.file.as_deref()) {
        (true, Some(file)) if file == stdin => {
            let text = "standard input cannot be both the build context and the Dockerfile";
            Err(Failure::usage(text))
        }
        (true, Some(_)) => {
            let text = "the Dockerfile comes from standard input (PATH is `-`); remove --file";
            Err(Failure::usage(text))
        }
        (true, None) => Ok((None, DockerfileSource::Text(read_stdin()?))),
        (false, Some(file)) if file == stdin => Ok((
            Some(directory(context)?),
            DockerfileSource::Text(read_stdin()?),
        )),
        (false, Some(file)) => Ok((
            Some(directory(context)?),
            DockerfileSource::Path(file.to_owned()),
        )),
        (false, None) => Ok((Some(directory(context)?), DockerfileSource::Default)),
    }
}

fn directory(context: &Path) -> Result<PathBuf, Failure> {
    if context.is_dir() {
        return Ok(context.to_owned());
    }
    let name = context.display().to_string();
    let text = if context.exists() {
        format!("build context {name} is not a directory; use --file to name a Dockerfile")
    } else if looks_remote(&name) {
        format!(
            "build context {name}: Git and HTTP contexts are not supported yet; clone or download \
             it first"
        )
    } else {
        format!("build context {name} does not exist; check the path")
    };
    Err(user(text))
}

fn user(text: String) -> Failure {
    Failure::new(Class::User, Error::msg(text))
}

fn looks_remote(name: &str) -> bool {
    name.contains("://") || name.starts_with("git@") || name.starts_with("github.com/")
}

fn read_stdin() -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    io::stdin()
        .lock()
        .take(MAX_DOCKERFILE + 1)
        .read_to_end(&mut text)?;
    if text.len() as u64 > MAX_DOCKERFILE {
        return Err(user(
            "the Dockerfile on standard input is larger than 16 MiB".into(),
        ));
    }
    if is_archive(&text) {
        let text = "a build context on standard input is not supported yet; unpack the archive and pass \
                    the directory";
        return Err(user(text.into()));
    }
    Ok(text)
}

/// Whether the bytes start like a gzip, bzip2, xz, zstd or tar file.
fn is_archive(bytes: &[u8]) -> bool {
    let magic: [&[u8]; 4] = [b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];
    magic.iter().any(|magic| bytes.starts_with(magic))
        || bytes.get(257..262).is_some_and(|magic| magic == b"ustar")
}

/// Build arguments. One without a value takes it from the environment, and is dropped if unset there.
fn build_args(given: &[Pair], lookup: impl Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    let value = |pair: &Pair| pair.value.clone().or_else(|| lookup(&pair.key));
    let mut args: Vec<(String, String)> = given
        .iter()
        .filter_map(|pair| Some((pair.key.clone(), value(pair)?)))
        .collect();
    // The environment variable becomes a build argument unless one is given.
    if !args.iter().any(|(name, _)| name == EPOCH) {
        let value = lookup(EPOCH).filter(|value| !value.is_empty());
        args.extend(value.map(|value| (EPOCH.to_owned(), value)));
    }
    args
}

fn epoch(build_args: &[(String, String)]) -> Result<Option<i64>, Failure> {
    let given = build_args
        .iter()
        .rev()
        .find(|(name, value)| name == EPOCH && !value.is_empty());
    let wrong = |value: &str| {
        let text = format!("{EPOCH}={value} is not valid; use seconds since 1970");
        Failure::usage(text)
    };
    given
        .map(|(_, value)| value.parse().map_err(|_| wrong(value)))
        .transpose()
}

fn labels(given: &[Pair]) -> Vec<(String, String)> {
    given
        .iter()
        .map(|pair| (pair.key.clone(), pair.value.clone().unwrap_or_default()))
        .collect()
}

fn network(name: &str) -> Result<StepNetwork, Failure> {
    match name {
        "default" => Ok(StepNetwork::Default),
        "none" => Ok(StepNetwork::None),
        "host" => Err(Failure::usage(
            "--network host is not supported because steps run in a VM; use default or none",
        )),
        other => Err(Failure::usage(format!(
            "unknown network `{other}`; use default or none"
        ))),
    }
}

fn named((name, value): &(String, String)) -> Result<(String, ImageSource), Failure> {
    let source = if let Some(image) = value.strip_prefix("docker-image://") {
        ImageSource::Named(image.to_owned())
    } else if let Some(layout) = value.strip_prefix("oci-layout://") {
        layout_source(layout)?
    } else {
        return Err(Failure::usage(format!(
            "--build-context {name}={value}: directories and URLs are not supported yet; use \
             docker-image://REF or oci-layout://DIR[:TAG]"
        )));
    };
    Ok((name.clone(), source))
}

/// Parses `DIR[:TAG][@DIGEST]`.
fn layout_source(text: &str) -> Result<ImageSource, Failure> {
    let (rest, digest) = match text.rsplit_once('@') {
        Some((rest, digest)) if digest.starts_with("sha256:") => {
            let digest = digest
                .parse()
                .map_err(|error| Failure::usage(format!("{text}: {error}")))?;
            (rest, Some(digest))
        }
        Some(_) | None => (text, None),
    };
    let (dir, tag) = match rest.rsplit_once(':') {
        Some((dir, tag)) if !tag.contains('/') => (dir, Some(tag.to_owned())),
        Some(_) | None => (rest, None),
    };
    Ok(ImageSource::OciLayout {
        dir: dir.into(),
        tag,
        digest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(texts: &[&str]) -> Vec<Pair> {
        texts
            .iter()
            .map(|text| crate::values::pair(text).unwrap())
            .collect()
    }

    #[test]
    fn build_arguments_without_a_value_come_from_the_environment_or_not_at_all() {
        let lookup = |name: &str| (name == "SET").then(|| "env".to_owned());
        let args = build_args(&pairs(&["A=1", "SET", "UNSET", "EMPTY="]), lookup);
        let want = [("A", "1"), ("SET", "env"), ("EMPTY", "")];
        assert_eq!(
            args,
            want.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
    }

    #[test]
    fn the_epoch_comes_from_the_argument_or_else_the_environment() {
        let lookup = |name: &str| (name == EPOCH).then(|| "77".to_owned());
        let of = |given: &[&str]| epoch(&build_args(&pairs(given), lookup)).unwrap();
        assert_eq!(of(&[]), Some(77));
        assert_eq!(of(&["SOURCE_DATE_EPOCH=5"]), Some(5));
        assert_eq!(epoch(&[]).unwrap(), None);
        let wrong = epoch(&[(EPOCH.into(), "soon".into())]).unwrap_err();
        assert_eq!(wrong.class, Class::Usage);
    }

    #[test]
    fn layouts_may_have_a_tag_and_a_digest() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let check = |text: &str, want_dir: &str, want_tag: Option<&str>, pinned: bool| {
            let Ok(ImageSource::OciLayout { dir, tag, digest }) = layout_source(text) else {
                panic!("{text}")
            };
            assert_eq!(
                (dir.as_path(), tag.as_deref()),
                (Path::new(want_dir), want_tag)
            );
            assert_eq!(digest.is_some(), pinned);
        };
        check("/a/b", "/a/b", None, false);
        check("/a/b:1.2", "/a/b", Some("1.2"), false);
        check(&format!("/a/b:1@{digest}"), "/a/b", Some("1"), true);
        check("/a:b/c", "/a:b/c", None, false);
        check("/a@b/c", "/a@b/c", None, false);
    }

    #[test]
    fn archives_are_distinguished_from_dockerfiles() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        assert!(is_archive(&tar) && is_archive(b"\x1f\x8b\x08"));
        assert!(!is_archive(b"FROM scratch\n") && !is_archive(b""));
    }
}
