//! The way into a worker from other threads.

use std::{
    io,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::{
    mesh::{Doorbell, Gate, Signal},
    os::Event,
};

/// What other threads ask of a worker.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Command {
    /// Close every connection with 1001, cut off what is left after `deadline`, and end.
    Stop { deadline: Duration },
    /// Poll a future of the user's, which was woken on another thread.
    Wake { future: usize },
}

/// The way into a worker from other threads: commands, which are rare, and the bell that says that something
/// is in the mesh.
#[derive(Debug)]
pub(crate) struct Mailbox {
    commands: Mutex<Vec<Command>>,
    bell: Doorbell<Event>,
    gate: Gate,
}

impl Mailbox {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { commands: Mutex::default(), bell: Doorbell::new(Event::new()?), gate: Gate::new() })
    }

    pub(super) fn bell(&self) -> &Doorbell<Event> {
        &self.bell
    }

    pub(crate) fn post(&self, command: Command) {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).push(command);
        self.bell.signal().signal();
    }

    /// Something was put into the mesh for this worker. Answers whether it had to be woken.
    pub(crate) fn ring(&self) -> bool {
        self.bell.ring()
    }

    /// Nobody will look into the worker's queues any more.
    pub(crate) fn close(&self) {
        self.gate.shut();
    }

    /// Whether what was pushed before this call may never be seen ([`Gate::is_shut`]).
    pub(crate) fn is_closed(&self) -> bool {
        self.gate.is_shut()
    }

    pub(super) fn take(&self) -> Vec<Command> {
        self.bell.signal().clear();
        std::mem::take(&mut self.commands.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Signal for Event {
    fn signal(&self) {
        Event::signal(self);
    }
}
