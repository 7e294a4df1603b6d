//! Selects the entry of an index for the wanted platform.

use crate::manifest::{DescribedPlatform, Descriptor};
use crate::platform::Platform;

/// Why no entry of an index can be selected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoChoice {
    /// None is for the platform, only for these.
    Platform(Vec<String>),
    /// Several do not name a platform.
    Ambiguous(usize),
}

/// Finds the entry for `wanted`: the best variant, else the only one that names no platform. Entries
/// that describe others, such as attestations, do not count.
pub(crate) fn select<'a>(
    entries: &'a [Descriptor],
    wanted: &Platform,
) -> Result<&'a Descriptor, NoChoice> {
    let images: Vec<&Descriptor> = entries
        .iter()
        .filter(|entry| !entry.is_attachment())
        .collect();
    let best = images
        .iter()
        .filter_map(|entry| Some((fit(entry.platform.as_ref()?, wanted)?, *entry)))
        .min_by_key(|(fit, _)| *fit);
    if let Some((_, entry)) = best {
        return Ok(entry);
    }
    let mut silent = images.iter().filter(|entry| entry.platform.is_none());
    match (silent.next(), silent.next()) {
        (Some(only), None) => Ok(only),
        (Some(_), Some(_)) => Err(NoChoice::Ambiguous(images.len())),
        (None, _) => Err(NoChoice::Platform(available(&images))),
    }
}

/// Whether an image whose configuration names this platform runs on `wanted`. One that names
/// none is assumed to.
pub(crate) fn suits(described: &DescribedPlatform, wanted: &Platform) -> bool {
    (described.os.is_empty() && described.architecture.is_empty())
        || fit(described, wanted).is_some()
}

/// How far the described platform is from the wanted one; zero is equal, `None` does not run.
fn fit(described: &DescribedPlatform, wanted: &Platform) -> Option<usize> {
    let platform = normal(described)?;
    if (&platform.os, &platform.architecture) != (&wanted.os, &wanted.architecture) {
        return None;
    }
    // From the oldest to the newest: a processor runs images for older ones.
    let ladder: &[Option<&str>] = match wanted.architecture.as_str() {
        "arm" => &[Some("v5"), Some("v6"), Some("v7"), Some("v8")],
        "amd64" => &[None, Some("v2"), Some("v3"), Some("v4")],
        _ => &[None],
    };
    let position = |variant: Option<&str>| ladder.iter().position(|step| *step == variant);
    match (
        position(platform.variant.as_deref()),
        position(wanted.variant.as_deref()),
    ) {
        (Some(has), Some(wants)) => wants.checked_sub(has),
        // An unknown variant runs on itself, and the base variant on any.
        (Some(0), None) => Some(1),
        (_, _) => (platform.variant == wanted.variant).then_some(0),
    }
}

fn normal(described: &DescribedPlatform) -> Option<Platform> {
    let mut text = format!("{}/{}", described.os, described.architecture);
    if let Some(variant) = described.variant.as_deref().filter(|text| !text.is_empty()) {
        text = format!("{text}/{variant}");
    }
    text.parse().ok()
}

fn available(images: &[&Descriptor]) -> Vec<String> {
    let mut names: Vec<String> = images
        .iter()
        .filter_map(|entry| Some(normal(entry.platform.as_ref()?)?.to_string()))
        .collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(platform: &str) -> Descriptor {
        let mut entry = Descriptor::new("", store::sha256(platform.as_bytes()), 1);
        let mut parts = platform.split('/').map(str::to_owned);
        entry.platform = Some(DescribedPlatform {
            os: parts.next().unwrap_or_default(),
            architecture: parts.next().unwrap_or_default(),
            variant: parts.next(),
            os_version: None,
        });
        entry
    }

    #[track_caller]
    fn check(there: &[&str], wanted: &str, expected: Option<&str>) {
        let entries: Vec<Descriptor> = there.iter().map(|text| entry(text)).collect();
        let chosen = select(&entries, &wanted.parse().unwrap()).ok().cloned();
        assert_eq!(chosen, expected.map(entry));
    }

    #[test]
    fn the_best_fitting_variant_wins() {
        let all = [
            "linux/arm/v6",
            "linux/arm/v7",
            "linux/arm64/v8",
            "linux/amd64",
            "windows/amd64",
        ];
        check(&all, "linux/amd64", Some("linux/amd64"));
        check(&all, "linux/arm64", Some("linux/arm64/v8"));
        check(&all, "linux/arm/v7", Some("linux/arm/v7"));
        check(&all, "linux/arm/v8", Some("linux/arm/v7"));
        check(&all, "linux/arm/v6", Some("linux/arm/v6"));
        check(&all, "linux/arm/v5", None);
        check(&all, "linux/amd64/v3", Some("linux/amd64"));
        check(&["linux/amd64/v3", "linux/amd64/v2"], "linux/amd64", None);
        check(
            &["linux/amd64/v3", "linux/amd64/v2"],
            "linux/amd64/v4",
            Some("linux/amd64/v3"),
        );
        check(&all, "linux/arm64/v9", Some("linux/arm64/v8"));
        check(&all, "linux/riscv64", None);
    }

    #[test]
    fn the_platforms_of_the_index_are_named() {
        let entries = [
            entry("linux/arm64"),
            entry("unknown/unknown"),
            entry("linux/amd64"),
        ];
        assert_eq!(
            select(&entries, &"linux/s390x".parse().unwrap()),
            Err(NoChoice::Platform(vec![
                "linux/amd64".into(),
                "linux/arm64".into()
            ]))
        );
    }

    #[test]
    fn the_only_entry_without_platform_is_taken() {
        let silent = Descriptor::new("", store::sha256(b"x"), 1);
        let wanted = "linux/amd64".parse().unwrap();
        assert_eq!(select(std::slice::from_ref(&silent), &wanted), Ok(&silent));
        assert_eq!(
            select(&[silent.clone(), silent.clone()], &wanted),
            Err(NoChoice::Ambiguous(2))
        );
        assert_eq!(select(&[], &wanted), Err(NoChoice::Platform(vec![])));
    }

    #[test]
    fn a_configuration_without_platform_suits() {
        let wanted = "linux/amd64".parse().unwrap();
        assert!(suits(&DescribedPlatform::default(), &wanted));
        assert!(!suits(
            entry("linux/arm64").platform.as_ref().unwrap(),
            &wanted
        ));
    }
}
