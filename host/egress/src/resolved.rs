//! The names by which a step knows addresses, from the answers that it got.
//!
//! **Law:** an address counts for a name as long as the answer that named it lives, and no longer.
//! What is kept is bounded; what is forgotten early is looked up again by whoever needs it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// The shortest life of an answer: a program looks up a name, and connects some time later. Answers
/// of content networks live for seconds.
const SHORTEST: Duration = Duration::from_secs(60);
/// The longest life of an answer, whatever it says.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Most pairs of an address and a name.
const MAX_PAIRS: usize = 8_192;
/// Most names of one address. Servers share addresses, but a step asks for few of them.
const MAX_NAMES: usize = 64;

/// Addresses with the names that resolved to them.
#[derive(Debug, Default)]
pub(crate) struct Resolved {
    names: HashMap<IpAddr, Vec<Named>>,
    pairs: usize,
}

#[derive(Debug)]
struct Named {
    name: String,
    until: Instant,
}

impl Resolved {
    /// A name resolved to an address. `name` is normalized.
    pub(crate) fn insert(&mut self, name: &str, address: IpAddr, ttl: Duration, now: Instant) {
        let until = now + ttl.clamp(SHORTEST, LONGEST);
        if self.pairs >= MAX_PAIRS {
            self.make_room(now);
        }
        let names = self.names.entry(address).or_default();
        // The newest name is last: that is the one that a record shows.
        if let Some(at) = names.iter().position(|named| named.name == name) {
            let mut named = names.remove(at);
            // An answer does not shorten the life of an earlier one.
            named.until = named.until.max(until);
            names.push(named);
            return;
        }
        if names.len() >= MAX_NAMES {
            names.remove(0);
            self.pairs -= 1;
        }
        names.push(Named {
            name: name.to_owned(),
            until,
        });
        self.pairs += 1;
    }

    /// The names that an address has now, newest first.
    pub(crate) fn names(&self, address: IpAddr, now: Instant) -> impl Iterator<Item = &str> {
        let names = self.names.get(&address).map_or(&[][..], Vec::as_slice);
        names
            .iter()
            .rev()
            .filter(move |named| now < named.until)
            .map(|named| named.name.as_str())
    }

    /// Forgets what is over, or else half of what there is, beginning with what ends first.
    fn make_room(&mut self, now: Instant) {
        self.forget(now);
        if self.pairs >= MAX_PAIRS {
            let mut ends: Vec<Instant> = self.names.values().flatten().map(|n| n.until).collect();
            ends.sort_unstable();
            if let Some(&middle) = ends.get(ends.len() / 2) {
                // What ends at the same time as the middle goes too, so that there is room.
                self.forget(middle);
            }
        }
    }

    fn forget(&mut self, until: Instant) {
        self.names.retain(|_, names| {
            names.retain(|named| until < named.until);
            !names.is_empty()
        });
        self.pairs = self.names.values().map(Vec::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    fn names(resolved: &Resolved, now: Instant) -> Vec<&str> {
        resolved.names(ADDRESS, now).collect()
    }

    #[test]
    fn an_address_counts_as_long_as_the_answer_lives_and_at_least_a_minute() {
        let (mut resolved, now) = (Resolved::default(), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        resolved.insert("short.org", ADDRESS, Duration::from_secs(1), now);
        resolved.insert("long.org", ADDRESS, Duration::from_secs(300), now);
        assert_eq!(names(&resolved, after(59)), ["long.org", "short.org"]);
        assert_eq!(names(&resolved, after(60)), ["long.org"]);
        assert_eq!(names(&resolved, after(299)), ["long.org"]);
        assert!(names(&resolved, after(300)).is_empty());
    }

    #[test]
    fn a_later_answer_prolongs_and_never_shortens() {
        let (mut resolved, now) = (Resolved::default(), Instant::now());
        let seconds = Duration::from_secs;
        resolved.insert("a.org", ADDRESS, seconds(300), now);
        resolved.insert("a.org", ADDRESS, seconds(100), now + seconds(10));
        assert_eq!(names(&resolved, now + seconds(299)), ["a.org"]);
        resolved.insert("a.org", ADDRESS, seconds(300), now + seconds(100));
        assert_eq!(names(&resolved, now + seconds(399)), ["a.org"]);
        assert_eq!(resolved.pairs, 1);
    }

    #[test]
    fn no_answer_lives_longer_than_a_day() {
        let (mut resolved, now) = (Resolved::default(), Instant::now());
        resolved.insert("a.org", ADDRESS, Duration::from_secs(u32::MAX.into()), now);
        assert!(names(&resolved, now + LONGEST).is_empty());
    }

    #[test]
    fn a_flood_of_answers_is_bounded_and_the_newest_stay() {
        let (mut resolved, now) = (Resolved::default(), Instant::now());
        for n in 0..3 * MAX_PAIRS {
            let address = IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(n).unwrap()));
            let at = now + Duration::from_millis(n as u64);
            resolved.insert("a.org", address, SHORTEST, at);
            assert!(resolved.pairs <= MAX_PAIRS);
            assert_eq!(resolved.names(address, at).count(), 1);
        }
        for n in 0..2 * MAX_NAMES {
            resolved.insert(&format!("{n}.org"), ADDRESS, LONGEST, now);
        }
        assert_eq!(names(&resolved, now).len(), MAX_NAMES);
        let counted: usize = resolved.names.values().map(Vec::len).sum();
        assert_eq!(resolved.pairs, counted);
    }
}
