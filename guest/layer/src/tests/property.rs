//! Random trees, random cuts, random bytes.

use std::collections::BTreeMap;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use crate::{Entry, EntryKind, Index, Mtime};

use super::raw::{index_of, sha256};

/// What a random tree has at a path.
#[derive(Debug, Clone)]
enum Node {
    File(Vec<u8>),
    Directory,
    Symlink(String),
    Fifo,
    Device(u32, u32),
}

#[derive(Debug, Clone)]
struct Random {
    node: Node,
    mode: u32,
    owner: (u32, u32),
    mtime: u64,
    xattrs: BTreeMap<String, Vec<u8>>,
}

fn random() -> impl Strategy<Value = Random> {
    let node = prop_oneof![
        vec(any::<u8>(), 0..3000).prop_map(Node::File),
        Just(Node::Directory),
        "[a-z.]{0,3}[a-z](/[a-z]{1,60}){0,3}".prop_map(Node::Symlink),
        Just(Node::Fifo),
        (1..4096u32, 0..1_000_000u32).prop_map(|(major, minor)| Node::Device(major, minor)),
    ];
    let owner = (0..u32::MAX, 0..3_000_000u32);
    let xattrs = btree_map("user\\.[a-z]{1,8}", vec(any::<u8>(), 0..20), 0..3);
    (node, 0..0o10000u32, owner, 0..1u64 << 33, xattrs).prop_map(
        |(node, mode, owner, mtime, xattrs)| Random {
            node,
            mode,
            owner,
            mtime,
            xattrs,
        },
    )
}

/// Random things at random paths; whatever has something below it becomes a directory.
fn trees() -> impl Strategy<Value = BTreeMap<String, Random>> {
    let element = prop_oneof![
        4 => "[a-c]",
        2 => "[a-c][-./a-z]{0,3}[a-z]",
        1 => "[x-z]{60,120}",
    ];
    let path = vec(element, 1..4).prop_map(|elements| {
        elements
            .iter()
            .map(|e| e.replace('/', "-"))
            .collect::<Vec<_>>()
            .join("/")
    });
    btree_map(path, random(), 0..20).prop_map(|mut tree| {
        let paths: Vec<String> = tree.keys().cloned().collect();
        for (path, random) in &mut tree {
            if paths
                .iter()
                .any(|other| other.starts_with(&format!("{path}/")))
            {
                random.node = Node::Directory;
            }
        }
        tree
    })
}

/// The tar that the `tar` crate makes of a tree.
fn pack(tree: &BTreeMap<String, Random>) -> Vec<u8> {
    let mut out = tar::Builder::new(Vec::new());
    for (path, random) in tree {
        let xattrs: Vec<(String, &[u8])> = random
            .xattrs
            .iter()
            .map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.as_slice()))
            .collect();
        if !xattrs.is_empty() {
            out.append_pax_extensions(xattrs.iter().map(|(name, value)| (name.as_str(), *value)))
                .unwrap();
        }
        let mut header = tar::Header::new_gnu();
        header.set_mode(random.mode);
        header.set_uid(u64::from(random.owner.0));
        header.set_gid(u64::from(random.owner.1));
        header.set_mtime(random.mtime);
        header.set_size(0);
        let mut data: &[u8] = &[];
        let kind = match &random.node {
            Node::File(bytes) => {
                header.set_size(bytes.len() as u64);
                data = bytes;
                tar::EntryType::Regular
            }
            Node::Directory => tar::EntryType::Directory,
            Node::Fifo => tar::EntryType::Fifo,
            Node::Device(major, minor) => {
                header.set_device_major(*major).unwrap();
                header.set_device_minor(*minor).unwrap();
                tar::EntryType::Char
            }
            Node::Symlink(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                out.append_link(&mut header, path, target).unwrap();
                continue;
            }
        };
        header.set_entry_type(kind);
        out.append_data(&mut header, path, data).unwrap();
    }
    out.into_inner().unwrap()
}

fn expected(tree: &BTreeMap<String, Random>) -> Vec<Entry> {
    let mut entries: Vec<Entry> = tree
        .iter()
        .map(|(path, random)| Entry {
            path: path.as_bytes().to_vec(),
            kind: match &random.node {
                Node::File(bytes) => EntryKind::File {
                    size: bytes.len() as u64,
                    digest: sha256(bytes),
                    offset: 0,
                },
                Node::Directory => EntryKind::Directory,
                Node::Symlink(target) => EntryKind::Symlink {
                    target: target.as_bytes().to_vec(),
                },
                Node::Fifo => EntryKind::Fifo,
                Node::Device(major, minor) => EntryKind::CharDevice {
                    major: *major,
                    minor: *minor,
                },
            },
            mode: random.mode,
            uid: random.owner.0,
            gid: random.owner.1,
            mtime: Mtime {
                secs: i64::try_from(random.mtime).unwrap(),
                nanos: 0,
            },
            xattrs: random
                .xattrs
                .iter()
                .map(|(name, value)| (name.as_bytes().to_vec(), value.clone()))
                .collect(),
        })
        .collect();
    let elements = |entry: &Entry| {
        entry
            .path
            .split(|b| *b == b'/')
            .map(<[u8]>::to_vec)
            .collect()
    };
    entries.sort_by_key(|entry| -> Vec<Vec<u8>> { elements(entry) });
    entries
}

/// Cuts bytes at these places.
fn cut<'a>(bytes: &'a [u8], places: &[usize]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = places
        .iter()
        .map(|place| place % (bytes.len() + 1))
        .collect();
    places.extend([0, bytes.len()]);
    places.sort_unstable();
    places
        .windows(2)
        .map(|pair| &bytes[pair[0]..pair[1]])
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_random_tree_in_random_pieces_gives_its_index(
        tree in trees(),
        places in vec(any::<usize>(), 0..40),
    ) {
        let bytes = pack(&tree);
        let index = index_of(cut(&bytes, &places)).expect("an honest tar");
        for entry in index.entries() {
            if let EntryKind::File { size, digest, offset } = &entry.kind {
                let (from, size) = (usize::try_from(*offset)?, usize::try_from(*size)?);
                prop_assert_eq!(sha256(&bytes[from..from + size]), *digest);
            }
        }
        let mut entries = index.entries().to_vec();
        for entry in &mut entries {
            if let EntryKind::File { offset, .. } = &mut entry.kind {
                *offset = 0;
            }
        }
        prop_assert_eq!(&entries, &expected(&tree));
        prop_assert_eq!(Index::decode(&index.encode()), Some(index.clone()));
        check_lookups(&index)?;
    }

    #[test]
    fn damage_to_an_honest_tar_is_never_a_panic(
        tree in trees(),
        damage in vec((any::<usize>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = pack(&tree);
        for (at, byte) in damage {
            let at = at % bytes.len();
            bytes[at] = byte;
            // Also behind the checksum: set the sum of the header that was hit.
            let block = at / 512 * 512;
            let header = &mut bytes[block..block + 512];
            if byte % 2 == 0 {
                header[148..156].fill(b' ');
                let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
                header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        let whole = index_of([bytes.as_slice()]);
        prop_assert_eq!(whole, index_of(bytes.chunks(1)));
    }

    #[test]
    fn arbitrary_bytes_are_never_a_panic(bytes in vec(any::<u8>(), 0..4000)) {
        index_of([bytes.as_slice()]).ok();
        prop_assert_eq!(Index::decode(&bytes), None);
    }

    #[test]
    fn a_damaged_index_is_refused(tree in trees(), at in any::<usize>(), bit in 0..8u8) {
        let index = index_of([pack(&tree).as_slice()]).expect("an honest tar");
        let mut bytes = index.encode();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        prop_assert_eq!(Index::decode(&bytes), None);
        bytes[at] ^= 1 << bit;
        prop_assert_eq!(Index::decode(&bytes[..at]), None);
    }

    #[test]
    fn an_index_that_was_made_to_deceive_is_in_order_or_refused(
        tree in trees(),
        damage in vec((any::<usize>(), any::<u8>()), 1..6),
    ) {
        let index = index_of([pack(&tree).as_slice()]).expect("an honest tar");
        let mut bytes = index.encode();
        for (at, byte) in damage {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let sum = xxhash_rust::xxh3::xxh3_64(&bytes[36..]);
        bytes[28..36].copy_from_slice(&sum.to_le_bytes());
        if let Some(index) = Index::decode(&bytes) {
            check_lookups(&index)?;
        }
    }
}

/// Every way of looking something up agrees with going through the list.
fn check_lookups(index: &Index) -> Result<(), TestCaseError> {
    let below = |path: &[u8], dir: &[u8]| {
        path != dir && (dir.is_empty() || path.starts_with(&[dir, b"/"].concat()))
    };
    let mut dirs: Vec<Vec<u8>> = index.entries().iter().map(|e| e.path.clone()).collect();
    dirs.extend([b"".to_vec(), b"a".to_vec(), b"nothing".to_vec()]);
    for dir in &dirs {
        let first = index.entries().iter().find(|entry| entry.path == *dir);
        prop_assert_eq!(index.get(dir), first);
        let all: Vec<&Entry> = index
            .entries()
            .iter()
            .filter(|entry| below(&entry.path, dir))
            .collect();
        prop_assert_eq!(index.below(dir).collect::<Vec<_>>(), all.clone());
        let direct = all.into_iter().filter(|entry| {
            let rest = &entry.path[if dir.is_empty() { 0 } else { dir.len() + 1 }..];
            !rest.contains(&b'/')
        });
        prop_assert_eq!(
            index.children(dir).collect::<Vec<_>>(),
            direct.collect::<Vec<_>>()
        );
    }
    Ok(())
}
