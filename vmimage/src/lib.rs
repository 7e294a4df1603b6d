//! What is in the builder VM: module list, boot parameters, reproducible initramfs.
//!
//! The list is data (`image.toml`); the code turns it, a tree of kernel modules and the agent
//! into the bytes of an initramfs. Everything here is a pure function: no file is read or
//! written, no clock, no environment. Obtaining a kernel and compiling the agent is the work of
//! `cargo xtask image`.
//!
//! **Law:** the same agent, modules and list give the same bytes, on any machine and at any time.
#![forbid(unsafe_code)]

mod cpio;
mod elf;
mod info;
mod initramfs;
mod modules;
mod recipe;

pub use cpio::Archive;
pub use elf::{ElfError, Modinfo};
pub use info::{ImageInfo, sha256_hex};
pub use initramfs::initramfs;
pub use modules::{Lookup, Module, ModuleError, canonical, in_load_order};
pub use recipe::{Load, Recipe, RecipeError, Wanted};
