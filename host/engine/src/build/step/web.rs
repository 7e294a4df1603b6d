//! Files that ADD downloads: each once in a build, so that all its steps see the same.

use std::collections::HashMap;
use std::sync::{MutexGuard, PoisonError};

use exec::StepNetwork;

use super::{StepContext, Steps};
use crate::copy::{CopyError, CopySource, CopySpec};
use crate::download::{self, Downloads, Fetched, Job, Limits, WebSource};
use crate::event::Progress;
use crate::plan::Op;

impl Steps<'_> {
    /// Downloads the web sources of a step.
    pub(super) fn downloads(
        &self,
        step: &StepContext<'_>,
        spec: &CopySpec,
    ) -> Result<Downloads, CopyError> {
        let mut downloads = Downloads::new(self.store);
        for source in web_sources(spec) {
            let file = self.download(step, source)?;
            downloads.add(source.clone(), file);
        }
        Ok(downloads)
    }

    fn download(&self, step: &StepContext<'_>, source: &WebSource) -> Result<Fetched, CopyError> {
        if let Some(known) = self.fetched().get(source) {
            return Ok(known.clone());
        }
        let progress = |p: Progress| self.tracker.status(step.number, p.what, p.current, p.total);
        let job = Job {
            store: self.store,
            limits: Limits::USUAL,
            reach: match self.request.network {
                StepNetwork::Default => Some(&self.request.reach),
                StepNetwork::None => None,
            },
            progress: &progress,
            cancel: self.cancel,
        };
        let file = match download::fetch(&job, source) {
            Err(download::DownloadError::Cancelled) => return Err(CopyError::Cancelled),
            fetched => fetched?,
        };
        // Two steps may have asked at the same time: the first answer holds for both.
        let mut fetched = self.fetched();
        Ok(fetched.entry(source.clone()).or_insert(file).clone())
    }

    /// How the files of a step changed since the last download.
    pub(super) fn web_news(&self, step: &StepContext<'_>) -> Vec<String> {
        self.of_web(step, |source, file| file.news(&source.address))
    }

    /// Why the files of a step count as unchanged.
    pub(super) fn web_hits(&self, step: &StepContext<'_>) -> Vec<String> {
        self.of_web(step, |source, file| Some(file.how(&source.address)))
    }

    fn of_web(
        &self,
        step: &StepContext<'_>,
        tell: impl Fn(&WebSource, &Fetched) -> Option<String>,
    ) -> Vec<String> {
        let Op::Copy(spec) = &step.planned.op else {
            return Vec::new();
        };
        let fetched = self.fetched();
        let told = web_sources(spec).filter_map(|source| tell(source, fetched.get(source)?));
        told.collect()
    }

    fn fetched(&self) -> MutexGuard<'_, HashMap<WebSource, Fetched>> {
        self.fetched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn web_sources(spec: &CopySpec) -> impl Iterator<Item = &WebSource> {
    spec.sources.iter().filter_map(|source| match source {
        CopySource::Web(source) => Some(source),
        CopySource::Path(_) | CopySource::Heredoc { .. } => None,
    })
}
