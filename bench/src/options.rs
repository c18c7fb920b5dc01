//! The options that several scenarios share.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::Serialize;

use crate::Result;
use crate::dial::Destination;
use crate::lane::{Lane, Wait};
use crate::payload::{Content, Payloads, Verify};
use crate::random::Random;

/// Where the server is and how the client runs.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct Common {
    /// The server, on the loopback interface: the method needs both ends on one machine.
    #[arg(long, default_value = "127.0.0.1:9001")]
    server: SocketAddr,
    /// The path of the upgrade request.
    #[arg(long, default_value = "/")]
    path: String,
    /// The server's process, to be charged for its processor time and memory.
    #[arg(long)]
    pub(crate) server_pid: Option<u32>,
    /// The cores of the client's threads, one after the other.
    #[arg(long, value_delimiter = ',')]
    cpus: Vec<usize>,
    /// How to wait for sockets.
    #[arg(long, value_enum, default_value = "sleep")]
    wait: Wait,
}

impl Common {
    /// Where to connect to.
    ///
    /// # Errors
    /// Not an address of this machine's loopback interface.
    pub(crate) fn destination(&self) -> Result<Destination> {
        if !self.server.ip().is_loopback() {
            return Err(format!("{} is not on the loopback interface", self.server).into());
        }
        Ok(Destination { server: self.server, path: self.path.clone(), segment_bytes: None })
    }

    /// The same, of the server at `address`.
    pub(crate) fn at(&self, address: SocketAddr) -> Self {
        Self { server: address, ..self.clone() }
    }

    /// Pins the calling thread to the core of the client's thread `index`, if cores were given.
    ///
    /// # Errors
    /// There is no such core.
    pub(crate) fn pin(&self, index: usize) -> Result<()> {
        if !self.cpus.is_empty() {
            let mut cpus = CpuSet::new();
            cpus.set(self.cpus[index % self.cpus.len()]);
            sched_setaffinity(None, &cpus)?;
        }
        Ok(())
    }

    /// An empty lane for the client's thread `index`.
    ///
    /// # Errors
    /// Out of descriptors.
    pub(crate) fn lane(&self, messages: &Messages, index: usize) -> Result<Lane> {
        let mut random = Random::from_environment(index as u64);
        let payloads = Payloads::new(messages.kind, messages.bytes, messages.verify, random.next());
        Lane::new(payloads, self.wait, random)
    }
}

/// What the messages are.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct Messages {
    /// The payload of each message, in bytes; from 16 on it carries its number.
    #[arg(long, default_value_t = 20)]
    pub(crate) bytes: usize,
    /// What the payload is made of.
    #[arg(long, value_enum, default_value = "binary")]
    kind: Content,
    /// How closely replies are looked at.
    #[arg(long, value_enum, default_value = "full")]
    verify: Verify,
}

/// How long it runs.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct Timing {
    /// Seconds of load before measuring.
    #[arg(long, default_value_t = 0.5)]
    warm_up: f64,
    /// Seconds to measure.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
}

impl Timing {
    /// The measured phase of a run that starts now.
    pub(crate) fn window(&self) -> Window {
        let start = Instant::now();
        let from = start + Duration::from_secs_f64(self.warm_up);
        Window { start, from, until: from + Duration::from_secs_f64(self.seconds) }
    }
}

/// When a run starts and what part of it is measured.
///
/// A closed loop measures for the same length from whenever it got there, in case it was held up on the way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// Load starts.
    pub(crate) start: Instant,
    /// Measuring starts.
    pub(crate) from: Instant,
    /// Measuring ends, and with it the load of a closed loop.
    pub(crate) until: Instant,
}

impl Window {
    /// Whether it measures what is due at `due`.
    #[inline]
    pub(crate) fn contains(&self, due: Instant) -> bool {
        (self.from..self.until).contains(&due)
    }

    /// When an open loop takes its readings: somewhat before and after, since to read `/proc` delays what is
    /// due meanwhile.
    pub(crate) fn readings(&self) -> (Instant, Instant) {
        (self.from - READING, self.until + READING)
    }

    /// The end of a measured phase that begins at `from` instead.
    pub(crate) fn until_from(&self, from: Instant) -> Instant {
        from + self.until.duration_since(self.from)
    }
}

/// Reading takes a fraction of a millisecond; then what had to wait is caught up with.
const READING: Duration = Duration::from_millis(10);
