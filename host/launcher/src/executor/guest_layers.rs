//! The layers on the guest disk, which is empty at boot, and which step imports one.
//!
//! Several steps of a VM may need the same layer at once; one imports it, the others wait. A layer is
//! in use from the moment a step needs it until the step has ended: only others may be removed.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use exec::{Cancel, Stopped, wait_while};
use wire::LayerName;

use crate::session::SessionError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A step imports it.
    Importing,
    /// It is on the disk.
    Committed,
    /// It is being removed.
    Removing,
}

#[derive(Debug, Default)]
struct Inner {
    states: HashMap<LayerName, State>,
    users: HashMap<LayerName, usize>,
}

/// The layers of one guest.
#[derive(Debug, Default)]
pub(super) struct GuestLayers {
    inner: Mutex<Inner>,
    changed: Condvar,
}

/// Layers in use.
#[derive(Debug)]
pub(super) struct InUse<'a> {
    layers: &'a GuestLayers,
    names: Vec<LayerName>,
}

impl GuestLayers {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a layer is on the disk.
    pub(super) fn has(&self, name: &LayerName) -> bool {
        self.lock().states.get(name) == Some(&State::Committed)
    }

    /// Keeps these layers from being removed until the guard is dropped.
    pub(super) fn hold(&self, names: &[LayerName]) -> InUse<'_> {
        let mut inner = self.lock();
        for name in names {
            *inner.users.entry(*name).or_default() += 1;
        }
        InUse {
            layers: self,
            names: names.to_vec(),
        }
    }

    /// Makes sure that a layer is on the disk: calls `import`, unless the layer is there or another
    /// step imports it. If that one fails, the next waiter tries.
    pub(super) fn ensure(
        &self,
        name: LayerName,
        cancel: &Cancel,
        import: impl FnOnce() -> Result<(), SessionError>,
    ) -> Result<(), SessionError> {
        let mut inner = self.wait_while(cancel, |inner| {
            let state = inner.states.get(&name);
            matches!(state, Some(State::Importing | State::Removing))
        })?;
        if inner.states.contains_key(&name) {
            return Ok(());
        }
        inner.states.insert(name, State::Importing);
        drop(inner);
        let importing = Importing {
            layers: self,
            name,
            committed: false,
        };
        import()?;
        importing.commit();
        Ok(())
    }

    /// Frees space on the guest disk: calls `remove` with the layers that no step uses. If another
    /// step is doing that, waits for it instead. Returns whether there may be more free space now.
    pub(super) fn free_space(
        &self,
        cancel: &Cancel,
        remove: impl FnOnce(Vec<LayerName>) -> Result<(), SessionError>,
    ) -> Result<bool, SessionError> {
        let mut removed_meanwhile = false;
        let mut inner = self.wait_while(cancel, |inner| {
            let mut states = inner.states.values();
            let removing = states.any(|state| *state == State::Removing);
            removed_meanwhile |= removing;
            removing
        })?;
        if removed_meanwhile {
            return Ok(true);
        }
        let Inner { states, users } = &mut *inner;
        let mut unused = Vec::new();
        for (name, state) in states {
            if *state == State::Committed && !users.contains_key(name) {
                *state = State::Removing;
                unused.push(*name);
            }
        }
        drop(inner);
        if unused.is_empty() {
            return Ok(false);
        }
        let removed = remove(unused);
        // Also if that failed: whatever is left of them is found when they are imported again.
        self.lock()
            .states
            .retain(|_, state| *state != State::Removing);
        self.changed.notify_all();
        removed.map(|()| true)
    }

    fn wait_while(
        &self,
        cancel: &Cancel,
        blocked: impl FnMut(&mut Inner) -> bool,
    ) -> Result<MutexGuard<'_, Inner>, SessionError> {
        wait_while(&self.changed, self.lock(), || cancel.check(), blocked)
            .map_err(|Stopped| SessionError::Cancelled)
    }
}

/// A layer that is being imported. If it is not committed, another step may try.
struct Importing<'a> {
    layers: &'a GuestLayers,
    name: LayerName,
    committed: bool,
}

impl Importing<'_> {
    fn commit(mut self) {
        self.committed = true;
    }
}

impl Drop for Importing<'_> {
    fn drop(&mut self) {
        let mut inner = self.layers.lock();
        if self.committed {
            inner.states.insert(self.name, State::Committed);
        } else {
            inner.states.remove(&self.name);
        }
        self.layers.changed.notify_all();
    }
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        let mut inner = self.layers.lock();
        for name in &self.names {
            if let Some(users) = inner.users.get_mut(name) {
                *users -= 1;
                if *users == 0 {
                    inner.users.remove(name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::*;

    const A: LayerName = [1; 32];
    const B: LayerName = [2; 32];

    /// A guest that has these layers.
    fn holding(names: &[LayerName]) -> GuestLayers {
        let layers = GuestLayers::default();
        for name in names {
            layers.ensure(*name, &Cancel::new(), || Ok(())).unwrap();
        }
        layers
    }

    #[test]
    fn a_layer_that_many_steps_need_is_imported_once() {
        let layers = holding(&[B]);
        let imports = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let import = || {
                        thread::sleep(Duration::from_millis(20));
                        imports.fetch_add(1, Ordering::Relaxed);
                        Ok(())
                    };
                    layers.ensure(A, &Cancel::new(), import).unwrap();
                });
            }
        });
        layers
            .ensure(B, &Cancel::new(), || panic!("it is on the disk"))
            .unwrap();
        assert_eq!(imports.into_inner(), 1);
    }

    #[test]
    fn if_an_import_fails_the_next_waiter_tries() {
        let layers = GuestLayers::default();
        let tries = AtomicUsize::new(0);
        let failed: usize = thread::scope(|scope| {
            let ensure = || {
                layers.ensure(A, &Cancel::new(), || {
                    match tries.fetch_add(1, Ordering::Relaxed) {
                        0 => Err(SessionError::host("cannot read", "gone")),
                        _ => Ok(()),
                    }
                })
            };
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(ensure)).collect();
            threads
                .into_iter()
                .filter_map(|thread| thread.join().unwrap().err())
                .count()
        });
        assert_eq!((failed, tries.into_inner()), (1, 2));
    }

    #[test]
    fn a_wait_for_the_import_of_another_step_can_be_cancelled() {
        let layers = GuestLayers::default();
        let cancel = Cancel::new();
        thread::scope(|scope| {
            let slow = scope.spawn(|| {
                layers.ensure(A, &Cancel::new(), || {
                    while !cancel.is_cancelled() {
                        thread::yield_now();
                    }
                    thread::sleep(Duration::from_millis(200));
                    Ok(())
                })
            });
            while layers.lock().states.is_empty() {
                thread::yield_now();
            }
            cancel.cancel();
            let waited = layers.ensure(A, &cancel, || panic!("another step imports it"));
            assert!(matches!(waited, Err(SessionError::Cancelled)));
            slow.join().unwrap().unwrap();
        });
    }

    #[test]
    fn only_layers_that_no_step_uses_are_removed() {
        let layers = holding(&[A, B]);
        let cancel = Cancel::new();
        let check = |want: &[LayerName]| {
            let mut gone = Vec::new();
            let freed = layers.free_space(&cancel, |names| {
                gone = names;
                Ok(())
            });
            assert_eq!((freed.unwrap(), gone.as_slice()), (!want.is_empty(), want));
        };
        let held = layers.hold(&[A, A]);
        check(&[B]);
        drop(held);
        check(&[A]);
        check(&[]);
    }

    #[test]
    fn a_step_that_needs_a_layer_in_removal_waits_until_it_is_removed() {
        let layers = holding(&[A]);
        let (removed, imported) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                layers.free_space(&Cancel::new(), |_| {
                    thread::sleep(Duration::from_millis(200));
                    removed.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                })
            });
            while layers.has(&A) {
                thread::yield_now();
            }
            let other =
                scope.spawn(|| layers.free_space(&Cancel::new(), |_| panic!("another one does")));
            let import = || {
                imported.store(removed.load(Ordering::SeqCst), Ordering::SeqCst);
                Ok(())
            };
            layers.ensure(A, &Cancel::new(), import).unwrap();
            assert!(other.join().unwrap().unwrap());
        });
        assert_eq!(imported.into_inner(), 1);
    }
}
