//! Files that ADD takes from servers: each is had once in a build, so that all its steps see the same.

use std::collections::HashMap;
use std::sync::{MutexGuard, PoisonError};

use super::{At, Steps};
use crate::copy::{CopyError, CopySource, CopySpec};
use crate::download::{self, Downloads, Fetched, Job, Limits, WebSource};
use crate::event::Progress;
use crate::plan::Op;

impl Steps<'_> {
    /// The files that the sources of a step stand for.
    pub(super) fn downloads(&self, at: &At<'_>, spec: &CopySpec) -> Result<Downloads, CopyError> {
        let mut downloads = Downloads::new(self.store);
        for source in web_sources(spec) {
            let file = self.download(at, source)?;
            downloads.add(source.clone(), file);
        }
        Ok(downloads)
    }

    fn download(&self, at: &At<'_>, source: &WebSource) -> Result<Fetched, CopyError> {
        if let Some(known) = self.fetched().get(source) {
            return Ok(known.clone());
        }
        let progress = |p: Progress| self.tracker.status(at.number, p.what, p.current, p.total);
        let job = Job {
            store: self.store,
            limits: Limits::USUAL,
            progress: &progress,
            cancel: self.cancel,
        };
        let file = match download::fetch(&job, source) {
            Err(download::DownloadError::Cancelled) => return Err(CopyError::Cancelled),
            fetched => fetched?,
        };
        // Two steps may have asked at the same time: what the first was told holds for both.
        let mut fetched = self.fetched();
        Ok(fetched.entry(source.clone()).or_insert(file).clone())
    }

    /// What is new about the files of a step since they were last downloaded.
    pub(super) fn web_news(&self, at: &At<'_>) -> Vec<String> {
        self.of_web(at, |source, file| file.news(&source.address))
    }

    /// How it is known that the files of a step are the same as before.
    pub(super) fn web_hits(&self, at: &At<'_>) -> Vec<String> {
        self.of_web(at, |source, file| Some(file.how(&source.address)))
    }

    fn of_web(
        &self,
        at: &At<'_>,
        tell: impl Fn(&WebSource, &Fetched) -> Option<String>,
    ) -> Vec<String> {
        let Op::Copy(spec) = &at.step.op else {
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
