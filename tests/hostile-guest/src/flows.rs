//! Attacks on the network of steps. Here nothing is a packet: the guest talks to the host as the agent
//! does.

use std::fs::File;
use std::io::Write as _;
use std::net::IpAddr;

use vsock_guest::init::{Outcome, set_timeouts};
use wire::flow::{FlowEvent, FlowOpen, FlowTable, MAX_FLOWS, Protocol, Target};
use wire::{Kind, Network, RunStep, frame, message};

use crate::attacks::Said;
use crate::session::{self, Guest};

/// How long the host may take to answer, with all the time that a dial may take.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// The connection of the flows of a step. A step without network was offered none.
fn attach(guest: &Guest, step: &RunStep) -> Outcome<File> {
    let Network::Default { flows } = step.network else {
        return Err("the step has no network".into());
    };
    let file = guest.attach(flows)?;
    set_timeouts(&file.try_clone()?.into(), PATIENCE)?;
    Ok(file)
}

/// Reads `tcp:ADDRESS:PORT` or `udp:ADDRESS:PORT`.
fn parse(text: &str) -> Option<Target> {
    let (protocol, rest) = text.split_once(':')?;
    let (address, port) = rest.rsplit_once(':')?;
    let address: IpAddr = address.trim_matches(['[', ']']).parse().ok()?;
    Some(Target {
        protocol: match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return None,
        },
        address,
        port: port.parse().ok()?,
    })
}

/// Asks for these flows, one after the other, and says how each was answered.
pub(crate) fn open_all(guest: &Guest, step: &RunStep, targets: &[&str]) -> Outcome<Said> {
    let mut file = attach(guest, step)?;
    let mut table = FlowTable::guest(1 << 20);
    let (mut said, mut buf) = (Vec::new(), Vec::new());
    for text in targets {
        let target = parse(text).ok_or_else(|| format!("no target: {text}"))?;
        let (flow, open) = table.open(target)?;
        file.write_all(&open)?;
        said.push(loop {
            let frame = session::next(&file, &mut buf)?.ok_or("the host ended the flows")?;
            match table.handle(&frame)? {
                FlowEvent::Opened { flow: opened } if opened == flow => {
                    break format!("{text} open");
                }
                FlowEvent::Refused { refusal, .. } => break format!("{text} shut ({refusal:?})"),
                FlowEvent::Open { .. }
                | FlowEvent::Opened { .. }
                | FlowEvent::Data { .. }
                | FlowEvent::Credit { .. }
                | FlowEvent::End { .. }
                | FlowEvent::Reset { .. }
                | FlowEvent::Late => {}
            }
        });
        if let Some(reset) = table.reset(flow) {
            file.write_all(&reset)?;
        }
    }
    Ok(Said::text(said.join("\n")))
}

/// Breaks a rule of flows. The host ends the VM for it.
pub(crate) fn break_rule(guest: &Guest, step: &RunStep, rule: &str) -> Outcome<Said> {
    let mut file = attach(guest, step)?;
    let target = Target {
        protocol: Protocol::Tcp,
        address: [192, 0, 2, 1].into(),
        port: 9,
    };
    let window = 64 << 10;
    let open = |flow| message::encode(flow, &FlowOpen { target, window });
    match rule {
        "reuse" => file.write_all(&open(1)?.repeat(2))?,
        "backwards" => file.write_all(&[open(9)?, open(3)?].concat())?,
        "unknown" => file.write_all(&frame::encode(Kind::FlowData, 0, 77, 0, b"data")?)?,
        "early" => {
            let data = frame::encode(Kind::FlowData, 0, 1, 0, b"data")?;
            file.write_all(&[open(1)?, data].concat())?;
        }
        "flood" => {
            for flow in 1..=MAX_FLOWS as u64 * 4 {
                file.write_all(&open(flow)?)?;
            }
        }
        "misplaced" => file.write_all(&frame::encode(Kind::Ping, 0, 1, 0, &[])?)?,
        "garbage" => file.write_all(&[0xff; 4096])?,
        other => return Err(format!("no such rule: {other}").into()),
    }
    let mut buf = Vec::new();
    while session::next(&file, &mut buf)?.is_some() {}
    Ok(Said::text("the host ended the flows"))
}
