//! Reads the `.modinfo` section of a kernel module: what it depends on.
//!
//! A module is a relocatable ELF64 file, little-endian on every architecture that the builder VM
//! runs on. `.modinfo` holds `key=value` strings, each ended by a zero byte.

use thiserror::Error;

/// Why a file cannot be used as a kernel module.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ElfError {
    /// The file does not start with the magic number of a 64-bit little-endian ELF file.
    #[error("not a 64-bit little-endian ELF file (compressed modules must be unpacked first)")]
    NotElf,
    /// A table or section lies outside of the file.
    #[error("ELF file is cut short")]
    Truncated,
    /// There is no `.modinfo` section.
    #[error("no .modinfo section: not a kernel module")]
    NoModinfo,
}

/// What a module says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Modinfo {
    /// Modules that must be loaded before it, by the names it uses.
    pub depends: Vec<String>,
    /// First word of its `vermagic`: the kernel it was built for.
    pub kernel: Option<String>,
}

impl Modinfo {
    /// Parses a module's file.
    ///
    /// # Errors
    /// If `file` is no uncompressed kernel module.
    pub fn read(file: &[u8]) -> Result<Self, ElfError> {
        let mut info = Self::default();
        for record in section(file, b".modinfo")?.split(|byte| *byte == 0) {
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

const MAGIC: &[u8] = b"\x7fELF\x02\x01";

/// Offsets of the fields used here, from the ELF-64 object file format.
mod field {
    pub(super) const SECTION_TABLE: u64 = 0x28;
    pub(super) const SECTION_SIZE: u64 = 0x3a;
    pub(super) const SECTION_COUNT: u64 = 0x3c;
    pub(super) const NAMES_INDEX: u64 = 0x3e;
    pub(super) const NAME: u64 = 0;
    pub(super) const OFFSET: u64 = 0x18;
    pub(super) const SIZE: u64 = 0x20;
}

/// The bytes of the section called `name`.
fn section<'a>(file: &'a [u8], name: &[u8]) -> Result<&'a [u8], ElfError> {
    if !file.starts_with(MAGIC) {
        return Err(ElfError::NotElf);
    }
    let table = number::<8>(file, field::SECTION_TABLE)?;
    let entry = number::<2>(file, field::SECTION_SIZE)?;
    let count = number::<2>(file, field::SECTION_COUNT)?;
    let header = |index: u64| table.checked_add(index * entry).ok_or(ElfError::Truncated);
    let body = |at: u64| {
        let offset = number::<8>(file, at.saturating_add(field::OFFSET))?;
        let size = number::<8>(file, at.saturating_add(field::SIZE))?;
        range(file, offset, size)
    };
    let names = body(header(number::<2>(file, field::NAMES_INDEX)?)?)?;
    for index in 0..count {
        let at = header(index)?;
        let start = number::<4>(file, at.saturating_add(field::NAME))?;
        let rest = tail(names, start)?;
        if rest.split(|byte| *byte == 0).next() == Some(name) {
            return body(at);
        }
    }
    Err(ElfError::NoModinfo)
}

/// The little-endian number of `N` bytes at `at`.
fn number<const N: usize>(file: &[u8], at: u64) -> Result<u64, ElfError> {
    let bytes = range(file, at, N as u64)?;
    let mut wide = [0; 8];
    for (to, from) in wide.iter_mut().zip(bytes) {
        *to = *from;
    }
    Ok(u64::from_le_bytes(wide))
}

fn range(file: &[u8], at: u64, length: u64) -> Result<&[u8], ElfError> {
    let length = usize::try_from(length).map_err(|_| ElfError::Truncated)?;
    tail(file, at)?.get(..length).ok_or(ElfError::Truncated)
}

fn tail(file: &[u8], at: u64) -> Result<&[u8], ElfError> {
    let at = usize::try_from(at).map_err(|_| ElfError::Truncated)?;
    file.get(at..).ok_or(ElfError::Truncated)
}

/// A small but valid module, for tests.
#[cfg(test)]
pub(crate) fn fake_module(modinfo: &[u8]) -> Vec<u8> {
    const HEADER: usize = 64;
    let names = b"\0.modinfo\0.shstrtab\0";
    let info_at = HEADER;
    let names_at = info_at + modinfo.len();
    let table_at = names_at + names.len();
    let mut file = vec![0_u8; HEADER];
    file[..MAGIC.len()].copy_from_slice(MAGIC);
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
        // Of the last section header, the fields behind its size are never read.
        for length in 0..whole.len() - 24 {
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
