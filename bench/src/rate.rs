//! `rate`: open loop echo. Messages leave on a schedule, whatever comes back, and a latency counts from the
//! time at which its message was *due*: a server that stalls is charged for everything that had to wait
//! meanwhile.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::thread::set_current_timer_slack;
use serde::Serialize;
use serde_json::{Value, json};

use crate::Result;
use crate::dial::open_all;
use crate::lane::Lane;
use crate::latency::Latencies;
use crate::options::{Common, Messages, Timing, Window};
use crate::sample::Sampler;

/// The options of `rate`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct Rate {
    #[command(flatten)]
    #[serde(flatten)]
    common: Common,
    #[command(flatten)]
    #[serde(flatten)]
    messages: Messages,
    #[command(flatten)]
    #[serde(flatten)]
    timing: Timing,
    /// How many connections there are; they send in turn.
    #[arg(long, default_value_t = 128)]
    connections: usize,
    /// Messages per second, over all connections.
    #[arg(long)]
    rate: f64,
}

/// Messages that are due at equal intervals.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    start: Instant,
    per_second: f64,
}

impl Schedule {
    /// The first is due at `start`.
    pub(crate) fn new(start: Instant, per_second: f64) -> Self {
        Self { start, per_second }
    }

    /// When the `index`-th is due.
    #[inline]
    pub(crate) fn due(&self, index: u64) -> Instant {
        self.start + Duration::from_nanos((index as f64 * 1e9 / self.per_second) as u64)
    }
}

/// Lets this thread's timers fire on time, not within the usual 50 microseconds.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn sharpen_timers() -> Result<()> {
    Ok(set_current_timer_slack(NonZeroU64::new(1))?)
}

/// Runs the scenario.
///
/// # Errors
/// A connection failed, a reply was wrong, or the server fell too far behind.
pub(crate) fn run(options: &Rate) -> Result<Value> {
    if options.rate.is_nan() || options.rate <= 0.0 {
        return Err("the rate must be positive".into());
    }
    options.common.pin(0)?;
    sharpen_timers()?;
    let mut lane = options.common.lane(&options.messages, 0)?;
    for (tag, upgraded) in (0..).zip(open_all(&options.common.destination()?, options.connections)?) {
        lane.adopt(upgraded, tag)?;
    }
    let window = options.timing.window();
    let mut load = Load {
        schedule: Schedule::new(window.start, options.rate),
        window,
        due: vec![VecDeque::new(); lane.connections()],
        sent: 0,
        owed: 0,
        owed_max: (OWED_BYTES_MAX / options.messages.bytes.max(64)) as u64,
        latencies: Latencies::new(),
        lateness: Latencies::new(),
    };
    let mut sampler = Sampler::new(options.common.server_pid)?;
    load.run_until(&mut lane, window.from)?;
    sampler.begin()?;
    let sent_before = load.sent;
    load.run_until(&mut lane, window.until)?;
    sampler.end()?;
    let sent = load.sent - sent_before;
    let unanswered = load.collect_rest(&mut lane)?;
    Ok(json!({
        "messages": sent,
        "messages_per_second": sent as f64 / window.until.duration_since(window.from).as_secs_f64(),
        "latency": load.latencies.percentiles(),
        "client_lateness": load.lateness.percentiles(),
        "unanswered": unanswered,
        "cost": sampler.cost(sent),
    }))
}

struct Load {
    schedule: Schedule,
    window: Window,
    /// Per connection, when the messages were due whose replies are owed.
    due: Vec<VecDeque<Instant>>,
    sent: u64,
    owed: u64,
    owed_max: u64,
    latencies: Latencies,
    /// How late the client itself sent: the part of the latency that is not the server's.
    lateness: Latencies,
}

impl Load {
    fn run_until(&mut self, lane: &mut Lane, end: Instant) -> Result<()> {
        loop {
            let now = Instant::now();
            if now >= end {
                return Ok(());
            }
            self.send_due(lane, now)?;
            let next = self.schedule.due(self.sent).min(end);
            let ready = lane.wait_exactly(next.saturating_duration_since(Instant::now()))?;
            self.serve(lane, ready)?;
        }
    }

    fn send_due(&mut self, lane: &mut Lane, now: Instant) -> Result<()> {
        for _ in 0..SENDS_PER_TURN_MAX {
            let due = self.schedule.due(self.sent);
            if due > now {
                break;
            }
            let connection = self.sent as usize % lane.connections();
            lane.send(connection, 1)?;
            self.due[connection].push_back(due);
            self.sent += 1;
            self.owed += 1;
            if due >= self.window.from {
                self.lateness.record(now - due);
            }
        }
        if self.owed > self.owed_max {
            return Err(
                format!("{} replies owed: the rate is more than the server can take", self.owed).into()
            );
        }
        Ok(())
    }

    fn serve(&mut self, lane: &mut Lane, ready: usize) -> Result<()> {
        for index in 0..ready {
            let (connection, replies) = lane.serve(index)?;
            let now = Instant::now();
            for _ in 0..replies {
                let due = self.due[connection].pop_front().ok_or("a reply to nothing")?;
                self.record(due, now);
            }
            self.owed -= replies;
        }
        Ok(())
    }

    /// Waits for what is owed; what does not come counts with the time that was waited for it.
    fn collect_rest(&mut self, lane: &mut Lane) -> Result<u64> {
        let deadline = Instant::now() + REST_TIMEOUT;
        while self.owed > 0 && Instant::now() < deadline {
            let ready = lane.wait(Duration::from_millis(10))?;
            self.serve(lane, ready)?;
        }
        let now = Instant::now();
        for due in std::mem::take(&mut self.due).into_iter().flatten() {
            self.record(due, now);
        }
        Ok(self.owed)
    }

    fn record(&mut self, due: Instant, now: Instant) {
        if due >= self.window.from {
            self.latencies.record(now.saturating_duration_since(due));
        }
    }
}

/// After so many sends the client looks for replies before it sends on.
const SENDS_PER_TURN_MAX: u32 = 64;
const OWED_BYTES_MAX: usize = 256 * 1024 * 1024;
const REST_TIMEOUT: Duration = Duration::from_secs(5);
