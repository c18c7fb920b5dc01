//! The user's futures: run as tasks of the shard's thread, guarded against panics, dropped when the worker
//! ends or the connection they decide about is gone. One that wakes itself, to go on in a moment, gives way.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU32, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{self, ThreadId},
};

use slab::Slab;

use super::{Command, Mailbox, Worker, turns::Turns};
use crate::shard::{ConnectionId, Handler, Upgrade};

/// The wakers of the user's futures that are running.
#[derive(Debug, Default)]
pub(super) struct Futures {
    wakers: RefCell<Slab<Option<Waker>>>,
    /// Those that decide about a connection. Every connection that ends is looked up here: there may be a
    /// future for each of the others.
    decisions: RefCell<HashMap<ConnectionId, usize>>,
    /// How often one was woken on its own thread, or begun.
    woken: Arc<AtomicU32>,
    ended: Cell<bool>,
}

impl Futures {
    /// Drops every future.
    pub(super) fn end(&self) {
        self.ended.set(true);
        self.wakers.borrow().iter().filter_map(|(_, waker)| waker.as_ref()).for_each(Waker::wake_by_ref);
    }

    /// Drops the future that decides about connection `id`, if one does.
    pub(super) fn abandon(&self, id: ConnectionId) {
        let decision = self.decisions.borrow().get(&id).copied();
        if let Some(key) = decision {
            self.wake(key);
        }
    }

    /// Wakes a future, if it is there still.
    pub(super) fn wake(&self, key: usize) {
        if let Some(Some(waker)) = self.wakers.borrow().get(key) {
            self.woken.fetch_add(1, Ordering::Relaxed);
            waker.wake_by_ref();
        }
    }

    /// Wakes a future, if it is there still, when the driver has been asked.
    pub(super) fn wake_in_turn(&self, key: usize, turns: &Turns) {
        if let Some(Some(waker)) = self.wakers.borrow().get(key) {
            turns.wait(waker);
        }
    }

    /// How often one was woken on this thread, or begun; it wraps.
    pub(super) fn woken(&self) -> u32 {
        self.woken.load(Ordering::Relaxed)
    }

    fn add(&self, owner: Option<ConnectionId>) -> usize {
        self.woken.fetch_add(1, Ordering::Relaxed);
        let key = self.wakers.borrow_mut().insert(None);
        if let Some(id) = owner {
            self.decisions.borrow_mut().insert(id, key);
        }
        key
    }

    fn set_waker(&self, key: usize, waker: &Waker) {
        if let Some(entry) = self.wakers.borrow_mut().get_mut(key) {
            *entry = Some(waker.clone());
        }
    }

    fn remove(&self, owner: Option<ConnectionId>, key: usize) {
        self.wakers.borrow_mut().try_remove(key);
        if let Some(id) = owner {
            let mut decisions = self.decisions.borrow_mut();
            // A decision may be followed by another one.
            if decisions.get(&id) == Some(&key) {
                decisions.remove(&id);
            }
        }
    }
}

/// Runs a future for a connection's sake.
pub(super) fn spawn<H: Handler>(worker: &Rc<Worker<H>>, future: Pin<Box<dyn Future<Output = ()>>>) {
    let guarded = Guarded::new(worker, None, future);
    worker.spawn_task(async move {
        guarded.await;
    });
}

/// Runs a deferred decision and hands its result to the shard.
pub(super) fn defer<H: Handler>(
    worker: &Rc<Worker<H>>,
    id: ConnectionId,
    decision: Pin<Box<dyn Future<Output = Upgrade<H::Session>>>>,
) {
    let guarded = Guarded::new(worker, Some(id), decision);
    let decided_for = Rc::clone(worker);
    worker.spawn_task(async move {
        let upgrade = match guarded.await {
            Outcome::Ready(upgrade) => upgrade,
            Outcome::Panicked => Upgrade::reject(500, ""),
            Outcome::Ended => return,
        };
        let now = decided_for.now();
        decided_for.shard.borrow_mut().handle_upgrade(id, upgrade, now);
        decided_for.carry_out();
    });
}

/// Wakes the task of a future. Not while the future is being polled: it has woken itself then, and the
/// runtime would poll it again and again before it looks for what has come from the kernel. And not on
/// another thread, where the runtime's own waker panics: the worker is told instead.
#[derive(Debug)]
struct PoliteWaker {
    /// Of its own thread, and there as long as the future is.
    task: Mutex<Option<Waker>>,
    state: AtomicU8,
    thread: ThreadId,
    mailbox: Arc<Mailbox>,
    woken: Arc<AtomicU32>,
    future: usize,
}

const RESTING: u8 = 0;
const POLLED: u8 = 1;
const WOKEN: u8 = 2;

impl PoliteWaker {
    /// The future is gone: its task is not to be freed by whoever still has a waker.
    fn forget_task(&self) {
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn begin(&self) {
        self.state.store(POLLED, Ordering::SeqCst);
    }

    /// Answers whether the future is to be polled again.
    fn end(&self) -> bool {
        self.state.swap(RESTING, Ordering::SeqCst) == WOKEN
    }
}

impl Wake for PoliteWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let noted = self.state.compare_exchange(POLLED, WOKEN, Ordering::SeqCst, Ordering::SeqCst);
        if noted != Err(RESTING) {
            return;
        }
        if thread::current().id() != self.thread {
            self.mailbox.post(Command::Wake { future: self.future });
        } else if let Some(task) = &*self.task.lock().unwrap_or_else(PoisonError::into_inner) {
            self.woken.fetch_add(1, Ordering::Relaxed);
            task.wake_by_ref();
        }
    }
}

enum Outcome<T> {
    Ready(T),
    Panicked,
    /// The worker ends, or the connection is gone.
    Ended,
}

struct Guarded<H: Handler, T> {
    worker: Rc<Worker<H>>,
    owner: Option<ConnectionId>,
    future: Option<Pin<Box<dyn Future<Output = T>>>>,
    /// There is one from the first poll on.
    waker: Option<Arc<PoliteWaker>>,
    key: usize,
}

impl<H: Handler, T> Guarded<H, T> {
    fn new(
        worker: &Rc<Worker<H>>,
        owner: Option<ConnectionId>,
        future: Pin<Box<dyn Future<Output = T>>>,
    ) -> Self {
        let key = worker.futures.add(owner);
        Self { worker: Rc::clone(worker), owner, future: Some(future), waker: None, key }
    }

    fn is_abandoned(&self) -> bool {
        let gone = |id| self.worker.shard.borrow().endpoint(id).is_none();
        self.worker.futures.ended.get() || self.owner.is_some_and(gone)
    }
}

impl<H: Handler, T> Future for Guarded<H, T> {
    type Output = Outcome<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome<T>> {
        let this = &mut *self;
        this.worker.begin_turn();
        let Some(future) = this.future.as_mut().filter(|_| !this.worker.futures.ended.get()) else {
            return Poll::Ready(Outcome::Ended);
        };
        if this.worker.is_busy() || this.worker.is_overdue() {
            this.worker.futures.set_waker(this.key, context.waker());
            this.worker.turns.wait(context.waker());
            return Poll::Pending;
        }
        // A task's waker stays the same.
        let new = || {
            Arc::new(PoliteWaker {
                task: Mutex::new(Some(context.waker().clone())),
                state: AtomicU8::new(RESTING),
                thread: thread::current().id(),
                mailbox: Arc::clone(this.worker.mailbox()),
                woken: Arc::clone(&this.worker.futures.woken),
                future: this.key,
            })
        };
        let polite = this.waker.get_or_insert_with(new);
        polite.begin();
        let waker = Waker::from(Arc::clone(polite));
        let polled =
            catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut Context::from_waker(&waker))));
        let wants_more = polite.end();
        this.worker.carry_out();
        match polled {
            Ok(Poll::Ready(value)) => Poll::Ready(Outcome::Ready(value)),
            Ok(Poll::Pending) if this.is_abandoned() => Poll::Ready(Outcome::Ended),
            Ok(Poll::Pending) => {
                this.worker.futures.set_waker(this.key, context.waker());
                if wants_more {
                    this.worker.turns.wait(context.waker());
                }
                Poll::Pending
            }
            Err(_) => {
                tracing::error!("a future of the handler's panicked");
                this.worker.counters.handler_panics.add(1);
                Poll::Ready(Outcome::Panicked)
            }
        }
    }
}

impl<H: Handler, T> Drop for Guarded<H, T> {
    fn drop(&mut self) {
        self.worker.futures.remove(self.owner, self.key);
        if let Some(waker) = &self.waker {
            waker.forget_task();
        }
        let future = self.future.take();
        if catch_unwind(AssertUnwindSafe(|| drop(future))).is_err() {
            self.worker.counters.handler_panics.add(1);
        }
    }
}

// The future is boxed: moving the guard does not move it.
impl<H: Handler, T> Unpin for Guarded<H, T> {}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::Wake,
    };

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn id(index: u32) -> ConnectionId {
        ConnectionId::new(0, index, 1)
    }

    /// Adds a future that waits, and answers its key and how often it was woken.
    fn add(futures: &Futures, owner: Option<ConnectionId>) -> (usize, Arc<Wakes>) {
        let (key, wakes) = (futures.add(owner), Arc::new(Wakes::default()));
        futures.set_waker(key, &Arc::clone(&wakes).into());
        (key, wakes)
    }

    fn woken<const N: usize>(futures: [&(usize, Arc<Wakes>); N]) -> [usize; N] {
        futures.map(|(_, wakes)| wakes.0.load(Ordering::Relaxed))
    }

    #[test]
    fn only_the_decision_about_a_connection_is_abandoned_with_it() {
        let futures = Futures::default();
        let lasting = add(&futures, None);
        let (first, other) = (add(&futures, Some(id(1))), add(&futures, Some(id(2))));
        futures.abandon(id(1));
        assert_eq!(woken([&lasting, &first, &other]), [0, 1, 0]);
        // It has decided to decide later.
        let second = add(&futures, Some(id(1)));
        futures.remove(Some(id(1)), first.0);
        futures.abandon(id(1));
        assert_eq!(woken([&lasting, &first, &other, &second]), [0, 1, 0, 1]);
        futures.remove(Some(id(1)), second.0);
        futures.abandon(id(1));
        futures.end();
        assert_eq!(woken([&lasting, &first, &other, &second]), [1, 1, 1, 1]);
        futures.remove(Some(id(2)), other.0);
        assert!(futures.decisions.borrow().is_empty(), "what is decided leaves nothing behind");
    }

    #[test]
    fn a_connection_that_ends_is_not_searched_for_among_the_futures() {
        let futures = Futures::default();
        add(&futures, None);
        // Looking through them would panic now.
        let _borrowed = futures.wakers.borrow_mut();
        futures.abandon(id(1));
    }
}
