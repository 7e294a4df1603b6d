//! What others may make this machine reach, with the exceptions that the user names.

use crate::{HostRule, Policy};

/// The addresses and names that may be reached, and the hosts that may be in any case.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// For all hosts that the user does not name.
    pub policy: Policy,
    /// What the user names.
    pub named: Vec<HostRule>,
}

impl Reach {
    /// Whether the user names `host`, a name or an address, at `port`.
    #[must_use]
    pub fn names(&self, host: &str, port: u16) -> bool {
        self.named.iter().any(|rule| rule.matches(host, port))
    }

    /// The same for what `--allow-net` does not restrict.
    #[must_use]
    pub fn unrestricted(&self) -> Self {
        let mut all = self.clone();
        all.policy.rules.clear();
        all
    }

    /// The same with more hosts that the user names.
    #[must_use]
    pub fn and(&self, named: impl IntoIterator<Item = HostRule>) -> Self {
        let mut more = self.clone();
        more.named.extend(named);
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_names_is_added_to_and_never_replaced() {
        let first: HostRule = "localhost:5000".parse().unwrap();
        let reach = Reach::default().and([first]);
        let more = reach.and(["*.lan".parse().unwrap()]);
        assert!(more.names("localhost", 5000) && more.names("a.lan", 1));
        assert!(!reach.names("a.lan", 1) && !reach.names("localhost", 80));
    }
}
