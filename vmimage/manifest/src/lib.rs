//! `image.json`: what a guest image consists of.
//!
//! A guest image is a directory of three files, named here. `cargo xtask image` writes them, the
//! launcher reads them. This crate is apart from `vmimage` so that the launcher does not depend on
//! what is needed to build a guest image.
//!
//! **Law:** the same manifest gives the same text.
//!
//! ```
//! use vmimage_manifest::Manifest;
//!
//! let text = r#"{
//!     "format": 1, "kernel_version": "6.1.0-9-cloud-amd64", "agent_version": "0.1.0",
//!     "protocol": 2, "cmdline": "quiet", "modules": ["virtio"],
//!     "kernel_sha256": "00", "kernel_size": 6, "agent_sha256": "01",
//!     "initramfs_sha256": "02", "initramfs_size": 9
//! }"#;
//! let manifest = Manifest::from_json(text.as_bytes())?;
//! assert_eq!(manifest.modules, ["virtio"]);
//! assert_eq!(Manifest::from_json(manifest.to_json()?.as_bytes())?, manifest);
//! # Ok::<(), serde_json::Error>(())
//! ```
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// Name of the manifest in the directory of a guest image.
pub const MANIFEST: &str = "image.json";

/// Name of the kernel in the directory of a guest image.
pub const KERNEL: &str = "vmlinuz";

/// Name of the initramfs in the directory of a guest image.
pub const INITRAMFS: &str = "initramfs.cpio";

/// Describes the [`KERNEL`] and the [`INITRAMFS`] next to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format: [`Self::FORMAT`].
    pub format: u32,
    /// Version of the kernel, as `uname -r` prints it.
    pub kernel_version: String,
    /// Version of the agent in the initramfs.
    pub agent_version: String,
    /// Version of the protocol that the agent uses.
    pub protocol: u16,
    /// Kernel command line, to which the launcher appends.
    pub cmdline: String,
    /// Modules in the order in which the agent loads them.
    pub modules: Vec<String>,
    /// sha256 of the kernel, in hexadecimal.
    pub kernel_sha256: String,
    /// Size of the kernel in bytes.
    pub kernel_size: u64,
    /// sha256 of the agent, which is `/init` in the initramfs, in hexadecimal.
    pub agent_sha256: String,
    /// sha256 of the initramfs, in hexadecimal.
    pub initramfs_sha256: String,
    /// Size of the initramfs in bytes.
    pub initramfs_size: u64,
}

impl Manifest {
    /// The current value of [`Self::format`].
    pub const FORMAT: u32 = 1;

    /// The text of the file.
    ///
    /// # Errors
    /// Never in practice: all members can be written as JSON.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Reads the text of the file.
    ///
    /// # Errors
    /// If it is not JSON, or a member is missing or has another type.
    pub fn from_json(text: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text)
    }
}
