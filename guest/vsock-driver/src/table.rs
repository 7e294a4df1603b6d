//! Which connections and listeners exist.
//!
//! A connection has an [`Id`] that is never reused, because a handle of the application may outlive
//! the address.

use std::collections::{HashMap, VecDeque, hash_map};

use crate::connection::{Address, Connection};

/// Connections of the peer that wait to be accepted, per listener.
const BACKLOG: usize = 128;

/// First local port for outgoing connections. Well-known ports are below.
const FIRST_PORT: u32 = 0x4000_0000;

/// A connection, for as long as the endpoint exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id(u64);

/// A connection and what the table and the multiplexer record about it.
#[derive(Debug, Clone, Hash)]
pub(crate) struct Entry<B> {
    pub(crate) connection: Connection<B>,
    /// Whether it is in the queue of connections that have a packet to send.
    pub(crate) is_queued: bool,
    /// Whether the application still has a handle, or may get one by accepting.
    pub(crate) has_owner: bool,
}

/// All connections and listeners of one endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Table<B> {
    connections: HashMap<Id, Entry<B>>,
    addresses: HashMap<Address, Id>,
    listeners: HashMap<u32, VecDeque<Id>>,
    max_connections: usize,
    next_id: u64,
    next_port: u32,
}

#[cfg(feature = "fuzzing")]
impl<B: std::hash::Hash> std::hash::Hash for Table<B> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        let mut ids = self.ids();
        ids.sort_unstable();
        for id in ids {
            (id, self.get(id)).hash(state);
        }
        // Which addresses are taken follows from the connections, except for addresses that a later
        // connection uses again.
        let mut taken: Vec<Id> = self.addresses.values().copied().collect();
        taken.sort_unstable();
        taken.hash(state);
        let mut listeners: Vec<_> = self.listeners.iter().collect();
        listeners.sort_unstable();
        (listeners, self.next_id, self.next_port).hash(state);
    }
}

impl<B> Table<B> {
    pub(crate) fn new(max_connections: usize) -> Self {
        Self {
            connections: HashMap::new(),
            addresses: HashMap::new(),
            listeners: HashMap::new(),
            max_connections,
            next_id: 0,
            next_port: FIRST_PORT,
        }
    }

    pub(crate) fn find(&self, address: &Address) -> Option<Id> {
        self.addresses.get(address).copied()
    }

    pub(crate) fn get(&self, id: Id) -> Option<&Entry<B>> {
        self.connections.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: Id) -> Option<&mut Entry<B>> {
        self.connections.get_mut(&id)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.connections.len() >= self.max_connections
    }

    pub(crate) fn ids(&self) -> Vec<Id> {
        self.connections.keys().copied().collect()
    }

    /// Adds a connection.
    pub(crate) fn insert(&mut self, address: Address, connection: Connection<B>) -> Id {
        let id = Id(self.next_id);
        self.next_id += 1;
        self.addresses.insert(address, id);
        let entry = Entry {
            connection,
            is_queued: false,
            has_owner: true,
        };
        self.connections.insert(id, entry);
        id
    }

    /// Frees the address of a connection for another one.
    pub(crate) fn free_address(&mut self, id: Id, address: Address) {
        if let hash_map::Entry::Occupied(entry) = self.addresses.entry(address)
            && *entry.get() == id
        {
            entry.remove();
        }
    }

    /// Removes a connection.
    pub(crate) fn remove(&mut self, id: Id) -> Option<Entry<B>> {
        self.connections.remove(&id)
    }

    /// A local port that no connection to `peer_port` uses. There are far more ports than connections,
    /// so the search ends.
    pub(crate) fn free_port(&mut self, peer_port: u32) -> u32 {
        loop {
            let own_port = self.next_port;
            self.next_port = own_port
                .checked_add(1)
                .filter(|&next| next != u32::MAX)
                .unwrap_or(FIRST_PORT);
            let address = Address {
                own_port,
                peer_port,
            };
            if !self.addresses.contains_key(&address) {
                return own_port;
            }
        }
    }

    /// Adds a listener. `false` if the port already has one.
    #[must_use]
    pub(crate) fn listen(&mut self, port: u32) -> bool {
        match self.listeners.entry(port) {
            hash_map::Entry::Occupied(_) => false,
            hash_map::Entry::Vacant(entry) => {
                entry.insert(VecDeque::new());
                true
            }
        }
    }

    /// Removes a listener. Returns the connections that waited to be accepted.
    pub(crate) fn unlisten(&mut self, port: u32) -> VecDeque<Id> {
        self.listeners.remove(&port).unwrap_or_default()
    }

    /// Whether `port` has a listener with space in its backlog.
    pub(crate) fn has_backlog_space(&self, port: u32) -> bool {
        self.listeners
            .get(&port)
            .is_some_and(|waiting| waiting.len() < BACKLOG)
    }

    /// Adds a connection to the backlog of its listener.
    pub(crate) fn enqueue(&mut self, port: u32, id: Id) {
        if let Some(waiting) = self.listeners.get_mut(&port) {
            waiting.push_back(id);
        }
    }

    /// Takes the connection that has waited longest.
    pub(crate) fn accept(&mut self, port: u32) -> Option<Id> {
        self.listeners.get_mut(&port)?.pop_front()
    }
}
