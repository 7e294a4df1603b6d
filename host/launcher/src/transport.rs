//! By which driver the guest reaches its vsock device.

use std::str::FromStr;

/// What the user wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// The agent's own driver if it can have the device, else the kernel's.
    #[default]
    Auto,
    /// The agent's own driver or nothing.
    Ring,
    /// The kernel's driver.
    Kernel,
}

/// Text that names no transport.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a transport: use auto, ring or kernel")]
pub struct NotATransport(pub String);

impl FromStr for Transport {
    type Err = NotATransport;

    fn from_str(text: &str) -> Result<Self, NotATransport> {
        match text {
            "auto" => Ok(Self::Auto),
            "ring" => Ok(Self::Ring),
            "kernel" => Ok(Self::Kernel),
            other => Err(NotATransport(other.into())),
        }
    }
}

impl Transport {
    /// What the agent reads on the kernel command line, with a blank in front.
    pub(crate) fn cmdline(self) -> &'static str {
        match self {
            Self::Auto => "",
            Self::Ring => " cofferdam.transport=ring",
            Self::Kernel => " cofferdam.transport=kernel",
        }
    }

    /// Its name, from what the agent says of itself.
    pub(crate) fn name(features: u64) -> &'static str {
        if features & wire::FEATURE_RING == 0 {
            "kernel"
        } else {
            "ring"
        }
    }
}
