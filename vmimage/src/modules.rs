//! The kernel modules that the VM needs, in an order in which they can be loaded.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::modinfo::{ElfError, Modinfo};

/// A kernel module of the guest image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name as the kernel prints it, with underscores.
    pub name: String,
    /// Its uncompressed content.
    pub bytes: Vec<u8>,
}

/// The result of looking up a module.
#[derive(Debug)]
pub enum Lookup {
    /// A loadable module: its uncompressed content.
    Module(Vec<u8>),
    /// The module is built into the kernel.
    BuiltIn,
    /// There is no such module.
    Absent,
}

/// Why there is no load order.
#[derive(Debug, Error)]
pub enum ModuleError {
    /// The kernel has no such module.
    #[error("the kernel has no module {name}{}", needed_by(.parent))]
    Absent {
        /// Its name.
        name: String,
        /// The module that depends on it, unless it was asked for itself.
        parent: Option<String>,
    },
    /// Its file cannot be read as a module.
    #[error("cannot read module {name}")]
    Unreadable {
        /// Its name.
        name: String,
        /// What is wrong with it.
        source: ElfError,
    },
    /// It was built for another kernel than the others.
    #[error("module {name} was built for kernel {found}, the others for {expected}")]
    OtherKernel {
        /// Its name.
        name: String,
        /// The kernel that it was built for.
        found: String,
        /// The kernel of the others.
        expected: String,
    },
    /// It depends on itself.
    #[error("module {0} depends on itself")]
    Cycle(String),
}

fn needed_by(parent: &Option<String>) -> String {
    parent
        .as_ref()
        .map(|parent| format!(", which {parent} needs"))
        .unwrap_or_default()
}

/// The canonical spelling of a module's name: files use both dashes and underscores.
#[must_use]
pub fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The modules in `wanted` and everything that they depend on, dependencies first.
///
/// The order depends only on the list and on the `.modinfo` of the modules.
///
/// # Errors
/// If a module is missing, unreadable, of another kernel, or in a cycle.
pub fn in_load_order<'a>(
    wanted: impl IntoIterator<Item = &'a str>,
    mut find: impl FnMut(&str) -> Lookup,
) -> Result<Vec<Module>, ModuleError> {
    let mut order = Order::default();
    for name in wanted {
        order.add(canonical(name), &mut find)?;
    }
    Ok(order.done)
}

/// A depth-first walk over the dependencies, without recursion.
#[derive(Default)]
struct Order {
    done: Vec<Module>,
    /// Names seen so far, and whether their dependencies are still being added.
    seen: BTreeMap<String, bool>,
    kernel: Option<String>,
}

/// A module whose dependencies are being added.
struct Open {
    module: Module,
    pending: Vec<String>,
}

impl Order {
    fn add(
        &mut self,
        name: String,
        find: &mut impl FnMut(&str) -> Lookup,
    ) -> Result<(), ModuleError> {
        let mut stack: Vec<Open> = Vec::new();
        stack.extend(self.open(name, None, find)?);
        while let Some(top) = stack.last_mut() {
            let Some(next) = top.pending.pop() else {
                let finished = stack.pop().map(|open| open.module);
                self.seen
                    .extend(finished.iter().map(|module| (module.name.clone(), false)));
                self.done.extend(finished);
                continue;
            };
            let parent = top.module.name.clone();
            if self.seen.get(&next) == Some(&true) {
                return Err(ModuleError::Cycle(next));
            }
            stack.extend(self.open(next, Some(parent), find)?);
        }
        Ok(())
    }

    /// Reads a module on its first visit. `None` if it is built in or was visited before.
    fn open(
        &mut self,
        name: String,
        parent: Option<String>,
        find: &mut impl FnMut(&str) -> Lookup,
    ) -> Result<Option<Open>, ModuleError> {
        if self.seen.contains_key(&name) {
            return Ok(None);
        }
        let bytes = match find(&name) {
            Lookup::Module(bytes) => bytes,
            Lookup::BuiltIn => {
                self.seen.insert(name, false);
                return Ok(None);
            }
            Lookup::Absent => return Err(ModuleError::Absent { name, parent }),
        };
        let info = Modinfo::read(&bytes).map_err(|source| ModuleError::Unreadable {
            name: name.clone(),
            source,
        })?;
        self.same_kernel(&name, info.kernel)?;
        self.seen.insert(name.clone(), true);
        let pending = info
            .depends
            .iter()
            .rev()
            .map(|name| canonical(name))
            .collect();
        Ok(Some(Open {
            module: Module { name, bytes },
            pending,
        }))
    }

    fn same_kernel(&mut self, name: &str, found: Option<String>) -> Result<(), ModuleError> {
        let Some(found) = found else { return Ok(()) };
        match &self.kernel {
            Some(expected) if *expected != found => Err(ModuleError::OtherKernel {
                name: name.to_owned(),
                found,
                expected: expected.clone(),
            }),
            Some(_) => Ok(()),
            None => {
                self.kernel = Some(found);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modinfo::fake_module;

    /// Modules as `name: dependencies`, and the order they are loaded in or the error.
    #[track_caller]
    fn check(tree: &[(&str, &str)], wanted: &[&str], want: Result<&[&str], &str>) {
        let order = in_load_order(wanted.iter().copied(), |name| {
            match tree.iter().find(|(module, _)| *module == name) {
                Some((_, "built in")) => Lookup::BuiltIn,
                Some((_, depends)) => {
                    Lookup::Module(fake_module(format!("depends={depends}\0").as_bytes()))
                }
                None => Lookup::Absent,
            }
        });
        let names = order
            .map(|modules| {
                modules
                    .into_iter()
                    .map(|module| module.name)
                    .collect::<Vec<_>>()
            })
            .map_err(|error| error.to_string());
        assert_eq!(
            names,
            want.map(|names| names.iter().map(|n| (*n).to_owned()).collect())
                .map_err(str::to_owned)
        );
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let tree = [
            ("pci", "legacy,modern"),
            ("legacy", "ring"),
            ("modern", "ring,virtio"),
            ("virtio", ""),
            ("ring", "virtio"),
            ("blk", "ring"),
        ];
        check(
            &tree,
            &["pci", "blk"],
            Ok(&["virtio", "ring", "legacy", "modern", "pci", "blk"]),
        );
    }

    #[test]
    fn dashes_and_underscores_are_the_same() {
        check(
            &[("virtio_rng", "rng-core"), ("rng_core", "")],
            &["virtio-rng"],
            Ok(&["rng_core", "virtio_rng"]),
        );
    }

    #[test]
    fn what_is_built_in_is_left_out() {
        check(
            &[("ext4", "built in"), ("a", "ext4")],
            &["ext4", "a"],
            Ok(&["a"]),
        );
    }

    #[test]
    fn a_missing_module_names_who_needs_it() {
        check(
            &[("a", "b")],
            &["a"],
            Err("the kernel has no module b, which a needs"),
        );
        check(&[], &["a"], Err("the kernel has no module a"));
    }

    #[test]
    fn a_cycle_is_an_error_and_not_a_loop() {
        check(
            &[("a", "b"), ("b", "c"), ("c", "a")],
            &["a"],
            Err("module a depends on itself"),
        );
    }

    #[test]
    fn a_chain_of_a_hundred_thousand_needs_no_recursion() {
        let count = 100_000;
        let order = in_load_order(["m0"], |name| {
            let number: u32 = name[1..].parse().unwrap();
            let depends = if number == count {
                String::new()
            } else {
                format!("m{}", number + 1)
            };
            Lookup::Module(fake_module(format!("depends={depends}\0").as_bytes()))
        });
        assert!(order.is_ok_and(|order| order.len() == count as usize + 1));
    }

    #[test]
    fn modules_of_two_kernels_do_not_mix() {
        let order = in_load_order(["a", "b"], |name| {
            let info = format!(
                "depends=\0vermagic={} SMP\0",
                if name == "a" { "6.1" } else { "6.2" }
            );
            Lookup::Module(fake_module(info.as_bytes()))
        });
        let error = order.unwrap_err().to_string();
        assert_eq!(
            error,
            "module b was built for kernel 6.2, the others for 6.1"
        );
    }
}
