//! The trust domain of a build: whose results of RUN steps it takes without a second thought.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use ::store::{TrustDomain, sha256};
use engine::build::DockerfileSource;

use crate::exit::Failure;

/// The domain that the user named, or that of the project: the repository or directory of the context,
/// and its owner. Without a context there is no project, so only equal Dockerfiles share one.
pub(super) fn domain(
    named: Option<&str>,
    context: Option<&Path>,
    dockerfile: &DockerfileSource,
    home: Option<&Path>,
) -> Result<TrustDomain, Failure> {
    let name = match (named, context) {
        (Some(""), _) => return Err(Failure::usage("--trust-domain needs a name")),
        (Some(named), _) => format!("name:{named}"),
        (None, Some(context)) => project(context, home)?,
        (None, None) => {
            let text = match dockerfile {
                DockerfileSource::Text(text) => sha256(text).hex(),
                DockerfileSource::Default | DockerfileSource::Path(_) => String::new(),
            };
            format!("stdin:{text}")
        }
    };
    TrustDomain::new(name).ok_or_else(|| Failure::usage("--trust-domain needs a name"))
}

/// The project of a directory. The home directory may be a repository of its own, which all projects
/// in it have nothing to do with.
fn project(context: &Path, home: Option<&Path>) -> Result<String, Failure> {
    let context = fs::canonicalize(context)?;
    let owner = fs::metadata(&context)?.uid();
    let is_project = |dir: &&Path| {
        dir.join(".git").exists()
            && Some(*dir) != home
            && dir.parent().is_some()
            && fs::metadata(dir).is_ok_and(|found| found.uid() == owner)
    };
    let root = context.ancestors().find(is_project).unwrap_or(&context);
    // Quoted, two names that differ only in bytes that are not UTF-8 still differ.
    let root = root
        .to_str()
        .map_or_else(|| format!("{root:?}"), str::to_owned);
    Ok(format!("{root} (owner {owner})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name_of(named: Option<&str>, context: Option<&Path>, home: Option<&Path>) -> String {
        let text = DockerfileSource::Text(b"FROM scratch".to_vec());
        let domain = domain(named, context, &text, home).unwrap_or_else(|err| panic!("{err:?}"));
        domain.name().to_owned()
    }

    #[test]
    fn a_project_is_its_repository_or_else_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        let app = root.join("repository/app");
        fs::create_dir_all(&app).unwrap();
        let uid = fs::metadata(&app).unwrap().uid();
        let expect = |path: &Path| format!("{} (owner {uid})", path.display());
        assert_eq!(name_of(None, Some(&app), None), expect(&app));
        let repository = root.join("repository");
        fs::create_dir(repository.join(".git")).unwrap();
        assert_eq!(name_of(None, Some(&app), None), expect(&repository));
        assert_eq!(name_of(None, Some(&app), Some(&repository)), expect(&app));
    }

    #[test]
    fn what_the_user_names_cannot_be_taken_for_a_project() {
        let dir = tempfile::tempdir().unwrap();
        let project = name_of(None, Some(dir.path()), None);
        let named = name_of(Some(&project), Some(dir.path()), None);
        assert_ne!(named, project);
        assert_eq!(named, name_of(Some(&project), None, None));
        let text = DockerfileSource::Default;
        assert!(domain(Some(""), None, &text, None).is_err());
    }

    #[test]
    fn dockerfiles_without_a_context_share_a_domain_only_if_they_are_equal() {
        let of = |text: &str| {
            let text = DockerfileSource::Text(text.as_bytes().to_vec());
            domain(None, None, &text, None).map(|domain| domain.name().to_owned())
        };
        assert_eq!(of("FROM a").ok(), of("FROM a").ok());
        assert_ne!(of("FROM a").ok(), of("FROM b").ok());
    }
}
