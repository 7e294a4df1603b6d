//! Which connections and listeners exist.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, TrySendError};

use crate::channel::Channel;
use crate::connection::{Address, Cause};

/// Connections of the guest that wait to be accepted, per listener.
const BACKLOG: usize = 128;

/// First host port for connections that the host makes. Well-known ports are below.
const FIRST_PORT: u32 = 0x4000_0000;

/// All connections and listeners of one device.
#[derive(Debug)]
pub(crate) struct Table {
    connections: HashMap<Address, Arc<Channel>>,
    listeners: HashMap<u32, Sender<Arc<Channel>>>,
    max_connections: usize,
    next_port: u32,
    /// Why there is never another connection.
    ended: Option<Cause>,
}

impl Table {
    pub(crate) fn new(max_connections: usize) -> Self {
        Self {
            connections: HashMap::new(),
            listeners: HashMap::new(),
            max_connections,
            next_port: FIRST_PORT,
            ended: None,
        }
    }

    pub(crate) fn ended(&self) -> Option<Cause> {
        self.ended
    }

    pub(crate) fn find(&self, address: &Address) -> Option<Arc<Channel>> {
        self.connections.get(address).map(Arc::clone)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.connections.len() >= self.max_connections
    }

    /// Takes out a connection that only waits for the guest's reset.
    pub(crate) fn take_closing(&mut self) -> Option<Arc<Channel>> {
        let mut all = self.connections.iter();
        let (address, _) = all.find(|(_, channel)| channel.lock().connection.is_closing())?;
        let address = *address;
        self.connections.remove(&address)
    }

    /// A copy with other channels, and the backlogs of its listeners, which are empty.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn copy(
        &self,
        mut other: impl FnMut(&Arc<Channel>) -> Arc<Channel>,
    ) -> (Self, HashMap<u32, Receiver<Arc<Channel>>>) {
        let mut made = Self::new(self.max_connections);
        made.next_port = self.next_port;
        made.ended = self.ended;
        let entries = self.connections.iter();
        made.connections = entries.map(|(at, it)| (*at, other(it))).collect();
        let ports = self.listeners.keys();
        let backlogs = ports.filter_map(|&port| Some((port, made.listen(port)?)));
        let backlogs = backlogs.collect();
        (made, backlogs)
    }

    /// All connections, in a deterministic order.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn sorted(&self) -> Vec<Arc<Channel>> {
        let mut all: Vec<_> = self.connections.iter().collect();
        all.sort_unstable_by_key(|(at, _)| (at.guest_port, at.host_port));
        all.into_iter().map(|(_, it)| Arc::clone(it)).collect()
    }

    /// Adds a connection that the host makes.
    pub(crate) fn insert(&mut self, address: Address, channel: Arc<Channel>) {
        self.connections.insert(address, channel);
    }

    /// Adds a connection that the guest makes, if its port has a listener with space in the backlog.
    pub(crate) fn admit(
        &mut self,
        address: Address,
        make: impl FnOnce() -> Channel,
    ) -> Option<Arc<Channel>> {
        if self.ended.is_some() {
            return None;
        }
        let listener = self.listeners.get(&address.host_port)?;
        if listener.is_full() {
            return None;
        }
        let channel = Arc::new(make());
        match listener.try_send(Arc::clone(&channel)) {
            Ok(()) => {}
            // Only the worker admits, so a backlog that had space a moment ago still has it.
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => return None,
        }
        self.connections.insert(address, Arc::clone(&channel));
        Some(channel)
    }

    /// Removes a connection that is over.
    pub(crate) fn remove(&mut self, address: &Address, channel: &Arc<Channel>) {
        if let Entry::Occupied(entry) = self.connections.entry(*address)
            && Arc::ptr_eq(entry.get(), channel)
        {
            entry.remove();
        }
    }

    /// Adds a listener. `None` if the port already has one.
    pub(crate) fn listen(&mut self, port: u32) -> Option<Receiver<Arc<Channel>>> {
        match self.listeners.entry(port) {
            Entry::Occupied(_) => None,
            Entry::Vacant(entry) => {
                let (sender, receiver) = crossbeam_channel::bounded(BACKLOG);
                entry.insert(sender);
                Some(receiver)
            }
        }
    }

    /// Removes a listener. After that nothing more arrives in its backlog.
    pub(crate) fn unlisten(&mut self, port: u32) {
        self.listeners.remove(&port);
    }

    /// A host port that no connection to `guest_port` uses. There are far more ports than
    /// connections, so the search ends.
    pub(crate) fn free_port(&mut self, guest_cid: u32, guest_port: u32) -> u32 {
        loop {
            let host_port = self.next_port;
            self.next_port = if host_port == u32::MAX - 1 {
                FIRST_PORT
            } else {
                host_port + 1
            };
            let address = Address {
                guest_cid,
                guest_port,
                host_port,
            };
            if !self.connections.contains_key(&address) {
                return host_port;
            }
        }
    }

    /// Takes all connections out.
    pub(crate) fn take_all(&mut self) -> Vec<Arc<Channel>> {
        self.connections
            .drain()
            .map(|(_, channel)| channel)
            .collect()
    }

    /// Allows no connection and no listener from now on. The first cause stays.
    pub(crate) fn end(&mut self, cause: Cause) {
        self.ended.get_or_insert(cause);
        self.listeners.clear();
    }
}
