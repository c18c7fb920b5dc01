//! `idle`: many connections, one message each, then silence: what does a connection hold that says nothing?
//!
//! The kernel's share is what all slab caches grew by. Both ends of every connection are on this machine, so
//! it holds the client's sockets too.

use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use serde_json::{Value, json};

use crate::Result;
use crate::dial::open_all;
use crate::lane::Lane;
use crate::options::{Common, Messages};
use crate::sample::{open_files_max, resident_bytes, slab_bytes};

/// The options of `idle`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct Idle {
    #[command(flatten)]
    #[serde(flatten)]
    common: Common,
    #[command(flatten)]
    #[serde(flatten)]
    messages: Messages,
    /// How many connections: a fixed number, so that every machine divides by the same.
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// Seconds of silence before memory is read.
    #[arg(long, default_value_t = 2.0)]
    quiet: f64,
}

/// Runs the scenario.
///
/// # Errors
/// A process may not open enough files, or a connection failed or did not survive the silence.
pub(crate) fn run(options: &Idle) -> Result<Value> {
    let pid = options.common.server_pid.ok_or("idle needs --server-pid")?;
    let connections = options.connections;
    let client_files_max = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    check_files("the client", connections, client_files_max)?;
    check_files("the server", connections, open_files_max(pid)?)?;

    options.common.pin(0)?;
    let destination = options.common.destination()?;
    let mut lane = options.common.lane(&options.messages, 0)?;
    let (resident_before, _) = resident_bytes(pid)?;
    let slabs_before = slab_bytes();
    for (tag, upgraded) in (0..).zip(open_all(&destination, connections)?) {
        lane.adopt(upgraded, tag)?;
    }
    say_something(&mut lane)?;
    sleep(Duration::from_secs_f64(options.quiet));

    let (resident, resident_peak) = resident_bytes(pid)?;
    let kernel = slab_bytes().zip(slabs_before).map(|(now, before)| growth(&now, &before, connections));
    say_something(&mut lane)?;
    let per_connection = |bytes: u64| (bytes as f64 - resident_before as f64) / connections as f64;
    Ok(json!({
        "connections": connections,
        "resident_before_bytes": resident_before,
        "resident_bytes": resident,
        "resident_bytes_per_connection": per_connection(resident),
        "resident_peak_bytes_per_connection": per_connection(resident_peak),
        "kernel": kernel,
    }))
}

fn check_files(process: &str, connections: usize, files_max: u64) -> Result<()> {
    let needed = connections as u64 + SPARE_FILES;
    if files_max < needed {
        let problem =
            format!("{process} needs {needed} open files, the limit is {files_max}: raise ulimit -n");
        return Err(problem.into());
    }
    Ok(())
}

/// One message from every connection, a few connections at a time, and its reply.
fn say_something(lane: &mut Lane) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut next = 0;
    let mut owed = 0;
    while next < lane.connections() || owed > 0 {
        while next < lane.connections() && owed < AT_ONCE {
            lane.send(next, 1)?;
            next += 1;
            owed += 1;
        }
        for index in 0..lane.wait(Duration::from_millis(10))? {
            owed -= lane.serve(index)?.1;
        }
        if Instant::now() > deadline {
            return Err(format!("{owed} replies are missing").into());
        }
    }
    Ok(())
}

/// By how much the slab caches grew per connection: all of them, and those that grew most.
fn growth(now: &[(String, u64)], before: &[(String, u64)], connections: usize) -> Value {
    let total = |slabs: &[(String, u64)]| slabs.iter().map(|(_, bytes)| *bytes as f64).sum::<f64>();
    let mut caches: Vec<(&str, f64)> = now
        .iter()
        .map(|(name, bytes)| {
            let earlier = before.iter().find(|(other, _)| other == name).map_or(0, |(_, bytes)| *bytes);
            (name.as_str(), (*bytes as f64 - earlier as f64) / connections as f64)
        })
        .collect();
    caches.sort_by(|one, other| other.1.total_cmp(&one.1));
    caches.truncate(8);
    json!({
        "both_ends_bytes_per_connection": (total(now) - total(before)) / connections as f64,
        "largest_caches": caches
            .into_iter()
            .filter(|(_, bytes)| *bytes >= 1.0)
            .map(|(name, bytes)| json!([name, bytes]))
            .collect::<Value>(),
    })
}

/// Files that server and client have open besides the connections.
const SPARE_FILES: u64 = 100;
const AT_ONCE: u64 = 64;
