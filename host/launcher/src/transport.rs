//! The driver by which the guest reaches its vsock device.

use std::str::FromStr;

/// The driver that the user wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// The agent's own driver if it can take the device, else the kernel's.
    #[default]
    Auto,
    /// The agent's own driver; without it the VM does not boot.
    Ring,
    /// The kernel's driver.
    Kernel,
}

/// Text that names no transport.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown transport `{0}`; use auto, ring or kernel")]
pub struct UnknownTransport(pub String);

impl FromStr for Transport {
    type Err = UnknownTransport;

    fn from_str(text: &str) -> Result<Self, UnknownTransport> {
        match text {
            "auto" => Ok(Self::Auto),
            "ring" => Ok(Self::Ring),
            "kernel" => Ok(Self::Kernel),
            other => Err(UnknownTransport(other.into())),
        }
    }
}

impl Transport {
    /// The option for the agent on the kernel command line, with a leading space.
    pub(crate) fn cmdline(self) -> &'static str {
        match self {
            Self::Auto => "",
            Self::Ring => " cofferdam.transport=ring",
            Self::Kernel => " cofferdam.transport=kernel",
        }
    }

    /// The name of the driver, from the features in the agent's hello.
    pub(crate) fn name(features: u64) -> &'static str {
        if features & wire::FEATURE_RING == 0 {
            "kernel"
        } else {
            "ring"
        }
    }
}
