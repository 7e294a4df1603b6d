//! `cofferdam history inspect`: one build, and what its steps connected to.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;

use ::store::{Build, BuildState, Connection, Connections, Store};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::format::Format;
use crate::exit::Failure;
use crate::output::print;
use crate::sanitize::{self, sanitize};
use crate::size;
use crate::table::{self, Align};

pub(super) fn run(store: &Store, build: &Build, format: Format) -> Result<ExitCode, Failure> {
    let steps = store.connections(build.id).map_err(Failure::host)?;
    print(|out| match format {
        Format::Json => {
            let mut object = super::object(build);
            let left_out: u64 = steps.iter().map(|(_, step)| step.left_out).sum();
            if let Value::Object(fields) = &mut object {
                let connections = steps.iter().flat_map(objects).collect();
                fields.insert("connections".to_owned(), connections);
                fields.insert("connections_left_out".to_owned(), left_out.into());
            }
            writeln!(out, "{}", sanitize::json(&format_args!("{object:#}")))
        }
        Format::Table => text(out, build, &steps),
    })
}

fn objects((step, connections): &(u32, Connections)) -> impl Iterator<Item = Value> {
    connections.list.iter().map(move |connection| {
        json!({
            "step": step,
            "at": Timestamp::from_millisecond(connection.at).ok().map(|at| at.to_string()),
            "milliseconds": connection.took,
            "protocol": connection.protocol,
            "name": connection.name,
            "address": connection.address,
            "port": connection.port,
            "verdict": connection.verdict,
            "reason": connection.reason,
            "sent": connection.sent,
            "received": connection.received,
        })
    })
}

fn text(out: &mut dyn Write, build: &Build, steps: &[(u32, Connections)]) -> io::Result<()> {
    writeln!(
        out,
        "build {}: {}, {}",
        build.id,
        super::name(build),
        super::status(build)
    )?;
    if let BuildState::Ended(_, outcome) = &build.state
        && !outcome.message.is_empty()
    {
        writeln!(out, "{}", sanitize(outcome.message.as_bytes()))?;
    }
    if steps.is_empty() {
        return writeln!(out, "its steps connected to nothing");
    }
    let rows: Vec<_> = steps
        .iter()
        .flat_map(|(step, connections)| connections.list.iter().map(|of| row(*step, of)))
        .collect();
    let columns = [
        ("STEP", Align::Right),
        ("PROTOCOL", Align::Left),
        ("NAME", Align::Left),
        ("ADDRESS", Align::Left),
        ("SENT", Align::Right),
        ("RECEIVED", Align::Right),
        ("VERDICT", Align::Left),
    ];
    writeln!(out)?;
    table::write(out, columns, &rows)?;
    for (step, connections) in steps.iter().filter(|(_, step)| step.left_out > 0) {
        let more = connections.left_out;
        writeln!(
            out,
            "step {step} made {more} more connections that are not recorded"
        )?;
    }
    Ok(())
}

fn row(step: u32, connection: &Connection) -> [String; 7] {
    let address = connection
        .address
        .map(|address| SocketAddr::new(address, connection.port));
    let verdict = match &connection.reason {
        Some(reason) => format!("{}: {}", connection.verdict, sanitize(reason.as_bytes())),
        None => connection.verdict.clone(),
    };
    [
        step.to_string(),
        connection.protocol.clone(),
        sanitize(connection.name.as_deref().unwrap_or_default().as_bytes()),
        address
            .map(|address| address.to_string())
            .unwrap_or_default(),
        size::show(connection.sent),
        size::show(connection.received),
        verdict,
    ]
}
