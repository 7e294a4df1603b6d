//! The contents of the initramfs.
//!
//! | path | what |
//! |---|---|
//! | `/init` | the agent |
//! | `/modules/order` | file names of the modules in load order, one on each line |
//! | `/modules/*.ko` | the modules |
//! | `/dev` `/proc` `/sys` `/run` `/tmp` | empty, for the agent to mount on |
//!
//! It is not compressed: the kernel unpacks plain bytes faster than the host reads fewer of them.

use std::fmt::Write as _;

use crate::cpio::Archive;
use crate::modules::Module;

/// Where the agent finds its mount points.
const DIRECTORIES: &[&str] = &["dev", "modules", "proc", "run", "sys", "tmp"];

/// The bytes of the initramfs.
#[must_use]
pub fn initramfs(agent: &[u8], modules: &[Module]) -> Vec<u8> {
    let mut archive = Archive::new();
    for directory in DIRECTORIES {
        archive.directory(directory);
    }
    let mut order = String::new();
    for module in modules {
        // Writing to a string cannot fail.
        writeln!(order, "{}.ko", module.name).ok();
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    for module in modules {
        archive.file(&format!("modules/{}.ko", module.name), 0o644, &module.bytes);
    }
    archive.file("init", 0o755, agent);
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::info::sha256_hex;

    fn example() -> Vec<u8> {
        let module = |name: &str| Module {
            name: name.into(),
            bytes: name.as_bytes().into(),
        };
        initramfs(b"agent", &[module("virtio"), module("virtio_blk")])
    }

    #[test]
    fn the_bytes_are_pinned() {
        // A change here changes every image; it is fine if it is meant.
        assert_eq!(
            sha256_hex(&example()),
            "10546fcbe68b364a35a98cefc48271807ed2686d088d341bb3dcb3933072ac19"
        );
    }

    #[test]
    fn the_order_file_lists_modules_line_by_line() {
        let bytes = example();
        let needle = b"virtio.ko\nvirtio_blk.ko\n";
        assert!(bytes.windows(needle.len()).any(|window| window == needle));
    }
}
