//! A running engine: its threads, from start to join.

use std::{
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

use super::{
    Config, EngineHandle, Error,
    cores::pin,
    handle::{EndGuard, ShardHandle},
};
use crate::{
    connection::Timestamp,
    os::{Clock, Event, Listener, Timer},
    runtime::{Backend, DriverChoice, Mailbox, Transport, Worker, WorkerSettings, build, settle},
    shard::{Counters, Handler, MeshSeat, Shard, TopicRegistry},
};

/// How the kernel is spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// io_uring where it can be had, else epoll; the log says which and why.
    #[default]
    Auto,
    /// io_uring or an error.
    IoUring,
    /// epoll.
    Epoll,
}

/// Whether other processes may listen on the same address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PortSharing {
    /// An address that somebody listens on is an error.
    #[default]
    Exclusive,
    /// Processes of the same user share the address (SO_REUSEPORT), for a restart without a gap: the kernel
    /// spreads connections over all of them.
    Shared,
}

/// What a shard's handler is told when it is made.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ShardInfo {
    /// The shard's number, from 0.
    pub index: usize,
    /// How many shards there are.
    pub shards: usize,
    /// The core it is pinned to.
    pub core: usize,
    /// A way to the connections of all shards, this one included: connections may come before
    /// [`Engine::start`] has returned.
    pub handle: EngineHandle,
}

/// A running engine. Dropping it stops it and waits for a second at most.
#[derive(Debug)]
#[must_use = "dropping an engine stops it"]
pub struct Engine {
    handle: EngineHandle,
    threads: Vec<JoinHandle<()>>,
    local_address: SocketAddr,
    backend: Backend,
    cores: Vec<usize>,
}

/// The deadline of an engine that is dropped without having been stopped.
const DROP_DEADLINE: Duration = Duration::from_secs(1);

impl Engine {
    /// Starts a shard on every chosen core. `factory` is called once on each shard's thread.
    ///
    /// ```no_run
    /// use ringwire::{Config, Connection, Engine, Handler, Message, Upgrade, protocol::UpgradeRequest};
    ///
    /// struct Echo;
    ///
    /// impl Handler for Echo {
    ///     type Session = ();
    ///     fn on_upgrade(&mut self, _: &UpgradeRequest<'_>) -> Upgrade<()> {
    ///         Upgrade::accept(())
    ///     }
    ///     fn on_message(&mut self, connection: &mut Connection<'_, ()>, message: Message<'_>) {
    ///         let _ = connection.send(message);
    ///     }
    /// }
    ///
    /// let engine = Engine::start(Config::new(([127, 0, 0, 1], 9001).into()), |_| Echo)?;
    /// engine.run_until_signal(std::time::Duration::from_secs(10))?;
    /// # Ok::<(), ringwire::Error>(())
    /// ```
    ///
    /// # Errors
    /// A contradictory configuration, an address that cannot be bound, a kernel without what was asked for.
    /// Nothing is left running then.
    pub fn start<H: Handler>(
        config: Config,
        factory: impl Fn(ShardInfo) -> H + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        config.validate()?;
        let cores = config.cores.resolve()?;
        let backend = DriverChoice::from(config.driver).resolve().map_err(Error::IoUringUnavailable)?;
        let (listeners, local_address) = listen(&config, cores.len())?;
        log_start(&backend, local_address, &cores);

        let factory = Arc::new(factory);
        let mut engine = Self {
            handle: EngineHandle { shards: Arc::new([]), registry: TopicRegistry::new(0) },
            threads: Vec::with_capacity(cores.len()),
            local_address,
            backend,
            cores,
        };
        let registry = TopicRegistry::new(engine.cores.len());
        let seats = MeshSeat::connect(engine.cores.len());
        let mut shards = Vec::with_capacity(engine.cores.len());
        for seat in &seats {
            shards.push(ShardHandle {
                mailbox: Arc::new(Mailbox::new().map_err(Error::Start)?),
                inbox: seat.inbox(),
                counters: Arc::default(),
            });
        }
        let mailboxes: Arc<[Arc<Mailbox>]> = shards.iter().map(|shard| Arc::clone(&shard.mailbox)).collect();
        engine.handle = EngineHandle { shards: shards.into(), registry: Arc::clone(&registry) };
        let (ready, started) = mpsc::channel();
        for (index, (listener, mesh)) in listeners.into_iter().zip(seats).enumerate() {
            let info = ShardInfo {
                index,
                shards: engine.cores.len(),
                core: engine.cores[index],
                handle: engine.handle.clone(),
            };
            let shard = &engine.handle.shards[index];
            let seat = Seat {
                info,
                config: config.clone(),
                backend: engine.backend.clone(),
                listener,
                mesh,
                registry: Arc::clone(&registry),
                mailboxes: Arc::clone(&mailboxes),
                counters: Arc::clone(&shard.counters),
            };
            let end = EndGuard(engine.handle.clone(), index);
            let (factory, ready) = (Arc::clone(&factory), ready.clone());
            let thread = thread::Builder::new().name(format!("ringwire-{index}")).spawn(move || {
                let _end = end;
                run_shard(seat, &*factory, ready);
            });
            // On an error those already running are stopped by dropping the engine.
            engine.threads.push(thread.map_err(Error::Start)?);
        }
        drop(ready);
        let mut running = 0;
        for result in started {
            result.map_err(Error::Start)?;
            running += 1;
        }
        if running < engine.threads.len() {
            // A factory panicked; the other shards are stopped.
            engine.handle.stop(DROP_DEADLINE);
            engine.join_threads()?;
        }
        Ok(engine)
    }

    /// A handle for other threads.
    #[must_use]
    pub fn handle(&self) -> EngineHandle {
        self.handle.clone()
    }

    /// The address that is listened on.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.local_address
    }

    /// The driver that runs: `io_uring` or `epoll`.
    #[must_use]
    pub fn driver_name(&self) -> &'static str {
        self.backend.name()
    }

    /// The cores that the shards are pinned to.
    #[must_use]
    pub fn cores(&self) -> &[usize] {
        &self.cores
    }

    /// Waits for SIGTERM or SIGINT, then stops with this deadline and waits for the end. A second signal ends
    /// the process in the signal's own way.
    ///
    /// # Errors
    /// When the signals cannot be watched, or a shard's thread panicked.
    pub fn run_until_signal(self, deadline: Duration) -> Result<(), Error> {
        let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(Error::Signals)?;
        if let Some(signal) = signals.forever().next() {
            tracing::info!(signal, "stopping");
            let handle = signals.handle();
            thread::spawn(move || {
                if let Some(again) = signals.forever().next() {
                    let _ = signal_hook::low_level::emulate_default_handler(again);
                }
            });
            self.handle.stop(deadline);
            let joined = self.join();
            handle.close();
            return joined;
        }
        self.handle.stop(deadline);
        self.join()
    }

    /// Waits until every shard has ended: stop the engine through its [`handle`](Self::handle) first, or from
    /// another thread. Afterwards no thread, no ring and no descriptor of the engine is left.
    ///
    /// # Errors
    /// When a shard's thread panicked.
    pub fn join(mut self) -> Result<(), Error> {
        self.join_threads()
    }

    fn join_threads(&mut self) -> Result<(), Error> {
        let mut result = Ok(());
        for (shard, thread) in self.threads.drain(..).enumerate() {
            if thread.join().is_err() {
                result = Err(Error::ShardPanicked { shard });
            }
        }
        result
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.handle.stop(DROP_DEADLINE);
            let _ = self.join_threads();
        }
    }
}

impl From<Driver> for DriverChoice {
    fn from(driver: Driver) -> Self {
        match driver {
            Driver::Auto => Self::Auto,
            Driver::IoUring => Self::IoUring,
            Driver::Epoll => Self::Epoll,
        }
    }
}

/// Everything a shard's thread takes with it.
struct Seat {
    info: ShardInfo,
    config: Config,
    backend: Backend,
    listener: Listener,
    mesh: MeshSeat,
    registry: Arc<TopicRegistry>,
    mailboxes: Arc<[Arc<Mailbox>]>,
    counters: Arc<Counters>,
}

fn run_shard<H: Handler>(
    seat: Seat,
    factory: &(impl Fn(ShardInfo) -> H + Send + Sync),
    ready: mpsc::Sender<std::io::Result<()>>,
) {
    if !pin(seat.info.core) {
        tracing::warn!(core = seat.info.core, "the shard could not be pinned");
    }
    let built = build(&seat.backend).and_then(|transport| Ok((transport, Event::new()?, Timer::new()?)));
    let (Transport { mut runtime, sockets }, turns, windows) = match built {
        Ok(built) => built,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let config = &seat.config;
    let clock = Clock::new();
    let shard = Shard::new(
        seat.info.index as u16,
        factory(seat.info.clone()),
        config.settings(),
        config.connections_max,
        seat.counters,
        RandomState::new().hash_one(seat.info.index),
        Timestamp::from_millis(clock.millis()),
    )
    .joined(seat.mesh, seat.registry, config.topic_rules.clone(), config.topic_limits());
    let settings = WorkerSettings {
        buffer_bytes_max: config.buffer_bytes_max,
        buffers_preallocated: config.buffers_preallocated,
        on_io_uring: matches!(seat.backend, Backend::IoUring(_)),
        sockets,
        clock,
        mailboxes: seat.mailboxes,
        index: seat.info.index,
        turns,
        windows,
    };
    let ready = move |opened| drop(ready.send(opened));
    runtime.block_on(async {
        Worker::new(shard, settings).run(seat.listener, ready).await;
        settle().await;
    });
}

fn listen(config: &Config, count: usize) -> Result<(Vec<Listener>, SocketAddr), Error> {
    let mut address = config.listen;
    if config.port_sharing == PortSharing::Exclusive {
        Listener::check_free(address).map_err(|error| Error::listen(address, error))?;
    }
    let mut listeners = Vec::with_capacity(count);
    for _ in 0..count {
        let listener =
            Listener::bind(address, config.backlog).map_err(|error| Error::listen(config.listen, error))?;
        // With port 0 the first socket decides, and the others join it.
        address = listener.local_address().map_err(|error| Error::listen(config.listen, error))?;
        listeners.push(listener);
    }
    Ok((listeners, address))
}

fn log_start(backend: &Backend, address: SocketAddr, cores: &[usize]) {
    match backend {
        Backend::IoUring(flags) => {
            tracing::info!(%address, ?cores, driver = "io_uring", %flags, "listening");
        }
        Backend::Epoll { reason } => {
            tracing::info!(%address, ?cores, driver = "epoll", reason, "listening");
        }
    }
}
