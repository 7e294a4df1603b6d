//! Everything that a layer may choose has its limit here. [`Tally`](crate::Tally) holds layers to them.

/// Longest path, in bytes: what Linux accepts, without its final NUL.
pub const MAX_PATH: usize = 4095;
/// Longest element of a path, in bytes: what common file systems accept.
pub const MAX_ELEMENT: usize = 255;
/// Longest name of an extended attribute, in bytes: what Linux accepts.
pub const MAX_XATTR_NAME: usize = 255;
/// Longest value of an extended attribute, in bytes: what Linux accepts.
pub const MAX_XATTR_VALUE: usize = 64 << 10;
/// Most extended attributes of one entry; real ones have one or two.
pub const MAX_XATTRS: usize = 256;
/// Most bytes of names and values of the extended attributes of one entry. With the frames of
/// [`MAX_XATTRS`] records, path and link target they still fit into an extended header.
pub const MAX_ATTRIBUTES: u64 = MAX_EXTENSION - (32 << 10);
/// Longest extended header, in bytes: what the archive reader of Docker and containerd accepts.
pub const MAX_EXTENSION: u64 = 1 << 20;
/// Highest user or group number: to the kernel, the one above means "leave it as it is".
pub const MAX_ID: u32 = u32::MAX - 1;
/// Highest major number of a device: the kernel has twelve bits for it.
pub const MAX_MAJOR: u32 = (1 << 12) - 1;
/// Highest minor number of a device: the kernel has twenty bits for it.
pub const MAX_MINOR: u32 = (1 << 20) - 1;
/// Most entries of a layer. The host holds them in memory, at some hundred bytes each; the largest
/// layers in the field have a few hundred thousand.
pub const MAX_ENTRIES: u64 = 2_000_000;
/// Most bytes of paths, link targets and attributes of a layer, which the host also holds in
/// memory. The attributes of a file count with each of its names.
pub const MAX_NAMES: u64 = 512 << 20;
/// Largest index file that is read, in bytes. Above what the other limits allow.
pub const MAX_INDEX_FILE: u64 = 1 << 30;
/// Largest file in a layer, in bytes. A layer has no holes: a sparse file counts with its length.
pub const MAX_FILE: u64 = 1 << 40;
/// Largest tar of a layer, in bytes.
pub const MAX_LAYER: u64 = 1 << 40;
