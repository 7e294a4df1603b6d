//! Annotations with a meaning.

/// Tag of an entry of `index.json` (OCI image specification, "Pre-Defined Annotation Keys").
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Full name of an entry of `index.json`, as containerd reads it.
pub const IMAGE_NAME: &str = "io.containerd.image.name";
/// Marks an entry that describes another one, such as an attestation.
pub(crate) const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
