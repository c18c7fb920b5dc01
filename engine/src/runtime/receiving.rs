//! What the ring has received for connections that exchange small messages: it is fed to the shard as it
//! completes, and the next receive leaves with the sends of the turn. A connection's task is woken where
//! there is more to it.

use std::{io, rc::Rc, time::Duration};

use super::{Worker, sending::DIRECT_SEND_BYTES_MIN};
use crate::{
    buffer::Lease,
    os::{Received, Socket},
    shard::{ConnectionId, Handler, TICK_MILLIS},
};

/// A connection's receive in the ring.
#[derive(Debug, Default)]
pub(super) enum RingReceive {
    /// There is none.
    #[default]
    Idle,
    Pending,
    /// It has completed, and its task is to see to it.
    Completed(Box<(io::Result<usize>, Lease)>),
}

impl<H: Handler> Worker<H> {
    /// Has the ring receive for connection `id` with the end of this turn. Answers whether it will.
    pub(super) fn push_receive(&self, id: ConnectionId, lease: Lease) -> bool {
        let mut connections = self.connections.borrow_mut();
        let Some(Some(task)) = connections.get_mut(id.index()) else { return false };
        let mut sockets = self.sockets.borrow_mut();
        let has_room = sockets.has_room_for_receive();
        if has_room {
            sockets.push_receive(id, &task.socket, lease);
            task.receive = RingReceive::Pending;
        }
        has_room
    }

    /// What the ring left to the task of connection `id`.
    pub(super) fn take_completed(&self, id: ConnectionId) -> Option<(io::Result<usize>, Lease)> {
        let mut connections = self.connections.borrow_mut();
        let task = connections.get_mut(id.index())?.as_mut()?;
        match std::mem::take(&mut task.receive) {
            RingReceive::Completed(completed) => Some(*completed),
            other => {
                task.receive = other;
                None
            }
        }
    }

    /// Whether the ring is to receive for connection `id`, or has, and its task has not seen to it.
    pub(super) fn is_in_ring(&self, id: ConnectionId) -> bool {
        let connections = self.connections.borrow();
        let task = connections.get(id.index()).and_then(Option::as_ref);
        task.is_some_and(|task| !matches!(task.receive, RingReceive::Idle))
    }

    /// Feeds the shard with what the ring has received.
    pub(super) fn handle_completions(&self) {
        let count = self.sockets.borrow_mut().completed_len();
        // What completes meanwhile has its turn next.
        for _ in 0..count {
            let received = self.sockets.borrow_mut().take();
            if let Some(received) = received {
                self.handle_completion(received);
            }
        }
    }

    fn handle_completion(&self, received: Received<ConnectionId>) {
        let Received { tag: id, result, mut lease } = received;
        let mut connections = self.connections.borrow_mut();
        let Some(Some(task)) = connections.get_mut(id.index()) else { return };
        let bytes = match result {
            Ok(bytes) if bytes > 0 && bytes < lease.class().bytes() && !task.closing => bytes,
            result => {
                task.receive = RingReceive::Completed(Box::new((result, lease)));
                return task.waker.wake_by_ref();
            }
        };
        task.receive = RingReceive::Idle;
        let socket = task.socket.clone();
        drop(connections);
        self.handle_received(id, &socket, lease.received(bytes));
        let mut shard = self.shard.borrow_mut();
        let leaves = shard.leave_output(id, DIRECT_SEND_BYTES_MIN);
        let goes_on = leaves && shard.wants_receive(id);
        drop(shard);
        if goes_on && self.push_receive(id, lease) {
            return;
        }
        let mut connections = self.connections.borrow_mut();
        let Some(Some(task)) = connections.get_mut(id.index()) else { return };
        task.comes_back = false;
        if goes_on || !leaves {
            task.waker.wake_by_ref();
        }
    }

    /// Feeds the shard with bytes that were received behind the headroom.
    pub(super) fn handle_received(&self, id: ConnectionId, socket: &Socket, input: &mut [u8]) {
        let mut shard = self.shard.borrow_mut();
        let Some(range) = shard.handle_received(id, input, self.now()) else { return };
        let frame = &input[range];
        match socket.try_send(frame) {
            Ok(sent) => shard.handle_relayed(id, sent, &frame[sent..]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                shard.handle_relayed(id, 0, frame);
            }
            Err(error) => {
                shard.handle_relayed(id, 0, frame);
                shard.handle_transport_error(id, &error.to_string());
            }
        }
    }
}

/// Takes what the ring has received.
pub(super) async fn serve<H: Handler>(worker: Rc<Worker<H>>, watched: Socket) {
    loop {
        if let Err(error) = watched.readable().await {
            tracing::error!(%error, "the ring for receives cannot be waited for");
            monoio::time::sleep(Duration::from_millis(TICK_MILLIS)).await;
        }
        worker.begin_turn();
        worker.handle_completions();
        worker.carry_out();
        // Connections that are left wait for their receives to end.
        if worker.ended.get() && !worker.sockets.borrow().has_receives() {
            return watched.close();
        }
    }
}
