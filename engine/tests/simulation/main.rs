//! The deterministic simulation: whole shards with their clients in one thread, from a seed.
//!
//! Every seed is a world of its own: limits, timeouts and misfortunes are drawn first, then some hundred
//! steps happen in random order (bytes move in pieces of any size, sends are taken in part, clients stall,
//! break the protocol, reset and close, the handler sends, pauses, closes and panics, the clock jumps), and
//! at last everybody closes. A model beside the shards knows what must come of it.
//!
//! `RINGWIRE_SEEDS=100000 cargo test --test simulation` looks at more seeds; `RINGWIRE_SEED=7` tells the
//! story of one.

mod client;
mod content;
mod handler;
mod host;
mod model;
mod network;
mod plan;
mod publications;
mod random;
mod scenarios;
mod topic_stories;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};

use handler::Deliberate;
use world::{Summary, World};

/// Seeds that are looked at unless the environment says otherwise.
const SEEDS: u64 = 2000;

#[test]
fn shards_keep_their_promises_whatever_happens() {
    quieten_deliberate_panics();
    if let Some(seed) = number_in("RINGWIRE_SEED") {
        let outcome = World::new(seed, true).run();
        return assert!(outcome.is_ok(), "seed {seed}: {:#?}", outcome.err());
    }
    let mut sum = Summary::default();
    for seed in 0..number_in("RINGWIRE_SEEDS").unwrap_or(SEEDS) {
        let outcome = catch_unwind(AssertUnwindSafe(|| World::new(seed, false).run()))
            .unwrap_or_else(|_| Err(vec!["a panic, see above".to_owned()]));
        match outcome {
            Ok(summary) => sum.add(&summary),
            Err(failures) => panic!("seed {seed}: {failures:#?}\nreplay it with RINGWIRE_SEED={seed}"),
        }
    }
    println!("{sum:?}");
}

fn number_in(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().expect("a number"))
}

fn quieten_deliberate_panics() {
    let hook = take_hook();
    set_hook(Box::new(move |panic| {
        if !panic.payload().is::<Deliberate>() {
            hook(panic);
        }
    }));
}
