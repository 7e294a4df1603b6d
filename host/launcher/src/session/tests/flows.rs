//! The network of a step, from the session's side: its connection, its end, and what it tells.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener};
use std::os::unix::net::UnixStream;

use egress::{Egress, Policy};
use store::Connections;
use wire::flow::{FlowEvent, FlowTable, GATEWAYS, Protocol, Refusal, Target};

use super::*;

/// The number under which the guest attaches the flows of a `Run` request.
fn flows_of(request: &Request) -> u64 {
    if let Request::Run(step) = request
        && let Network::Default { flows } = step.network
    {
        return flows;
    }
    panic!("{request:?}")
}

#[derive(Default)]
struct Seen {
    text: String,
    connections: Vec<Connections>,
}

impl Output for Seen {
    fn write(&mut self, _: Stream, data: &[u8]) {
        self.text.push_str(&String::from_utf8_lossy(data));
    }

    fn connections(&mut self, connections: Connections) {
        self.connections.push(connections);
    }
}

fn egress(rules: &[String]) -> Egress {
    Egress::new(Policy {
        rules: rules.iter().map(|rule| rule.parse().unwrap()).collect(),
        ..Policy::default()
    })
}

/// Opens a flow and returns how that ended.
fn open(table: &mut FlowTable, wire: &mut UnixStream, to: (IpAddr, u16)) -> Result<u64, Refusal> {
    let target = Target {
        protocol: Protocol::Tcp,
        address: to.0,
        port: to.1,
    };
    let (flow, frame) = table.open(target).unwrap();
    wire.write_all(&frame).unwrap();
    let mut buf = Vec::new();
    let frame = frame::read(&mut buf, |buf| wire.read(buf))
        .unwrap()
        .unwrap();
    let event = table.handle(&frame).unwrap();
    if let FlowEvent::Refused { refusal, .. } = event {
        return Err(refusal);
    }
    assert_eq!(event, FlowEvent::Opened { flow });
    Ok(flow)
}

#[test]
fn a_step_has_its_flows_until_it_ends_and_tells_what_they_were() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let rules = [format!("localhost:{port}")];
    let (session, script) = with(move |mut guest| {
        let (id, request) = guest.request().unwrap();
        let mut flows = guest.attach(flows_of(&request), NONCE);
        let mut table = FlowTable::guest(1 << 20);
        let gateway = GATEWAYS.0.into();
        open(&mut table, &mut flows, (gateway, port)).unwrap();
        let denied = open(&mut table, &mut flows, (gateway, 1));
        assert_eq!(denied, Err(Refusal::Denied));
        guest.send(output_of(&request), &[(0, b"out\n")]);
        guest.reply(id, &Reply::Exited(EXIT));
        // The host ends the flows, not the guest.
        assert!(matches!(flows.read(&mut [0; 64]), Ok(0) | Err(_)));
        guest
    });
    let (egress, mut seen) = (egress(&rules), Seen::default());
    let exit = session.run(step(1), Some(&egress), &mut seen, &Cancel::new());
    assert_eq!(exit.unwrap(), EXIT);
    let (mut accepted, _) = listener.accept().unwrap();
    assert_eq!(
        accepted.read(&mut [0; 1]).unwrap(),
        0,
        "the connection is over"
    );
    assert!(seen.text.contains("out\n"), "{}", seen.text);
    assert!(
        seen.text
            .contains("[network] the connection to 127.0.0.1:1 "),
        "{}",
        seen.text
    );
    let [connections] = &seen.connections[..] else {
        panic!("{:?}", seen.connections)
    };
    let verdicts: Vec<_> = connections
        .list
        .iter()
        .map(|c| c.verdict.as_str())
        .collect();
    assert_eq!(verdicts, ["denied", "allowed"]);
    drop(script.join().unwrap());
}

#[test]
fn a_guest_that_breaks_the_rules_of_flows_is_lost() {
    let (session, script) = with(|mut guest| {
        let (_, request) = guest.request().unwrap();
        let mut flows = guest.attach(flows_of(&request), NONCE);
        flows.write_all(&[0x55; 64]).unwrap();
        guest
    });
    let (egress, mut seen) = (egress(&[]), Seen::default());
    let lost = session.run(step(1), Some(&egress), &mut seen, &Cancel::new());
    check_lost(lost, "not a frame");
    drop(script.join().unwrap());
}

#[test]
fn a_step_that_is_cancelled_or_never_begins_leaves_no_flows() {
    for attaches in [true, false] {
        let (session, script) = with(move |mut guest| {
            let (id, request) = guest.request().unwrap();
            let flows = attaches.then(|| guest.attach(flows_of(&request), NONCE));
            let (cancel, _) = guest.request().unwrap();
            guest.reply(id, &Reply::Failed(Failure::new(FailureKind::Cancelled, "")));
            guest.reply(cancel, &Reply::Done);
            if let Some(mut flows) = flows {
                assert!(matches!(flows.read(&mut [0; 64]), Ok(0) | Err(_)));
            }
            guest
        });
        let (egress, mut seen) = (egress(&[]), Seen::default());
        let cancel = Cancel::new();
        cancel.cancel();
        let ended = session.run(step(1), Some(&egress), &mut seen, &cancel);
        assert!(matches!(ended, Err(SessionError::Cancelled)), "{ended:?}");
        drop(script.join().unwrap());
    }
}
