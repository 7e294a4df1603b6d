//! Copies of a guest image with something added: the product has no way to make its guest fail or lie, so
//! tests give it another guest.

use std::fs;
use std::path::Path;

use serde_json::Value;

/// What a copy has more than the original.
#[derive(Debug, Clone, Copy)]
pub struct More<'a> {
    /// Words of the kernel's command line, behind those of the image.
    pub cmdline: &'a str,
    /// Executable files in the root directory. The kernel unpacks one archive after the other, so they are
    /// beside the agent, which is `/init`; with `rdinit=/NAME` the kernel starts another program first.
    pub files: &'a [(&'a str, &'a [u8])],
}

/// Makes a copy of the guest image `from` in the directory `to`.
///
/// # Panics
/// If that fails.
pub fn copy(from: &Path, to: &Path, more: More<'_>) {
    fs::create_dir_all(to).expect("a directory for the image");
    fs::copy(from.join("vmlinuz"), to.join("vmlinuz")).expect("the kernel");
    let mut initramfs = fs::read(from.join("initramfs.cpio")).expect("the initramfs");
    if !more.files.is_empty() {
        for (number, (name, data)) in more.files.iter().enumerate() {
            add(&mut initramfs, number + 1, name, 0o100_755, data);
        }
        add(&mut initramfs, 0, "TRAILER!!!", 0, &[]);
    }
    let text = fs::read(from.join("image.json")).expect("the manifest");
    let mut manifest: Value = serde_json::from_slice(&text).expect("the manifest");
    let fields = manifest.as_object_mut().expect("members");
    let cmdline = fields.get("cmdline").and_then(Value::as_str);
    let cmdline = format!("{} {}", cmdline.unwrap_or_default(), more.cmdline);
    fields.insert("cmdline".to_owned(), cmdline.into());
    fields.insert("initramfs_size".to_owned(), initramfs.len().into());
    fs::write(to.join("initramfs.cpio"), initramfs).expect("the initramfs");
    fs::write(to.join("image.json"), manifest.to_string()).expect("the manifest");
}

/// Adds an entry of the format `newc` (Linux, `driver-api/early-userspace/buffer-format.rst`).
fn add(archive: &mut Vec<u8>, inode: usize, name: &str, mode: usize, data: &[u8]) {
    let (size, length) = (data.len(), name.len() + 1);
    let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, length, 0];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    for part in [[name.as_bytes(), b"\0"].concat(), data.to_vec()] {
        archive.extend_from_slice(&part);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
}
