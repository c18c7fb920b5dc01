//! Runs one piece of the protocol's hot path a number of times, for a profiler that counts instructions; see
//! `scripts/instructions.sh`. Without arguments it names the pieces.

#[path = "../benches/protocol/shard.rs"]
mod shard;
#[path = "../benches/protocol/workloads.rs"]
mod workloads;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, times] = arguments.as_slice() else {
        workloads::all().iter().for_each(|workload| println!("{} {}", workload.name, workload.bytes));
        return ExitCode::SUCCESS;
    };
    let Some(mut workload) = workloads::all().into_iter().find(|workload| workload.name == *name) else {
        eprintln!("no workload {name}");
        return ExitCode::FAILURE;
    };
    let Ok(times) = times.parse::<u32>() else {
        eprintln!("{times} is not a number of times");
        return ExitCode::FAILURE;
    };
    (0..times).for_each(|_| (workload.run)());
    ExitCode::SUCCESS
}
