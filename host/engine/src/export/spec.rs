//! The value of `--output`.
//!
//! The law: an unknown type, key or value is an error that names it; nothing is ignored.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use oci::ImageRef;

use super::{LocalRights, csv};

/// Default compression level of gzip.
const GZIP_LEVEL: u32 = 6;
/// Default compression level of zstd.
const ZSTD_LEVEL: i32 = 3;

/// One requested output.
///
/// ```
/// use std::path::PathBuf;
///
/// use engine::export::{LocalRights, OutputSpec};
///
/// let spec: OutputSpec = "type=local,dest=out".parse()?;
/// let rights = LocalRights::default();
/// assert_eq!(spec, OutputSpec::Local { dest: PathBuf::from("out"), rights });
///
/// let error = "type=tape".parse::<OutputSpec>().unwrap_err();
/// assert_eq!(error.text, "type=tape");
/// # Ok::<(), engine::export::OutputSpecError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputSpec {
    /// An image layout (OCI image specification, "Image Layout").
    Oci {
        /// Destination.
        dest: Destination,
        /// Write one tar archive; otherwise a directory.
        tar: bool,
        /// The form of the image.
        options: ImageOptions,
    },
    /// An archive for `docker load` that is also an image layout. Without a destination the image is kept
    /// in the store under its names.
    Docker {
        /// Destination.
        dest: Option<Destination>,
        /// The form of the image.
        options: ImageOptions,
    },
    /// The files of the result as one tar archive.
    Tar {
        /// Destination.
        dest: Destination,
    },
    /// The files of the result in a directory.
    Local {
        /// The directory.
        dest: PathBuf,
        /// Which rights on this machine the files may give.
        rights: LocalRights,
    },
    /// The image is kept in the store under its names.
    Image {
        /// Names besides those of `--tag`.
        names: Vec<String>,
    },
    /// No output; only the cache is filled.
    CacheOnly,
}

/// Where an archive is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Standard output.
    Stdout,
    /// A file, or for a layout without `tar` a directory.
    Path(PathBuf),
}

/// The form of an exported image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// Names besides those of `--tag`.
    pub names: Vec<String>,
    /// How layers are compressed.
    pub compression: Compression,
    /// Which media types are written.
    pub media_types: MediaTypes,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
}

/// How layers are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not compressed.
    None,
    /// gzip, with a level of 0–9.
    Gzip(u32),
    /// zstd, with a level of 0–22.
    Zstd(i32),
}

impl Default for Compression {
    fn default() -> Self {
        Self::Gzip(GZIP_LEVEL)
    }
}

/// Which media types are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MediaTypes {
    /// Those of the OCI image specification.
    #[default]
    Oci,
    /// Those of Docker, for old tools.
    Docker,
}

/// An invalid value of `--output`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("output `{text}`: {reason}")]
pub struct OutputSpecError {
    /// The value.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

impl OutputSpec {
    /// Whether the result is written to standard output, which only one output can use and which must not
    /// be a terminal.
    #[must_use]
    pub fn uses_stdout(&self) -> bool {
        match self {
            Self::Oci { dest, .. }
            | Self::Docker {
                dest: Some(dest), ..
            }
            | Self::Tar { dest } => *dest == Destination::Stdout,
            Self::Docker { dest: None, .. }
            | Self::Local { .. }
            | Self::Image { .. }
            | Self::CacheOnly => false,
        }
    }

    /// The path of the result, if it has one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Oci {
                dest: Destination::Path(path),
                ..
            }
            | Self::Docker {
                dest: Some(Destination::Path(path)),
                ..
            }
            | Self::Tar {
                dest: Destination::Path(path),
            }
            | Self::Local { dest: path, .. } => Some(path),
            Self::Oci { .. }
            | Self::Docker { .. }
            | Self::Tar { .. }
            | Self::Image { .. }
            | Self::CacheOnly => None,
        }
    }

    /// Whether the result is an image, as opposed to files or nothing.
    #[must_use]
    pub fn is_image(&self) -> bool {
        matches!(
            self,
            Self::Oci { .. } | Self::Docker { .. } | Self::Image { .. }
        )
    }
}

impl fmt::Display for OutputSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, dest) = match self {
            Self::Oci { dest, .. } => ("oci", Some(dest.to_string())),
            Self::Docker { dest, .. } => ("docker", dest.as_ref().map(ToString::to_string)),
            Self::Tar { dest } => ("tar", Some(dest.to_string())),
            Self::Local { dest, .. } => ("local", Some(dest.display().to_string())),
            Self::Image { .. } => ("image", None),
            Self::CacheOnly => ("cacheonly", None),
        };
        match dest {
            Some(dest) => write!(f, "type={name},dest={dest}"),
            None => write!(f, "type={name}"),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("-"),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

impl FromStr for OutputSpec {
    type Err = OutputSpecError;

    fn from_str(text: &str) -> Result<Self, OutputSpecError> {
        parse(text).map_err(|reason| OutputSpecError {
            text: text.to_owned(),
            reason,
        })
    }
}

fn parse(text: &str) -> Result<OutputSpec, String> {
    let fields = csv::parse(text).map_err(|error| error.to_string())?;
    if let [only] = fields.as_slice()
        && only == text
        && !only.starts_with("type=")
    {
        return Ok(match only.as_str() {
            "-" => OutputSpec::Tar {
                dest: Destination::Stdout,
            },
            path => OutputSpec::Local {
                dest: path.into(),
                rights: LocalRights::default(),
            },
        });
    }
    let mut keys = Keys::read(&fields)?;
    let kind = keys
        .take("type")
        .ok_or("type is required, for example type=oci,dest=image.tar")?;
    let spec = match kind.as_str() {
        "oci" => oci(&mut keys)?,
        "docker" => docker(&mut keys)?,
        "tar" => OutputSpec::Tar {
            dest: files(&mut keys)?.unwrap_or(Destination::Stdout),
        },
        "local" => local(&mut keys)?,
        "image" => image(&mut keys)?,
        "cacheonly" => OutputSpec::CacheOnly,
        "registry" => {
            return Err("pushing to a registry is not supported yet; write type=oci,dest=FILE and push that file with another tool".to_owned());
        }
        other => {
            let known = ["oci", "docker", "tar", "local", "image", "cacheonly"];
            return Err(format!(
                "unknown type `{other}`{}",
                suggestion(other, &known)
            ));
        }
    };
    keys.finish(&kind)?;
    Ok(spec)
}

fn oci(keys: &mut Keys) -> Result<OutputSpec, String> {
    let tar = keys.flag("tar")?.unwrap_or(true);
    let dest = keys.destination().unwrap_or(Destination::Stdout);
    if !tar && dest == Destination::Stdout {
        return Err("tar=false requires dest=DIRECTORY".to_owned());
    }
    let options = image_options(keys)?;
    Ok(OutputSpec::Oci { dest, tar, options })
}

fn docker(keys: &mut Keys) -> Result<OutputSpec, String> {
    if keys.flag("tar")? == Some(false) {
        return Err(
            "type=docker is always an archive; for a directory use type=oci,tar=false".to_owned(),
        );
    }
    let dest = keys.destination();
    let options = image_options(keys)?;
    if matches!(options.compression, Compression::Zstd(_)) {
        return Err(
            "docker load reads gzip and uncompressed layers only; for zstd use type=oci".to_owned(),
        );
    }
    Ok(OutputSpec::Docker { dest, options })
}

fn image(keys: &mut Keys) -> Result<OutputSpec, String> {
    if keys.flag("push")? == Some(true) {
        return Err("push=true is not supported yet; write type=oci,dest=FILE and push that file with another tool".to_owned());
    }
    // Accepted but not used, because the image stays in the store.
    image_options(keys).map(|options| OutputSpec::Image {
        names: options.names,
    })
}

fn local(keys: &mut Keys) -> Result<OutputSpec, String> {
    match keys.take("mode").as_deref() {
        None | Some("copy") => {}
        Some("delete") => return Err("mode=delete is not supported yet".to_owned()),
        Some(other) => return Err(format!("unknown mode `{other}`; use copy or delete")),
    }
    let rights = LocalRights {
        devices: keys.flag("devices")?.unwrap_or(false),
        setuid: keys.flag("setuid")?.unwrap_or(false),
    };
    match files(keys)? {
        Some(Destination::Path(dest)) => Ok(OutputSpec::Local { dest, rights }),
        Some(Destination::Stdout) => {
            Err("type=local cannot be written to standard output; use type=tar".to_owned())
        }
        None => Err("type=local requires dest=DIRECTORY".to_owned()),
    }
}

/// The keys that `tar` and `local` share.
fn files(keys: &mut Keys) -> Result<Option<Destination>, String> {
    if keys.flag("platform-split")? == Some(true) {
        return Err("platform-split=true is not supported yet".to_owned());
    }
    Ok(keys.destination())
}

fn image_options(keys: &mut Keys) -> Result<ImageOptions, String> {
    let names = keys.take("name").map_or_else(Vec::new, |names| {
        names
            .split(',')
            .map(|name| name.trim().to_owned())
            .collect()
    });
    for name in &names {
        name.parse::<ImageRef>()
            .map_err(|error| error.to_string())?;
    }
    let compression = compression(keys)?;
    // Every layer is compressed as requested, whatever its original compression.
    keys.flag("force-compression")?;
    if keys.flag("rewrite-timestamp")? == Some(true) {
        return Err("rewrite-timestamp=true is not supported yet".to_owned());
    }
    let media_types = match keys.flag("oci-mediatypes")? {
        Some(false) => MediaTypes::Docker,
        Some(true) | None => MediaTypes::Oci,
    };
    if media_types == MediaTypes::Docker && matches!(compression, Compression::Zstd(_)) {
        return Err("compression=zstd requires oci-mediatypes=true".to_owned());
    }
    let mut annotations = keys.take_prefixed("annotation.");
    annotations.append(&mut keys.take_prefixed("annotation-manifest."));
    Ok(ImageOptions {
        names,
        compression,
        media_types,
        annotations,
    })
}

fn compression(keys: &mut Keys) -> Result<Compression, String> {
    let level = keys.take("compression-level");
    let level_in = |least: i32, most: i32| match &level {
        None => Ok(None),
        Some(text) => match text.parse::<i32>() {
            Ok(level) if (least..=most).contains(&level) => Ok(Some(level)),
            Ok(_) | Err(_) => Err(format!(
                "compression-level={text} is not a number from {least} to {most}"
            )),
        },
    };
    match keys.take("compression").as_deref() {
        None | Some("gzip") => {
            let level = level_in(0, 9)?.and_then(|level| u32::try_from(level).ok());
            Ok(Compression::Gzip(level.unwrap_or(GZIP_LEVEL)))
        }
        Some("zstd") => Ok(Compression::Zstd(level_in(0, 22)?.unwrap_or(ZSTD_LEVEL))),
        Some("uncompressed") => Ok(Compression::None),
        Some("estargz") => Err("compression=estargz is not supported; use gzip or zstd".to_owned()),
        Some(other) => {
            let known = ["gzip", "zstd", "uncompressed"];
            Err(format!(
                "unknown compression `{other}`{}",
                suggestion(other, &known)
            ))
        }
    }
}

/// The keys of a value, and the names that were looked up.
struct Keys {
    values: BTreeMap<String, String>,
    looked_up: Vec<&'static str>,
}

impl Keys {
    fn read(fields: &[String]) -> Result<Self, String> {
        let mut values = BTreeMap::new();
        for field in fields {
            let (key, value) = field
                .split_once('=')
                .ok_or_else(|| format!("`{field}` is not of the form key=value"))?;
            // The last value of a key is used.
            values.insert(normal(key), value.to_owned());
        }
        Ok(Self {
            values,
            looked_up: Vec::new(),
        })
    }

    fn take(&mut self, key: &'static str) -> Option<String> {
        self.looked_up.push(key);
        self.values.remove(key)
    }

    fn flag(&mut self, key: &'static str) -> Result<Option<bool>, String> {
        match self.take(key).as_deref() {
            None => Ok(None),
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(Some(true)),
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(Some(false)),
            Some(other) => Err(format!("{key}={other} is not a boolean; use true or false")),
        }
    }

    fn destination(&mut self) -> Option<Destination> {
        match self.take("dest")?.as_str() {
            "" => None,
            "-" => Some(Destination::Stdout),
            path => Some(Destination::Path(path.into())),
        }
    }

    fn take_prefixed(&mut self, prefix: &str) -> BTreeMap<String, String> {
        let keys: Vec<String> = self
            .values
            .keys()
            .filter(|key| key.starts_with(prefix))
            .cloned()
            .collect();
        keys.into_iter()
            .filter_map(|key| {
                let value = self.values.remove(&key)?;
                Some((key.strip_prefix(prefix)?.to_owned(), value))
            })
            .collect()
    }

    /// Refuses the remaining keys, which are unknown.
    fn finish(self, kind: &str) -> Result<(), String> {
        match self.values.keys().next() {
            None => Ok(()),
            Some(key) => Err(format!(
                "type={kind} does not support the key `{key}`{}",
                suggestion(key, &self.looked_up)
            )),
        }
    }
}

/// Keys are case-insensitive, except the names of annotations.
fn normal(key: &str) -> String {
    let key = key.trim();
    match key.split_once('.') {
        Some((head, rest)) if head.to_ascii_lowercase().starts_with("annotation") => {
            format!("{}.{rest}", head.to_ascii_lowercase())
        }
        Some(_) | None => key.to_ascii_lowercase(),
    }
}

/// `; did you mean …?` if one of `known` is similar.
fn suggestion(word: &str, known: &[&str]) -> String {
    let near = known
        .iter()
        .map(|other| (strsim::osa_distance(word, other), *other))
        .min()
        .filter(|(distance, other)| *distance <= 2 && *distance < other.len());
    match near {
        Some((_, other)) => format!("; did you mean `{other}`?"),
        None => format!("; use one of: {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn spec(text: &str) -> OutputSpec {
        text.parse().unwrap()
    }

    fn local(dest: &str) -> OutputSpec {
        OutputSpec::Local {
            dest: dest.into(),
            rights: LocalRights::default(),
        }
    }

    #[test]
    fn rights_of_a_directory_are_given_on_request_only() {
        let rights = |text: &str| {
            let OutputSpec::Local { rights, .. } = spec(text) else {
                panic!("{text}")
            };
            (rights.devices, rights.setuid)
        };
        assert_eq!(rights("type=local,dest=a"), (false, false));
        assert_eq!(rights("type=local,dest=a,devices=true"), (true, false));
        assert_eq!(
            rights("type=local,dest=a,setuid=1,devices=0"),
            (false, true)
        );
        refused("type=local,dest=a,devices=some", "not a boolean");
        refused("type=tar,dest=a,devices=true", "`devices`");
    }

    #[track_caller]
    fn refused(text: &str, reason: &str) {
        let error = text.parse::<OutputSpec>().unwrap_err();
        assert!(error.reason.contains(reason), "{text}: {}", error.reason);
    }

    #[test]
    fn a_bare_value_is_a_directory_or_standard_output() {
        assert_eq!(spec("out"), local("out"));
        assert_eq!(spec("a=b"), local("a=b"));
        assert_eq!(
            spec("-"),
            OutputSpec::Tar {
                dest: Destination::Stdout
            }
        );
        assert_eq!(
            spec("type=tar"),
            OutputSpec::Tar {
                dest: Destination::Stdout
            }
        );
    }

    #[test]
    fn keys_are_case_insensitive_and_the_last_wins() {
        assert_eq!(spec("type=local, DEST=a,dest=b"), local("b"));
        let OutputSpec::Oci { options, .. } =
            spec("type=oci,annotation.org.Example.Key=V,Annotation-Manifest.x=y")
        else {
            panic!("not oci")
        };
        assert_eq!(options.annotations.get("org.Example.Key").unwrap(), "V");
        assert_eq!(options.annotations.get("x").unwrap(), "y");
    }

    #[test]
    fn image_keys_are_read() {
        let text = r#"type=oci,dest=x.tar,"name=a,b:1",compression=zstd,compression-level=19,force-compression=true"#;
        let options = ImageOptions {
            names: vec!["a".into(), "b:1".into()],
            compression: Compression::Zstd(19),
            ..ImageOptions::default()
        };
        assert_eq!(
            spec(text),
            OutputSpec::Oci {
                dest: Destination::Path("x.tar".into()),
                tar: true,
                options
            }
        );
        assert_eq!(
            spec("type=docker"),
            OutputSpec::Docker {
                dest: None,
                options: ImageOptions::default()
            }
        );
        assert!(spec("type=docker,dest=-").uses_stdout());
        assert!(!spec("type=docker").uses_stdout());
    }

    #[test]
    fn a_typo_is_an_error_with_a_suggestion() {
        refused("type=image,psuh=true", "did you mean `push`?");
        refused("type=oci,compresion=gzip", "did you mean `compression`?");
        refused("type=ocy", "did you mean `oci`?");
        refused("type=oci,compression=gz", "did you mean `gzip`?");
        refused("type=tar,frobnicate=1", "use one of");
        refused(
            "type=tar,compression=gzip",
            "does not support the key `compression`",
        );
    }

    #[test]
    fn contradictions_are_refused() {
        refused("type=local", "requires dest=");
        refused("type=local,dest=-", "standard output");
        refused("type=oci,tar=false", "requires dest=");
        refused("type=oci,tar=maybe", "not a boolean");
        refused(
            "type=oci,compression=zstd,oci-mediatypes=false",
            "requires oci-mediatypes",
        );
        refused("type=docker,compression=zstd", "gzip and uncompressed");
        refused("type=oci,compression-level=12", "from 0 to 9");
        refused(
            "type=oci,compression=zstd,compression-level=-1",
            "from 0 to 22",
        );
        refused("type=oci,name=UPPER", "lower case");
        refused("type=registry", "not supported yet");
        refused("type=image,push=true", "not supported yet");
        refused("dest=x,tar=true", "type is required");
        refused("type=oci,dest", "key=value");
        refused("", "empty");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(type=(oci|docker|tar|local|image)|[a-z=,\".-]){0,12}") {
            drop(text.parse::<OutputSpec>());
        }
    }
}
