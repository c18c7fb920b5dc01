//! The load generator behind `scripts/bench.sh`: opens connections to one server on this machine, loads it in
//! one of several ways, checks every reply, and prints one JSON object: what was asked and what came out.
//!
//! The line for humans goes to standard error.
#![forbid(unsafe_code)]

mod connect;
mod dial;
mod echo;
mod fanout;
mod idle;
mod lane;
mod latency;
mod leftovers;
mod mesh;
mod options;
mod payload;
mod poll;
mod random;
mod rate;
mod replies;
mod sample;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Whatever stops a run; the text says what.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Loads a WebSocket server on this machine and reports what that cost.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Debug, Subcommand, Serialize)]
#[serde(rename_all = "lowercase")]
enum Scenario {
    /// Closed loop: a fixed number of messages in flight per connection.
    Echo(echo::Echo),
    /// Open loop: echo at a fixed rate, latency counted from when each message was due.
    Rate(rate::Rate),
    /// Handshakes per second, and a reconnect storm.
    Connect(connect::Connect),
    /// Memory per idle connection.
    Idle(idle::Idle),
    /// From one shard to another, in an engine in this process.
    Mesh(mesh::Mesh),
    /// One publisher and many subscribers, closed or open loop, some of them not reading.
    Fanout(fanout::Fanout),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    raise_open_files_limit();
    let results = run(&arguments.scenario).and_then(|results| {
        // What measured nothing has verified nothing.
        if results["messages"] == 0 {
            Err("no message was answered in the measured phase".into())
        } else {
            Ok(results)
        }
    });
    match results {
        Ok(results) => {
            eprintln!("{}", summary(&results));
            println!("{}", json!({ "inputs": arguments.scenario, "results": results }));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(scenario: &Scenario) -> Result<Value> {
    match scenario {
        Scenario::Echo(options) => echo::run(options),
        Scenario::Rate(options) => rate::run(options),
        Scenario::Connect(options) => connect::run(options),
        Scenario::Idle(options) => idle::run(options),
        Scenario::Fanout(options) => fanout::run(options),
        Scenario::Mesh(options) => mesh::run(options),
    }
}

/// As many files as the hard limit allows: the soft one is often 1024.
fn raise_open_files_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Where even this is refused, the run fails later and says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// The figures of `results` on one line.
fn summary(results: &Value) -> String {
    let mut figures = Vec::new();
    collect_figures(results, "", &mut figures);
    figures.join(", ")
}

fn collect_figures(value: &Value, path: &str, figures: &mut Vec<String>) {
    let Some(object) = value.as_object() else {
        return;
    };
    for (name, value) in object {
        let name = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match value.as_f64() {
            Some(figure) if value.is_f64() => figures.push(format!("{name} {figure:.3}")),
            Some(figure) => figures.push(format!("{name} {figure}")),
            None => collect_figures(value, &name, figures),
        }
    }
}
