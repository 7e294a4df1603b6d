//! What the host can ask for, one arm each.

use std::sync::Arc;

use anyhow::Result;
use wire::{Reply, Request};

use crate::control::Verbs;
use crate::disk::Disk;
use crate::stat;
use crate::steps::Steps;
use crate::transport::Transfers;

/// Everything that requests are about.
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

    /// Leaves nothing running and nothing unwritten.
    fn quit(&self) -> Result<()> {
        // A step that does not die must not keep the disk from being written out.
        let killed = self.steps.cancel_all();
        self.disk.detach().and(killed)
    }
}

impl Verbs for Guest {
    fn serve(&self, request: Request) -> Result<Reply> {
        let layers = &self.disk.layers;
        let done = match request {
            Request::List => return layers.list().map(Reply::Layers),
            Request::Import {
                layer,
                transfer,
                size,
            } => self
                .transfers
                .receive(transfer, size)
                .and_then(|tar| layers.put(&layer, tar)),
            Request::Remove { layers: names } => layers.remove(&names),
            Request::Run(step) => return self.steps.run(&step).map(Reply::Exited),
            Request::ExportDiff { step, transfer } => {
                return self
                    .steps
                    .take(step, transfer)
                    .map(|size| Reply::Exported { size });
            }
            Request::Commit { step, layer } => self.steps.seal(step, &layer),
            Request::Discard { step } => self.steps.discard(step),
            Request::Cancel { step } => self.steps.cancel(step),
            Request::Stat => return stat::stat(&self.disk).map(Reply::Stat),
            Request::Quit => self.quit(),
        };
        done.map(|()| Reply::Done)
    }
}
