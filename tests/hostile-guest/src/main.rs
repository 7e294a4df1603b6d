//! An agent that is hostile from PID 1 on. It takes the place of the real one in a guest image of its
//! own, so that tests can show what a guest can do that was taken over: to the host, to later VMs, and
//! to the results of other builds.
//!
//! It speaks the protocol as an agent does and does as a build asks, without any wall: steps run in a
//! plain `chroot` with all that PID 1 has. So it is also the control of attempts that a real sandbox
//! refuses. A step whose program is `hostile` is not run; its first argument says which attack follows
//! (see [`attacks`]), and the step's output says how that went.
//!
//! | module | content |
//! |---|---|
//! | [`session`] | greeting, requests and transfers |
//! | [`attacks`] | what a step named `hostile` does |
//! | [`flows`] | attacks on the network of steps |
//! | [`layers`] | layers that no honest agent would send |
//! | [`bare`] | steps without walls |
#![forbid(unsafe_code)]
#![expect(clippy::print_stderr, reason = "that is the console")]

mod attacks;
mod bare;
mod flows;
mod layers;
mod session;

use vsock_guest::init;

fn main() {
    if std::process::id() != 1 {
        eprintln!("this is PID 1 of a VM; run `cargo xtask vm-test hostile`");
        return;
    }
    if let Err(error) = session::serve() {
        eprintln!("hostile guest: {error}");
    }
    let errno = init::end();
    eprintln!("hostile guest: cannot power off: {errno}");
}
