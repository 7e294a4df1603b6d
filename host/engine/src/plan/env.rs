//! The current variables, in the order in which they were first set.

use std::collections::BTreeMap;

use dockerfile::expand::Variables;

/// Names and values. Setting a name again keeps its position.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Env {
    pairs: Vec<(String, String)>,
    places: BTreeMap<String, usize>,
}

impl Env {
    /// From entries `NAME=value`; an entry without `=` has an empty value.
    pub(super) fn of_entries(entries: &[String]) -> Self {
        let mut env = Self::default();
        for entry in entries {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            env.set(name, value);
        }
        env
    }

    pub(super) fn set(&mut self, name: &str, value: &str) {
        match self
            .places
            .get(name)
            .and_then(|place| self.pairs.get_mut(*place))
        {
            Some((_, old)) => value.clone_into(old),
            None => {
                self.places.insert(name.to_owned(), self.pairs.len());
                self.pairs.push((name.to_owned(), value.to_owned()));
            }
        }
    }

    /// As entries `NAME=value`.
    pub(super) fn entries(&self) -> Vec<String> {
        self.pairs
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }

    /// Approximate size of a copy, in bytes.
    pub(super) fn weight(&self) -> usize {
        self.pairs
            .iter()
            .map(|(name, value)| 2 * name.len() + value.len() + 64)
            .sum()
    }

    /// All names.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.pairs.iter().map(|(name, _)| name.as_str())
    }
}

impl Variables for Env {
    fn get(&self, name: &str) -> Option<&str> {
        let place = self.places.get(name)?;
        self.pairs.get(*place).map(|(_, value)| value.as_str())
    }
}
