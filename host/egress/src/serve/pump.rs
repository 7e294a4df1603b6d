//! One flow and its socket.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, sleep_until, timeout};
use wire::flow::{MAX_FLOW_DATA, Protocol, Refusal};

use super::connection::{Flow, Taken};
use super::{Recording, Step};
use crate::dns::any_port;
use crate::record::Verdict;

/// How long a connection may take to be established.
const DIAL: Duration = Duration::from_secs(30);
/// How long a flow of datagrams lives without any. The guest ends them sooner; this is for those that
/// it forgets.
const IDLE: Duration = Duration::from_secs(180);
/// Bytes that are read from a socket at a time.
const PIECE: usize = MAX_FLOW_DATA as usize;

/// Connects a flow to the first of `to` that answers, and serves it to its end.
pub(super) async fn serve(
    step: &Step,
    flow: Flow,
    protocol: Protocol,
    to: &[SocketAddr],
    mut recording: Recording,
) {
    match protocol {
        Protocol::Tcp => {
            if let Some((flow, socket)) = connect(step, flow, to, &mut recording).await {
                stream(&flow, socket, &mut recording).await;
            }
        }
        Protocol::Udp => match datagram_socket(to).await {
            Ok(socket) if flow.accept() => {
                recording.record.verdict = Verdict::Allowed;
                datagrams(&flow, &socket, &mut recording).await;
            }
            Ok(_) => recording.record.verdict = Verdict::Limit,
            Err(error) => refuse(flow, &error, &mut recording),
        },
    }
}

/// Dials, and tells the guest how that ended. A flow that the guest gives up meanwhile is not dialled
/// any further.
async fn connect(
    step: &Step,
    flow: Flow,
    to: &[SocketAddr],
    recording: &mut Recording,
) -> Option<(Flow, TcpStream)> {
    let dial = async {
        let _place = step.dials.acquire().await;
        dial(to).await
    };
    let dialled = tokio::select! {
        dialled = timeout(DIAL, dial) => dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
        () = flow.gone() => return None,
    };
    match dialled {
        Ok((socket, address)) => {
            recording.record.address = Some(address.ip());
            if !flow.accept() {
                recording.record.verdict = Verdict::Limit;
                return None;
            }
            recording.record.verdict = Verdict::Allowed;
            Some((flow, socket))
        }
        Err(error) => {
            refuse(flow, &error, recording);
            None
        }
    }
}

async fn dial(to: &[SocketAddr]) -> io::Result<(TcpStream, SocketAddr)> {
    let mut failed = io::ErrorKind::HostUnreachable.into();
    for address in to {
        match TcpStream::connect(address).await {
            Ok(socket) => {
                // The step's kernel has done what there is to do about small segments.
                socket.set_nodelay(true)?;
                return Ok((socket, *address));
            }
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn refuse(flow: Flow, error: &io::Error, recording: &mut Recording) {
    let is = |kind| error.kind() == kind;
    let (refusal, verdict) =
        if is(io::ErrorKind::ConnectionRefused) || is(io::ErrorKind::ConnectionReset) {
            (Refusal::Refused, Verdict::Refused)
        } else if is(io::ErrorKind::TimedOut) {
            (Refusal::TimedOut, Verdict::TimedOut)
        } else if matches!(error.raw_os_error(), Some(EMFILE | ENFILE)) {
            log::warn!("a connection of a step is refused: {error}");
            (Refusal::Limit, Verdict::Limit)
        } else {
            (Refusal::Unreachable, Verdict::Unreachable)
        };
    recording.record.verdict = verdict;
    flow.refuse(refusal);
}

/// Too many open files, in this process or on this machine.
const EMFILE: i32 = 24;
const ENFILE: i32 = 23;

/// Passes bytes on in both directions. Each ends by itself; an error ends both.
async fn stream(flow: &Flow, mut socket: TcpStream, recording: &mut Recording) {
    let (mut reader, mut writer) = socket.split();
    let record = &mut recording.record;
    let outward = outward(flow, &mut writer, &mut record.sent);
    let inward = inward(flow, &mut reader, &mut record.received);
    // Either way the flow is dropped next: ended in both directions, or given up.
    if let Err(error) = tokio::try_join!(outward, inward) {
        log::debug!("a connection of a step ended: {error}");
    }
}

async fn outward(flow: &Flow, writer: &mut WriteHalf<'_>, sent: &mut u64) -> io::Result<()> {
    loop {
        match flow.take().await {
            Taken::Data(data) => {
                let mut rest = data.as_slice();
                while !rest.is_empty() {
                    let n = writer.write(rest).await?;
                    *sent += n as u64;
                    flow.consumed(n);
                    rest = rest.get(n..).unwrap_or_default();
                }
            }
            Taken::End => return writer.shutdown().await,
            Taken::Gone => return Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }
}

async fn inward(flow: &Flow, reader: &mut ReadHalf<'_>, received: &mut u64) -> io::Result<()> {
    loop {
        let Some(room) = flow.room().await else {
            return Err(io::ErrorKind::ConnectionAborted.into());
        };
        tokio::select! {
            ready = reader.readable() => ready?,
            () = flow.changed() => continue,
        }
        let received_now = with_scratch(|scratch| {
            let piece = scratch.get_mut(..room.min(PIECE)).unwrap_or_default();
            let n: usize = reader.try_read(piece)?;
            let bytes = piece.get(..n).unwrap_or_default();
            if !bytes.is_empty() && !flow.send(bytes) {
                return Err(io::Error::from(io::ErrorKind::ConnectionAborted));
            }
            Ok(n)
        });
        match received_now {
            Ok(0) => {
                flow.end();
                return Ok(());
            }
            Ok(n) => *received += n as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// One buffer serves all flows of a step: between reading and sending nothing waits.
fn with_scratch<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    thread_local! {
        static SCRATCH: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; PIECE]);
    }
    SCRATCH.with_borrow_mut(|scratch| work(scratch))
}

async fn datagram_socket(to: &[SocketAddr]) -> io::Result<UdpSocket> {
    let to = to.first().ok_or(io::ErrorKind::HostUnreachable)?;
    let socket = UdpSocket::bind(any_port(to.ip())).await?;
    socket.connect(to).await?;
    Ok(socket)
}

/// Passes datagrams on in both directions until the guest ends the flow, nobody uses it, or the other
/// side says that nobody is there.
async fn datagrams(flow: &Flow, socket: &UdpSocket, recording: &mut Recording) {
    let mut idle = Instant::now() + IDLE;
    loop {
        tokio::select! {
            taken = flow.take() => match taken {
                Taken::Data(datagram) => {
                    let sent = socket.send(&datagram).await;
                    flow.consumed(datagram.len());
                    match sent {
                        Ok(n) => recording.record.sent += n as u64,
                        Err(error) if is_fatal(&error) => return,
                        // Too long, or lost on the way: datagrams are.
                        Err(_) => {}
                    }
                }
                Taken::End | Taken::Gone => return,
            },
            // That nobody is there comes as an error, without anything to read.
            ready = socket.ready(Interest::READABLE | Interest::ERROR) => {
                let Ok(ready) = ready else { return };
                if ready.is_error() && is_gone(socket) {
                    return;
                }
                match receive(flow, socket) {
                    Ok(n) => recording.record.received += n as u64,
                    Err(error) if is_fatal(&error) => return,
                    Err(_) => {}
                }
            }
            () = sleep_until(idle) => return,
        }
        idle = Instant::now() + IDLE;
    }
}

fn receive(flow: &Flow, socket: &UdpSocket) -> io::Result<usize> {
    with_scratch(|scratch| {
        let n = socket.try_recv(scratch)?;
        let delivered = flow.send_datagram(scratch.get(..n).unwrap_or_default());
        Ok(if delivered { n } else { 0 })
    })
}

/// Takes the error of a socket, and says whether it is final.
fn is_gone(socket: &UdpSocket) -> bool {
    // Forgets that there was one; the next error is reported again.
    let nothing = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
    drop(socket.try_io(Interest::ERROR, nothing));
    matches!(socket.take_error(), Ok(Some(error)) if is_fatal(&error))
}

fn is_fatal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}
