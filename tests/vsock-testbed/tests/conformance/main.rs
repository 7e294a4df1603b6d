//! One conformance suite for every pair of driver and device, so that our driver and device do not only
//! understand each other.
//!
//! | driver | device | where |
//! |---|---|---|
//! | ours | ours | this process |
//! | ours | `vhost-device-vsock` | this process and a daemon |
//! | ours, the kernel's | ours, `vhost-device-vsock` | a VM |
//!
//! The checks are in `suite`; the other modules make the sides. Tests that need the daemon or a VM are
//! ignored by plain `cargo test`; `cargo xtask test` provides both.

#[cfg(test)]
mod daemon;
#[cfg(test)]
mod device;
#[cfg(test)]
#[macro_use]
mod suite;
#[cfg(test)]
mod vm;

/// Makes a test of each check, with an attribute.
#[cfg(test)]
macro_rules! tests {
    ($attribute:meta, $setup:ident: $($check:ident,)*) => {
        $(
            #[test]
            #[$attribute]
            fn $check() {
                $setup(crate::suite::$check);
            }
        )*
    };
}

/// Our driver and our device.
#[cfg(test)]
mod ours {
    use vsock_testbed::Testbed;

    use crate::device::DeviceHost;
    use crate::suite::{Faults, Setup};

    with_checks!(tests, cfg(test), setup:);

    fn setup(check: fn(&Setup<'_>)) {
        let testbed = Testbed::new();
        let setup = Setup {
            guest: &testbed.guest,
            host: &DeviceHost(&testbed.device),
            faults: Faults::default(),
        };
        setup.check(check);
        assert_eq!(testbed.device.failure(), None);
    }
}

/// Our driver and the stock daemon.
#[cfg(test)]
mod stock {
    use vsock_guest::conformance::{Side as _, TIMEOUT};
    use vsock_testbed::drive;

    use crate::daemon::{Daemon, FAULTS};
    use crate::suite::Setup;

    with_checks!(tests, ignore = "needs vhost-device-vsock", setup:);

    fn setup(check: fn(&Setup<'_>)) {
        let daemon = Daemon::start();
        let setup = Setup {
            guest: &drive(&daemon.socket(), vsock_driver::Config::default()),
            host: &daemon.host(),
            faults: FAULTS,
        };
        setup.check(check);
    }

    #[test]
    #[ignore = "needs vhost-device-vsock"]
    fn everything_fails_when_the_daemon_is_killed() {
        let mut daemon = Daemon::start();
        let guest = drive(&daemon.socket(), vsock_driver::Config::default());
        let listener = daemon.host().listen(1).unwrap();
        let stream = guest.connect(1, TIMEOUT).unwrap();
        let host = listener.accept().unwrap();
        daemon.kill();
        host.expect_end().unwrap();
        // Gives the device something to do: an idle device is not watched.
        let failed = guest.connect(1, TIMEOUT).unwrap_err();
        assert_eq!(failed.kind(), std::io::ErrorKind::NotConnected);
        let failed = stream.recv(Some(TIMEOUT)).unwrap_err();
        assert_eq!(failed.kind(), std::io::ErrorKind::NotConnected);
    }
}

/// Guests in VMs. A boot takes seconds, so each runs all checks.
#[cfg(test)]
mod machine {
    use std::path::Path;
    use std::time::Instant;

    use vsock_device::{Config, Device, GuestCid};
    use vsock_guest::conformance::{Side, TIMEOUT};

    use crate::daemon::{Daemon, FAULTS};
    use crate::device::DeviceHost;
    use crate::suite::{self, Faults, Setup};
    use crate::vm::{Driver, Machine};

    type Check = fn(&Setup<'_>);

    macro_rules! list {
        ($($check:ident,)*) => {
            [$((stringify!($check), suite::$check as Check)),*]
        };
    }

    #[test]
    #[ignore = "needs a VM"]
    fn the_kernels_driver_and_our_device() {
        with_our_device(Driver::Kernel);
    }

    #[test]
    #[ignore = "needs a VM"]
    fn our_driver_and_our_device() {
        with_our_device(Driver::Ours);
    }

    #[test]
    #[ignore = "needs a VM and vhost-device-vsock"]
    fn the_kernels_driver_and_the_stock_device() {
        with_stock_device(Driver::Kernel);
    }

    #[test]
    #[ignore = "needs a VM and vhost-device-vsock"]
    fn our_driver_and_the_stock_device() {
        with_stock_device(Driver::Ours);
    }

    fn with_our_device(driver: Driver) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("device");
        let config = Config::new(GuestCid::try_from(3).unwrap());
        let device = Device::start(&socket, config).unwrap();
        check(driver, &socket, &DeviceHost(&device), Faults::default());
    }

    fn with_stock_device(driver: Driver) {
        let daemon = Daemon::start();
        check(driver, &daemon.socket(), &daemon.host(), FAULTS);
    }

    #[expect(clippy::print_stderr, reason = "says which check fails")]
    fn check(driver: Driver, socket: &Path, host: &dyn Side, faults: Faults) {
        let mut machine = Machine::boot(driver, socket);
        let guest = machine.guest();
        let setup = Setup {
            guest: &guest,
            host,
            faults,
        };
        for (name, check) in with_checks!(list) {
            eprintln!("{driver:?}: {name}");
            let began = Instant::now();
            setup.check(check);
            eprintln!("{driver:?}: {name} took {:?}", began.elapsed());
        }
        // When the guest is gone, its connections end.
        let listener = host.listen(7).unwrap();
        let _end = guest.connect(7, TIMEOUT).unwrap();
        let end = listener.accept().unwrap();
        machine.kill();
        suite::check_ended(&*end);
    }
}
