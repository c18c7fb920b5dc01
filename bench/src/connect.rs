//! `connect`: handshakes per second, and optionally a reconnect storm: many connections that are dropped at
//! once and all come back at once.
//!
//! A handshake is a TCP connect, an upgrade request and its checked response. Then the client hangs up.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use crate::Result;
use crate::dial::{Dialing, Upgraded, open_all};
use crate::latency::Latencies;
use crate::options::{Common, Timing};
use crate::sample::Sampler;

/// The options of `connect`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct Connect {
    #[command(flatten)]
    #[serde(flatten)]
    common: Common,
    #[command(flatten)]
    #[serde(flatten)]
    timing: Timing,
    /// How many connections are on their way at a time.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Then open so many, drop them at once and bring them all back at once.
    #[arg(long, default_value_t = 0)]
    storm: usize,
}

/// Runs the scenario.
///
/// # Errors
/// A connection failed, was refused or not answered.
pub(crate) fn run(options: &Connect) -> Result<Value> {
    options.common.pin(0)?;
    let mut results = steady(options)?;
    if options.storm > 0 {
        results["storm"] = storm(options)?;
    }
    Ok(results)
}

fn steady(options: &Connect) -> Result<Value> {
    let mut dialing = Dialing::new(options.common.destination()?, options.connections)?;
    let mut sampler = Sampler::new(options.common.server_pid)?;
    let window = options.timing.window();
    run_until(&mut dialing, window.from, &mut Latencies::new())?;
    sampler.begin()?;
    let mut latencies = Latencies::new();
    let handshakes = run_until(&mut dialing, window.until, &mut latencies)?;
    sampler.end()?;
    dialing.finish(REST_TIMEOUT)?;
    if handshakes == 0 {
        return Err("no handshake in the measured phase".into());
    }
    Ok(json!({
        "handshakes": handshakes,
        "handshakes_per_second": handshakes as f64 / window.until.duration_since(window.from).as_secs_f64(),
        "latency": latencies.percentiles(),
        "cost": sampler.cost(handshakes),
    }))
}

fn run_until(dialing: &mut Dialing, end: Instant, latencies: &mut Latencies) -> Result<u64> {
    let mut handshakes = 0;
    while Instant::now() < end {
        while dialing.start()? {}
        dialing.poll(WAIT, |_, took| {
            handshakes += 1;
            latencies.record(took);
        })?;
    }
    Ok(handshakes)
}

fn storm(options: &Connect) -> Result<Value> {
    let destination = options.common.destination()?;
    let before: Vec<Upgraded> = open_all(&destination, options.storm)?;
    let mut dialing = Dialing::new(destination, options.storm)?;
    let mut sampler = Sampler::new(options.common.server_pid)?;
    sampler.begin()?;
    let start = Instant::now();
    drop(before);
    while dialing.start()? {}
    let mut latencies = Latencies::new();
    let mut back = Vec::with_capacity(options.storm);
    while back.len() < options.storm {
        dialing.poll(WAIT, |upgraded, _| {
            latencies.record(start.elapsed());
            back.push(upgraded);
        })?;
        if start.elapsed() > STORM_TIMEOUT {
            return Err(format!("only {} of {} connections came back", back.len(), options.storm).into());
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    sampler.end()?;
    Ok(json!({
        "connections": options.storm,
        "seconds": seconds,
        "latency": latencies.percentiles(),
        "cost": sampler.cost(options.storm as u64),
    }))
}

const WAIT: Duration = Duration::from_millis(10);
const REST_TIMEOUT: Duration = Duration::from_secs(5);
const STORM_TIMEOUT: Duration = Duration::from_secs(60);
