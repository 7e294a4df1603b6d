//! The images that a build starts from.

use std::collections::BTreeMap;

use oci::http::ClientOptions;
use store::Layer;

use super::error::{BuildError, Class, Location};
use super::explain::BaseLayers;
use super::input::LoadedDockerfile;
use super::shared::{Build, Images};
use crate::event::{Progress, StepId};
use crate::plan::{ImageKey, ImageRequest};
use crate::pull::{self, BaseImage, ImageSource, PullError, PullOptions};

/// Images resolved at the same time: a few are enough, since each pulls its layers in parallel.
const PARALLEL: usize = 4;

/// An image, or why it cannot be used.
type Resolved = Result<(ImageKey, BaseImage), BuildError>;

impl Build<'_> {
    /// Resolves the images that the target needs. The first failure cancels the others.
    pub(super) fn resolve_all(
        &self,
        dockerfile: &LoadedDockerfile,
        wanted: &[ImageRequest],
    ) -> Result<Images, BuildError> {
        let announced = wanted.iter().map(|want| {
            let name = format!("[internal] load image {}", want.key.name);
            (self.tracker.announce(name), want)
        });
        let steps: Vec<(StepId, &ImageRequest)> = announced.collect();
        if let [only] = steps.as_slice() {
            let resolved = self.resolve_step(dockerfile, only)?;
            return Ok(BTreeMap::from([resolved]));
        }
        let mut images = Images::new();
        for some in steps.chunks(PARALLEL) {
            let mut failures = Vec::new();
            for result in self.resolve_together(dockerfile, some) {
                match result {
                    Ok((name, image)) => drop(images.insert(name, image)),
                    Err(err) => failures.push(err),
                }
            }
            // An image that was cancelled is not the cause.
            failures.sort_by_key(|err| err.class() == Class::Cancelled);
            if let Some(failure) = failures.into_iter().next() {
                return Err(failure);
            }
        }
        Ok(images)
    }

    /// Resolves some images at the same time.
    fn resolve_together(
        &self,
        dockerfile: &LoadedDockerfile,
        steps: &[(StepId, &ImageRequest)],
    ) -> Vec<Resolved> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = steps
                .iter()
                .map(|step| scope.spawn(|| self.resolve_step(dockerfile, step)))
                .collect();
            let results = threads.into_iter().map(|thread| thread.join());
            results
                .map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        })
    }

    fn resolve_step(
        &self,
        dockerfile: &LoadedDockerfile,
        (step, want): &(StepId, &ImageRequest),
    ) -> Resolved {
        let resolved = self.tracker.during(*step, || self.resolve(*step, want));
        let image = resolved.map_err(|source| {
            self.cancel.cancel();
            let LoadedDockerfile { file, text, .. } = dockerfile;
            BuildError::Image {
                location: Location::boxed(file, text, want.line, want.line),
                name: want.key.name.clone(),
                stage: want.similar_stage.clone(),
                source: Box::new(source),
            }
        })?;
        Ok((want.key.clone(), image))
    }

    fn resolve(&self, step: StepId, want: &ImageRequest) -> Result<BaseImage, PullError> {
        let named = want.context.as_ref().and_then(|context| {
            self.request
                .named_contexts
                .iter()
                .rev()
                .find(|(name, _)| name == context)
        });
        // Without its base images nothing can be built, so `--allow-net` is not about registries.
        let reach = self.request.reach.unrestricted();
        let (source, reach) = match named {
            None => (ImageSource::Named(want.key.name.clone()), reach),
            // The user names the registry on the command line, and not the Dockerfile.
            Some((_, source)) => (source.clone(), reach.and(source.registry())),
        };
        let progress = |p: Progress| self.tracker.status(step, p.what, p.current, p.total);
        pull::resolve(
            self.store,
            &source,
            &want.key.platform,
            self.request.pull,
            &PullOptions {
                client: ClientOptions::new(reach),
                unpack: self.request.unpack,
            },
            &progress,
            self.cancel,
        )
    }

    /// The layers of the images, as the store describes them.
    pub(super) fn base_layers(&self, images: &Images) -> Result<BaseLayers, BuildError> {
        let mut layers = BTreeMap::new();
        for (key, image) in images {
            let of_image: Result<Vec<Layer>, BuildError> = image
                .layers
                .iter()
                .map(|id| {
                    self.store.layer(*id)?.ok_or_else(|| {
                        BuildError::Store(store::StoreError::Unknown(format!("layer {id}")))
                    })
                })
                .collect();
            layers.insert(key.clone(), of_image?);
        }
        Ok(layers)
    }
}
