//! One conformance suite for every pair of driver and device, so that neither of ours only
//! understands its twin.
//!
//! | driver | device | where |
//! |---|---|---|
//! | ours | ours | this process |
//! | ours | `vhost-device-vsock` | this process and a daemon |
//! | ours, the kernel's | ours, `vhost-device-vsock` | a VM |
//!
//! The suite is `laws`; the rest says how sides are made. What is not installed is skipped, and
//! `cargo xtask test` installs it.

mod daemon;
mod device;
#[macro_use]
mod laws;
#[path = "../../../../guest/ring/examples/conform_guest/side.rs"]
mod side;

/// Makes a test of each law.
macro_rules! tests {
    ($world:ident: $($law:ident,)*) => {
        $(
            #[test]
            fn $law() {
                $world(super::laws::$law);
            }
        )*
    };
}

/// Our driver and our device.
mod ours {
    use crate::bed::Bed;
    use crate::conform::laws::{Faults, World};

    with_laws!(tests, world:);

    fn world(law: fn(&World<'_>)) {
        let bed = Bed::new();
        let world = World {
            guest: &bed.guest,
            host: &bed.device,
            faults: Faults::default(),
        };
        world.check(law);
        assert_eq!(bed.device.failure(), None);
    }
}

/// Our driver and a daemon that somebody else wrote.
mod stock {
    use super::daemon::{Daemon, FAULTS};
    use super::side::{PATIENCE, Side as _};
    use crate::bed::drive;
    use crate::conform::laws::World;

    with_laws!(tests, world:);

    fn world(law: fn(&World<'_>)) {
        let Some(daemon) = Daemon::start() else {
            return;
        };
        let world = World {
            guest: &drive(&daemon.socket(), vsock_ring::Config::default()),
            host: &daemon.host(),
            faults: FAULTS,
        };
        world.check(law);
    }

    #[test]
    fn a_daemon_that_dies_fails_everybody() {
        let Some(mut daemon) = Daemon::start() else {
            return;
        };
        let guest = drive(&daemon.socket(), vsock_ring::Config::default());
        let door = daemon.host().listen(1).unwrap();
        let stream = guest.connect(1, PATIENCE).unwrap();
        let host = door.accept().unwrap();
        daemon.kill();
        host.expect_end().unwrap();
        // Something for the device to do, or nobody would notice.
        let failed = guest.connect(1, PATIENCE).unwrap_err();
        assert_eq!(failed.kind(), std::io::ErrorKind::NotConnected);
        let failed = stream.recv(Some(PATIENCE)).unwrap_err();
        assert_eq!(failed.kind(), std::io::ErrorKind::NotConnected);
    }
}
