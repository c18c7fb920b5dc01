//! Topics across shards on the real engine, on io_uring and on epoll, with raw TCP clients on loopback.
//!
//! Clients command the server by texts (see `topics/commands.rs`), so that a test reads as what its clients
//! do. Nothing here measures speed: a time limit only keeps a hang from lasting for ever.

/// Makes a test for each driver of each function named.
macro_rules! on_both_drivers {
    ($($name:ident),* $(,)?) => {
        mod io_uring {
            $(#[test] fn $name() { crate::server::run(ringwire::Driver::IoUring, super::$name); })*
        }
        mod epoll {
            $(#[test] fn $name() { crate::server::run(ringwire::Driver::Epoll, super::$name); })*
        }
    };
}

// Shared with the other tests, which use more of them.
#[allow(dead_code)]
#[path = "integration/client.rs"]
mod client;
#[allow(dead_code)]
#[path = "integration/script.rs"]
mod script;
#[allow(dead_code)]
#[path = "integration/server.rs"]
mod server;

#[path = "topics/commands.rs"]
mod commands;
#[path = "topics/delivery.rs"]
mod delivery;
#[path = "topics/direct.rs"]
mod direct;
#[path = "topics/fanout.rs"]
mod fanout;
#[path = "topics/foreign.rs"]
mod foreign;
#[path = "topics/relayed.rs"]
mod relayed;
#[path = "topics/slow.rs"]
mod slow;
#[path = "topics/subscriptions.rs"]
mod subscriptions;
#[path = "topics/windows.rs"]
mod windows;
