//! The Dockerfiles of the cells. A step waits at its gate, and does what it hears there.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::gate::Gate;
use crate::table::{Fault, Phase};

/// What all builds have in common and find in the store.
pub(crate) const BASE: &str = "FROM scratch AS base
COPY busybox /bin/busybox
RUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]
";

/// A download, another one in its place, and the digest of what the first one brings.
const RIGHT: &str = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx";
const WRONG: &str = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\ny";
const RIGHT_SHA256: &str = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881";

/// The gates of a build.
pub(crate) struct Gates {
    /// Of the step with the phases.
    pub(crate) work: Gate,
    /// Of a step before it, in the same stage.
    first: Option<Gate>,
    /// Of a step in another stage, or of its download.
    pub(crate) other: Gate,
}

impl Gates {
    pub(crate) fn all(&self) -> Vec<Gate> {
        let mut all = vec![self.work.clone(), self.other.clone()];
        all.extend(self.first.clone());
        all
    }

    pub(crate) fn open_all(&self) {
        for gate in self.all() {
            gate.open();
        }
    }

    /// Once the step of the other stage runs, lets the work begin.
    pub(crate) fn let_the_first_go(&self, phase: Phase) {
        if let (Some(first), true) = (&self.first, phase != Phase::Boot) {
            crate::running::within(std::time::Duration::from_secs(120), || {
                self.other.came() > 0 && first.came() > 0
            });
            first.open();
        }
    }

    /// Makes a step fail.
    pub(crate) fn fail(&self, phase: Phase) {
        match phase {
            Phase::Run => self.work.say("fail"),
            Phase::Boot => self.other.say(WRONG),
            Phase::Put | Phase::Take | Phase::Commit | Phase::Export | Phase::Teardown => {
                self.other.say("fail");
            }
        }
    }
}

/// A command that waits at a gate and then does this.
fn at(gate: &Gate, then: &str) -> String {
    format!(
        "RUN word=\"$(nc 10.0.2.2 {} </dev/null)\"; case \"$word\" in go) {then} ;; *) exit 7 ;; esac\n",
        gate.port
    )
}

/// The Dockerfile of a cell, which no other build has used, and its gates.
pub(crate) fn of(fault: Fault, phase: Phase) -> (String, Gates) {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let failing = fault == Fault::StepFails;
    let gates = Gates {
        work: Gate::new(),
        first: failing.then(Gate::new),
        other: if phase == Phase::Boot {
            Gate::with(RIGHT)
        } else {
            Gate::new()
        },
    };
    // A full disk does not make this step fail, except where it should.
    let heedless = fault == Fault::GuestDiskFull && !matches!(phase, Phase::Put | Phase::Run);
    let copy = if heedless {
        "cp /big /made; :"
    } else {
        "cp /big /made"
    };
    let work = at(&gates.work, &format!("echo {number} >/number && {copy}"));
    let text = match (&gates.first, phase) {
        (Some(_), Phase::Boot) => {
            let port = gates.other.port;
            format!(
                "{BASE}FROM base AS work\nCOPY big /big\n{work}FROM scratch AS other\n\
                 ADD --checksum=sha256:{RIGHT_SHA256} http://localhost:{port}/file /file\n\
                 FROM work\nCOPY --from=other /file /file\n"
            )
        }
        (Some(first), _) => format!(
            "{BASE}FROM base AS other\n{}FROM base AS work\n{}COPY big /big\n{work}\
             FROM work\nCOPY --from=other /other /other\n",
            at(&gates.other, &format!("echo {number} >/other")),
            at(first, &format!("echo {number} >/first")),
        ),
        (None, _) => format!("{BASE}FROM base\nCOPY big /big\n{work}"),
    };
    (text, gates)
}
