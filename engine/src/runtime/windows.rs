//! The windows of a shard's topics: a timer of its own tells when the time of one is over.
//!
//! The runtime's timers have whole milliseconds and round them up: a window of one would be open for up to
//! two.

use std::{
    cell::{Cell, RefCell},
    cmp::Reverse,
    collections::BinaryHeap,
    io,
    rc::Rc,
    time::{Duration, Instant},
};

use super::Worker;
use crate::{
    os::{Socket, Timer},
    shard::{Handler, TICK_MILLIS},
};

/// The windows that are open.
///
/// Invariant: the timer is set to the first end that is to come, or its time has come and [`serve`] has not
/// seen that yet.
#[derive(Debug)]
pub(super) struct Windows {
    timer: Timer,
    /// When which topic's time is over, one entry for each topic at most.
    ends: RefCell<BinaryHeap<Reverse<(Instant, u32)>>>,
    ended: Cell<bool>,
}

impl Windows {
    pub(super) fn new(timer: Timer) -> Self {
        Self { timer, ends: RefCell::default(), ended: Cell::new(false) }
    }

    pub(super) fn as_socket(&self) -> io::Result<Socket> {
        Socket::watch(&self.timer)
    }

    /// The topic gathers from now on, for so long.
    pub(super) fn open(&self, topic: u32, window: Duration) {
        // What is centuries away does not come.
        let Some(end) = Instant::now().checked_add(window) else { return };
        let mut ends = self.ends.borrow_mut();
        let is_first = ends.peek().is_none_or(|Reverse((first, _))| end < *first);
        ends.push(Reverse((end, topic)));
        if is_first && !self.ended.get() {
            self.timer.set(window);
        }
    }

    /// A topic whose time is over by `now`.
    fn pop(&self, now: Instant) -> Option<u32> {
        let mut ends = self.ends.borrow_mut();
        ends.peek().filter(|Reverse((end, _))| *end <= now)?;
        ends.pop().map(|Reverse((_, topic))| topic)
    }

    /// Sets the timer to the first of those that are open still.
    fn wait_for_next(&self) {
        if let Some(Reverse((end, _))) = self.ends.borrow().peek() {
            self.timer.set(end.saturating_duration_since(Instant::now()));
        }
    }

    /// Lets [`serve`] end.
    pub(super) fn end(&self) {
        self.ended.set(true);
        self.timer.set(Duration::ZERO);
    }
}

/// Closes windows when their time is over.
pub(super) async fn serve<H: Handler>(worker: Rc<Worker<H>>, watched: Socket) {
    let windows = &worker.windows;
    loop {
        if let Err(error) = watched.readable().await {
            tracing::error!(%error, "the timer of windows cannot be waited for");
            monoio::time::sleep(Duration::from_millis(TICK_MILLIS)).await;
        }
        if windows.ended.get() {
            return;
        }
        windows.timer.clear();
        worker.begin_turn();
        let mut shard = worker.shard.borrow_mut();
        let now = Instant::now();
        while let Some(topic) = windows.pop(now) {
            shard.close_window(topic);
        }
        drop(shard);
        windows.wait_for_next();
    }
}
