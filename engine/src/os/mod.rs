//! The kernel, as far as std and monoio do not cover it: sockets with both directions in flight, a ring for
//! many sends and receives in one call, its flags, event and timer descriptors, a cheap clock.
//!
//! One of the few rooms where `unsafe` may live. It knows nothing of connections or of the protocol.

mod clock;
mod event;
mod listener;
mod ring;
mod socket;
mod socket_ring;
mod timer;

pub(crate) use clock::Clock;
pub(crate) use event::Event;
pub(crate) use listener::Listener;
pub(crate) use ring::{RingFlags, probe_ring};
pub(crate) use socket::{Direction, Readiness, Socket};
pub(crate) use socket_ring::{ECANCELED, Received, SocketRing};
pub(crate) use timer::Timer;
