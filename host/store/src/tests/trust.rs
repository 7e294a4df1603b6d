//! Results of VMs that ran steps of strangers.

use super::*;
use crate::{BuildInfo, Claim, Distrusted, Failure, KnownSteps, Run, TrustDomain};

/// A build: its trust domain and the steps that it contains.
struct Builder {
    own: TrustDomain,
    known: KnownSteps,
}

impl Builder {
    fn new(domain: &str, steps: &[&str]) -> Self {
        let known = KnownSteps::default();
        steps.iter().for_each(|name| known.add(key(name)));
        let own = TrustDomain::new(domain).unwrap();
        Self { own, known }
    }

    fn trust(&self) -> Trust<'_> {
        Trust::Domain {
            own: &self.own,
            known: &self.known,
        }
    }

    fn claim(&self, store: &Store, name: &str) -> Claim {
        let Lookup::Claimed(claim) = store.lookup(key(name), self.trust()).unwrap() else {
            panic!("{name} is not free");
        };
        claim
    }

    fn peek(&self, store: &Store, name: &str) -> Option<Layer> {
        store.peek(key(name), self.trust()).unwrap()
    }

    /// Runs steps in one new VM, one after the other.
    fn run(&self, store: &Store, steps: &[&str]) {
        let vm = store.record_vm().unwrap();
        for name in steps {
            let claim = self.claim(store, name);
            vm.begin(key(name), name).unwrap();
            let made = layer(store, &format!("{name} by {}", self.own.name()));
            claim.commit(&made, &[], &vm.so_far(), false).unwrap();
        }
    }
}

fn rows(root: &Root, table: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM {table}");
    let count = root.database().query_row(&sql, [], |row| row.get(0));
    count.unwrap()
}

#[test]
fn a_result_of_a_vm_that_ran_a_strangers_step_is_not_taken() {
    let root = Root::new();
    let store = root.open();
    let owner = Builder::new("theirs", &["exploit", "install"]);
    owner.run(&store, &["exploit", "install"]);
    let victim = Builder::new("ours", &["install"]);
    assert_eq!(victim.peek(&store, "install"), None);
    let claim = victim.claim(&store, "install");
    let distrusted = Distrusted {
        domain: "theirs".to_owned(),
        step: "exploit".to_owned(),
    };
    assert_eq!(claim.distrusted(), Some(&distrusted));
    // The result of the clean VM is kept beside the other one, and each domain sees its own.
    claim.release().unwrap();
    victim.run(&store, &["install"]);
    for (who, expected) in [(&owner, "install by theirs"), (&victim, "install by ours")] {
        let found = who.peek(&store, "install").unwrap();
        assert_eq!(found, layer(&store, expected));
    }
    // A third build takes the clean one.
    let third = Builder::new("others", &["install"]);
    assert_eq!(
        third.peek(&store, "install"),
        victim.peek(&store, "install")
    );
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn a_result_is_taken_by_a_build_that_contains_the_same_steps() {
    let root = Root::new();
    let store = root.open();
    Builder::new("a", &["base", "install"]).run(&store, &["base", "install", "later"]);
    let other = Builder::new("b", &["base", "install"]);
    assert!(other.peek(&store, "base").is_some());
    assert!(other.peek(&store, "install").is_some());
    assert_eq!(other.peek(&store, "later"), None);
    store.close().unwrap();
    root.assert_clean();
}

/// A step that is exploited while another one runs in the same VM.
#[test]
fn a_step_that_began_before_the_result_left_the_vm_counts() {
    let root = Root::new();
    let store = root.open();
    let owner = Builder::new("theirs", &["exploit", "install"]);
    let vm = store.record_vm().unwrap();
    let claim = owner.claim(&store, "install");
    vm.begin(key("install"), "install").unwrap();
    let before = vm.so_far();
    vm.begin(key("exploit"), "exploit").unwrap();
    let made = layer(&store, "install");
    claim.commit(&made, &[], &vm.so_far(), false).unwrap();
    let victim = Builder::new("ours", &["install"]);
    assert_eq!(victim.peek(&store, "install"), None);
    // One that had left the VM before is not affected.
    let claim = owner.claim(&store, "early");
    claim.commit(&made, &[], &before, false).unwrap();
    assert_eq!(victim.peek(&store, "early"), Some(made));
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn what_a_result_was_built_on_counts_too() {
    let root = Root::new();
    let store = root.open();
    let owner = Builder::new("theirs", &[]);
    owner.run(&store, &["exploit", "base"]);
    let Lookup::Hit(base) = store.lookup(key("base"), owner.trust()).unwrap() else {
        panic!("no hit");
    };
    let vm = store.record_vm().unwrap();
    let claim = owner.claim(&store, "top");
    vm.begin(key("top"), "top").unwrap();
    let mut provenance = vm.so_far();
    provenance.merge(&base.provenance);
    let made = layer(&store, "top");
    claim.commit(&made, &[], &provenance, false).unwrap();
    assert_eq!(
        Builder::new("ours", &["base", "top"]).peek(&store, "top"),
        None
    );
    let same = Builder::new("ours", &["exploit", "base", "top"]);
    assert_eq!(same.peek(&store, "top"), Some(made));
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn a_running_step_of_a_stranger_is_waited_for_only_while_its_result_would_count() {
    let root = Root::new();
    let (theirs, ours) = (root.open(), root.open());
    let owner = Builder::new("theirs", &["exploit", "install"]);
    let victim = Builder::new("ours", &["install"]);
    let busy = || {
        let found = ours.lookup(key("install"), victim.trust()).unwrap();
        matches!(found, Lookup::Busy(_))
    };
    let vm = theirs.record_vm().unwrap();
    let claim = owner.claim(&theirs, "install");
    assert!(busy());
    vm.begin(key("install"), "install").unwrap();
    assert!(busy());
    vm.begin(key("exploit"), "exploit").unwrap();
    let own = victim.claim(&ours, "install");
    let made = layer(&ours, "ours");
    own.commit(&made, &[], &ours.record_vm().unwrap().so_far(), false)
        .unwrap();
    claim.release().unwrap();
    theirs.close().unwrap();
    ours.close().unwrap();
    root.assert_clean();
}

#[test]
fn a_failure_counts_as_little_as_a_result() {
    let root = Root::new();
    let (theirs, ours) = (root.open(), root.open());
    let owner = Builder::new("theirs", &["install"]);
    let victim = Builder::new("ours", &["install"]);
    let build = theirs.start_build(&BuildInfo::default()).unwrap();
    let run = Run { build, step: 1 };
    let fail = |also: Option<&str>| {
        let vm = theirs.record_vm().unwrap();
        let claim = owner.claim(&theirs, "install");
        claim.set_run(run).unwrap();
        vm.begin(key("install"), "install").unwrap();
        let Lookup::Busy(seen) = ours.lookup(key("install"), victim.trust()).unwrap() else {
            panic!("not busy");
        };
        if let Some(also) = also {
            vm.begin(key(also), also).unwrap();
        }
        claim.fail(7).unwrap();
        ours.failure(&seen, victim.trust()).unwrap()
    };
    assert_eq!(fail(None), Some(Failure { run, status: 7 }));
    assert_eq!(fail(Some("exploit")), None);
    theirs.close().unwrap();
    ours.close().unwrap();
    root.assert_clean();
}

#[test]
fn records_of_vms_last_as_long_as_their_results() {
    let root = Root::new();
    let store = root.open();
    let builder = Builder::new("a", &[]);
    builder.run(&store, &["first", "second"]);
    // Nothing of this one is kept.
    store.record_vm().unwrap().begin(key("c"), "c").unwrap();
    assert_eq!((rows(&root, "vm"), rows(&root, "vm_step")), (2, 3));
    store.close().unwrap();
    assert_eq!((rows(&root, "vm"), rows(&root, "vm_step")), (1, 2));
    let store = root.open();
    assert!(builder.peek(&store, "second").is_some());
    store.close().unwrap();
    let store = root.open();
    prune(&store, &PruneOptions::default());
    assert_eq!((rows(&root, "vm"), rows(&root, "vm_step")), (0, 0));
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn a_result_that_is_replaced_has_the_provenance_of_the_new_one() {
    let root = Root::new();
    let store = root.open();
    let builder = Builder::new("a", &[]);
    builder.run(&store, &["exploit", "install"]);
    let Lookup::Claimed(claim) = store.claim(key("install"), builder.trust()).unwrap() else {
        panic!("not free");
    };
    let vm = store.record_vm().unwrap();
    vm.begin(key("install"), "install").unwrap();
    let made = layer(&store, "again");
    claim.commit(&made, &[], &vm.so_far(), true).unwrap();
    let other = Builder::new("b", &["install"]);
    assert_eq!(other.peek(&store, "install"), Some(made));
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn no_trust_domain_has_the_name_of_the_host() {
    assert_eq!(TrustDomain::new(""), None);
}
