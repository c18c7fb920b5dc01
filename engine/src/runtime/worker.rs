//! A worker: one core's shard with everything the tasks of its thread share.
//!
//! Invariant: the shard is borrowed only for the length of one `handle_*` or `poll_*` call, never across an
//! await; user code runs inside such a call and finds the shard borrowed, which is how re-entrance is
//! refused.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    io,
    pin::pin,
    rc::{Rc, Weak},
    sync::Arc,
    task::Waker,
    time::Duration,
};

use super::{
    accept,
    mailbox::{Command, Mailbox},
    receiving,
    sending::{ConnectionTask, Effects},
    spawn, turns, windows,
};
use crate::{
    buffer::{HEADROOM_BYTES, LeasePool},
    connection::Timestamp,
    os::{Clock, Event, Listener, Socket, SocketRing, Timer},
    protocol::CloseCode,
    shard::{
        Connection, ConnectionId, Counters, Handler, LocalError, LocalShard, RESERVED_SLOTS_MAX, Shard,
        TICK_MILLIS,
    },
};

/// Bytes that one receive into the scratch buffer can bring.
const SCRATCH_BYTES: usize = 512 * 1024;
/// Ticks between two looks for connections and memory that have gone quiet.
const QUIET_TICKS: u64 = 10;
/// A connection whose receive has been pending for this long holds no buffer any more.
const QUIET: Duration = Duration::from_secs(1);
/// Turns in a row that may bring about the next before that waits for the driver.
const BUSY_TURNS_MAX: u8 = 8;
/// A tick that is this late was kept from firing.
const OVERDUE: Duration = Duration::from_millis(3 * TICK_MILLIS);
/// How long what did not fit into the mesh waits for its next try.
const RETRY: Duration = Duration::from_millis(1);
/// How long the last operations, closing descriptors and cancelled ones, get to complete.
const SETTLE: Duration = Duration::from_millis(2);

/// What a worker is made of besides its shard.
#[derive(Debug)]
pub(crate) struct WorkerSettings {
    pub(crate) buffer_bytes_max: usize,
    pub(crate) buffers_preallocated: usize,
    /// Which driver the runtime has.
    pub(crate) on_io_uring: bool,
    pub(crate) sockets: SocketRing<ConnectionId>,
    pub(crate) clock: Clock,
    pub(crate) mailboxes: Arc<[Arc<Mailbox>]>,
    pub(crate) index: usize,
    /// Signalled and awaited by the worker itself.
    pub(crate) turns: Event,
    /// Tells when the time of a topic's window is over.
    pub(crate) windows: Timer,
}

/// Counts a task as running.
#[derive(Debug)]
pub(super) struct TaskGuard(Rc<Cell<usize>>);

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// One core's shard with everything the tasks of its thread share.
pub(crate) struct Worker<H: Handler> {
    pub(super) shard: RefCell<Shard<H>>,
    pub(super) leases: LeasePool,
    /// Headroom and room for bulk receives; used within one poll of one task.
    pub(super) scratch: RefCell<Box<[u8]>>,
    pub(super) on_io_uring: bool,
    pub(super) stopping: Cell<bool>,
    pub(super) counters: Arc<Counters>,
    /// The task of each connection, by slot.
    pub(super) connections: RefCell<Vec<Option<ConnectionTask>>>,
    /// What is sent, and for active connections received, at the end of a turn.
    pub(super) sockets: RefCell<SocketRing<ConnectionId>>,
    pub(super) futures: spawn::Futures,
    pub(super) turns: turns::Turns,
    pub(super) windows: windows::Windows,
    clock: Clock,
    pub(super) ended: Cell<bool>,
    /// Tasks of the worker's own that are still running.
    tasks: Rc<Cell<usize>>,
    /// The mailboxes of all workers, this one's among them.
    mailboxes: Arc<[Arc<Mailbox>]>,
    index: usize,
    /// A task has run since the last end of a turn.
    turn_open: Cell<bool>,
    /// Wakes the main future, which ends the turn.
    turn_waker: RefCell<Option<Waker>>,
    /// Turns in a row whose end brought about the next: the driver may not have been asked between them.
    busy_turns: Cell<u8>,
    last_tick: Cell<Timestamp>,
    /// A retry of what did not fit into the mesh is under way.
    retrying: Cell<bool>,
}

impl<H: Handler> Worker<H> {
    pub(crate) fn new(shard: Shard<H>, settings: WorkerSettings) -> Rc<Self> {
        let worker = Rc::new(Self {
            leases: LeasePool::new(settings.buffer_bytes_max, settings.buffers_preallocated),
            scratch: RefCell::new(vec![0; HEADROOM_BYTES + SCRATCH_BYTES].into_boxed_slice()),
            on_io_uring: settings.on_io_uring,
            stopping: Cell::new(false),
            counters: Arc::clone(shard.counters()),
            shard: RefCell::new(shard),
            connections: RefCell::new(Vec::with_capacity(RESERVED_SLOTS_MAX)),
            sockets: RefCell::new(settings.sockets),
            futures: spawn::Futures::default(),
            turns: turns::Turns::new(settings.turns),
            windows: windows::Windows::new(settings.windows),
            clock: settings.clock,
            ended: Cell::new(false),
            tasks: Rc::default(),
            mailboxes: settings.mailboxes,
            index: settings.index,
            turn_open: Cell::new(true),
            turn_waker: RefCell::default(),
            busy_turns: Cell::new(0),
            last_tick: Cell::new(Timestamp::from_millis(settings.clock.millis())),
            retrying: Cell::new(false),
        });
        let weak = Rc::downgrade(&worker);
        worker.shard.borrow_mut().set_owner(weak as Weak<dyn LocalShard<H::Session>>);
        worker
    }

    /// Serves until it is told to stop. Afterwards nothing is in flight. `ready` hears first whether
    /// everything that takes a descriptor could be opened.
    pub(crate) async fn run(self: Rc<Self>, listener: Listener, ready: impl FnOnce(io::Result<()>)) {
        let mut control = pin!(Rc::clone(&self).control(listener, ready));
        poll_fn(|context| {
            if self.turn_waker.borrow().is_none() {
                *self.turn_waker.borrow_mut() = Some(context.waker().clone());
            }
            // The end of the turn follows: there is no need to wake this future for it.
            self.turn_open.set(true);
            self.mailbox().bell().disarm();
            let woken_before = self.futures.woken();
            let polled = control.as_mut().poll(context);
            self.end_turn(woken_before);
            polled
        })
        .await;
        self.shard.borrow_mut().abandon_staged();
    }

    /// Called by every task when it runs: the worker is awake, and the turn will have an end.
    pub(super) fn begin_turn(&self) {
        if !self.turn_open.replace(true) {
            self.mailbox().bell().disarm();
            if let Some(waker) = &*self.turn_waker.borrow() {
                waker.wake_by_ref();
            }
        }
    }

    /// All tasks that were ready have run: takes what came through the mesh, delivers what was published,
    /// sends for all connections, and makes sure to be woken by what comes next. `woken_before` counts the
    /// futures that had been woken when the tasks had run.
    fn end_turn(self: &Rc<Self>, woken_before: u32) {
        self.turn_open.set(false);
        if self.sockets.borrow().is_broken() {
            // Nobody is told.
            self.handle_completions();
        }
        let bell = self.mailbox().bell();
        let mut shard = self.shard.borrow_mut();
        // What comes through the mesh wakes futures: once around the loop, if turns are too busy.
        if shard.has_mesh_input() && !self.is_busy() {
            shard.handle_mesh(self.now());
        }
        let waiting = shard.flush_topics();
        while let Some(peer) = shard.poll_wake() {
            let woken = self.mailboxes.get(peer).is_some_and(|mailbox| mailbox.ring());
            let counters = &self.counters;
            if woken { counters.wakes.add(1) } else { counters.wakes_elided.add(1) }
        }
        while let Some((topic, window)) = shard.poll_window() {
            self.windows.open(topic, window);
        }
        drop(shard);
        if waiting && !self.ended.get() && !self.retrying.replace(true) {
            self.spawn_task(Rc::clone(self).retry());
        }
        let Effects { woke, mut called } = self.send_dirty();
        called |= self.sockets.borrow_mut().is_left_untold();
        self.carry_out();
        let woke = woke || self.futures.woken() != woken_before;
        self.busy_turns.set(if woke { self.busy_turns.get().saturating_add(1) } else { 0 });
        // A handler that was called may have published: that leaves with another turn.
        self.turns.end_turn(woke, called);
        bell.arm();
        if self.shard.borrow().has_mesh_input() {
            // More than a turn's worth, or it came just now: once around the loop, so that I/O has its turn.
            bell.disarm();
            bell.signal().signal();
        }
    }

    /// The last turns followed each other so closely that the driver may not have been asked between them:
    /// whoever wants another one waits for it. On io_uring nothing completes as long as a turn wakes somebody
    /// at its end.
    pub(super) fn is_busy(&self) -> bool {
        self.busy_turns.get() >= BUSY_TURNS_MAX && !self.ended.get()
    }

    /// Timers have not fired for so long that the driver cannot have been asked: tasks keep each other busy.
    pub(super) fn is_overdue(&self) -> bool {
        self.now().since(self.last_tick.get()) > OVERDUE
    }

    pub(super) fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailboxes[self.index]
    }

    async fn retry(self: Rc<Self>) {
        monoio::time::sleep(RETRY).await;
        self.retrying.set(false);
        self.begin_turn();
    }

    async fn control(self: Rc<Self>, listener: Listener, ready: impl FnOnce(io::Result<()>)) {
        let mailbox = Arc::clone(&self.mailboxes[self.index]);
        let open = || {
            let listener = Socket::watch(&listener)?;
            let ticker = Timer::every(Duration::from_millis(TICK_MILLIS))?;
            let ticks = Socket::watch(&ticker)?;
            let mailbox = Socket::watch(mailbox.bell().signal())?;
            let own = (self.turns.as_socket()?, self.windows.as_socket()?);
            // The last one: it would not close by itself.
            let receives = self.sockets.borrow().watch().transpose()?;
            Ok((mailbox, listener, own, (ticker, ticks), receives))
        };
        let (mailbox_socket, listener_socket, own, ticker, receives_socket) = match open() {
            Ok(opened) => opened,
            Err(error) => return ready(Err(error)),
        };
        ready(Ok(()));
        let listener = Rc::new(listener);
        self.spawn_task(accept::accept(Rc::clone(&self), Rc::clone(&listener), listener_socket));
        self.spawn_task(Rc::clone(&self).tick(ticker));
        let (turns_socket, windows_socket) = own;
        self.spawn_task(turns::serve(Rc::clone(&self), turns_socket));
        self.spawn_task(windows::serve(Rc::clone(&self), windows_socket));
        if let Some(receives_socket) = receives_socket {
            self.spawn_task(receiving::serve(Rc::clone(&self), receives_socket));
        }
        let deadline = loop {
            if let Err(error) = mailbox_socket.readable().await {
                tracing::error!(%error, "the mailbox is broken");
                break Duration::ZERO;
            }
            self.counters.wakes_heard.add(1);
            if let Some(deadline) = self.obey(&mailbox) {
                break deadline;
            }
        };
        self.stop(&listener, deadline).await;
    }

    /// Does what other threads ask, and answers in what time it is to stop, if it is.
    fn obey(&self, mailbox: &Mailbox) -> Option<Duration> {
        let mut stop = None;
        for command in mailbox.take() {
            match command {
                Command::Stop { deadline } => {
                    stop = Some(stop.map_or(deadline, |earlier: Duration| earlier.min(deadline)));
                }
                Command::Wake { future } if self.is_busy() => self.futures.wake_in_turn(future, &self.turns),
                Command::Wake { future } => self.futures.wake(future),
            }
        }
        stop
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.clock.millis())
    }

    /// Runs the futures that user code has left.
    pub(super) fn carry_out(self: &Rc<Self>) {
        loop {
            let mut shard = self.shard.borrow_mut();
            if let Some(future) = shard.poll_spawned() {
                drop(shard);
                spawn::spawn(self, future);
            } else if let Some((id, decision)) = shard.poll_deferred() {
                drop(shard);
                spawn::defer(self, id, decision);
            } else {
                return;
            }
        }
    }

    /// Spawns a task that the worker waits for before it ends.
    pub(super) fn spawn_task(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        let guard = self.begin_task();
        monoio::spawn(async move {
            task.await;
            drop(guard);
        });
    }

    /// The worker does not end while the guard exists.
    pub(super) fn begin_task(self: &Rc<Self>) -> TaskGuard {
        self.tasks.set(self.tasks.get() + 1);
        TaskGuard(Rc::clone(&self.tasks))
    }

    async fn tick(self: Rc<Self>, (ticker, watched): (Timer, Socket)) {
        let mut ticks = 0u64;
        while !self.ended.get() {
            match watched.readable().await {
                Ok(()) => ticker.clear(),
                // Deadlines are kept all the same.
                Err(_) => monoio::time::sleep(Duration::from_millis(TICK_MILLIS)).await,
            }
            let now = self.now();
            self.last_tick.set(now);
            self.begin_turn();
            self.shard.borrow_mut().handle_tick(now);
            self.carry_out();
            ticks += 1;
            if ticks.is_multiple_of(QUIET_TICKS) {
                self.cool_down(now);
            }
        }
    }

    /// Takes buffers back from connections that have gone quiet, and memory from pools that hold more than
    /// they need.
    fn cool_down(&self, now: Timestamp) {
        self.counters.leases_refused.set(self.leases.refused());
        let shard = self.shard.borrow();
        let mut sockets = self.sockets.borrow_mut();
        let quiet = sockets.receives().filter(|(_, id)| {
            let endpoint = shard.endpoint(**id);
            endpoint.is_some_and(|endpoint| now.since(endpoint.last_received()) >= QUIET)
        });
        let quiet: Vec<_> = quiet.map(|(number, _)| number).collect();
        if !sockets.is_broken() {
            self.counters.receives_cancelled.add(quiet.len() as u64);
            quiet.into_iter().for_each(|number| sockets.cancel(number));
        }
        drop(sockets);
        drop(shard);
        self.leases.shrink();
        self.shard.borrow_mut().shrink();
    }

    async fn stop(self: &Rc<Self>, listener: &Listener, deadline: Duration) {
        self.stopping.set(true);
        // What has connected is accepted, to be closed properly; whoever comes later is refused by the
        // kernel.
        accept::accept_last(self, listener);
        listener.shut();
        let mut until = self.now().after(deadline);
        self.shard.borrow_mut().close_all(CloseCode::GOING_AWAY, "server stops", self.now());
        self.carry_out();
        while !self.shard.borrow().is_empty() && self.now() < until {
            monoio::time::sleep(SETTLE).await;
            // Whoever asks again may be in more of a hurry.
            if let Some(deadline) = self.obey(self.mailbox()) {
                until = until.min(self.now().after(deadline));
            }
        }
        let left = self.shard.borrow().len();
        if left > 0 {
            tracing::warn!(connections = left, "cut off at the stop deadline");
            self.shard.borrow_mut().abort_all("server stops");
            self.carry_out();
        }
        self.futures.end();
        self.ended.set(true);
        self.turns.end();
        self.windows.end();
        // What waits for a broken ring is never told.
        let left = || self.tasks.get() > usize::from(self.sockets.borrow().is_broken());
        while left() || !self.shard.borrow().is_empty() {
            self.sockets.borrow_mut().wake();
            monoio::time::sleep(SETTLE).await;
            let _ = self.obey(self.mailbox());
        }
    }
}

/// Lets the kernel complete what was dropped: closing descriptors and cancelled operations.
pub(crate) async fn settle() {
    for _ in 0..2 {
        monoio::time::sleep(SETTLE).await;
    }
}

impl<H: Handler> LocalShard<H::Session> for Worker<H> {
    fn with_connection(
        &self,
        id: ConnectionId,
        action: &mut dyn FnMut(&mut Connection<'_, H::Session>),
    ) -> Result<(), LocalError> {
        let mut shard = self.shard.try_borrow_mut().map_err(|_| LocalError::InHandler)?;
        shard.with_connection(id, self.now(), action)?;
        drop(shard);
        self.begin_turn();
        Ok(())
    }
}
