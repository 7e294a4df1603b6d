//! The table: what ends a build or disturbs it, in which phase, and how the build ends then.
//!
//! The law: each pair of fault and phase has an entry. A pair that cannot be says why.

/// What happens to a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Nothing,
    StepFails,
    Timeout,
    Interrupt,
    InterruptTwice,
    Terminate,
    KillHost,
    KillQemu,
    Panic,
    KillAgent,
    HostDiskFull,
    GuestDiskFull,
    StopHost,
    StopQemu,
    StopQemuForGood,
}

impl Fault {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nothing => "success",
            Self::StepFails => "a step fails",
            Self::Timeout => "--timeout",
            Self::Interrupt => "Ctrl-C once",
            Self::InterruptTwice => "Ctrl-C twice",
            Self::Terminate => "SIGTERM",
            Self::KillHost => "SIGKILL of cofferdam",
            Self::KillQemu => "SIGKILL of QEMU",
            Self::Panic => "the guest panics",
            Self::KillAgent => "the agent is killed",
            Self::HostDiskFull => "the host's disk is full",
            Self::GuestDiskFull => "the guest's disk is full",
            Self::StopHost => "cofferdam is stopped and continued",
            Self::StopQemu => "QEMU is stopped and continued",
            Self::StopQemuForGood => "QEMU is stopped for good",
        }
    }
}

/// Where a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// QEMU runs, and the agent has not said hello.
    Boot,
    /// A layer is on its way into the guest.
    Put,
    /// The user's command runs.
    Run,
    /// The changes of a step are on their way out of the guest.
    Take,
    /// They are whole on the host, and the store does not have them yet.
    Commit,
    /// The image is being written to its destination.
    Export,
    /// The image is delivered; what the build needed is being removed.
    Teardown,
}

impl Phase {
    /// In their order in a build, which is that of the columns.
    pub(crate) const ALL: [Self; 7] = [
        Self::Boot,
        Self::Put,
        Self::Run,
        Self::Take,
        Self::Commit,
        Self::Export,
        Self::Teardown,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Put => "put",
            Self::Run => "run",
            Self::Take => "take",
            Self::Commit => "commit",
            Self::Export => "export",
            Self::Teardown => "teardown",
        }
    }
}

/// How a build ends: its exit status and what the history says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    /// None: a signal ended it.
    pub(crate) status: Option<i32>,
    pub(crate) history: &'static str,
}

const fn end(status: i32, history: &'static str) -> End {
    End {
        status: Some(status),
        history,
    }
}

pub(crate) const SUCCESS: End = end(0, "success");
const FAILED: End = end(1, "user");
const AT_LIMIT: End = end(124, "limit");
const BY_HOST: End = end(125, "host");
const STOPPED: End = end(130, "cancelled");
const DEAD: End = End {
    status: None,
    history: "interrupted",
};

/// What is expected of one fault in one phase.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Want {
    /// One of these ends. Where there are two, which one depends on who is faster.
    Ends(&'static [End]),
    /// The same, and it is among the cells of every change.
    Always(&'static [End]),
    /// There is no such moment.
    CannotBe(&'static str),
}

impl Want {
    /// The ends, and whether it is among the cells of every change.
    pub(crate) fn ends(self) -> Option<(&'static [End], bool)> {
        match self {
            Self::Ends(ends) => Some((ends, false)),
            Self::Always(ends) => Some((ends, true)),
            Self::CannotBe(_) => None,
        }
    }
}

use Want::{Always, CannotBe, Ends};

const OK: &[End] = &[SUCCESS];
const USER: &[End] = &[FAILED];
const LIMIT: &[End] = &[AT_LIMIT];
const HOST: &[End] = &[BY_HOST];
const CANCELLED: &[End] = &[STOPPED];
const KILLED: &[End] = &[DEAD];

const NO_STEP: Want = CannotBe("all steps have ended when an image is exported");

/// One line for each fault, one column for each phase.
#[rustfmt::skip]
pub(crate) const TABLE: [(Fault, [Want; 7]); 15] = [
    //                          boot               put                run                take               commit             export             teardown
    (Fault::Nothing,           [Ends(OK),          Ends(OK),          Ends(OK),          Ends(OK),          Ends(OK),          Ends(OK),          Always(OK)]),
    // In the phases of one step it is another one, of another stage, that fails.
    (Fault::StepFails,         [Always(USER),      Always(USER),      Always(USER),      Always(USER),      Ends(USER),        NO_STEP,           NO_STEP]),
    // A result that is delivered counts, whatever comes then.
    (Fault::Timeout,           [Always(LIMIT),     Ends(LIMIT),       Ends(LIMIT),       Ends(LIMIT),       Ends(LIMIT),       Always(LIMIT),     Ends(OK)]),
    (Fault::Interrupt,         [Always(CANCELLED), Always(CANCELLED), Always(CANCELLED), Always(CANCELLED), Always(CANCELLED), Always(CANCELLED), Ends(OK)]),
    (Fault::InterruptTwice,    [Always(CANCELLED), Ends(CANCELLED),   Ends(CANCELLED),   Always(CANCELLED), Ends(CANCELLED),   Ends(CANCELLED),   Ends(&[SUCCESS, STOPPED])]),
    (Fault::Terminate,         [Always(CANCELLED), Ends(CANCELLED),   Always(CANCELLED), Ends(CANCELLED),   Ends(CANCELLED),   Always(CANCELLED), Ends(OK)]),
    (Fault::KillHost,          [Always(KILLED),    Always(KILLED),    Always(KILLED),    Always(KILLED),    Always(KILLED),    Always(KILLED),    Always(KILLED)]),
    // Under KVM a monitor that dies while it boots is not started again.
    (Fault::KillQemu,          [Ends(&[SUCCESS, BY_HOST]),Ends(OK),          Ends(OK),          Always(OK),        Ends(OK),          Ends(OK),          Ends(OK)]),
    (Fault::Panic,             [Ends(HOST),        Ends(OK),          Always(OK),        Ends(OK),          Ends(OK),          Ends(OK),          Ends(OK)]),
    (Fault::KillAgent,         [Ends(HOST),        Always(OK),        Ends(OK),          Ends(OK),          Ends(OK),          Ends(OK),          Ends(OK)]),
    (Fault::HostDiskFull,      [Ends(HOST),        Ends(HOST),        Ends(HOST),        Always(HOST),      Ends(HOST),        Ends(OK),          Ends(OK)]),
    (Fault::GuestDiskFull,     [CannotBe("the disk of a VM is new and empty until the first layer is put on it"),
                                                   Always(LIMIT),     Ends(LIMIT),       Ends(OK),          Ends(OK),          Ends(OK),          Ends(OK)]),
    (Fault::StopHost,          [Ends(OK),          Ends(OK),          Always(OK),        Ends(OK),          Always(OK),        Ends(OK),          Ends(OK)]),
    (Fault::StopQemu,          [Always(OK),        Ends(OK),          Ends(OK),          Ends(OK),          Ends(OK),          Ends(OK),          Ends(OK)]),
    (Fault::StopQemuForGood,   [Ends(HOST),        Ends(OK),          Ends(OK),          Ends(OK),          Ends(OK),          Ends(OK),          Always(OK)]),
];
