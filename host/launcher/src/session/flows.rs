//! The network of a step: its connection of flows, from the guest's attach to the end of the step.
//!
//! The law: the flows end with the step. Nothing of it is connected to anything once its request has
//! been answered, whatever the guest does.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use egress::{Egress, Record, Records, ServeError, Verdict};
use exec::{Output, Stream};
use store::{Connection, Connections};

use super::Session;
use super::connection::GuestConnection;
use super::error::SessionError;
use super::shared::lock;
use super::transfer::ExpectedTransfer;

/// The output of a step, to which its network adds what was denied.
pub(super) type SharedOutput<'a> = Mutex<&'a mut dyn Output>;

/// The flows of one step.
#[derive(Debug)]
pub(super) struct Flows<'a> {
    egress: &'a Egress,
    expected: ExpectedTransfer,
    attached: Mutex<Option<Arc<dyn GuestConnection>>>,
    over: AtomicBool,
}

impl<'a> Flows<'a> {
    pub(super) fn new(egress: &'a Egress, expected: ExpectedTransfer) -> Self {
        Self {
            egress,
            expected,
            attached: Mutex::default(),
            over: AtomicBool::new(false),
        }
    }

    /// The transfer number under which the guest attaches.
    pub(super) fn id(&self) -> u64 {
        self.expected.id
    }

    /// The step has ended: so do its flows.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
        if let Some(connection) = &*lock(&self.attached) {
            connection.reset();
        }
    }
}

impl Session {
    /// Serves the flows of a step until [`Flows::end`], or until the guest closes them.
    pub(super) fn serve_flows(
        &self,
        flows: &Flows<'_>,
        output: &SharedOutput<'_>,
    ) -> Result<Connections, SessionError> {
        let over = || flows.over.load(Ordering::Acquire);
        let Some(connection) = flows.expected.wait(None, over)? else {
            return Ok(Connections::default());
        };
        // Reset when the guest is lost.
        let _watch = self.shared.watch(&connection, None, None);
        *lock(&flows.attached) = Some(Arc::clone(&connection));
        if over() {
            connection.reset();
        }
        let notice = |text: &str| {
            let line = format!("[network] {text}\n");
            lock(output).write(Stream::Stderr, line.as_bytes());
        };
        let (records, served) = flows.egress.serve(&FlowStream(connection), &notice);
        match served {
            Ok(()) => Ok(recorded(records)),
            Err(ServeError::Guest(broken)) => Err(self.shared.violation(&broken)),
            Err(ServeError::Host(err)) => Err(SessionError::host(
                "cannot serve the network of a step",
                err,
            )),
        }
    }
}

/// A connection of the guest, as flows need it.
#[derive(Debug)]
struct FlowStream(Arc<dyn GuestConnection>);

impl egress::Stream for FlowStream {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }

    fn send(&self, data: Vec<u8>) -> io::Result<()> {
        self.0.send(data)
    }

    fn reset(&self) {
        self.0.reset();
    }
}

fn recorded(records: Records) -> Connections {
    Connections {
        list: records.connections.into_iter().map(connection).collect(),
        left_out: records.left_out,
    }
}

fn connection(record: Record) -> Connection {
    let (verdict, reason) = match record.verdict {
        Verdict::Allowed => ("allowed", None),
        Verdict::Denied(why) => ("denied", Some(why.to_string())),
        Verdict::Refused => ("refused", None),
        Verdict::Unreachable => ("unreachable", None),
        Verdict::TimedOut => ("timed out", None),
        Verdict::Limit => ("too many", None),
        Verdict::Abandoned => ("abandoned", None),
    };
    let since = record.began.duration_since(UNIX_EPOCH);
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Connection {
        at: milliseconds(since.unwrap_or_default()).cast_signed(),
        took: milliseconds(record.took),
        protocol: record.protocol.to_string(),
        name: record.name,
        address: record.address,
        port: record.port,
        verdict: verdict.to_owned(),
        reason,
        sent: record.sent,
        received: record.received,
    }
}
