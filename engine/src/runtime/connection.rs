//! The task of one connection: what it receives is fed to the shard, and what the end of a turn could not
//! send is sent.
//!
//! Two ways of receiving. A connection that is quiet, or that moves bulk, waits for readiness, holds no
//! buffer and receives into the scratch buffer of its core. One that exchanges small messages keeps a receive
//! into a leased buffer pending in the ring, and its task sees only what is out of the ordinary (see
//! `receiving`). What little a receive has brought about is left to the end of the turn; more, or what is
//! above the high mark, is sent straight away, before the next receive makes it grow.
//!
//! Invariant: the socket is closed only when neither direction has an operation in flight.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker},
};

use pin_project_lite::pin_project;

use super::{
    Worker,
    sending::{DIRECT_SEND_BYTES_MIN, SEND_BYTES_MIN, TURN_SEND_BYTES_MAX, send_straight},
};
use crate::{
    buffer::{BufferClass, HEADROOM_BYTES, Lease, SendBuffer},
    connection::{Output, Phase, Timestamp},
    os::{Direction, ECANCELED, Readiness, Socket},
    protocol::UpgradeRequest,
    shard::{Connection, ConnectionId, Handler, Message, Upgrade},
};

/// Receives in a row, none of them long ago, after which a connection is active.
const ACTIVE_RECEIVES: u8 = 4;
/// A pause of this length ends such a row.
const ACTIVE_PAUSE_MILLIS: u64 = 500;
/// Small receives in a row after which a bulk connection is one of small messages again.
const SMALL_RECEIVES: u8 = 8;
/// Receives that a connection makes in one turn before the others get theirs.
const TURN_RECEIVES_MAX: u8 = 16;
/// What a receive of bulk counts for.
const BULK_RECEIVE_WEIGHT: u8 = 4;

/// Serves one connection to its end.
///
/// Its future is what every connection carries, so it borrows what it can and stores nothing twice: an `async
/// fn` would keep its arguments beside the variables they are moved into.
pub(super) fn serve<H: Handler>(
    worker: Rc<Worker<H>>,
    socket: Socket,
    id: ConnectionId,
) -> impl Future<Output = ()> {
    let guard = worker.begin_task();
    let mut task = Task {
        reception: Reception::Quiet { receives: 0 },
        last_receive: Timestamp::default(),
        is_registered: false,
        closing: false,
        worker,
        socket,
        id,
    };
    async move {
        let mut receiving = pin!(Receiving::Idle);
        let mut sending = pin!(Sending::Idle);
        poll_fn(|context| {
            task.begin(context.waker());
            let mut received = 0;
            let mut send_bytes_left = TURN_SEND_BYTES_MAX;
            // What there is when the task begins is sent; only what a receive brings about is left.
            let mut sends_now = true;
            loop {
                if let Some((ready, buffer)) = sending.as_mut().poll_ready(context) {
                    task.handle_writable(ready, buffer);
                    sends_now = true;
                }
                // Asked while a send waits as well: a stalled one is ended by closing.
                if sends_now && let Some(buffer) = task.send(&mut send_bytes_left) {
                    debug_assert!(sending.is_idle(), "one send at a time");
                    sending.set(Sending::Waiting { operation: task.socket.writable(), buffer: Some(buffer) });
                    continue;
                }
                if receiving.is_idle() && !task.is_in_ring() && task.wants_receive() {
                    if received >= TURN_RECEIVES_MAX {
                        return task.give_way(context.waker());
                    }
                    if !task.receives_through_ring() {
                        let operation = task.socket.readiness(Readiness::Certain);
                        receiving.set(Receiving::Readiness { operation, readiness: Readiness::Certain });
                    }
                }
                match task.take_completed().or_else(|| receiving.as_mut().poll_ready(context)) {
                    Some(arrival) => {
                        task.handle_arrival(arrival);
                        sends_now = !task.leaves_output();
                        let is_bulk = matches!(task.reception, Reception::Bulk { .. });
                        received += if is_bulk { BULK_RECEIVE_WEIGHT } else { 1 };
                        if send_bytes_left == 0 {
                            return task.give_way(context.waker());
                        }
                    }
                    None if !task.worker.on_io_uring && receiving.is_certain() => {
                        // The flag is cleared: what sets it again is worth a receive without asking.
                        let operation = task.socket.readiness(Readiness::Likely);
                        receiving.set(Receiving::Readiness { operation, readiness: Readiness::Likely });
                    }
                    None if task.is_done(receiving.is_idle() && sending.is_idle()) => {
                        return Poll::Ready(());
                    }
                    // A handler that has more to send whenever there is room is heard all the same.
                    None if send_bytes_left == 0 => return task.give_way(context.waker()),
                    None => {
                        task.note_comes_back(!receiving.is_idle() || task.is_in_ring());
                        return Poll::Pending;
                    }
                }
            }
        })
        .await;
        task.end();
        drop(guard);
    }
}

/// What a receive brought.
enum Arrival {
    /// Bytes may be there to be received.
    Readable(io::Result<()>),
    /// Bytes have been received into the lease.
    Received(io::Result<usize>, Lease),
}

pin_project! {
    /// The wait for something to receive, where the ring does not receive.
    #[project = ReceivingProjection]
    enum Receiving<P> {
        Idle,
        Readiness { #[pin] operation: P, readiness: Readiness },
    }
}

impl<P> Receiving<P>
where
    P: Future<Output = io::Result<()>>,
{
    fn is_idle(&self) -> bool {
        matches!(self, Self::Idle)
    }

    fn is_certain(&self) -> bool {
        matches!(self, Self::Readiness { readiness: Readiness::Certain, .. })
    }

    fn poll_ready(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Option<Arrival> {
        let ReceivingProjection::Readiness { operation, .. } = self.as_mut().project() else { return None };
        let Poll::Ready(ready) = operation.poll(context) else { return None };
        self.set(Self::Idle);
        Some(Arrival::Readable(ready))
    }
}

pin_project! {
    /// What the socket had no room for.
    #[project = SendingProjection]
    enum Sending<P> {
        Idle,
        Waiting { #[pin] operation: P, buffer: Option<SendBuffer> },
    }
}

impl<P> Sending<P>
where
    P: Future<Output = io::Result<()>>,
{
    fn is_idle(&self) -> bool {
        matches!(self, Self::Idle)
    }

    fn poll_ready(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Option<(io::Result<()>, SendBuffer)> {
        let SendingProjection::Waiting { operation, buffer } = self.as_mut().project() else { return None };
        let Poll::Ready(ready) = operation.poll(context) else { return None };
        let buffer = buffer.take();
        self.set(Self::Idle);
        buffer.map(|buffer| (ready, buffer))
    }
}

/// How a connection receives at present.
#[derive(Clone, Copy, Debug)]
enum Reception {
    /// By readiness; `receives` have followed each other closely.
    Quiet { receives: u8 },
    /// Through the ring, into a leased buffer.
    Active(BufferClass),
    /// By readiness, because much arrives at once; `small` receives in a row did not.
    Bulk { small: u8 },
}

// In two copies in what every connection carries: its task.
const _: () = assert!(size_of::<SendBuffer>() <= 40);
// Whatever the handler is: it has its place in the worker.
const _: () = assert!(returned_bytes(serve::<Nobody>) <= 352, "what every connection carries");

const fn returned_bytes<F>(_: fn(Rc<Worker<Nobody>>, Socket, ConnectionId) -> F) -> usize {
    size_of::<F>()
}

/// A handler to name the task by.
struct Nobody;

impl Handler for Nobody {
    type Session = ();

    fn on_upgrade(&mut self, _: &UpgradeRequest<'_>) -> Upgrade<()> {
        Upgrade::reject(404, "nobody")
    }

    fn on_message(&mut self, _: &mut Connection<'_, ()>, _: Message<'_>) {}
}

struct Task<H: Handler> {
    reception: Reception,
    last_receive: Timestamp,
    is_registered: bool,
    closing: bool,
    worker: Rc<Worker<H>>,
    socket: Socket,
    id: ConnectionId,
}

impl<H: Handler> Task<H> {
    fn wants_receive(&self) -> bool {
        !self.closing && self.worker.shard.borrow().wants_receive(self.id)
    }

    /// Has the ring receive, if it is to and a buffer can be had; answers whether it will.
    fn receives_through_ring(&mut self) -> bool {
        let Reception::Active(class) = self.reception else { return false };
        let lease = self.worker.leases.lease(class);
        let is_in_ring = lease.is_some_and(|lease| self.worker.push_receive(self.id, lease));
        if !is_in_ring {
            self.reception = Reception::Quiet { receives: 0 };
        }
        is_in_ring
    }

    fn is_in_ring(&self) -> bool {
        matches!(self.reception, Reception::Active(_)) && self.worker.is_in_ring(self.id)
    }

    /// What the ring has received, where it is left to this task.
    fn take_completed(&self) -> Option<Arrival> {
        let Reception::Active(_) = self.reception else { return None };
        let (result, lease) = self.worker.take_completed(self.id)?;
        Some(Arrival::Received(result, lease))
    }

    /// Whether the task has nothing left to wait for, if its own operations have ended.
    fn is_done(&self, has_ended: bool) -> bool {
        self.closing && has_ended && !self.is_in_ring()
    }

    fn handle_arrival(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Readable(Ok(())) => self.receive_into_scratch(),
            Arrival::Received(Ok(received), mut lease) => {
                self.handle_received(received, lease.received(received));
                self.adapt(received, lease.class().bytes());
            }
            // The buffer was wanted back because nothing came.
            Arrival::Received(Err(error), _) if error.raw_os_error() == Some(ECANCELED) => {
                self.reception = Reception::Quiet { receives: 0 };
                self.worker.shard.borrow_mut().shrink_connection(self.id);
            }
            Arrival::Readable(Err(error)) | Arrival::Received(Err(error), _)
                if error.kind() == io::ErrorKind::Interrupted => {}
            Arrival::Readable(Err(error)) | Arrival::Received(Err(error), _) => self.fail(&error),
        }
    }

    fn receive_into_scratch(&mut self) {
        let worker = Rc::clone(&self.worker);
        let mut scratch = worker.scratch.borrow_mut();
        let capacity = scratch.len() - HEADROOM_BYTES;
        match self.socket.try_receive(&mut scratch[HEADROOM_BYTES..]) {
            Ok(received) => {
                self.handle_received(received, &mut scratch[..HEADROOM_BYTES + received]);
                self.adapt(received, capacity);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.fail(&error),
        }
    }

    fn handle_received(&mut self, received: usize, input: &mut [u8]) {
        if self.closing {
            return;
        }
        if received == 0 {
            self.send_left();
            self.worker.shard.borrow_mut().handle_end_of_stream(self.id);
        } else {
            self.worker.handle_received(self.id, &self.socket, input);
        }
        self.worker.carry_out();
    }

    /// Chooses how to receive next by what the last receive brought.
    fn adapt(&mut self, received: usize, capacity: usize) {
        let now = self.worker.now();
        let pause = now.since(self.last_receive);
        self.last_receive = now;
        let rests = pause.as_millis() as u64 > ACTIVE_PAUSE_MILLIS;
        self.reception = match self.reception {
            Reception::Quiet { .. } if received > BufferClass::Large.bytes() => Reception::Bulk { small: 0 },
            Reception::Quiet { .. } if rests => Reception::Quiet { receives: 1 },
            Reception::Quiet { receives } if receives + 1 < ACTIVE_RECEIVES => {
                Reception::Quiet { receives: receives + 1 }
            }
            Reception::Quiet { .. } if self.can_ride_ring() => Reception::Active(BufferClass::Small),
            Reception::Active(BufferClass::Small) if received == capacity => {
                Reception::Active(BufferClass::Large)
            }
            Reception::Active(BufferClass::Large) if received == capacity => Reception::Bulk { small: 0 },
            Reception::Bulk { small } if received < BufferClass::Small.bytes() => {
                if small + 1 < SMALL_RECEIVES {
                    Reception::Bulk { small: small + 1 }
                } else {
                    Reception::Quiet { receives: 0 }
                }
            }
            Reception::Bulk { .. } => Reception::Bulk { small: 0 },
            unchanged => unchanged,
        };
    }

    fn can_ride_ring(&self) -> bool {
        self.worker.sockets.borrow().has_room_for_receive()
    }

    /// Sends what the socket takes, up to a turn's worth; answers with what has to be waited for.
    fn send(&mut self, bytes_left: &mut usize) -> Option<SendBuffer> {
        while *bytes_left > 0 {
            if self.closing {
                return None;
            }
            let output = self.worker.shard.borrow_mut().poll_output(self.id);
            match output {
                Output::Idle => return None,
                Output::Shutdown => self.socket.shut(Direction::Send),
                Output::Close => {
                    self.closing = true;
                    self.worker.note_closing(self.id);
                    // Operations in flight end, and `serve` waits for them.
                    self.socket.shut(Direction::Both);
                }
                Output::Send(buffer) => match self.socket.try_send(buffer.unsent()) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some(buffer),
                    result => {
                        let sent = result.as_ref().copied().unwrap_or(0);
                        *bytes_left = bytes_left.saturating_sub(sent.max(SEND_BYTES_MIN));
                        self.handle_sent(result, buffer);
                    }
                },
            }
        }
        None
    }

    /// There is room for what waited. Of one that was cut off meanwhile nothing leaves any more.
    fn handle_writable(&mut self, ready: io::Result<()>, buffer: SendBuffer) {
        let shard = self.worker.shard.borrow();
        let is_over = shard.endpoint(self.id).is_none_or(|endpoint| endpoint.phase() == Phase::Closed);
        drop(shard);
        let result = ready.and_then(|()| if is_over { Ok(0) } else { self.socket.try_send(buffer.unsent()) });
        self.handle_sent(result, buffer);
    }

    fn handle_sent(&mut self, result: io::Result<usize>, buffer: SendBuffer) {
        self.worker.shard.borrow_mut().handle_send_result(self.id, buffer, result);
        self.worker.carry_out();
    }

    /// Leaves what little there is to send to the end of the turn: then all connections send with one call.
    /// Answers whether it does.
    fn leaves_output(&self) -> bool {
        self.worker.shard.borrow_mut().leave_output(self.id, DIRECT_SEND_BYTES_MIN)
    }

    /// Sends what was left to the end of the turn, as far as there is room: the end of the stream throws away
    /// what waits.
    fn send_left(&self) {
        let mut shard = self.worker.shard.borrow_mut();
        while let Some(buffer) = shard.poll_buffer(self.id) {
            if !send_straight(&mut shard, self.id, &self.socket, buffer).took_all {
                break;
            }
        }
    }

    fn begin(&mut self, waker: &Waker) {
        if !self.is_registered {
            self.is_registered = true;
            self.worker.register(self.id, waker, &self.socket);
        }
        self.worker.begin_turn();
    }

    /// The others have their turn first.
    fn give_way(&mut self, waker: &Waker) -> Poll<()> {
        self.note_comes_back(true);
        self.worker.turns.wait(waker);
        Poll::Pending
    }

    fn note_comes_back(&self, comes_back: bool) {
        self.worker.note_comes_back(self.id, comes_back);
    }

    fn fail(&mut self, error: &io::Error) {
        self.worker.shard.borrow_mut().handle_transport_error(self.id, &error.to_string());
        self.worker.carry_out();
    }

    fn end(self) {
        let unsent = self.worker.shard.borrow().endpoint(self.id).is_some_and(|end| end.outbox().bytes() > 0);
        if unsent {
            self.socket.set_reset_on_close();
        }
        self.worker.shard.borrow_mut().handle_closed(self.id);
        self.worker.unregister(self.id);
        self.worker.futures.abandon(self.id);
        self.worker.carry_out();
    }
}
