//! Default locations of the store and of the guest image.

use std::env;
use std::path::{Path, PathBuf};

use crate::exit::Failure;

/// Where the guest image is installed for all users.
const INSTALLED: &str = "/usr/lib/cofferdam/vm";

/// The store directory: `given`, or the default of the XDG specification.
pub(crate) fn store(given: Option<&Path>) -> Result<PathBuf, Failure> {
    given
        .map(Path::to_owned)
        .or_else(|| data(&Environment::real()))
        .ok_or_else(|| {
            Failure::usage(
                "no default store directory: neither HOME nor XDG_DATA_HOME is set; use --store DIR",
            )
        })
}

/// The guest image directory: `given`, or the first default directory that holds an image. If none
/// does, the first default directory, so that the error message names it.
pub(crate) fn guest_image(given: Option<&Path>) -> PathBuf {
    let has_image = |dir: &Path| dir.join("image.json").is_file();
    given.map_or_else(
        || choose(&candidates(&Environment::real()), has_image),
        Path::to_owned,
    )
}

/// The inputs of the default locations, apart from the process so that tests can set them.
#[derive(Debug, Default)]
struct Environment {
    data_home: Option<PathBuf>,
    home: Option<PathBuf>,
    program: Option<PathBuf>,
}

impl Environment {
    fn real() -> Self {
        // The XDG specification says to ignore relative paths in these variables.
        let absolute = |name: &str| {
            env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        Self {
            data_home: absolute("XDG_DATA_HOME"),
            home: absolute("HOME"),
            program: env::current_exe().ok(),
        }
    }
}

fn data(environment: &Environment) -> Option<PathBuf> {
    let share = || {
        environment
            .home
            .as_ref()
            .map(|home| home.join(".local/share"))
    };
    environment
        .data_home
        .clone()
        .or_else(share)
        .map(|data| data.join("cofferdam"))
}

fn candidates(environment: &Environment) -> Vec<PathBuf> {
    let next_to_program = environment
        .program
        .as_ref()
        .and_then(|program| program.parent()?.parent());
    let mut dirs: Vec<PathBuf> = next_to_program
        .map(|dir| dir.join("vmimage"))
        .into_iter()
        .collect();
    dirs.extend(data(environment).map(|data| data.join("vm")));
    dirs.push(INSTALLED.into());
    dirs
}

fn choose(candidates: &[PathBuf], has_image: impl Fn(&Path) -> bool) -> PathBuf {
    let found = candidates
        .iter()
        .find(|dir| has_image(dir))
        .or_else(|| candidates.first());
    found.cloned().unwrap_or_else(|| INSTALLED.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        Environment {
            data_home: None,
            home: Some("/home/ann".into()),
            program: Some("/work/target/release/cofferdam".into()),
        }
    }

    #[test]
    fn the_store_follows_the_xdg_rules() {
        let mut environment = environment();
        assert_eq!(
            data(&environment),
            Some("/home/ann/.local/share/cofferdam".into())
        );
        environment.data_home = Some("/data".into());
        assert_eq!(data(&environment), Some("/data/cofferdam".into()));
        assert_eq!(data(&Environment::default()), None);
    }

    #[test]
    fn the_image_is_searched_next_to_the_program_then_at_home_then_in_the_system() {
        let dirs = candidates(&environment());
        let want = [
            "/work/target/vmimage",
            "/home/ann/.local/share/cofferdam/vm",
            "/usr/lib/cofferdam/vm",
        ];
        assert_eq!(dirs, want.map(PathBuf::from));
        let choice = |has: &str| choose(&dirs, |dir| dir == Path::new(has));
        assert_eq!(
            choice("/usr/lib/cofferdam/vm"),
            Path::new("/usr/lib/cofferdam/vm")
        );
        assert_eq!(choice("/nowhere"), Path::new("/work/target/vmimage"));
    }
}
