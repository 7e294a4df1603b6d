//! The files of the initramfs.
//!
//! | path | content |
//! |---|---|
//! | `/init` | the agent |
//! | `/modules/order` | one line for each module in load order: the word for its group ([`Load`]) and its file name |
//! | `/modules/*.ko` | the modules |
//! | `/dev` `/proc` `/sys` `/run` `/tmp` | empty, for the agent to mount on |
//!
//! It is not compressed: the kernel takes longer to decompress it than the host saves in reading.

use crate::cpio::Archive;
use crate::modules::Module;
use crate::recipe::Load;

/// Directories of the initramfs. The agent mounts on the empty ones.
const DIRECTORIES: &[&str] = &["dev", "modules", "proc", "run", "sys", "tmp"];

/// The bytes of the initramfs. `groups` has the modules in load order.
#[must_use]
pub fn initramfs(agent: &[u8], groups: &[(Load, Vec<Module>)]) -> Vec<u8> {
    let mut archive = Archive::new();
    for directory in DIRECTORIES {
        archive.directory(directory);
    }
    let mut order = String::new();
    for (load, group) in groups {
        for module in group {
            order.push_str(&format!("{} {}.ko\n", load.name(), module.name));
        }
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    for module in groups.iter().flat_map(|(_, group)| group) {
        archive.file(&format!("modules/{}.ko", module.name), 0o644, &module.bytes);
    }
    archive.file("init", 0o755, agent);
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sha256_hex;

    fn example() -> Vec<u8> {
        let module = |name: &str| Module {
            name: name.into(),
            bytes: name.as_bytes().into(),
        };
        initramfs(
            b"agent",
            &[
                (Load::First, vec![module("virtio")]),
                (Load::Later, vec![module("virtio_blk")]),
            ],
        )
    }

    #[test]
    fn the_bytes_are_pinned() {
        // A change here changes every guest image. Update the digest if that is intended.
        assert_eq!(
            sha256_hex(&example()),
            "4358b39b6fc53f202d0d2f5ebf83b940b0395430d3a4283d47d4d9380049f607"
        );
    }

    #[test]
    fn the_order_file_lists_modules_line_by_line() {
        let bytes = example();
        let needle = b"first virtio.ko\nlater virtio_blk.ko\n";
        assert!(bytes.windows(needle.len()).any(|window| window == needle));
    }
}
