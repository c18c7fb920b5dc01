//! What an engine takes from the process it gives back: descriptors, threads, rings, memory. And it goes on
//! when there are no descriptors left.
//!
//! One test, because the counts are those of the whole process.

#[path = "integration/client.rs"]
#[expect(dead_code, reason = "the other test program uses the rest")]
mod client;
#[path = "integration/script.rs"]
#[expect(dead_code, reason = "the other test program uses the rest")]
mod script;
#[path = "integration/server.rs"]
#[expect(dead_code, reason = "the other test program uses the rest")]
mod server;

use std::{
    fs,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use client::{Client, Received, eventually, request};
use ringwire::{Config, Cores, Driver, Engine, Error};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use script::Script;
use server::{Server, config, run};
use socket2::{Domain, SockAddr, Socket, Type};

#[test]
fn everything_is_given_back() {
    for driver in [Driver::IoUring, Driver::Epoll] {
        run(driver, |driver| {
            engines_come_and_go(driver);
            failed_starts_leave_nothing(driver);
            connections_come_and_go(driver);
            accepting_goes_on_when_descriptors_come_back(driver);
        });
    }
}

/// What the process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Belongings {
    descriptors: usize,
    rings: usize,
    threads: usize,
}

impl Belongings {
    fn now() -> Self {
        let entries = || fs::read_dir("/proc/self/fd").expect("/proc").filter_map(Result::ok);
        let is_ring = |entry: &fs::DirEntry| {
            fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().contains("io_uring"))
        };
        Self {
            // The one that lists them is among them.
            descriptors: entries().count() - 1,
            rings: entries().filter(is_ring).count(),
            threads: fs::read_dir("/proc/self/task").expect("/proc").count(),
        }
    }

    /// Threads of the test's own take a moment to end.
    fn are_back(self, what: &str) {
        let start = Instant::now();
        while Self::now() != self && start.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(Self::now(), self, "{what}");
    }
}

fn resident_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let kibibytes: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kibibytes * 1024
}

/// Leaves room for so many more descriptors. Answers with the limit as it was.
fn leave_descriptors(spare: usize) -> Rlimit {
    let limit = getrlimit(Resource::Nofile);
    // The numbers need not be without gaps.
    let is_open = |number: &u64| fs::read_link(format!("/proc/self/fd/{number}")).is_ok();
    let free = (0u64..).filter(|number| !is_open(number)).nth(spare.saturating_sub(1));
    let lowered = Rlimit { current: free.map(|last| if spare == 0 { 0 } else { last + 1 }), ..limit };
    setrlimit(Resource::Nofile, lowered).expect("a lower limit");
    limit
}

fn all_cores(driver: Driver) -> Config {
    let mut config = config(driver);
    config.cores = Cores::All;
    config
}

fn engines_come_and_go(driver: Driver) {
    let before = Belongings::now();
    for round in 0..20 {
        let server = Server::start(all_cores(driver), |_| Script::echo());
        let mut clients: Vec<_> = (0..10).map(|_| server.connect()).collect();
        for client in &mut clients[..round % 10] {
            (0..6).for_each(|_| client.echo("active"));
        }
        let unfinished = Client::connect_raw(server.address);
        match round % 4 {
            0 => drop(server),
            1 => drop(server.stop(Duration::ZERO)),
            2 => drop(server.stop(Duration::from_millis(50))),
            _ => {
                drop((clients, unfinished));
                server.stop(Duration::from_secs(5));
                before.are_back("after a stop without clients");
                continue;
            }
        }
        drop((clients, unfinished));
        before.are_back(&format!("round {round}"));
    }
}

fn failed_starts_leave_nothing(driver: Driver) {
    let before = Belongings::now();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut in_use = all_cores(driver);
    in_use.listen = taken.local_addr().expect("an address");
    assert!(matches!(Engine::start(in_use, |_| Script::echo()), Err(Error::AddressInUse { .. })));
    drop(taken);
    before.are_back("after an address in use");

    let panicked = Engine::start(all_cores(driver), |info| {
        assert!(info.index > 0, "in the factory");
        Script::echo()
    });
    assert!(matches!(panicked, Err(Error::ShardPanicked { .. })));
    before.are_back("after a panic in the factory");

    // With ever more descriptors to spare: an error, up to where all of it works.
    let mut failed = 0;
    for spare in 0.. {
        let limit = leave_descriptors(spare);
        let started = Engine::start(all_cores(driver), |_| Script::echo());
        setrlimit(Resource::Nofile, limit).expect("the limit as it was");
        match started {
            Ok(engine) => {
                let mut clients: Vec<_> = (0..20).map(|_| Client::connect(engine.local_address())).collect();
                clients.iter_mut().for_each(|client| client.echo("it works"));
                drop((clients, engine));
                before.are_back("after a start with just enough descriptors");
                break;
            }
            Err(_) => failed += 1,
        }
        before.are_back(&format!("after a start with {spare} descriptors to spare"));
    }
    assert!((3..100).contains(&failed), "{failed} starts failed");
}

fn connections_come_and_go(driver: Driver) {
    let before = Belongings::now();
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX) as usize;
    // Both ends are in this process.
    let batch = ((limit - before.descriptors - 100) / 2).min(500);
    println!("{driver:?}: batches of {batch}, the limit for open files is {limit}");
    let server = Server::start(config(driver), |_| Script::echo());
    let running = Belongings::now();
    let mut resident = 0;
    let mut connections = 0;
    while connections < 10_000 {
        let clients: Vec<_> = (0..batch).map(|_| Client::connect_raw(server.address)).collect();
        for (index, mut client) in clients.into_iter().enumerate() {
            connections += 1;
            match index % 5 {
                0 => client.write(&request("/", &[])[..50]),
                1 => {
                    client.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
                    client.read_rest();
                }
                kind => {
                    client.write(&request("/", &[]));
                    client.read_upgrade();
                    for _ in 0..if index % 7 == 0 { 6 } else { 1 } {
                        client.echo("hello");
                    }
                    match kind {
                        2 => client.close(),
                        3 => client.reset(),
                        // Gone without a close frame.
                        _ => drop(client),
                    }
                }
            }
        }
        server::wait_until_empty(&server);
        running.are_back("between two batches");
        if connections >= 2000 && resident == 0 {
            resident = resident_bytes();
        }
    }
    let grown = resident_bytes().saturating_sub(resident);
    println!("{driver:?}: {connections} connections, {grown} bytes more resident");
    assert!(grown < 2 * 1024 * 1024, "{grown} bytes more after {connections} connections");
    server.stop(Duration::from_secs(5));
    before.are_back("after ten thousand connections");
}

fn accepting_goes_on_when_descriptors_come_back(driver: Driver) {
    const CLIENTS: usize = 60;
    const SPARE: usize = 10;
    let before = Belongings::now();
    let server = Server::start(config(driver), |_| Script::echo());
    let mut first = server.connect();
    // Their own descriptors are there before the limit falls.
    let sockets: Vec<_> =
        (0..CLIENTS).map(|_| Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket")).collect();
    let limit = leave_descriptors(SPARE);
    let mut waiting: Vec<_> = sockets
        .into_iter()
        .map(|socket| {
            socket.connect(&SockAddr::from(server.address)).expect("the kernel accepts");
            let mut client = Client::new(TcpStream::from(socket));
            client.write(&request("/", &[]));
            client
        })
        .collect();
    let errors = server.counters().accept_errors;
    thread::sleep(Duration::from_secs(1));
    let errors = server.counters().accept_errors - errors;
    assert!((1..=40).contains(&errors), "{errors} failed accepts in a second");
    assert_eq!(server.counters().connections_current, 1 + SPARE as u64);
    first.echo("those who are here are served");
    for client in &mut waiting[..SPARE] {
        client.read_upgrade();
        client.echo("so are we");
    }
    // A place that is left is taken by who waits, without anybody knocking again. The client's own end stays
    // open.
    waiting[0].send(ringwire::protocol::OpCode::Close, &[]);
    assert_eq!(waiting[0].receive(), Received::Close(None));
    waiting[0].shut_write();
    let mut next = waiting.remove(SPARE);
    next.read_upgrade();
    next.echo("I was next");
    setrlimit(Resource::Nofile, limit).expect("the limit as it was");
    eventually("everybody", || server.counters().connections_opened == 1 + CLIENTS as u64);
    for client in &mut waiting[SPARE..] {
        client.read_upgrade();
        client.echo("at last");
    }
    drop((first, next, waiting));
    server::wait_until_empty(&server);
    server.stop(Duration::from_secs(5));
    before.are_back("after running out of descriptors");
}
