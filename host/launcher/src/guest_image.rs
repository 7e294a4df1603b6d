//! The guest image: kernel and initramfs of the builder VM, as `cargo xtask image` wrote them.
//!
//! The guest image and this program are built at different times, so everything is checked here: a
//! missing file, an incomplete copy and an image of another protocol each have their own error
//! before a VM starts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vmimage_manifest::{INITRAMFS, KERNEL, MANIFEST, Manifest};

/// Greatest size of a description in bytes; a valid one has a few kilobytes.
const MAX_MANIFEST: u64 = 1 << 20;

/// Kernel and initramfs of the builder VM.
#[derive(Debug, Clone)]
pub struct GuestImage {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs, which holds the agent and its modules.
    pub initramfs: PathBuf,
    /// The description of both.
    pub manifest: Manifest,
}

/// Why there is no usable guest image.
#[derive(Debug, Error)]
pub enum GuestImageError {
    /// A file is missing.
    #[error("no guest image in `{0}`: `{missing}` is missing; build it with `cargo xtask image`", missing = .1)]
    Missing(PathBuf, &'static str),
    /// It cannot be read.
    #[error("cannot read `{0}`")]
    Unreadable(PathBuf, #[source] io::Error),
    /// The description cannot be parsed.
    #[error("`{0}` is not the description of a guest image")]
    Manifest(PathBuf, #[source] serde_json::Error),
    /// A file differs from its description.
    #[error(
        "the guest image in `{dir}` is damaged: `{file}` {what}; rebuild it with `cargo xtask image`"
    )]
    Damaged {
        /// Directory of the guest image.
        dir: PathBuf,
        /// Which file.
        file: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// It belongs to another version of this program.
    #[error(
        "the guest image in `{dir}` uses protocol {image} (agent {agent}), but this program uses {host}; \
         rebuild it with `cargo xtask image`",
        host = wire::PROTOCOL
    )]
    Protocol {
        /// Directory of the guest image.
        dir: PathBuf,
        /// Protocol of the image.
        image: u16,
        /// Version of its agent.
        agent: String,
    },
}

impl GuestImage {
    /// Opens the guest image in `dir`. Does not hash its files: see [`Self::verify`].
    ///
    /// # Errors
    /// If there is none, or it is damaged or of another protocol.
    pub fn open(dir: &Path) -> Result<Self, GuestImageError> {
        let manifest = read_manifest(dir)?;
        if manifest.protocol != wire::PROTOCOL {
            return Err(GuestImageError::Protocol {
                dir: dir.into(),
                image: manifest.protocol,
                agent: manifest.agent_version,
            });
        }
        file_size(dir, KERNEL)?;
        let size = file_size(dir, INITRAMFS)?;
        if size != manifest.initramfs_size {
            return Err(GuestImageError::Damaged {
                dir: dir.into(),
                file: INITRAMFS,
                what: format!("has {size} bytes, not {}", manifest.initramfs_size),
            });
        }
        Ok(Self {
            kernel: dir.join(KERNEL),
            initramfs: dir.join(INITRAMFS),
            manifest,
        })
    }

    /// Hashes both files and compares them with the description.
    ///
    /// # Errors
    /// If one cannot be read or differs.
    pub fn verify(&self) -> Result<(), GuestImageError> {
        let files = [
            (&self.kernel, KERNEL, &self.manifest.kernel_sha256),
            (&self.initramfs, INITRAMFS, &self.manifest.initramfs_sha256),
        ];
        for (path, file, want) in files {
            let bytes =
                fs::read(path).map_err(|err| GuestImageError::Unreadable(path.clone(), err))?;
            let got = store::sha256(&bytes).hex();
            if got != *want {
                let dir = path.parent().unwrap_or(path).into();
                return Err(GuestImageError::Damaged {
                    dir,
                    file,
                    what: format!("has sha256 {got}"),
                });
            }
        }
        Ok(())
    }
}

fn read_manifest(dir: &Path) -> Result<Manifest, GuestImageError> {
    let path = dir.join(MANIFEST);
    let size = file_size(dir, MANIFEST)?;
    if size > MAX_MANIFEST {
        let what = format!("has {size} bytes, more than a description can have");
        return Err(GuestImageError::Damaged {
            dir: dir.into(),
            file: MANIFEST,
            what,
        });
    }
    let bytes = fs::read(&path).map_err(|err| GuestImageError::Unreadable(path.clone(), err))?;
    Manifest::from_json(&bytes).map_err(|err| GuestImageError::Manifest(path, err))
}

fn file_size(dir: &Path, file: &'static str) -> Result<u64, GuestImageError> {
    let path = dir.join(file);
    match fs::metadata(&path) {
        Ok(found) if found.is_file() => Ok(found.len()),
        Ok(_) => Err(GuestImageError::Damaged {
            dir: dir.into(),
            file,
            what: "is not a regular file".into(),
        }),
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            Err(GuestImageError::Missing(dir.into(), file))
        }
        Err(err) => Err(GuestImageError::Unreadable(path, err)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A guest image directory with this protocol, whose files hold a few bytes.
    pub(crate) fn write(dir: &Path, protocol: u16) {
        let (kernel, initramfs) = (b"kernel".as_slice(), b"initramfs".as_slice());
        fs::write(dir.join(KERNEL), kernel).unwrap();
        fs::write(dir.join(INITRAMFS), initramfs).unwrap();
        let manifest = Manifest {
            format: Manifest::FORMAT,
            kernel_version: "6.1.0-test".into(),
            agent_version: "9.9.9".into(),
            protocol,
            modules: vec!["virtio".into()],
            cmdline: "console=ttyS0 quiet".into(),
            kernel_sha256: store::sha256(kernel).hex(),
            kernel_size: kernel.len() as u64,
            agent_sha256: store::sha256(b"agent").hex(),
            initramfs_sha256: store::sha256(initramfs).hex(),
            initramfs_size: initramfs.len() as u64,
        };
        fs::write(dir.join(MANIFEST), manifest.to_json().unwrap()).unwrap();
    }

    #[test]
    fn a_whole_image_is_opened_and_verified() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), wire::PROTOCOL);
        let image = GuestImage::open(dir.path()).unwrap();
        assert_eq!(image.manifest.modules, ["virtio"]);
        image.verify().unwrap();
    }

    #[test]
    fn the_error_for_a_missing_file_names_it_and_what_to_do() {
        for file in [KERNEL, INITRAMFS, MANIFEST] {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), wire::PROTOCOL);
            fs::remove_file(dir.path().join(file)).unwrap();
            let text = GuestImage::open(dir.path()).unwrap_err().to_string();
            assert!(
                text.contains(file) && text.contains("cargo xtask image"),
                "{text}"
            );
        }
    }

    #[test]
    fn an_incomplete_copy_is_detected_by_its_length_and_a_changed_one_by_its_digest() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), wire::PROTOCOL);
        fs::write(dir.path().join(INITRAMFS), b"init").unwrap();
        let text = GuestImage::open(dir.path()).unwrap_err().to_string();
        assert!(text.contains("has 4 bytes, not 9"), "{text}");
        fs::write(dir.path().join(INITRAMFS), b"INITRAMFS").unwrap();
        let damaged = GuestImage::open(dir.path()).unwrap().verify().unwrap_err();
        assert!(matches!(
            damaged,
            GuestImageError::Damaged {
                file: INITRAMFS,
                ..
            }
        ));
    }

    #[test]
    fn an_image_of_another_protocol_is_refused_with_both_numbers() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 77);
        let text = GuestImage::open(dir.path()).unwrap_err().to_string();
        assert!(
            text.contains("77") && text.contains(&wire::PROTOCOL.to_string()),
            "{text}"
        );
    }
}
