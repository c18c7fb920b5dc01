//! Accepting connections: readiness of the listener, then as many `accept` calls as a turn may take.

use std::{io, rc::Rc, time::Duration};

use super::{Worker, connection::serve};
use crate::{
    os::{Direction, Listener, Socket},
    shard::Handler,
};

/// Connections accepted in one turn before the others get theirs.
const BATCH_MAX: usize = 64;
/// Batches accepted when the worker stops: as many connections as wait in a backlog by default. A flood is
/// not to hold the stop up.
const LAST_BATCHES_MAX: usize = 4096 / BATCH_MAX;
/// How long accepting rests when descriptors or memory have run out.
const BACK_OFF: Duration = Duration::from_millis(50);

/// Accepts until the worker stops.
pub(super) async fn accept<H: Handler>(worker: Rc<Worker<H>>, listener: Rc<Listener>, watched: Socket) {
    while !worker.stopping.get() {
        if let Err(error) = watched.readable().await {
            tracing::error!(%error, "the listener is broken");
            return;
        }
        worker.begin_turn();
        match accept_waiting(&worker, &listener) {
            Turn::Done => {}
            Turn::Full => {
                worker.turns.give_way().await;
                worker.begin_turn();
            }
            Turn::Exhausted => monoio::time::sleep(BACK_OFF).await,
        }
    }
}

/// Accepts who is waiting when the worker stops: nobody has a turn to wait for any more.
pub(super) fn accept_last<H: Handler>(worker: &Rc<Worker<H>>, listener: &Listener) {
    for _ in 0..LAST_BATCHES_MAX {
        if !matches!(accept_waiting(worker, listener), Turn::Full) {
            return;
        }
    }
}

/// How a turn of accepting ended.
enum Turn {
    /// Nobody waits.
    Done,
    /// More may wait, but the others are due.
    Full,
    /// Descriptors or memory have run out.
    Exhausted,
}

/// Accepts who is waiting, up to a batch.
fn accept_waiting<H: Handler>(worker: &Rc<Worker<H>>, listener: &Listener) -> Turn {
    for _ in 0..BATCH_MAX {
        let (descriptor, peer_address) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => return Turn::Done,
                // The peer gave up while it waited.
                io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::Interrupted
                | io::ErrorKind::NotConnected => continue,
                // accept(2): EINVAL, the socket is not listening any more.
                io::ErrorKind::InvalidInput => return Turn::Done,
                _ => {
                    worker.counters.accept_errors.add(1);
                    tracing::warn!(%error, "accept failed, resting");
                    return Turn::Exhausted;
                }
            },
        };
        let socket = match Socket::new(descriptor) {
            Ok(socket) => socket,
            Err(error) => {
                worker.counters.accept_errors.add(1);
                tracing::warn!(%error, "a connection could not be registered");
                return Turn::Exhausted;
            }
        };
        if let Err(error) = socket.set_no_delay() {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        let accepted = worker.shard.borrow_mut().handle_accepted(peer_address, worker.now());
        match accepted {
            Ok(id) => drop(monoio::spawn(serve(Rc::clone(worker), socket, id))),
            Err(answer) => {
                // Overload: one attempt, and the connection is gone. What it has sent is taken, or closing
                // would throw the answer away (RFC 9112 section 9.6).
                let _ = socket.try_send(&answer);
                socket.shut(Direction::Send);
                let _ = socket.try_receive(&mut worker.scratch.borrow_mut());
            }
        }
    }
    Turn::Full
}
