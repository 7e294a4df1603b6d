//! More bytes on one connection than a credit counter can count.

use std::thread;

use vsock_testbed::{TIMEOUT, Testbed};

use crate::memory;
use crate::pattern::{PieceChecker, Pieces};

/// Pieces up to where vsock's counters are zero again.
const FOUR_GIB: u64 = 4 << 10;
/// Pieces in all: beyond it.
const FIVE_GIB: u64 = 5 << 10;

/// Both directions at once. After exactly 4 GiB each side waits until the other one has received them
/// too, so that all counters are zero, with credit and without.
#[test]
fn four_and_five_gibibytes_on_one_connection_in_both_directions() {
    if !memory::is_alone("long::four_and_five_gibibytes_on_one_connection_in_both_directions") {
        return;
    }
    let testbed = Testbed::new();
    let (guest, host) = testbed.pair(7);
    let pieces = Pieces::new();
    let mut to_guest = PieceChecker::new();
    let mut to_host = PieceChecker::new();
    let mut buffer = vec![0; Pieces::LEN];
    let before = memory::peak();
    for (from, to) in [(0, FOUR_GIB), (FOUR_GIB, FIVE_GIB)] {
        thread::scope(|scope| {
            scope.spawn(|| (from..to).for_each(|n| host.send(pieces.get(n)).unwrap()));
            scope.spawn(|| (from..to).for_each(|n| guest.write_all(&pieces.get(n)).unwrap()));
            scope.spawn(|| {
                while to_guest.offset < to << 20 {
                    to_guest.take(&guest.recv(Some(TIMEOUT)).unwrap().unwrap());
                }
            });
            while to_host.offset < to << 20 {
                let n = host.read(&mut buffer).unwrap();
                assert_ne!(n, 0);
                to_host.take(&buffer[..n]);
            }
        });
    }
    host.shutdown_write().unwrap();
    guest.shutdown_write().unwrap();
    assert!(guest.recv(Some(TIMEOUT)).unwrap().is_none());
    assert_eq!(host.read(&mut buffer).unwrap(), 0);
    memory::check_grown(before, &vsock_driver::Config::default());
}
