//! Names of platforms, such as `linux/arm64`.

use std::fmt;
use std::str::FromStr;

/// An operating system and a processor, in the normal form of the OCI image specification.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Platform {
    /// Operating system, such as `linux`.
    pub os: String,
    /// Architecture, such as `amd64`.
    pub architecture: String,
    /// Variant, such as `v7`; absent for the base variant of the architecture.
    pub variant: Option<String>,
}

/// The text does not name a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a platform of the form os/architecture[/variant], such as linux/amd64")]
pub struct NotAPlatform(pub String);

impl Platform {
    /// Linux on `architecture`, in normal form.
    #[must_use]
    pub fn linux(architecture: &str) -> Self {
        Self::normal("linux", architecture, None)
    }

    /// Linux on the processor that this program was compiled for.
    #[must_use]
    pub fn host() -> Self {
        Self::linux(std::env::consts::ARCH)
    }

    fn normal(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let (architecture, implied) = match architecture {
            "x86_64" | "x86-64" | "amd64" => ("amd64", Some("v1")),
            "aarch64" | "arm64" => ("arm64", Some("v8")),
            "armhf" | "arm" => ("arm", Some("v7")),
            "armel" => ("arm", Some("v6")),
            "i386" | "i486" | "i586" | "i686" | "x86" | "386" => ("386", None),
            other => (other, None),
        };
        let variant = match variant.filter(|text| !text.is_empty()).or(implied) {
            Some("8") => Some("v8"),
            Some("7") => Some("v7"),
            Some("6") => Some("v6"),
            Some("5") => Some("v5"),
            other => other,
        };
        // The variant that every processor of the architecture supports is not written.
        let base = matches!(
            (architecture, variant),
            ("amd64", Some("v1")) | ("arm64", Some("v8"))
        );
        Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.filter(|_| !base).map(str::to_owned),
        }
    }
}

impl FromStr for Platform {
    type Err = NotAPlatform;

    fn from_str(text: &str) -> Result<Self, NotAPlatform> {
        let refused = || NotAPlatform(text.chars().take(100).collect());
        let lower = text.to_ascii_lowercase();
        let parts: Vec<&str> = lower.split('/').collect();
        let word = |part: &&str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if !parts.iter().all(word) {
            return Err(refused());
        }
        match parts.as_slice() {
            ["linux" | "local"] => Ok(Self::host()),
            [os, architecture] => Ok(Self::normal(os, architecture, None)),
            [os, architecture, variant] => Ok(Self::normal(os, architecture, Some(variant))),
            _ => Err(refused()),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant
            .as_ref()
            .map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(text.parse::<Platform>().unwrap().to_string(), expected);
    }

    #[test]
    fn names_are_brought_to_normal_form() {
        check("linux/amd64", "linux/amd64");
        check("Linux/x86_64", "linux/amd64");
        check("linux/amd64/v1", "linux/amd64");
        check("linux/amd64/v2", "linux/amd64/v2");
        check("linux/aarch64", "linux/arm64");
        check("linux/arm64/v8", "linux/arm64");
        check("linux/arm64/v9", "linux/arm64/v9");
        check("linux/arm", "linux/arm/v7");
        check("linux/arm/6", "linux/arm/v6");
        check("linux/armel", "linux/arm/v6");
        check("linux/i686", "linux/386");
        check("linux/riscv64", "linux/riscv64");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "amd64",
            "linux/",
            "/amd64",
            "linux/a/b/c",
            "linux/am d64",
        ] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
