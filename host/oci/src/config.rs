//! The configuration of an image as JSON (OCI image specification, "Image Configuration", with
//! the members that Docker adds).
//!
//! The law: equal values give equal bytes, and empty members are left out. What a registry sends
//! is read leniently: `null` is the same as absent, and unknown members are ignored.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::IgnoredAny;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use store::DiffId;

use crate::manifest::DescribedPlatform;
use crate::platform::Platform;
use crate::select::suits;

/// What a container started from the image does: the `config` member.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// User, or user and group, by name or number; empty means root.
    #[serde(
        skip_serializing_if = "String::is_empty",
        deserialize_with = "or_default"
    )]
    pub user: String,
    /// Ports as `80/tcp`.
    #[serde(skip_serializing_if = "BTreeSet::is_empty", with = "set")]
    pub exposed_ports: BTreeSet<String>,
    /// Environment as `NAME=value`, in the order of definition.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// Program that is always run.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// Default arguments, or the default program if there is no entry point.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// Directories whose data live outside the image.
    #[serde(skip_serializing_if = "BTreeSet::is_empty", with = "set")]
    pub volumes: BTreeSet<String>,
    /// Working directory, absolute.
    #[serde(
        skip_serializing_if = "String::is_empty",
        deserialize_with = "or_default"
    )]
    pub working_dir: String,
    /// Free text by name.
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "or_default"
    )]
    pub labels: BTreeMap<String, String>,
    /// Signal that asks the program to end.
    #[serde(
        skip_serializing_if = "String::is_empty",
        deserialize_with = "or_default"
    )]
    pub stop_signal: String,
    /// How to check whether the program is healthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Shell of the shell form of instructions; empty means `/bin/sh -c`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub shell: Vec<String>,
    /// Instructions that run in images built from this one.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub on_build: Vec<String>,
    /// The command is quoted already. Matters on Windows only, but Docker always writes it.
    #[serde(skip_serializing_if = "is_false", deserialize_with = "or_default")]
    pub args_escaped: bool,
}

/// How to check whether a container is healthy. Durations are in nanoseconds; zero is the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", program, …]` or `["CMD-SHELL", text]`; empty inherits.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub test: Vec<String>,
    /// Time between checks.
    #[serde(skip_serializing_if = "is_zero", deserialize_with = "or_default")]
    pub interval: i64,
    /// Time after which a check has failed.
    #[serde(skip_serializing_if = "is_zero", deserialize_with = "or_default")]
    pub timeout: i64,
    /// Time after the start during which failures do not count.
    #[serde(skip_serializing_if = "is_zero", deserialize_with = "or_default")]
    pub start_period: i64,
    /// Time between checks during the start period.
    #[serde(skip_serializing_if = "is_zero", deserialize_with = "or_default")]
    pub start_interval: i64,
    /// Failures in a row that make the container unhealthy.
    #[serde(skip_serializing_if = "is_zero", deserialize_with = "or_default")]
    pub retries: i64,
}

/// The whole configuration file of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfigFile {
    /// Processor architecture, such as `amd64`.
    #[serde(deserialize_with = "or_default")]
    pub architecture: String,
    /// Author of the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// What a container does.
    #[serde(deserialize_with = "or_default")]
    pub config: ImageConfig,
    /// Time of creation (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// How each layer was made, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub history: Vec<HistoryItem>,
    /// Operating system, such as `linux`.
    #[serde(deserialize_with = "or_default")]
    pub os: String,
    /// Version of the operating system.
    #[serde(rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// The layers.
    #[serde(deserialize_with = "or_default")]
    pub rootfs: RootFs,
    /// Variant of the architecture, such as `v7`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl ImageConfigFile {
    /// Whether the image runs on `platform`. One that names no platform is assumed to.
    #[must_use]
    pub fn suits(&self, platform: &Platform) -> bool {
        let described = DescribedPlatform {
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            os_version: None,
            variant: self.variant.clone(),
        };
        suits(&described, platform)
    }
}

/// The layers of an image, lowest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Digests of the uncompressed layers.
    #[serde(deserialize_with = "or_default")]
    pub diff_ids: Vec<DiffId>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self {
            kind: "layers".to_owned(),
            diff_ids: Vec::new(),
        }
    }
}

/// One entry of an image's history.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HistoryItem {
    /// Time of creation (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The instruction.
    #[serde(
        skip_serializing_if = "String::is_empty",
        deserialize_with = "or_default"
    )]
    pub created_by: String,
    /// Author of the entry.
    #[serde(
        skip_serializing_if = "String::is_empty",
        deserialize_with = "or_default"
    )]
    pub author: String,
    /// Free text, such as the program that made the entry.
    #[serde(
        skip_serializing_if = "String::is_empty",
        deserialize_with = "or_default"
    )]
    pub comment: String,
    /// The entry has no layer.
    #[serde(skip_serializing_if = "is_false", deserialize_with = "or_default")]
    pub empty_layer: bool,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde asks for"
)]
fn is_false(value: &bool) -> bool {
    !*value
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde asks for"
)]
fn is_zero(value: &i64) -> bool {
    *value == 0
}

/// Reads `null` as the default value.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Sets are written as objects whose members are empty objects, as Go writes its sets.
mod set {
    use super::{
        BTreeMap, BTreeSet, Deserialize, Deserializer, IgnoredAny, SerializeMap, Serializer,
    };

    pub(super) fn serialize<S: Serializer>(
        set: &BTreeSet<String>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(set.len()))?;
        for name in set {
            map.serialize_entry(name, &BTreeMap::<String, String>::new())?;
        }
        map.end()
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeSet<String>, D::Error> {
        let map: Option<BTreeMap<String, IgnoredAny>> = Option::deserialize(deserializer)?;
        Ok(map.unwrap_or_default().into_keys().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_members_are_left_out() {
        assert_eq!(
            serde_json::to_string(&ImageConfig::default()).unwrap(),
            "{}"
        );
    }

    #[test]
    fn sets_are_objects_in_sorted_order() {
        let config = ImageConfig {
            exposed_ports: ["80/tcp", "53/udp"].map(String::from).into(),
            ..ImageConfig::default()
        };
        assert_eq!(
            serde_json::to_string(&config).unwrap(),
            r#"{"ExposedPorts":{"53/udp":{},"80/tcp":{}}}"#
        );
    }

    #[test]
    fn null_and_unknown_members_of_a_pulled_image_are_tolerated() {
        let text = r#"{"architecture":"amd64","os":"linux","docker_version":"1.2","container":"x",
            "config":{"User":null,"Env":null,"Cmd":null,"Labels":null,"Volumes":null,"Domainname":"",
            "Healthcheck":null,"OnBuild":null,"AttachStdin":false,"ExposedPorts":{"80/tcp":{}}},
            "history":[{"created":null,"created_by":"x","empty_layer":true}],
            "rootfs":{"type":"layers","diff_ids":null}}"#;
        let file: ImageConfigFile = serde_json::from_str(text).unwrap();
        assert_eq!(
            file.config.exposed_ports,
            BTreeSet::from(["80/tcp".to_owned()])
        );
        assert!(file.history[0].empty_layer);
        assert_eq!(file.created, None);
    }

    #[test]
    fn what_is_written_reads_back() {
        let file = ImageConfigFile {
            architecture: "arm".into(),
            os: "linux".into(),
            variant: Some("v7".into()),
            config: ImageConfig {
                healthcheck: Some(Healthcheck {
                    retries: 3,
                    ..Healthcheck::default()
                }),
                cmd: vec!["sh".into()],
                args_escaped: true,
                ..ImageConfig::default()
            },
            rootfs: RootFs {
                diff_ids: vec![store::sha256(b"x").into()],
                ..RootFs::default()
            },
            ..ImageConfigFile::default()
        };
        let text = serde_json::to_string(&file).unwrap();
        assert_eq!(
            serde_json::from_str::<ImageConfigFile>(&text).unwrap(),
            file
        );
        assert!(text.contains(r#""rootfs":{"type":"layers","diff_ids":["sha256:"#));
    }
}
