//! `fanout`: one publisher, many subscribers of one topic; the server publishes every message to all
//! subscribers.
//!
//! The publisher is the first of the subscribers. Closed loop: the next burst is published when all have got
//! the last. Open loop: publications leave on a schedule, and the latency of every delivery counts from when
//! its publication was due. Some subscribers may hang: they never read, and the others must not suffer.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use crate::Result;
use crate::dial::{Destination, open_all};
use crate::lane::Lane;
use crate::latency::Latencies;
use crate::options::{Common, Messages, Timing, Window};
use crate::rate::{Schedule, sharpen_timers};
use crate::sample::{Sampler, resident_bytes};

/// The options of `fanout`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct Fanout {
    #[command(flatten)]
    #[serde(flatten)]
    common: Common,
    #[command(flatten)]
    #[serde(flatten)]
    messages: Messages,
    #[command(flatten)]
    #[serde(flatten)]
    timing: Timing,
    /// How many connections subscribe, the publisher among them.
    #[arg(long, default_value_t = 500)]
    subscribers: usize,
    /// How many messages are published in one write.
    #[arg(long, default_value_t = 1)]
    burst: u64,
    /// Open loop: so many publications per second.
    #[arg(long)]
    rate: Option<f64>,
    /// The share of subscribers that do not read, in percent.
    #[arg(long, default_value_t = 0.0)]
    slow_percent: f64,
    /// The server may drop what does not fit for those: it is counted. Else all must be there in the end.
    #[arg(long)]
    may_drop: bool,
}

impl Fanout {
    /// The same, of the server at `address`.
    pub(crate) fn at(&self, address: SocketAddr) -> Self {
        Self { common: self.common.at(address), ..self.clone() }
    }
}

/// Runs the scenario.
///
/// # Errors
/// A connection failed, or a delivery was wrong or is missing.
pub(crate) fn run(options: &Fanout) -> Result<Value> {
    options.common.pin(0)?;
    sharpen_timers()?;
    let mut lane = options.common.lane(&options.messages, 0)?;
    let slow = (options.subscribers as f64 * options.slow_percent / 100.0).ceil() as usize;
    let readers =
        options.subscribers.checked_sub(slow).filter(|readers| *readers > 0).ok_or("nobody reads")?;
    let destination = options.common.destination()?;
    // The kernel reserves room for a number of segments: with those of the loopback interface it would hold
    // megabytes for each that hangs before the server has to.
    let narrow = Destination { segment_bytes: Some(ETHERNET_SEGMENT_BYTES), ..destination.clone() };
    let mut opened = open_all(&destination, readers)?;
    opened.extend(open_all(&narrow, slow)?);
    for upgraded in opened {
        // All receive what the first one sends, so all follow its numbers.
        lane.adopt(upgraded, 0)?;
    }
    for subscriber in readers..options.subscribers {
        lane.stop_reading(subscriber)?;
    }

    let resident = || options.common.server_pid.map(resident_bytes).transpose();
    let resident_before = resident()?;
    let start = Instant::now();
    let burst = options.burst.max(1);
    let mut load = Load { lane, start, readers: readers as u64, burst, owed: 0, delivered: 0 };
    let mut results = match options.rate {
        None => closed_loop(options, &mut load)?,
        Some(rate) => open_loop(options, &mut load, rate)?,
    };
    results["resident_before_bytes"] = json!(resident_before.map(|(bytes, _)| bytes));
    results["resident_bytes"] = json!(resident()?.map(|(bytes, _)| bytes));
    // The kernel knows the peak to some tens of pages only.
    let before = resident_before.map_or(0, |(bytes, _)| bytes);
    results["resident_peak_bytes"] = json!(resident()?.map(|(_, peak)| peak.max(before)));
    results["slow_subscribers"] = json!(slow);
    let (missed, cut_off) = load.read_leftovers(readers..options.subscribers, options.may_drop)?;
    results["slow_subscribers_missed"] = json!(missed);
    results["slow_subscribers_dropped"] = json!(cut_off);
    Ok(results)
}

fn closed_loop(options: &Fanout, load: &mut Load) -> Result<Value> {
    let mut sampler = Sampler::new(options.common.server_pid)?;
    let window = options.timing.window();
    load.publish_until(window.from, &mut Latencies::new())?;
    let delivered_before = load.delivered;
    let mut completion = Latencies::new();
    sampler.begin()?;
    let from = Instant::now();
    load.publish_until(window.until_from(from), &mut completion)?;
    let seconds = from.elapsed().as_secs_f64();
    sampler.end()?;
    let deliveries = load.delivered - delivered_before;
    Ok(json!({
        "messages": deliveries,
        "messages_per_second": deliveries as f64 / seconds,
        "publications_per_second": deliveries as f64 / load.readers as f64 / seconds,
        "burst_completion": completion.percentiles(),
        "cost": sampler.cost(deliveries),
    }))
}

fn open_loop(options: &Fanout, load: &mut Load, rate: f64) -> Result<Value> {
    if rate.is_nan() || rate <= 0.0 {
        return Err("the rate must be positive".into());
    }
    let mut sampler = Sampler::new(options.common.server_pid)?;
    let window = options.timing.window();
    let owed_max = (OWED_BYTES_MAX / options.messages.bytes.max(64)) as u64;
    let mut timed = Timed {
        schedule: Schedule::new(window.start, rate / load.burst as f64),
        bursts: 0,
        window,
        latencies: Latencies::new(),
        lateness: Latencies::new(),
    };
    let (begin, end) = window.readings();
    timed.publish_until(load, begin, owed_max)?;
    let delivered_before = load.delivered;
    sampler.begin()?;
    let from = Instant::now();
    timed.publish_until(load, end, owed_max)?;
    let seconds = from.elapsed().as_secs_f64();
    sampler.end()?;
    let deliveries = load.delivered - delivered_before;
    timed.collect_rest(load)?;
    Ok(json!({
        "messages": deliveries,
        "messages_per_second": deliveries as f64 / seconds,
        "latency": timed.latencies.percentiles(),
        "client_lateness": timed.lateness.percentiles(),
        "cost": sampler.cost(deliveries),
    }))
}

/// The publisher and its subscribers.
struct Load {
    lane: Lane,
    start: Instant,
    readers: u64,
    burst: u64,
    owed: u64,
    delivered: u64,
}

impl Load {
    fn publish(&mut self) -> Result<()> {
        self.lane.send(PUBLISHER, self.burst)?;
        self.owed += self.burst * self.readers;
        Ok(())
    }

    /// Closed loop until `end`; ends with nothing owed.
    fn publish_until(&mut self, end: Instant, completion: &mut Latencies) -> Result<()> {
        let mut now = Instant::now();
        while now < end {
            let start = now;
            self.publish()?;
            while self.owed > 0 {
                let ready = self.lane.wait(WAIT)?;
                if ready == 0 && start.elapsed() > DELIVERY_TIMEOUT {
                    return Err(format!("{} deliveries are missing", self.owed).into());
                }
                self.serve(ready, |_| {})?;
            }
            now = Instant::now();
            completion.record(now - start);
        }
        Ok(())
    }

    /// Serves the ready; `delivered` gets the index of every publication that a subscriber received.
    #[inline]
    fn serve(&mut self, ready: usize, mut delivered: impl FnMut(u64)) -> Result<()> {
        for index in 0..ready {
            let (subscriber, received) = self.lane.serve(index)?;
            if received > 0 {
                let last = self.lane.received(subscriber);
                (last - received..last).for_each(&mut delivered);
            }
            self.owed -= received;
            self.delivered += received;
        }
        Ok(())
    }

    /// Reads what waits for those that have not read. Returns how many messages they missed in all, and how
    /// many of them the server cut off.
    fn read_leftovers(&mut self, slow: Range<usize>, may_drop: bool) -> Result<(u64, usize)> {
        let published = self.lane.sent(PUBLISHER);
        // What a full buffer refused, the server's kernel sends again, and doubles the time in between: the
        // next attempt comes before the load's length has passed once more.
        let deadline = Instant::now() + self.start.elapsed() + LEFTOVERS_SPARE;
        let leftovers = self.lane.read_leftovers(slow, published, deadline)?;
        let missed = leftovers.iter().map(|leftovers| leftovers.missed(published)).sum();
        let cut_off = leftovers.iter().filter(|leftovers| leftovers.is_cut_off).count();
        if missed > 0 && !may_drop {
            return Err(format!("{missed} messages never came to those that had not read").into());
        }
        Ok((missed, cut_off))
    }
}

/// Publications on a schedule.
struct Timed {
    schedule: Schedule,
    bursts: u64,
    window: Window,
    latencies: Latencies,
    /// How late the client itself published.
    lateness: Latencies,
}

impl Timed {
    /// Publishes all that is due by `end`, also what it could not publish by then, and serves until `end`.
    fn publish_until(&mut self, load: &mut Load, end: Instant, owed_max: u64) -> Result<()> {
        loop {
            let now = Instant::now();
            // All that is due leaves before anything is received: else a busy client would set the pace.
            while let due = self.schedule.due(self.bursts)
                && due <= now.min(end)
            {
                if self.window.contains(due) {
                    // Each by a clock of its own: those before it took their time.
                    self.lateness.record(due.elapsed());
                }
                load.publish()?;
                self.bursts += 1;
            }
            if load.owed > owed_max {
                return Err(format!(
                    "{} deliveries owed: the rate is more than the server can take",
                    load.owed
                )
                .into());
            }
            if now >= end {
                return Ok(());
            }
            let next = self.schedule.due(self.bursts).min(end);
            let ready = load.lane.wait_exactly(next.saturating_duration_since(Instant::now()))?;
            self.serve(load, ready)?;
        }
    }

    fn serve(&mut self, load: &mut Load, ready: usize) -> Result<()> {
        let burst = load.burst;
        load.serve(ready, |publication| {
            let due = self.schedule.due(publication / burst);
            if self.window.contains(due) {
                self.latencies.record(due.elapsed());
            }
        })
    }

    fn collect_rest(&mut self, load: &mut Load) -> Result<()> {
        let deadline = Instant::now() + DELIVERY_TIMEOUT;
        while load.owed > 0 {
            let ready = load.lane.wait(WAIT)?;
            self.serve(load, ready)?;
            if Instant::now() > deadline {
                return Err(format!("{} deliveries are missing", load.owed).into());
            }
        }
        Ok(())
    }
}

/// Of a connection over Ethernet.
const ETHERNET_SEGMENT_BYTES: u32 = 1460;
const PUBLISHER: usize = 0;
const WAIT: Duration = Duration::from_millis(10);
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(5);
const LEFTOVERS_SPARE: Duration = Duration::from_secs(1);
const OWED_BYTES_MAX: usize = 256 * 1024 * 1024;
