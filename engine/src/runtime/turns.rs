//! Giving way: a task that finds more to do each time it looks lets the driver and everybody else go first.
//!
//! On epoll a wait for readiness is over at once while a peer sends faster than it is served, and a task that
//! wakes itself keeps the runtime from looking at its driver. An event descriptor is a wait that only the
//! driver ends.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    rc::Rc,
    task::{Poll, Waker},
};

use super::Worker;
use crate::{
    os::{Event, Socket},
    shard::Handler,
};

/// The tasks of a worker that gave way.
#[derive(Debug)]
pub(super) struct Turns {
    event: Event,
    waiting: RefCell<Vec<Waker>>,
    ended: Cell<bool>,
}

impl Turns {
    pub(super) fn new(event: Event) -> Self {
        Self { event, waiting: RefCell::default(), ended: Cell::new(false) }
    }

    pub(super) fn as_socket(&self) -> io::Result<Socket> {
        self.event.as_socket()
    }

    /// Wakes the task behind `waker` when the driver has been asked what else there is.
    pub(super) fn wait(&self, waker: &Waker) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.is_empty() {
            self.event.signal();
        }
        waiting.push(waker.clone());
    }

    /// Gives way once.
    pub(super) async fn give_way(&self) {
        let mut gave_way = false;
        poll_fn(|context| {
            if std::mem::replace(&mut gave_way, true) {
                return Poll::Ready(());
            }
            self.wait(context.waker());
            Poll::Pending
        })
        .await;
    }

    /// Lets [`serve`] end.
    pub(super) fn end(&self) {
        self.ended.set(true);
        self.event.signal();
    }
}

/// Wakes those who gave way, turn for turn.
pub(super) async fn serve<H: Handler>(worker: Rc<Worker<H>>, watched: Socket) {
    let turns = &worker.turns;
    let mut woken = Vec::new();
    while !turns.ended.get() {
        if let Err(error) = watched.readable().await {
            return tracing::error!(%error, "turns cannot be waited for");
        }
        turns.event.clear();
        std::mem::swap(&mut *turns.waiting.borrow_mut(), &mut woken);
        woken.drain(..).for_each(Waker::wake);
    }
}
