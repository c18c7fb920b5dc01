//! The end of a turn sends what the connections have that became dirty in it: small buffers of all of them
//! together, large ones straight to their sockets; the next receives of active connections begin behind them.
//! What a socket does not take, and whatever else is to be done, is left to the connection's task.

use std::{
    cell::{Ref, RefMut},
    task::Waker,
};

use super::{Worker, receiving::RingReceive};
use crate::{
    buffer::SendBuffer,
    os::{Socket, SocketRing},
    shard::{ConnectionId, Handler, Shard},
};

/// Buffers from this size on go straight to the socket: a ring is slower for them.
pub(super) const DIRECT_SEND_BYTES_MIN: usize = 8 * 1024;
/// Bytes that a connection sends straight to its socket in one turn before the others get theirs: a handler
/// that sends more whenever there is room would never come to an end.
pub(super) const TURN_SEND_BYTES_MAX: usize = 1024 * 1024;
/// What one send counts for at least: sends are to have an end, however little each of them takes along.
pub(super) const SEND_BYTES_MIN: usize = 4 * 1024;

/// What the end of a turn has to know of a connection's task.
pub(super) struct ConnectionTask {
    pub(super) waker: Waker,
    pub(super) socket: Socket,
    pub(super) receive: RingReceive,
    /// It need not be woken to receive: a receive or a wait is pending, or it has given way.
    pub(super) comes_back: bool,
    /// It waits for its operations to end.
    pub(super) closing: bool,
}

impl<H: Handler> Worker<H> {
    /// The task of connection `id` is to be woken by `waker`, and sends through `socket`.
    pub(super) fn register(&self, id: ConnectionId, waker: &Waker, socket: &Socket) {
        let mut connections = self.connections.borrow_mut();
        if connections.len() <= id.index() {
            connections.resize_with(id.index() + 1, || None);
        }
        connections[id.index()] = Some(ConnectionTask {
            waker: waker.clone(),
            socket: socket.clone(),
            receive: RingReceive::Idle,
            comes_back: false,
            closing: false,
        });
    }

    /// Whether the task of connection `id` need not be woken to receive.
    pub(super) fn note_comes_back(&self, id: ConnectionId, comes_back: bool) {
        if let Some(Some(task)) = self.connections.borrow_mut().get_mut(id.index()) {
            task.comes_back = comes_back;
        }
    }

    /// The task of connection `id` is about to end.
    pub(super) fn note_closing(&self, id: ConnectionId) {
        if let Some(Some(task)) = self.connections.borrow_mut().get_mut(id.index()) {
            task.closing = true;
        }
    }

    pub(super) fn unregister(&self, id: ConnectionId) {
        if let Some(task) = self.connections.borrow_mut().get_mut(id.index()) {
            *task = None;
        }
    }

    pub(super) fn send_dirty(&self) -> Effects {
        let mut round = Round {
            worker: self,
            shard: self.shard.borrow_mut(),
            connections: self.connections.borrow(),
            effects: Effects::default(),
        };
        let mut sockets = self.sockets.borrow_mut();
        while let Some(id) = round.shard.poll_dirty() {
            round.send(id, &mut sockets);
            if sockets.is_full() {
                round.finish(&mut sockets);
            }
        }
        // Also where nothing is to be sent: receives may be waiting.
        round.finish(&mut sockets);
        round.effects
    }
}

/// What sending has brought about.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// A task was woken that does not wait for the driver.
    pub(super) woke: bool,
    /// The handler was called.
    pub(super) called: bool,
}

/// One look at those who became dirty.
struct Round<'a, H: Handler> {
    worker: &'a Worker<H>,
    shard: RefMut<'a, Shard<H>>,
    connections: Ref<'a, Vec<Option<ConnectionTask>>>,
    effects: Effects,
}

impl<H: Handler> Round<'_, H> {
    /// Sends what connection `id` has, or queues it in `sockets` if it is little.
    fn send(&mut self, id: ConnectionId, sockets: &mut SocketRing<ConnectionId>) {
        let mut bytes_left = TURN_SEND_BYTES_MAX;
        while bytes_left > 0 {
            let Some(Some(task)) = self.connections.get(id.index()) else { return };
            let Some(buffer) = self.shard.poll_buffer(id) else { break };
            let bytes = buffer.len();
            if bytes < DIRECT_SEND_BYTES_MIN {
                return sockets.push_send(id, &task.socket, buffer);
            }
            let sent = send_straight(&mut self.shard, id, &task.socket, buffer);
            self.effects.called |= sent.called;
            if !sent.took_all {
                break;
            }
            bytes_left = bytes_left.saturating_sub(bytes);
        }
        self.wake_if_needed(id, bytes_left == 0);
    }

    fn finish(&mut self, sockets: &mut SocketRing<ConnectionId>) {
        for (id, buffer, result) in sockets.carry_out() {
            self.effects.called |= self.shard.handle_send_result(id, buffer, result);
            self.wake_if_needed(id, false);
        }
    }

    fn wake_if_needed(&mut self, id: ConnectionId, had_its_share: bool) {
        let Some(Some(task)) = self.connections.get(id.index()) else { return };
        let is_needed = self.shard.wants_transport(id, task.comes_back);
        // At the end there are no turns to wait for any more.
        if is_needed && (self.worker.is_busy() || had_its_share && !self.worker.ended.get()) {
            self.worker.turns.wait(&task.waker);
        } else if is_needed {
            self.effects.woke = true;
            task.waker.wake_by_ref();
        }
    }
}

/// What became of a buffer that went straight to its socket.
pub(super) struct Sent {
    pub(super) took_all: bool,
    /// The handler was called.
    pub(super) called: bool,
}

pub(super) fn send_straight<H: Handler>(
    shard: &mut Shard<H>,
    id: ConnectionId,
    socket: &Socket,
    buffer: SendBuffer,
) -> Sent {
    let bytes = buffer.len();
    let result = socket.try_send(buffer.unsent());
    let took_all = result.as_ref().is_ok_and(|sent| *sent == bytes);
    Sent { took_all, called: shard.handle_send_result(id, buffer, result) }
}
