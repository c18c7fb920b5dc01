//! The end of a turn sends what the connections have that became dirty in it: small buffers of all of them
//! together, large ones straight to their sockets. What a socket does not take, and whatever else is to be
//! done, is left to the connection's task.

use std::{
    cell::{Ref, RefMut},
    task::Waker,
};

use super::Worker;
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
    waker: Waker,
    socket: Socket,
    /// It runs without being woken: a receive is pending, or it has given way.
    comes_back: bool,
}

impl<H: Handler> Worker<H> {
    /// The task of connection `id` is to be woken by `waker`, and sends through `socket`.
    pub(super) fn register(&self, id: ConnectionId, waker: &Waker, socket: &Socket) {
        let mut connections = self.connections.borrow_mut();
        if connections.len() <= id.index() {
            connections.resize_with(id.index() + 1, || None);
        }
        let task = ConnectionTask { waker: waker.clone(), socket: socket.clone(), comes_back: false };
        connections[id.index()] = Some(task);
    }

    /// Whether the task of connection `id` runs without being woken.
    pub(super) fn note_comes_back(&self, id: ConnectionId, comes_back: bool) {
        if let Some(Some(task)) = self.connections.borrow_mut().get_mut(id.index()) {
            task.comes_back = comes_back;
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
        let mut sends = self.sends.borrow_mut();
        while let Some(id) = round.shard.poll_dirty() {
            round.send(id, &mut sends);
            if sends.is_full() {
                round.finish(&mut sends);
            }
        }
        round.finish(&mut sends);
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
    /// Sends what connection `id` has, or queues it in `sends` if it is little.
    fn send(&mut self, id: ConnectionId, sends: &mut SocketRing<ConnectionId>) {
        let mut bytes_left = TURN_SEND_BYTES_MAX;
        while bytes_left > 0 {
            let Some(Some(task)) = self.connections.get(id.index()) else { return };
            let Some(buffer) = self.shard.poll_buffer(id) else { break };
            let bytes = buffer.len();
            if bytes < DIRECT_SEND_BYTES_MIN {
                return sends.push(id, &task.socket, buffer);
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

    fn finish(&mut self, sends: &mut SocketRing<ConnectionId>) {
        for (id, buffer, result) in sends.send_all() {
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
