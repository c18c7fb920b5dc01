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
/// A connection failed, a reply was wrong or is missing, or the server fell too far behind.
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
        answered: 0,
        owed_max: (OWED_BYTES_MAX / options.messages.bytes.max(64)) as u64,
        latencies: Latencies::new(),
        lateness: Latencies::new(),
    };
    let mut sampler = Sampler::new(options.common.server_pid)?;
    let (begin, end) = window.readings();
    load.run_until(&mut lane, begin)?;
    let answered_before = load.answered;
    sampler.begin()?;
    let from = Instant::now();
    load.run_until(&mut lane, end)?;
    let seconds = from.elapsed().as_secs_f64();
    sampler.end()?;
    // What was sent and not answered has cost the server little yet: it would make the rest look cheap.
    let answered = load.answered - answered_before;
    load.collect_rest(&mut lane)?;
    Ok(json!({
        "messages": answered,
        "messages_per_second": answered as f64 / seconds,
        "latency": load.latencies.percentiles(),
        "client_lateness": load.lateness.percentiles(),
        "cost": sampler.cost(answered),
    }))
}

struct Load {
    schedule: Schedule,
    window: Window,
    /// Per connection, when the messages were due whose replies are owed.
    due: Vec<VecDeque<Instant>>,
    sent: u64,
    answered: u64,
    owed_max: u64,
    latencies: Latencies,
    /// How late the client itself sent: the part of the latency that is not the server's.
    lateness: Latencies,
}

impl Load {
    /// Sends all that is due by `end`, also what it could not send by then, and serves until `end`.
    fn run_until(&mut self, lane: &mut Lane, end: Instant) -> Result<()> {
        loop {
            let now = Instant::now();
            self.send_due(lane, now.min(end))?;
            if now >= end && self.schedule.due(self.sent) > end {
                return Ok(());
            }
            let next = self.schedule.due(self.sent).min(end);
            let ready = lane.wait_exactly(next.saturating_duration_since(Instant::now()))?;
            self.serve(lane, ready)?;
        }
    }

    /// Sends what is due by `until`, or some of it.
    fn send_due(&mut self, lane: &mut Lane, until: Instant) -> Result<()> {
        for _ in 0..SENDS_PER_TURN_MAX {
            let due = self.schedule.due(self.sent);
            if due > until {
                break;
            }
            if self.window.contains(due) {
                // Each by a clock of its own: those before it took their time.
                self.lateness.record(due.elapsed());
            }
            let connection = self.sent as usize % lane.connections();
            lane.send(connection, 1)?;
            self.due[connection].push_back(due);
            self.sent += 1;
        }
        if self.owed() > self.owed_max {
            return Err(
                format!("{} replies owed: the rate is more than the server can take", self.owed()).into()
            );
        }
        Ok(())
    }

    fn owed(&self) -> u64 {
        self.sent - self.answered
    }

    fn serve(&mut self, lane: &mut Lane, ready: usize) -> Result<()> {
        for index in 0..ready {
            let (connection, replies) = lane.serve(index)?;
            let now = Instant::now();
            for _ in 0..replies {
                let due = self.due[connection].pop_front().ok_or("a reply to nothing")?;
                self.record(due, now);
            }
            self.answered += replies;
        }
        Ok(())
    }

    /// Waits for the replies still owed: none may be missing.
    fn collect_rest(&mut self, lane: &mut Lane) -> Result<()> {
        let deadline = Instant::now() + REST_TIMEOUT;
        while self.owed() > 0 {
            let ready = lane.wait(Duration::from_millis(10))?;
            self.serve(lane, ready)?;
            if Instant::now() > deadline {
                return Err(format!("{} replies are missing", self.owed()).into());
            }
        }
        Ok(())
    }

    fn record(&mut self, due: Instant, now: Instant) {
        if self.window.contains(due) {
            self.latencies.record(now.saturating_duration_since(due));
        }
    }
}

/// After so many sends the client looks for replies before it sends on.
const SENDS_PER_TURN_MAX: u32 = 64;
const OWED_BYTES_MAX: usize = 256 * 1024 * 1024;
const REST_TIMEOUT: Duration = Duration::from_secs(5);
