//! An engine under test: one shard on loopback, on a port of the kernel's choice, that must end when it is
//! told to.

use std::{
    net::SocketAddr,
    sync::{OnceLock, mpsc},
    thread,
    time::Duration,
};

use ringwire::{Config, Cores, CountersSnapshot, Driver, Engine, EngineHandle, Error, Handler, ShardInfo};

use crate::{
    client::{Client, PATIENCE, eventually},
    script::Script,
};

/// How much later than its deadline a stop may end: a tick, the last closes, a busy machine.
const STOP_MARGIN: Duration = Duration::from_secs(2);

/// Runs a test on a driver, or says why not.
pub(crate) fn run(driver: Driver, test: fn(Driver)) {
    static IO_URING: OnceLock<Option<String>> = OnceLock::new();
    if driver == Driver::IoUring {
        let unavailable = IO_URING.get_or_init(|| {
            let started = Engine::start(config(driver), |_| Script::echo());
            match started {
                Ok(_) => None,
                Err(error @ Error::IoUringUnavailable(_)) => Some(error.to_string()),
                Err(error) => panic!("{error}"),
            }
        });
        if let Some(reason) = unavailable {
            eprintln!("skipped: {reason}");
            return;
        }
    }
    test(driver);
}

/// One shard on loopback with every other default.
pub(crate) fn config(driver: Driver) -> Config {
    let mut config = Config::new(([127, 0, 0, 1], 0).into());
    config.driver = driver;
    config.cores = Cores::Count(1);
    config
}

pub(crate) struct Server {
    engine: Option<Engine>,
    pub(crate) handle: EngineHandle,
    pub(crate) address: SocketAddr,
    /// How often the handler is to panic; an assertion in a handler of a test's is a panic as well.
    handler_panics: u64,
}

impl Server {
    pub(crate) fn start<H: Handler>(
        config: Config,
        factory: impl Fn(ShardInfo) -> H + Send + Sync + 'static,
    ) -> Self {
        let engine = Engine::start(config, factory).expect("the engine starts");
        Self {
            handle: engine.handle(),
            address: engine.local_address(),
            engine: Some(engine),
            handler_panics: 0,
        }
    }

    /// An echo server with every default.
    pub(crate) fn echo(driver: Driver) -> Self {
        Self::start(config(driver), |_| Script::echo())
    }

    pub(crate) fn expecting_panics(mut self, handler_panics: u64) -> Self {
        self.handler_panics = handler_panics;
        self
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    pub(crate) fn counters(&self) -> CountersSnapshot {
        self.handle.counters()
    }

    /// Waits until the counters are as they should be.
    pub(crate) fn eventually(&self, what: &str, holds: impl Fn(&CountersSnapshot) -> bool) {
        let mut counters = self.counters();
        let start = std::time::Instant::now();
        while !holds(&counters) {
            assert!(start.elapsed() < PATIENCE, "never came: {what}, {counters:#?}");
            thread::sleep(Duration::from_millis(5));
            counters = self.counters();
        }
    }

    /// Stops and fails if the engine is not gone soon after the deadline. Answers with the final counts.
    pub(crate) fn stop(mut self, deadline: Duration) -> CountersSnapshot {
        self.handle.stop(deadline);
        let engine = self.engine.take().expect("not stopped yet");
        let joined = ended_within(deadline + STOP_MARGIN, move || engine.join());
        joined.expect("the engine did not end at its deadline").expect("no shard panicked");
        let counters = self.counters();
        assert_eq!(counters.connections_current, 0);
        assert_eq!(counters.connections_opened, counters.connections_closed);
        assert_eq!(counters.handler_panics, self.handler_panics);
        counters
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(engine) = self.engine.take() else { return };
        let ended = ended_within(PATIENCE, move || drop(engine));
        if !thread::panicking() {
            assert!(ended.is_some(), "a dropped engine did not end");
            assert_eq!(self.counters().handler_panics, self.handler_panics);
        }
    }
}

/// What `action` answers, unless it takes longer.
pub(crate) fn ended_within<R: Send + 'static>(
    limit: Duration,
    action: impl FnOnce() -> R + Send + 'static,
) -> Option<R> {
    let (done, ended) = mpsc::channel();
    thread::spawn(move || done.send(action()));
    ended.recv_timeout(limit).ok()
}

/// Takes from a channel until `count` things have come.
pub(crate) fn collect<T>(receiver: &mpsc::Receiver<T>, count: usize) -> Vec<T> {
    (0..count).map(|_| receiver.recv_timeout(PATIENCE).expect("the handler reports")).collect()
}

/// Waits until the shard has no connection left.
pub(crate) fn wait_until_empty(server: &Server) {
    eventually("an empty shard", || server.counters().connections_current == 0);
}
