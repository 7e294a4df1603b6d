//! A flow to the name server.

use std::sync::Arc;

use wire::flow::Protocol;

use super::Step;
use super::connection::{Flow, Taken};
use crate::dns::{Answered, Way, framed, unframed};
use crate::record;

/// Answers the questions of a flow until the guest ends it.
pub(super) async fn serve(step: &Arc<Step>, flow: Flow, protocol: Protocol) {
    if !flow.accept() {
        return;
    }
    let flow = Arc::new(flow);
    match protocol {
        Protocol::Tcp => stream(step, &flow).await,
        Protocol::Udp => datagrams(step, &flow).await,
    }
}

/// Questions that come as datagrams are answered in any order. Beyond a number of them they are
/// dropped, and asked again.
async fn datagrams(step: &Arc<Step>, flow: &Arc<Flow>) {
    while let Taken::Data(question) = flow.take().await {
        flow.consumed(question.len());
        let Ok(place) = Arc::clone(&step.questions).try_acquire_owned() else {
            continue;
        };
        let (step, flow) = (Arc::clone(step), Arc::clone(flow));
        tokio::spawn(async move {
            let answered = step.resolver.answer(&question, Way::Udp).await;
            if let Some(reply) = step.reply(answered) {
                flow.send_datagram(&reply);
            }
            drop(place);
        });
    }
}

/// Questions on a stream are answered one after the other.
async fn stream(step: &Step, flow: &Flow) {
    let mut received = Vec::new();
    while let Taken::Data(data) = flow.take().await {
        received.extend_from_slice(&data);
        while let Some(question) = unframed(&mut received) {
            let answered = step.resolver.answer(&question, Way::Tcp).await;
            let Some(reply) = step.reply(answered) else {
                return;
            };
            let reply = framed(&reply);
            let mut rest = reply.as_slice();
            while !rest.is_empty() {
                let Some(room) = flow.room().await else {
                    return;
                };
                let (piece, after) = rest.split_at(room.min(rest.len()));
                if !flow.send(piece) {
                    return;
                }
                rest = after;
            }
        }
        // Only now may more come, so what waits here is never more than a window.
        flow.consumed(data.len());
    }
    flow.end();
}

impl Step {
    fn reply(&self, answered: Answered) -> Option<Vec<u8>> {
        if let Some(denial) = answered.denial {
            self.deny(&denial, record::Protocol::Dns);
        }
        answered.reply
    }
}
