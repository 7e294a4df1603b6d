//! Requests at the moment at which the guest is lost.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use wire::Request;

use super::with;
use crate::session::shared::lock;
use crate::session::{Lost, SessionError};

/// Between two steps of `Shared::lose` somebody begins to wait.
#[test]
fn a_request_that_meets_the_loss_of_its_guest_ends() {
    let (session, script) = with(|mut guest| while guest.request().is_some() {});
    let shared = Arc::clone(&session.shared);
    let transfers = lock(&shared.transfers);
    thread::scope(|scope| {
        let loser = scope.spawn(|| session.shared.lose(Lost::Closed));
        while shared.lost().is_none() {
            thread::yield_now();
        }
        // It now waits for the transfers, or will.
        thread::sleep(Duration::from_millis(50));
        let asked = shared.ask(&Request::Stat);
        drop(transfers);
        loser.join().unwrap();
        let ended = asked.and_then(|pending| pending.wait(None, Some(Duration::from_secs(10))));
        assert!(matches!(ended, Err(SessionError::Lost(_))), "{ended:?}");
    });
    drop(session);
    script.join().unwrap();
}
