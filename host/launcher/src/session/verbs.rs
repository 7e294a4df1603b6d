//! What can be asked of a guest, each verb to its end.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use exec::{Cancel, Output};
use wire::{Exit, LayerName, Reply, Request, RunStep, Stat};

use super::output::Taking;
use super::reply::{Pending, Waited};
use super::stream::{ReceiveError, SendError, send_all};
use super::{Limits, Lost, Session, SessionError};

impl Session {
    /// The layers that are sealed on the guest disk.
    pub(crate) fn list(&self) -> Result<Vec<LayerName>, SessionError> {
        let reply = self
            .ask(&Request::List)?
            .insist("list its layers", self.limits().short)?;
        let Reply::Layers(layers) = reply else {
            return Err(self.unfitting("List", &reply));
        };
        Ok(layers)
    }

    /// Use of the guest's disk and memory.
    pub(crate) fn stat(&self) -> Result<Stat, SessionError> {
        let reply = self
            .ask(&Request::Stat)?
            .insist("say what it uses", self.limits().short)?;
        let Reply::Stat(stat) = reply else {
            return Err(self.unfitting("Stat", &reply));
        };
        Ok(stat)
    }

    /// Deletes sealed layers.
    pub(crate) fn remove(&self, layers: Vec<LayerName>) -> Result<(), SessionError> {
        let pending = self.ask(&Request::Remove { layers })?;
        self.done(
            "Remove",
            &pending.insist("remove layers", self.limits().remove)?,
        )
    }

    /// Deletes all that is left of a step, and kills it if it runs.
    pub(crate) fn discard(&self, step: u64) -> Result<(), SessionError> {
        let pending = self.ask(&Request::Discard { step })?;
        self.done(
            "Discard",
            &pending.insist("remove a step", self.limits().remove)?,
        )
    }

    /// Keeps the changes of a step as a sealed layer.
    pub(crate) fn seal(&self, step: u64, layer: LayerName) -> Result<(), SessionError> {
        let pending = self.ask(&Request::Commit { step, layer })?;
        self.done(
            "Commit",
            &pending.insist("seal a layer", self.limits().remove)?,
        )
    }

    /// Ends the guest in order: it has synced and unmounted its disk when this returns.
    pub(crate) fn quit(&self, limit: Duration) -> Result<(), SessionError> {
        self.shared.quitting.store(true, Ordering::Release);
        let pending = self.ask(&Request::Quit)?;
        self.done("Quit", &pending.insist("power off", limit)?)?;
        self.lose(Lost::Ended);
        Ok(())
    }

    /// Sends a layer, which the guest unpacks and seals.
    pub(crate) fn put(
        &self,
        layer: LayerName,
        size: u64,
        source: &mut dyn Read,
        cancel: &Cancel,
    ) -> Result<(), SessionError> {
        let begin = Instant::now();
        let expected = self.shared.expect();
        let pending = self.ask(&Request::Import {
            layer,
            transfer: expected.id,
            size,
        })?;
        let opened = expected.wait(Some(cancel), || pending.has_come())?;
        if let Some(link) = opened {
            let watch = self.shared.watch(&link, Some(cancel), None);
            let stall = self.limits().stall;
            let sent = send_all(&link, expected.id, source, size, &watch, stall);
            drop(watch);
            self.settle_put(sent, &pending, cancel)?;
        }
        // It has all but what it buffers; what is left to do is as much as for any layer.
        let limit = self.limits().remove;
        match pending.wait(Some(cancel), Some(limit))? {
            Waited::Answer(Reply::Failed(failure)) => Err(SessionError::Refused(failure)),
            Waited::Answer(reply) => {
                self.done("Import", &reply)?;
                self.moved().put.count(size, begin.elapsed());
                Ok(())
            }
            Waited::Cancelled => Err(SessionError::Cancelled),
            Waited::TimeUp => Err(pending.late("seal a layer that it has", limit)),
        }
    }

    /// Finds out why a layer could not be sent.
    fn settle_put(
        &self,
        sent: Result<(), SendError>,
        pending: &Pending,
        cancel: &Cancel,
    ) -> Result<(), SessionError> {
        match sent {
            Ok(()) => Ok(()),
            Err(SendError::Source(err)) => Err(SessionError::host("cannot read a layer", err)),
            Err(SendError::Link(_)) if cancel.is_cancelled() => Err(SessionError::Cancelled),
            // The guest gave up; the reply says why.
            Err(SendError::Link(err)) => {
                pending.insist("say why it refuses a layer", self.limits().short)?;
                Err(self.shared.broken(&format!(
                    "a layer counts as received that was cut off ({err})"
                )))
            }
        }
    }

    /// Runs a step to its end. Its output is complete when this returns.
    ///
    /// A cancel kills the step; a guest that does not manage that in time is lost.
    pub(crate) fn run(
        &self,
        mut step: RunStep,
        output: &mut dyn Output,
        cancel: &Cancel,
    ) -> Result<Exit, SessionError> {
        let expected = self.shared.expect();
        let number = step.step;
        step.output = expected.id;
        let pending = self.ask(&Request::Run(step))?;
        let taking = Taking::new(self.shared.clock.clone());
        // The step never began, so its output need not be waited for.
        let refused = AtomicBool::new(false);
        thread::scope(|scope| {
            let pump = thread::Builder::new()
                .name("output".into())
                .spawn_scoped(scope, || {
                    let needless = || pending.has_come() || refused.load(Ordering::Acquire);
                    let Some(link) = expected.wait(None, needless)? else {
                        return Ok(());
                    };
                    self.pump(&link, expected.id, output, &taking)
                });
            let pump = pump.map_err(|err| {
                self.lose(Lost::Connection(std::io::Error::other("no thread")));
                SessionError::host("cannot start a thread", err)
            })?;
            let exit = self.wait_for_exit(number, &pending, &taking, cancel);
            refused.store(exit.is_err(), Ordering::Release);
            self.wait_for_output(&taking, || pump.is_finished());
            let pumped = pump.join().unwrap_or_else(|_| {
                Err(
                    SessionError::host("cannot show the output of a step", "a thread panicked")
                        .into(),
                )
            });
            // A step that never began, or was killed, may have no whole output; its own failure is
            // the one that matters.
            let exit = exit?;
            match pumped {
                Ok(()) => Ok(exit),
                Err(ReceiveError::Session(err)) => Err(err),
                Err(ReceiveError::Cut(how)) => Err(self.shared.broken(&how)),
            }
        })
    }

    fn wait_for_exit(
        &self,
        step: u64,
        pending: &Pending,
        taking: &Taking,
        cancel: &Cancel,
    ) -> Result<Exit, SessionError> {
        match pending.wait(Some(cancel), None)? {
            Waited::Answer(reply) => self.exited(reply),
            Waited::Cancelled | Waited::TimeUp => {
                self.ask(&Request::Cancel { step })?;
                // Whatever the guest says of a killed step, it was cancelled.
                let (guests_time, limit) = (|| taking.guests_time(), self.limits().kill);
                match pending.insist_by(&guests_time, "kill a step", limit) {
                    Err(lost @ SessionError::Lost(_)) => Err(lost),
                    Ok(_) | Err(_) => Err(SessionError::Cancelled),
                }
            }
        }
    }

    fn exited(&self, reply: Reply) -> Result<Exit, SessionError> {
        match reply {
            Reply::Exited(exit) => Ok(exit),
            Reply::Failed(failure) => Err(SessionError::Refused(failure)),
            Reply::Done | Reply::Layers(_) | Reply::Exported { .. } | Reply::Stat(_) => {
                Err(self.unfitting("Run", &reply))
            }
        }
    }

    /// Receives the changes of a step that exited, as a layer tar, and returns its length. Only
    /// then are the bytes in `out` worth anything.
    pub(crate) fn take(
        &self,
        step: u64,
        out: &mut dyn Write,
        cancel: &Cancel,
    ) -> Result<u64, SessionError> {
        let begin = Instant::now();
        let expected = self.shared.expect();
        let pending = self.ask(&Request::ExportDiff {
            step,
            transfer: expected.id,
        })?;
        let Some(link) = expected.wait(Some(cancel), || pending.has_come())? else {
            let reply = pending.insist("send a layer", self.limits().short)?;
            return Err(self.unfitting("ExportDiff", &reply));
        };
        let stall = self.limits().stall;
        let received =
            self.shared
                .receive_all(&link, expected.id, Some(cancel), Some(stall), |_, bytes| {
                    out.write_all(bytes)
                        .map_err(|err| SessionError::host("cannot store a layer", err))
                });
        let received = match received {
            Ok(received) => received,
            Err(ReceiveError::Session(err)) => {
                link.reset();
                return Err(err);
            }
            // The guest gave up; the reply says why.
            Err(ReceiveError::Cut(how)) => {
                pending.insist("say why it gave up a layer", self.limits().short)?;
                return Err(self.shared.broken(&how));
            }
        };
        let reply = pending.insist("confirm what it sent", self.limits().short)?;
        let Reply::Exported { size } = reply else {
            return Err(self.unfitting("ExportDiff", &reply));
        };
        if size != received {
            let differ = format!("it sent a layer of {received} bytes and says {size}");
            return Err(self.shared.broken(&differ));
        }
        self.moved().taken.count(received, begin.elapsed());
        Ok(received)
    }

    fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    fn done(&self, request: &str, reply: &Reply) -> Result<(), SessionError> {
        if *reply == Reply::Done {
            Ok(())
        } else {
            Err(self.unfitting(request, reply))
        }
    }

    fn unfitting(&self, request: &str, reply: &Reply) -> SessionError {
        let reply = match reply {
            Reply::Done => "Done",
            Reply::Layers(_) => "Layers",
            Reply::Exited(_) => "Exited",
            Reply::Exported { .. } => "Exported",
            Reply::Stat(_) => "Stat",
            Reply::Failed(_) => "Failed",
        };
        self.shared
            .broken(&format!("the reply to {request} is {reply}"))
    }
}
