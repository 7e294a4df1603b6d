//! The requests that the host sends to a guest, each to its end.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, ScopedJoinHandle};
use std::time::Instant;

use egress::Egress;
use exec::{Cancel, Output};
use store::Connections;
use wire::{Exit, LayerName, Network, Reply, Request, RunStep, Stat};

use super::Session;
use super::connection::GuestConnection;
use super::error::{Lost, SessionError};
use super::flows::{Flows, SharedOutput};
use super::output::OutputClock;
use super::reply::{Pending, Waited};
use super::shared::lock;
use super::transfer::{ExpectedTransfer, ReceiveError, SendError, send_all};

/// A step that was requested.
#[derive(Debug)]
struct Running {
    number: u64,
    pending: Pending,
    clock: OutputClock,
    /// The step never began, so there is no output to wait for.
    refused: AtomicBool,
}

/// Ends the flows of a step.
struct EndOnDrop<'a, 'b>(Option<&'a Flows<'b>>);

impl Drop for EndOnDrop<'_, '_> {
    fn drop(&mut self) {
        if let Some(flows) = self.0 {
            flows.end();
        }
    }
}

/// What a thread that serves the network of a step comes to.
fn joined(
    thread: std::io::Result<ScopedJoinHandle<'_, Result<Connections, SessionError>>>,
) -> Result<Connections, SessionError> {
    let what = "cannot serve the network of a step";
    let thread = thread.map_err(|err| SessionError::host(what, err))?;
    let panicked = |_| Err(SessionError::host(what, "a thread panicked"));
    thread.join().unwrap_or_else(panicked)
}

impl Session {
    /// The guest's disk and memory usage.
    pub(crate) fn stat(&self) -> Result<Stat, SessionError> {
        let reply = self
            .ask(&Request::Stat)?
            .wait_or_lose("report its disk and memory usage", self.limits().short)?;
        let Reply::Stat(stat) = reply else {
            return Err(self.unexpected("Stat", &reply));
        };
        Ok(stat)
    }

    /// Deletes committed layers.
    pub(crate) fn remove(&self, layers: Vec<LayerName>) -> Result<(), SessionError> {
        let pending = self.ask(&Request::Remove { layers })?;
        let reply = pending.wait_or_lose("remove layers", self.limits().files)?;
        self.expect_done("Remove", &reply)
    }

    /// Deletes all that is left of a step, and kills it if it runs.
    pub(crate) fn discard(&self, step: u64) -> Result<(), SessionError> {
        let pending = self.ask(&Request::Discard { step })?;
        let reply = pending.wait_or_lose("remove a step", self.limits().files)?;
        self.expect_done("Discard", &reply)
    }

    /// Keeps the changes of a step as a committed layer.
    pub(crate) fn commit(&self, step: u64, layer: LayerName) -> Result<(), SessionError> {
        let pending = self.ask(&Request::Commit { step, layer })?;
        let reply = pending.wait_or_lose("commit a layer", self.limits().files)?;
        self.expect_done("Commit", &reply)
    }

    /// Sends a layer of `size` bytes, which the guest unpacks and commits.
    pub(crate) fn import(
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
        let opened = expected.wait(Some(cancel), || pending.has_arrived())?;
        if let Some(connection) = opened {
            let watch = self.shared.watch(&connection, Some(cancel), None);
            let stall = self.limits().stall;
            let sent = send_all(&connection, expected.id, source, size, &watch, stall);
            drop(watch);
            self.check_sent(sent, &pending, cancel)?;
        }
        // It has everything except what it buffers; what is left to do is the same for any layer.
        let limit = self.limits().files;
        match pending.wait(Some(cancel), Some(limit))? {
            Waited::Reply(Reply::Failed(failure)) => Err(SessionError::Refused(failure)),
            Waited::Reply(reply) => {
                self.expect_done("Import", &reply)?;
                self.stats().imported.count(size, begin.elapsed());
                Ok(())
            }
            Waited::Cancelled => Err(SessionError::Cancelled),
            Waited::TimeUp => Err(pending.too_late("commit a layer that it received", limit)),
        }
    }

    /// Finds out why a layer could not be sent.
    fn check_sent(
        &self,
        sent: Result<(), SendError>,
        pending: &Pending,
        cancel: &Cancel,
    ) -> Result<(), SessionError> {
        match sent {
            Ok(()) => Ok(()),
            Err(SendError::Source(err)) => Err(SessionError::host("cannot read a layer", err)),
            Err(SendError::Connection(_)) if cancel.is_cancelled() => Err(SessionError::Cancelled),
            // The guest gave up; the reply says why.
            Err(SendError::Connection(err)) => {
                pending.wait_or_lose("report why it rejected a layer", self.limits().short)?;
                Err(self
                    .shared
                    .violation(&format!("it confirmed a layer that was cut off ({err})")))
            }
        }
    }

    /// Runs a step to its end. Its output is complete when this returns, and nothing of it is connected
    /// any more. It has network access if `egress` is given.
    ///
    /// A cancel kills the step; a guest that does not manage that in time is lost.
    pub(crate) fn run(
        &self,
        mut step: RunStep,
        egress: Option<&Egress>,
        output: &mut dyn Output,
        cancel: &Cancel,
    ) -> Result<Exit, SessionError> {
        let expected = self.shared.expect();
        let flows = egress.map(|egress| Flows::new(egress, self.shared.expect()));
        let number = step.step;
        step.output = expected.id;
        step.network = match &flows {
            Some(flows) => Network::Default { flows: flows.id() },
            None => Network::None,
        };
        let pending = self.ask(&Request::Run(step))?;
        let running = Running {
            number,
            pending,
            clock: OutputClock::new(self.shared.clock.clone()),
            refused: AtomicBool::new(false),
        };
        let shown = Mutex::new(output);
        let (exit, connections) = thread::scope(|scope| {
            let network = flows.as_ref().map(|flows| {
                let serve = || self.serve_flows(flows, &shown);
                let thread = thread::Builder::new().name("flows-in".into());
                thread.spawn_scoped(scope, serve)
            });
            // They end however this scope is left.
            let over = EndOnDrop(flows.as_ref());
            let exit = self.run_with_output(&running, &expected, &shown, cancel, over);
            (exit, network.map_or(Ok(Connections::default()), joined))
        });
        let (connections, network) = match connections {
            Ok(connections) => (connections, Ok(())),
            Err(err) => (Connections::default(), Err(err)),
        };
        if !connections.is_empty() {
            lock(&shown).connections(connections);
        }
        let exit = exit?;
        network.map(|()| exit)
    }

    /// Waits for the end of a step, and passes on its output meanwhile.
    fn run_with_output(
        &self,
        running: &Running,
        expected: &ExpectedTransfer,
        output: &SharedOutput<'_>,
        cancel: &Cancel,
        network: EndOnDrop<'_, '_>,
    ) -> Result<Exit, SessionError> {
        let Running {
            number,
            pending,
            clock,
            refused,
        } = running;
        thread::scope(|scope| {
            let pump = thread::Builder::new()
                .name("output".into())
                .spawn_scoped(scope, || {
                    let needless = || pending.has_arrived() || refused.load(Ordering::Acquire);
                    self.pump_expected(expected, needless, output, clock)
                });
            let pump = pump.map_err(|err| {
                self.lose(Lost::Connection(std::io::Error::other("no thread")));
                SessionError::host("cannot start a thread", err)
            })?;
            let exit = self.wait_for_exit(*number, pending, clock, cancel);
            refused.store(exit.is_err(), Ordering::Release);
            drop(network);
            self.wait_for_output(clock, || pump.is_finished());
            let pumped = pump.join().unwrap_or_else(|_| {
                let what = "cannot show the output of a step";
                Err(SessionError::host(what, "a thread panicked").into())
            });
            // A step that never began, or was killed, may have incomplete output; its own failure is
            // the one that matters.
            let exit = exit?;
            match pumped {
                Ok(()) => Ok(exit),
                Err(ReceiveError::Session(err)) => Err(err),
                Err(ReceiveError::Cut(how)) => Err(self.shared.violation(&how)),
            }
        })
    }

    /// Passes on the output of a step, if the guest opens its transfer before it becomes `needless`.
    fn pump_expected(
        &self,
        expected: &ExpectedTransfer,
        needless: impl Fn() -> bool,
        output: &SharedOutput<'_>,
        clock: &OutputClock,
    ) -> Result<(), ReceiveError> {
        match expected.wait(None, needless)? {
            Some(connection) => self.pump(&connection, expected.id, output, clock),
            None => Ok(()),
        }
    }

    fn wait_for_exit(
        &self,
        step: u64,
        pending: &Pending,
        clock: &OutputClock,
        cancel: &Cancel,
    ) -> Result<Exit, SessionError> {
        match pending.wait(Some(cancel), None)? {
            Waited::Reply(reply) => self.exited(reply),
            Waited::Cancelled | Waited::TimeUp => {
                self.ask(&Request::Cancel { step })?;
                // Whatever the guest says about a killed step, it was cancelled.
                let (guest_time, limit) = (|| clock.guest_time(), self.limits().kill);
                match pending.wait_or_lose_by(&guest_time, "kill a step", limit) {
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
            Reply::Done | Reply::Exported { .. } | Reply::Stat(_) => {
                Err(self.unexpected("Run", &reply))
            }
        }
    }

    /// Receives the changes of a step that exited, as a layer tar of at most `most` bytes, and
    /// returns its length. The guest refuses to send more; that it does not is for `out` to see.
    /// Only then may the bytes in `out` be used.
    pub(crate) fn export_diff(
        &self,
        step: u64,
        most: u64,
        out: &mut dyn Write,
        cancel: &Cancel,
    ) -> Result<u64, SessionError> {
        let begin = Instant::now();
        let expected = self.shared.expect();
        let pending = self.ask(&Request::ExportDiff {
            step,
            transfer: expected.id,
            most,
        })?;
        let Some(connection) = expected.wait(Some(cancel), || pending.has_arrived())? else {
            let reply = pending.wait_or_lose("send a layer", self.limits().short)?;
            return Err(self.unexpected("ExportDiff", &reply));
        };
        let received = self.receive_diff(&connection, expected.id, &pending, out, cancel)?;
        let reply = pending.wait_or_lose("confirm what it sent", self.limits().short)?;
        let Reply::Exported { size } = reply else {
            return Err(self.unexpected("ExportDiff", &reply));
        };
        if size != received {
            let differ = format!("it sent a layer of {received} bytes and says {size}");
            return Err(self.shared.violation(&differ));
        }
        self.stats().exported.count(received, begin.elapsed());
        Ok(received)
    }

    fn receive_diff(
        &self,
        connection: &Arc<dyn GuestConnection>,
        id: u64,
        pending: &Pending,
        out: &mut dyn Write,
        cancel: &Cancel,
    ) -> Result<u64, SessionError> {
        let stall = self.limits().stall;
        let received =
            self.shared
                .receive_all(connection, id, Some(cancel), Some(stall), |_, bytes| {
                    out.write_all(bytes)
                        .map_err(|err| SessionError::host("cannot store a layer", err))
                });
        match received {
            Ok(received) => Ok(received),
            Err(ReceiveError::Session(err)) => {
                connection.reset();
                Err(err)
            }
            // The guest gave up; the reply says why.
            Err(ReceiveError::Cut(how)) => {
                pending
                    .wait_or_lose("report why it stopped sending a layer", self.limits().short)?;
                Err(self.shared.violation(&how))
            }
        }
    }

    fn expect_done(&self, request: &str, reply: &Reply) -> Result<(), SessionError> {
        if *reply == Reply::Done {
            Ok(())
        } else {
            Err(self.unexpected(request, reply))
        }
    }

    /// A reply that does not answer its request: the guest is lost.
    fn unexpected(&self, request: &str, reply: &Reply) -> SessionError {
        let reply = match reply {
            Reply::Done => "Done",
            Reply::Exited(_) => "Exited",
            Reply::Exported { .. } => "Exported",
            Reply::Stat(_) => "Stat",
            Reply::Failed(_) => "Failed",
        };
        self.shared
            .violation(&format!("the reply to {request} is {reply}"))
    }
}
