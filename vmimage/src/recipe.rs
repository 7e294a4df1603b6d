//! The content of the guest image, as data: `image.toml`.

use serde::Deserialize;
use thiserror::Error;

/// What the guest image contains besides the agent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Words of the kernel command line.
    pub cmdline: Vec<String>,
    /// Modules to load at boot.
    #[serde(rename = "module")]
    pub modules: Vec<Wanted>,
}

/// A module that the VM needs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// Why the VM needs it.
    pub why: String,
    /// When the agent loads it.
    #[serde(default)]
    pub load: Load,
}

/// When the agent loads a module. Its dependencies are loaded no later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Load {
    /// At once: the agent cannot greet the host without it.
    First,
    /// Only if the agent drives the vsock device itself. Optional: a kernel may lack it.
    Ring,
    /// Only if the agent cannot drive the vsock device itself.
    Fallback,
    /// While host and agent greet each other.
    #[default]
    Later,
}

impl Load {
    /// All values, in the order in which the agent loads the groups.
    pub const ALL: [Self; 4] = [Self::First, Self::Ring, Self::Fallback, Self::Later];

    /// The word for it in `image.toml` and in the initramfs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Ring => "ring",
            Self::Fallback => "fallback",
            Self::Later => "later",
        }
    }
}

/// The list is malformed.
#[derive(Debug, Error)]
#[error("malformed image.toml")]
pub struct RecipeError(#[source] toml::de::Error);

const BUILT_IN: &str = include_str!("../image.toml");

impl Recipe {
    /// The list of this version of cofferdam.
    ///
    /// # Errors
    /// If the built-in `image.toml` is malformed; a test rules that out.
    pub fn built_in() -> Result<Self, RecipeError> {
        Self::parse(BUILT_IN)
    }

    /// Reads a list.
    ///
    /// # Errors
    /// If it is not TOML or has an unknown key.
    pub fn parse(text: &str) -> Result<Self, RecipeError> {
        toml::from_str(text).map_err(RecipeError)
    }

    /// The names of the modules in the groups in which the agent loads them.
    #[must_use]
    pub fn groups(&self) -> [(Load, Vec<&str>); 4] {
        Load::ALL.map(|load| {
            let modules = self.modules.iter().filter(|module| module.load == load);
            (load, modules.map(|module| module.name.as_str()).collect())
        })
    }

    /// The kernel command line.
    #[must_use]
    pub fn command_line(&self) -> String {
        self.cmdline.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_in_the_source_is_well_formed() {
        let recipe = Recipe::built_in().unwrap();
        assert!(recipe.command_line().starts_with("console=ttyS0 quiet"));
        assert!(recipe.modules.iter().any(|module| module.name == "overlay"));
    }

    #[test]
    fn every_module_says_why_and_none_is_named_twice() {
        let modules = Recipe::built_in().unwrap().modules;
        for (at, module) in modules.iter().enumerate() {
            assert!(!module.why.is_empty(), "{}", module.name);
            assert!(
                modules[..at]
                    .iter()
                    .all(|before| before.name != module.name)
            );
        }
    }

    #[test]
    fn a_misspelt_key_is_refused() {
        assert!(Recipe::parse("cmdline = []\nmodul = []\nmodule = []").is_err());
    }
}
