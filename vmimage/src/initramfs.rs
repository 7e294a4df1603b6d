//! The contents of the initramfs.
//!
//! | path | what |
//! |---|---|
//! | `/init` | the agent |
//! | `/modules/order` | file names of the modules in load order, one on each line; those before the empty line are needed to greet the host |
//! | `/modules/*.ko` | the modules |
//! | `/dev` `/proc` `/sys` `/run` `/tmp` | empty, for the agent to mount on |
//!
//! It is not compressed: the kernel unpacks plain bytes faster than the host reads fewer of them.

use std::fmt::Write as _;

use crate::cpio::Archive;
use crate::modules::Module;

/// Where the agent finds its mount points.
const DIRECTORIES: &[&str] = &["dev", "modules", "proc", "run", "sys", "tmp"];

/// The bytes of the initramfs. The modules are in load order; the agent needs the first `greeting`
/// of them to greet the host.
#[must_use]
pub fn initramfs(agent: &[u8], modules: &[Module], greeting: usize) -> Vec<u8> {
    let mut archive = Archive::new();
    for directory in DIRECTORIES {
        archive.directory(directory);
    }
    let mut order = String::new();
    for (number, module) in modules.iter().enumerate() {
        let separator = if number == greeting { "\n" } else { "" };
        // Writing to a string cannot fail.
        writeln!(order, "{separator}{}.ko", module.name).ok();
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
        initramfs(b"agent", &[module("virtio"), module("virtio_blk")], 1)
    }

    #[test]
    fn the_bytes_are_pinned() {
        // A change here changes every image; it is fine if it is meant.
        assert_eq!(
            sha256_hex(&example()),
            "37372742ac455c41759de3f4a974d31617f82b94e48a139fb01c33e085ca924a"
        );
    }

    #[test]
    fn the_order_file_lists_modules_line_by_line() {
        let bytes = example();
        let needle = b"virtio.ko\n\nvirtio_blk.ko\n";
        assert!(bytes.windows(needle.len()).any(|window| window == needle));
    }
}
