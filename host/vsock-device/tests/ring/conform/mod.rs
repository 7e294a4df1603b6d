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
#[path = "../../../../../guest/vsock-driver/examples/conform_guest/order.rs"]
#[expect(dead_code, reason = "one half of it is for the guest")]
mod order;
#[path = "../../../../../guest/vsock-driver/examples/conform_guest/side.rs"]
mod side;
mod vm;

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
            guest: &drive(&daemon.socket(), vsock_driver::Config::default()),
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
        let guest = drive(&daemon.socket(), vsock_driver::Config::default());
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

/// Guests in VMs. A boot takes seconds, so each checks all laws.
mod machine {
    use std::path::Path;
    use std::time::Instant;

    use vsock_device::{Config, Device, GuestCid};

    use super::daemon::{Daemon, FAULTS};
    use super::laws;
    use super::side::{PATIENCE, Side};
    use super::vm::{Driver, Machine};
    use crate::conform::laws::{Faults, World};

    type Law = fn(&World<'_>);

    macro_rules! list {
        ($($law:ident,)*) => {
            [$((stringify!($law), laws::$law as Law)),*]
        };
    }

    #[test]
    fn the_kernels_driver_and_our_device() {
        with_our_device(Driver::Kernel);
    }

    #[test]
    fn our_driver_and_our_device() {
        with_our_device(Driver::Ours);
    }

    #[test]
    fn the_kernels_driver_and_the_stock_device() {
        with_stock_device(Driver::Kernel);
    }

    #[test]
    fn our_driver_and_the_stock_device() {
        with_stock_device(Driver::Ours);
    }

    fn with_our_device(driver: Driver) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("device");
        let config = Config::new(GuestCid::try_from(3).unwrap());
        let device = Device::start(&socket, config).unwrap();
        check(driver, &socket, &device, Faults::default());
    }

    fn with_stock_device(driver: Driver) {
        if let Some(daemon) = Daemon::start() {
            check(driver, &daemon.socket(), &daemon.host(), FAULTS);
        }
    }

    #[expect(clippy::print_stderr, reason = "says which law was broken")]
    fn check(driver: Driver, socket: &Path, host: &dyn Side, faults: Faults) {
        let Some(mut machine) = Machine::boot(driver, socket) else {
            return;
        };
        let guest = machine.guest();
        let world = World {
            guest: &guest,
            host,
            faults,
        };
        for (name, law) in with_laws!(list) {
            eprintln!("{driver:?}: {name}");
            let began = Instant::now();
            world.check(law);
            eprintln!("{driver:?}: {name} took {:?}", began.elapsed());
        }
        // A guest that is gone is the end of its connections.
        let door = host.listen(7).unwrap();
        let _end = guest.connect(7, PATIENCE).unwrap();
        let end = door.accept().unwrap();
        machine.kill();
        laws::check_ended(&*end);
    }
}
