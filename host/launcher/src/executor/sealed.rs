//! Which layers are on the guest disk, and who is bringing one there.
//!
//! Several steps of a VM may need the same layer at once; one puts it, the others wait. A layer is
//! in use from the moment a step needs it until the step has ended: only others may be removed.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use exec::Cancel;
use wire::LayerName;

use super::TICK;
use crate::session::SessionError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Somebody puts it.
    Coming,
    /// It is there.
    Sealed,
    /// It is being removed.
    Going,
}

#[derive(Debug, Default)]
struct Inner {
    states: HashMap<LayerName, State>,
    users: HashMap<LayerName, usize>,
}

/// The layers of one guest.
#[derive(Debug, Default)]
pub(super) struct Sealed {
    inner: Mutex<Inner>,
    changed: Condvar,
}

/// Layers that somebody uses.
#[derive(Debug)]
pub(super) struct InUse<'a> {
    sealed: &'a Sealed,
    names: Vec<LayerName>,
}

impl Sealed {
    /// What the guest found on its disk at boot.
    pub(super) fn new(names: Vec<LayerName>) -> Self {
        let sealed = Self::default();
        sealed.lock().states = names
            .into_iter()
            .map(|name| (name, State::Sealed))
            .collect();
        sealed
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a layer is there already.
    pub(super) fn has(&self, name: &LayerName) -> bool {
        self.lock().states.get(name) == Some(&State::Sealed)
    }

    /// Keeps these layers from being removed until the guard is dropped.
    pub(super) fn hold(&self, names: &[LayerName]) -> InUse<'_> {
        let mut inner = self.lock();
        for name in names {
            *inner.users.entry(*name).or_default() += 1;
        }
        InUse {
            sealed: self,
            names: names.to_vec(),
        }
    }

    /// Makes sure that a layer is there: by `put`, unless it is there or somebody else brings it.
    /// If that one fails, the next who waits tries.
    pub(super) fn ensure(
        &self,
        name: LayerName,
        cancel: &Cancel,
        put: impl FnOnce() -> Result<(), SessionError>,
    ) -> Result<(), SessionError> {
        let mut inner = self.lock();
        loop {
            match inner.states.get(&name) {
                Some(State::Sealed) => return Ok(()),
                None => break,
                Some(State::Coming | State::Going) => {}
            }
            inner = self.wait(inner, cancel)?;
        }
        inner.states.insert(name, State::Coming);
        drop(inner);
        let coming = Coming {
            sealed: self,
            name,
            arrived: false,
        };
        put()?;
        coming.arrive();
        Ok(())
    }

    /// Makes room on the guest disk: lets `remove` take away the layers that nobody uses. If
    /// somebody else is at it, waits for that instead. Whether there may be more room now.
    pub(super) fn make_room(
        &self,
        cancel: &Cancel,
        remove: impl FnOnce(Vec<LayerName>) -> Result<(), SessionError>,
    ) -> Result<bool, SessionError> {
        let mut inner = self.lock();
        let going = |inner: &Inner| inner.states.values().any(|state| *state == State::Going);
        if going(&inner) {
            while going(&inner) {
                inner = self.wait(inner, cancel)?;
            }
            return Ok(true);
        }
        let Inner { states, users } = &mut *inner;
        let mut unused = Vec::new();
        for (name, state) in states {
            if *state == State::Sealed && !users.contains_key(name) {
                *state = State::Going;
                unused.push(*name);
            }
        }
        drop(inner);
        if unused.is_empty() {
            return Ok(false);
        }
        let removed = remove(unused);
        // Also if that failed: whatever is left of them is found when they are put again.
        self.lock().states.retain(|_, state| *state != State::Going);
        self.changed.notify_all();
        removed.map(|()| true)
    }

    fn wait<'a>(
        &self,
        inner: MutexGuard<'a, Inner>,
        cancel: &Cancel,
    ) -> Result<MutexGuard<'a, Inner>, SessionError> {
        if cancel.is_cancelled() {
            return Err(SessionError::Cancelled);
        }
        let waited = self.changed.wait_timeout(inner, TICK);
        Ok(waited.unwrap_or_else(PoisonError::into_inner).0)
    }
}

/// A layer on its way. If it does not arrive, others may try.
struct Coming<'a> {
    sealed: &'a Sealed,
    name: LayerName,
    arrived: bool,
}

impl Coming<'_> {
    fn arrive(mut self) {
        self.arrived = true;
    }
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        let mut inner = self.sealed.lock();
        if self.arrived {
            inner.states.insert(self.name, State::Sealed);
        } else {
            inner.states.remove(&self.name);
        }
        self.sealed.changed.notify_all();
    }
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        let mut inner = self.sealed.lock();
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

    #[test]
    fn a_layer_that_many_need_is_put_once() {
        let sealed = Sealed::new(vec![B]);
        let puts = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let put = || {
                        thread::sleep(Duration::from_millis(20));
                        puts.fetch_add(1, Ordering::Relaxed);
                        Ok(())
                    };
                    sealed.ensure(A, &Cancel::new(), put).unwrap();
                });
            }
        });
        sealed
            .ensure(B, &Cancel::new(), || panic!("it is there"))
            .unwrap();
        assert_eq!(puts.into_inner(), 1);
    }

    #[test]
    fn if_putting_fails_the_next_one_tries() {
        let sealed = Sealed::default();
        let tries = AtomicUsize::new(0);
        let failed: usize = thread::scope(|scope| {
            let ensure = || {
                sealed.ensure(A, &Cancel::new(), || {
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
    fn who_waits_for_another_ones_layer_can_be_cancelled() {
        let sealed = Sealed::default();
        let cancel = Cancel::new();
        thread::scope(|scope| {
            let slow = scope.spawn(|| {
                sealed.ensure(A, &Cancel::new(), || {
                    while !cancel.is_cancelled() {
                        thread::yield_now();
                    }
                    thread::sleep(Duration::from_millis(200));
                    Ok(())
                })
            });
            while sealed.lock().states.is_empty() {
                thread::yield_now();
            }
            cancel.cancel();
            let waited = sealed.ensure(A, &cancel, || panic!("another one puts it"));
            assert!(matches!(waited, Err(SessionError::Cancelled)));
            slow.join().unwrap().unwrap();
        });
    }

    #[test]
    fn only_layers_that_nobody_uses_are_given_away() {
        let sealed = Sealed::new(vec![A, B]);
        let cancel = Cancel::new();
        let check = |want: &[LayerName]| {
            let mut gone = Vec::new();
            let room = sealed.make_room(&cancel, |names| {
                gone = names;
                Ok(())
            });
            assert_eq!((room.unwrap(), gone.as_slice()), (!want.is_empty(), want));
        };
        let held = sealed.hold(&[A, A]);
        check(&[B]);
        drop(held);
        check(&[A]);
        check(&[]);
    }

    #[test]
    fn who_needs_a_layer_that_goes_waits_until_it_is_gone() {
        let sealed = Sealed::new(vec![A]);
        let (gone, put) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                sealed.make_room(&Cancel::new(), |_| {
                    thread::sleep(Duration::from_millis(200));
                    gone.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                })
            });
            while sealed.has(&A) {
                thread::yield_now();
            }
            let other = scope.spawn(|| sealed.make_room(&Cancel::new(), |_| panic!("at it")));
            let arrive = || {
                put.store(gone.load(Ordering::SeqCst), Ordering::SeqCst);
                Ok(())
            };
            sealed.ensure(A, &Cancel::new(), arrive).unwrap();
            assert!(other.join().unwrap().unwrap());
        });
        assert_eq!(put.into_inner(), 1);
    }
}
