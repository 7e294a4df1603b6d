//! `image.json`: what an image holds, for the launcher and for people.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Describes the files `vmlinuz` and `initramfs.cpio` that lie beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Version of this description; readers refuse others.
    pub format: u32,
    /// As in `uname -r`.
    pub kernel_version: String,
    /// Version of the agent in the initramfs.
    pub agent_version: String,
    /// Version of the protocol that the agent speaks.
    pub protocol: u16,
    /// Kernel command line, to which the launcher adds.
    pub cmdline: String,
    /// Modules in the order in which the agent loads them.
    pub modules: Vec<String>,
    /// Digest of `vmlinuz`.
    pub kernel_sha256: String,
    /// Length of `vmlinuz` in bytes.
    pub kernel_size: u64,
    /// Digest of the agent's program, which is `/init`.
    pub agent_sha256: String,
    /// Digest of `initramfs.cpio`.
    pub initramfs_sha256: String,
    /// Length of `initramfs.cpio` in bytes.
    pub initramfs_size: u64,
}

impl ImageInfo {
    /// The current value of [`Self::format`].
    pub const FORMAT: u32 = 1;

    /// The file's text, the same for the same content.
    ///
    /// # Errors
    /// Never in practice: all members can be written as JSON.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

/// The sha256 of `bytes` in hexadecimal digits.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_reads_back() {
        let info = ImageInfo {
            format: ImageInfo::FORMAT,
            kernel_version: "6.1.0-9-cloud-amd64".into(),
            agent_version: "0.1.0".into(),
            protocol: 1,
            cmdline: "quiet".into(),
            modules: vec!["virtio".into()],
            kernel_sha256: sha256_hex(b"kernel"),
            kernel_size: 6,
            agent_sha256: sha256_hex(b"agent"),
            initramfs_sha256: sha256_hex(b"initramfs"),
            initramfs_size: 9,
        };
        let text = info.to_json().unwrap();
        assert_eq!(serde_json::from_str::<ImageInfo>(&text).unwrap(), info);
    }

    #[test]
    fn the_digest_of_nothing_is_the_well_known_one() {
        assert!(sha256_hex(b"").starts_with("e3b0c44298fc1c149afbf4c8996fb924"));
    }
}
