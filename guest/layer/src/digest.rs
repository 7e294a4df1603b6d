//! Names of content. Each identifier is a type of its own, so that they cannot be mixed up.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A sha256 digest. Shown and parsed as `sha256:` and 64 lower-case hexadecimal digits
/// (OCI image specification, "Digests"). Computing one is left to the crates that can hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 32]);

/// Text that is not a sha256 digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a digest of the form sha256:<64 hexadecimal digits>")]
pub struct NotADigest(pub String);

impl Digest {
    /// Stands for a digest that is not known, or not yet.
    pub const UNKNOWN: Self = Self([0; 32]);

    /// 64 lower-case hexadecimal digits, without the algorithm.
    #[must_use]
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let refused = || NotADigest(text.chars().take(100).collect());
        let digits = text.strip_prefix("sha256:").ok_or_else(refused)?;
        if digits.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(refused());
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| refused())?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = NotADigest;

    fn try_from(text: String) -> Result<Self, NotADigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// Declares a digest with a meaning: a type around [`Digest`] with the same text and the same
/// serialised form.
#[macro_export]
macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $crate::Digest);

        impl $name {
            /// The digest itself.
            #[must_use]
            pub fn digest(&self) -> $crate::Digest {
                self.0
            }
        }

        impl From<$crate::Digest> for $name {
            fn from(digest: $crate::Digest) -> Self {
                Self(digest)
            }
        }

        impl $crate::serde::Serialize for $name {
            fn serialize<S: $crate::serde::Serializer>(
                &self,
                serializer: S,
            ) -> Result<S::Ok, S::Error> {
                $crate::serde::Serialize::serialize(&self.0, serializer)
            }
        }

        impl<'de> $crate::serde::Deserialize<'de> for $name {
            fn deserialize<D: $crate::serde::Deserializer<'de>>(
                deserializer: D,
            ) -> Result<Self, D::Error> {
                $crate::serde::Deserialize::deserialize(deserializer).map(Self)
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                ::std::fmt::Display::fmt(&self.0, f)
            }
        }

        impl ::std::str::FromStr for $name {
            type Err = $crate::NotADigest;

            fn from_str(text: &str) -> Result<Self, $crate::NotADigest> {
                text.parse().map(Self)
            }
        }
    };
}

identifier! {
    /// A layer: the digest of its uncompressed tar (OCI image specification, "Layer DiffID").
    DiffId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_its_text() {
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let digest: Digest = text.parse().unwrap();
        assert_eq!(digest.0[..4], [0xe3, 0xb0, 0xc4, 0x42]);
        assert_eq!(String::from(digest), text);
        assert_eq!(DiffId(digest).to_string(), text);
        for other in [&text[1..], &text[..70], &text.to_uppercase(), "sha256:", ""] {
            assert!(Digest::try_from(other.to_owned()).is_err(), "{other}");
        }
    }
}
