//! The `.modinfo` section of a kernel module: what the module depends on.
//!
//! A module is a relocatable ELF64 file, little-endian on every architecture that the builder VM
//! runs on. `.modinfo` holds `key=value` strings, each ended by a zero byte.

use object::LittleEndian;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader as _, SectionHeader as _};
use thiserror::Error;

/// Why a file is not a usable kernel module.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ElfError {
    /// The file does not start with the header of a 64-bit little-endian ELF file.
    #[error("not a 64-bit little-endian ELF file; decompress the module first")]
    NotElf,
    /// The file is cut short or malformed.
    #[error("malformed ELF file")]
    Malformed(#[source] object::read::Error),
    /// The file has no `.modinfo` section.
    #[error("not a kernel module: it has no .modinfo section")]
    NoModinfo,
}

/// What a module says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Modinfo {
    /// Modules that must be loaded before it, spelled as in the module.
    pub depends: Vec<String>,
    /// First word of its `vermagic`: the kernel version that it was built for.
    pub kernel: Option<String>,
}

impl Modinfo {
    /// Reads the `.modinfo` section of a module's file.
    ///
    /// # Errors
    /// If `file` is not an uncompressed kernel module.
    pub fn read(file: &[u8]) -> Result<Self, ElfError> {
        let mut info = Self::default();
        for record in section(file)?.split(|byte| *byte == 0) {
            let record = String::from_utf8_lossy(record);
            match record.split_once('=') {
                Some(("depends", names)) => info.depends.extend(
                    names
                        .split(',')
                        .filter(|name| !name.is_empty())
                        .map(str::to_owned),
                ),
                Some(("vermagic", magic)) => {
                    info.kernel = magic.split_whitespace().next().map(str::to_owned);
                }
                Some(_) | None => {}
            }
        }
        Ok(info)
    }
}

/// The bytes of the `.modinfo` section.
fn section(file: &[u8]) -> Result<&[u8], ElfError> {
    let header = FileHeader64::<LittleEndian>::parse(file).map_err(|_| ElfError::NotElf)?;
    let endian = header.endian().map_err(|_| ElfError::NotElf)?;
    let sections = header.sections(endian, file).map_err(ElfError::Malformed)?;
    let (_, section) = sections
        .section_by_name(endian, b".modinfo")
        .ok_or(ElfError::NoModinfo)?;
    section.data(endian, file).map_err(ElfError::Malformed)
}

/// A small module for tests.
#[cfg(test)]
pub(crate) fn fake_module(modinfo: &[u8]) -> Vec<u8> {
    const HEADER: usize = 64;
    let names = b"\0.modinfo\0.shstrtab\0";
    let info_at = HEADER;
    let names_at = info_at + modinfo.len();
    let table_at = names_at + names.len();
    let mut file = vec![0_u8; HEADER];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    file[0x28..0x30].copy_from_slice(&(table_at as u64).to_le_bytes());
    file[0x3a..0x3c].copy_from_slice(&64_u16.to_le_bytes());
    file[0x3c..0x3e].copy_from_slice(&3_u16.to_le_bytes());
    file[0x3e..0x40].copy_from_slice(&2_u16.to_le_bytes());
    file.extend_from_slice(modinfo);
    file.extend_from_slice(names);
    for (name, at, size) in [
        (0, 0, 0),
        (1, info_at, modinfo.len()),
        (10, names_at, names.len()),
    ] {
        let mut header = [0_u8; 64];
        header[..4].copy_from_slice(&u32::to_le_bytes(name));
        header[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
        header[0x20..0x28].copy_from_slice(&(size as u64).to_le_bytes());
        file.extend_from_slice(&header);
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    const VSOCK: &[u8] = b"license=GPL\0depends=vsock,virtio\0vermagic=6.1.0-9 SMP mod_unload\0";

    #[test]
    fn dependencies_and_kernel_are_read() {
        let info = Modinfo::read(&fake_module(VSOCK)).unwrap();
        assert_eq!(info.depends, ["vsock", "virtio"]);
        assert_eq!(info.kernel.as_deref(), Some("6.1.0-9"));
    }

    #[test]
    fn an_empty_list_of_dependencies_is_none() {
        let info = Modinfo::read(&fake_module(b"depends=\0")).unwrap();
        assert_eq!(info.depends, Vec::<String>::new());
    }

    #[test]
    fn other_files_are_refused() {
        assert_eq!(Modinfo::read(b""), Err(ElfError::NotElf));
        assert_eq!(
            Modinfo::read(b"\xfd7zXZ\0 compressed"),
            Err(ElfError::NotElf)
        );
    }

    #[test]
    fn no_prefix_of_a_module_panics() {
        let whole = fake_module(VSOCK);
        for length in 0..whole.len() {
            assert!(Modinfo::read(&whole[..length]).is_err(), "length {length}");
        }
    }

    #[test]
    fn offsets_beyond_the_file_are_errors() {
        for at in [0x28, 0x2f, 0x3e] {
            let mut file = fake_module(VSOCK);
            file[at] = 0xff;
            assert!(Modinfo::read(&file).is_err(), "at {at:#x}");
        }
    }
}
