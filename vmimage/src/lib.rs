//! The content of the guest image: kernel modules, kernel command line, initramfs.
//!
//! `image.toml` lists the content. This crate turns that list, a tree of kernel modules and the agent
//! into the bytes of an initramfs. Everything here is a pure function: it reads and writes no file,
//! no clock and no environment. `cargo xtask image` obtains a kernel and compiles the agent.
//!
//! **Law:** the same agent, modules and list give the same bytes, on any machine and at any time.
//!
//! | module | content |
//! |---|---|
//! | `recipe` | the list in `image.toml`: [`Recipe`] |
//! | `modinfo` | what a kernel module depends on: [`Modinfo`] |
//! | `modules` | the load order of modules: [`in_load_order`] |
//! | `initramfs` | the files of the initramfs: [`initramfs()`] |
//! | `cpio` | the archive format of an initramfs: [`Archive`] |
//!
//! ```
//! use vmimage::{Load, Module, Recipe, initramfs, sha256_hex};
//!
//! let recipe = Recipe::built_in()?;
//! assert!(recipe.modules.iter().any(|module| module.name == "overlay"));
//!
//! let module = || Module { name: "virtio".into(), bytes: b"module".to_vec() };
//! let bytes = || initramfs(b"agent", &[(Load::First, vec![module()])]);
//! assert_eq!(sha256_hex(&bytes()), sha256_hex(&bytes()));
//! # Ok::<(), vmimage::RecipeError>(())
//! ```
#![forbid(unsafe_code)]

use ring::digest::{SHA256, digest};

mod cpio;
mod initramfs;
mod modinfo;
mod modules;
mod recipe;

pub use cpio::Archive;
pub use initramfs::initramfs;
pub use modinfo::{ElfError, Modinfo};
pub use modules::{Lookup, Module, ModuleError, canonical, in_load_order};
pub use recipe::{Load, Recipe, RecipeError, Wanted};

/// The sha256 of `bytes` in hexadecimal.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(digest(&SHA256, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_nothing_is_the_well_known_one() {
        assert!(sha256_hex(b"").starts_with("e3b0c44298fc1c149afbf4c8996fb924"));
    }
}
