//! The real engine on loopback, on io_uring and on epoll, with raw TCP clients.
//!
//! Every test takes a driver; `on_both_drivers!` makes two of it. Nothing here measures speed: a time limit
//! only keeps a hang from lasting for ever.

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

mod client;
mod script;
mod server;

mod backpressure;
mod buffers;
mod echo;
mod futures;
mod hostile;
mod lifecycle;
mod panics;
mod pause;
mod stop;
mod timeouts;
mod upgrade;
