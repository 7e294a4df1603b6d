//! Carries out the requests of the host, one arm for each.

use std::sync::Arc;

use anyhow::Result;
use wire::{Reply, Request};

use crate::control::RequestHandler;
use crate::disk::Disk;
use crate::stat;
use crate::steps::Steps;
use crate::transport::{Incoming, Transfers};

/// Everything that requests act on.
#[derive(Debug)]
pub(crate) struct Guest {
    disk: Arc<Disk>,
    transfers: Arc<Transfers>,
    steps: Steps,
}

impl Guest {
    pub(crate) fn new(disk: Arc<Disk>, transfers: Arc<Transfers>, steps: Steps) -> Self {
        Self {
            disk,
            transfers,
            steps,
        }
    }
}

impl RequestHandler for Guest {
    fn handle(&self, request: Request) -> Result<Reply> {
        let layers = &self.disk.layers;
        let done = match request {
            Request::Import {
                layer,
                transfer,
                size,
            } => self
                .transfers
                .receive(transfer, size)
                .and_then(|tar| layers.import(&layer, tar, Incoming::finish)),
            Request::Remove { layers: names } => layers.remove(&names),
            Request::Run(step) => return self.steps.run(&step).map(Reply::Exited),
            Request::ExportDiff {
                step,
                transfer,
                most,
            } => {
                return self
                    .steps
                    .export_diff(step, transfer, most)
                    .map(|size| Reply::Exported { size });
            }
            Request::Commit { step, layer } => self.steps.commit(step, &layer),
            Request::Discard { step } => self.steps.discard(step),
            Request::Cancel { step } => self.steps.cancel(step),
            Request::Stat => return stat::stat(&self.disk).map(Reply::Stat),
        };
        done.map(|()| Reply::Done)
    }
}
