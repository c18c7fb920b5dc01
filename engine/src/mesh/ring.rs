//! A ring from one thread to another: `rtrb`'s, which loom cannot look into, and for loom a stand-in for it
//! that orders what is around it as that one does.

#[cfg(loom)]
pub(super) use self::stand_in::{Consumer, Producer, PushError, RingBuffer};
#[cfg(not(loom))]
pub(super) use rtrb::{Consumer, Producer, PushError, RingBuffer};

#[cfg(loom)]
mod stand_in {
    use loom::sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    };

    /// `pushed` is released by the producer and `popped` by the consumer; a slot belongs to whom these two
    /// say.
    #[derive(Debug)]
    struct Ring<T> {
        slots: Vec<Mutex<Option<T>>>,
        pushed: AtomicUsize,
        popped: AtomicUsize,
    }

    pub(crate) struct RingBuffer;

    #[derive(Debug)]
    pub(crate) struct Producer<T>(Arc<Ring<T>>);

    #[derive(Debug)]
    pub(crate) struct Consumer<T>(Arc<Ring<T>>);

    #[derive(Debug)]
    pub(crate) enum PushError<T> {
        Full(T),
    }

    #[derive(Debug)]
    pub(crate) struct Empty;

    impl RingBuffer {
        pub(crate) fn new<T>(capacity: usize) -> (Producer<T>, Consumer<T>) {
            let ring = Arc::new(Ring {
                slots: (0..capacity).map(|_| Mutex::new(None)).collect(),
                pushed: AtomicUsize::new(0),
                popped: AtomicUsize::new(0),
            });
            (Producer(Arc::clone(&ring)), Consumer(ring))
        }
    }

    impl<T> Producer<T> {
        pub(crate) fn push(&mut self, value: T) -> Result<(), PushError<T>> {
            let Ring { slots, pushed, popped } = &*self.0;
            let at = pushed.load(Ordering::Relaxed);
            if at - popped.load(Ordering::Acquire) >= slots.len() {
                return Err(PushError::Full(value));
            }
            *slots[at % slots.len()].lock().expect("nobody panics") = Some(value);
            pushed.store(at + 1, Ordering::Release);
            Ok(())
        }
    }

    impl<T> Consumer<T> {
        pub(crate) fn pop(&mut self) -> Result<T, Empty> {
            let Ring { slots, pushed, popped } = &*self.0;
            let at = popped.load(Ordering::Relaxed);
            if at == pushed.load(Ordering::Acquire) {
                return Err(Empty);
            }
            let value = slots[at % slots.len()].lock().expect("nobody panics").take();
            popped.store(at + 1, Ordering::Release);
            value.ok_or(Empty)
        }

        pub(crate) fn slots(&self) -> usize {
            self.0.pushed.load(Ordering::Acquire) - self.0.popped.load(Ordering::Relaxed)
        }

        pub(crate) fn is_empty(&self) -> bool {
            self.slots() == 0
        }
    }
}
