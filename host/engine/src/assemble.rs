//! Assembles a new image from layers in the store.
//!
//! The law: no clock is read. Times come from the layers, which keep the time of their first creation,
//! so a build whose steps are all cached gives the same image to the byte.

use std::collections::BTreeMap;

use jiff::Timestamp;
use oci::{
    Descriptor, HistoryItem, ImageConfig, ImageConfigFile, Manifest, Platform, RootFs,
    media_type::{CONFIG, LAYER, MANIFEST},
};
use store::{DiffId, Digest, Layer, Store, StoreError};

use crate::pull::BaseImage;

/// Comment of our history entries. Tools recognise it, and show them like those of other builders.
const COMMENT: &str = "buildkit.dockerfile.v0";

/// Why an image cannot be assembled.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// Another process removed a layer of the image.
    #[error("layer {0} is no longer in the store; build again")]
    LayerGone(DiffId),
    /// A document cannot be written.
    #[error("cannot write the image as JSON")]
    Json(#[source] serde_json::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One instruction of the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The instruction as it is shown, such as `RUN /bin/sh -c make # buildkit`.
    pub created_by: String,
    /// Its layer; none if it changed only the configuration.
    pub layer: Option<Layer>,
}

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assembled {
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Digest of its configuration.
    pub config: Digest,
    /// Its layers, lowest first.
    pub layers: Vec<DiffId>,
}

/// Writes configuration and manifest of an image: the base, if any, with `history` on top. `epoch`
/// is the latest time that new entries may have, in seconds since 1970.
///
/// # Errors
/// See [`AssembleError`].
pub fn assemble(
    store: &Store,
    base: Option<&BaseImage>,
    config: &ImageConfig,
    author: Option<&str>,
    platform: &Platform,
    history: &[HistoryEntry],
    epoch: Option<i64>,
) -> Result<Assembled, AssembleError> {
    let file = config_file(base, config, author, platform, history, epoch);
    let layers = file.rootfs.diff_ids.clone();
    let bytes = to_json(&file)?;
    let config = store.put_blob(&bytes, "config")?;
    let manifest = Manifest {
        schema_version: 2,
        media_type: MANIFEST.to_owned(),
        config: Descriptor::new(CONFIG, config, bytes.len() as u64),
        layers: layers
            .iter()
            .map(|layer| describe(store, *layer))
            .collect::<Result<_, _>>()?,
        annotations: BTreeMap::new(),
    };
    let manifest = store.put_blob(&to_json(&manifest)?, "manifest")?;
    Ok(Assembled {
        manifest,
        config,
        layers,
    })
}

fn config_file(
    base: Option<&BaseImage>,
    config: &ImageConfig,
    author: Option<&str>,
    platform: &Platform,
    history: &[HistoryEntry],
    epoch: Option<i64>,
) -> ImageConfigFile {
    let mut layers = base.map_or_else(Vec::new, |base| base.layers.clone());
    let new = history.iter().filter_map(|entry| entry.layer.as_ref());
    layers.extend(new.map(|layer| layer.diff_id));
    let items = items(base, history, epoch);
    ImageConfigFile {
        architecture: platform.architecture.clone(),
        author: author.map(str::to_owned),
        config: config.clone(),
        created: created(base, &items),
        history: items,
        os: platform.os.clone(),
        os_version: base.and_then(|base| base.config.os_version.clone()),
        rootfs: RootFs {
            diff_ids: layers,
            ..RootFs::default()
        },
        variant: platform.variant.clone(),
    }
}

fn describe(store: &Store, layer: DiffId) -> Result<Descriptor, AssembleError> {
    let found = store.layer(layer)?.ok_or(AssembleError::LayerGone(layer))?;
    Ok(Descriptor::new(LAYER, layer.digest(), found.size))
}

fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>, AssembleError> {
    serde_json::to_vec(value).map_err(AssembleError::Json)
}

/// The base's history, then ours. Entries without a time of their own take that of the first new
/// layer, or of the newest one below them.
fn items(
    base: Option<&BaseImage>,
    history: &[HistoryEntry],
    epoch: Option<i64>,
) -> Vec<HistoryItem> {
    let clamp = |time: i64| epoch.map_or(time, |epoch| time.min(epoch));
    let mut items = base.map_or_else(Vec::new, inherited);
    let layer_time = |entry: &HistoryEntry| entry.layer.as_ref().map(|layer| layer.created);
    let inherited_time = || {
        let stated = base.and_then(|base| base.config.created.as_deref());
        stated.and_then(|text| Some(text.parse::<Timestamp>().ok()?.as_second()))
    };
    let first = history.iter().find_map(layer_time);
    let mut time = first.or_else(inherited_time).unwrap_or(0);
    for entry in history {
        time = layer_time(entry).unwrap_or(time);
        items.push(HistoryItem {
            created: Some(rfc3339(clamp(time))),
            created_by: entry.created_by.clone(),
            author: String::new(),
            comment: COMMENT.to_owned(),
            empty_layer: entry.layer.is_none(),
        });
    }
    items
}

/// The time of the newest entry.
fn created(base: Option<&BaseImage>, items: &[HistoryItem]) -> Option<String> {
    let newest = items.last().and_then(|item| item.created.clone());
    newest.or_else(|| base.and_then(|base| base.config.created.clone()))
}

/// The base's history, made to agree with its layers: some tools write none, or too little.
fn inherited(base: &BaseImage) -> Vec<HistoryItem> {
    let stated = &base.config.history;
    let layers = stated.iter().filter(|item| !item.empty_layer).count();
    let Some(lacking) = base.layers.len().checked_sub(layers) else {
        return filler(base, base.layers.len());
    };
    let mut items = stated.clone();
    items.extend(filler(base, lacking));
    items
}

fn filler(base: &BaseImage, count: usize) -> Vec<HistoryItem> {
    let item = HistoryItem {
        created: base.config.created.clone(),
        comment: "layer without history".to_owned(),
        ..HistoryItem::default()
    };
    vec![item; count]
}

/// Seconds since 1970 as text. Times that cannot be written are the epoch itself.
fn rfc3339(seconds: i64) -> String {
    Timestamp::from_second(seconds)
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .to_string()
}

#[cfg(test)]
mod tests {
    use store::ContentId;

    use super::*;

    fn layer(name: &str, created: i64) -> Layer {
        let digest = store::sha256(name.as_bytes());
        Layer {
            diff_id: digest.into(),
            content_id: ContentId(digest),
            size: 1024,
            entries: 1,
            created,
        }
    }

    fn entry(layer: Option<Layer>) -> HistoryEntry {
        HistoryEntry {
            created_by: "X".into(),
            layer,
        }
    }

    fn base(history: Vec<HistoryItem>, layers: usize) -> BaseImage {
        BaseImage {
            name: "base".into(),
            manifest_digest: store::sha256(b""),
            config: ImageConfigFile {
                created: Some("2001-01-01T00:00:00Z".into()),
                history,
                ..ImageConfigFile::default()
            },
            layers: vec![store::sha256(b"").into(); layers],
        }
    }

    #[track_caller]
    fn check(
        base: Option<&BaseImage>,
        history: &[HistoryEntry],
        epoch: Option<i64>,
        times: &[&str],
    ) {
        let items = items(base, history, epoch);
        let found: Vec<&str> = items
            .iter()
            .filter_map(|item| item.created.as_deref())
            .collect();
        assert_eq!(found, times);
    }

    #[test]
    fn entries_without_a_layer_take_the_time_of_the_first_or_previous_one() {
        let history = [
            entry(None),
            entry(Some(layer("a", 100))),
            entry(None),
            entry(Some(layer("b", 200))),
            entry(None),
        ];
        let (a, b) = ("1970-01-01T00:01:40Z", "1970-01-01T00:03:20Z");
        check(None, &history, None, &[a, a, a, b, b]);
        check(
            None,
            &history,
            Some(150),
            &[a, a, a, "1970-01-01T00:02:30Z", "1970-01-01T00:02:30Z"],
        );
    }

    #[test]
    fn without_new_layers_the_base_says_the_time() {
        check(
            Some(&base(vec![], 0)),
            &[entry(None)],
            None,
            &["2001-01-01T00:00:00Z"],
        );
        check(None, &[entry(None)], None, &["1970-01-01T00:00:00Z"]);
    }

    #[test]
    fn the_base_keeps_its_times_whatever_the_epoch() {
        let item = HistoryItem {
            created: Some("2001-01-01T00:00:00Z".into()),
            ..HistoryItem::default()
        };
        check(
            Some(&base(vec![item], 1)),
            &[entry(None)],
            Some(5),
            &["2001-01-01T00:00:00Z", "1970-01-01T00:00:05Z"],
        );
    }

    #[test]
    fn history_agrees_with_the_layers_even_if_the_base_does_not() {
        let full = |count| {
            let items = inherited(&base(vec![HistoryItem::default(); 2], count));
            items.iter().filter(|item| !item.empty_layer).count()
        };
        assert_eq!(full(2), 2);
        assert_eq!(full(5), 5);
        assert_eq!(full(1), 1);
    }
}
