//! Times the pieces of the protocol's hot path: `cargo bench -p ringwire-bench`.

mod shard;
mod workloads;

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn protocol(criterion: &mut Criterion) {
    for mut workload in workloads::all() {
        let (group, case) = workload.name.split_once('/').unwrap_or((&workload.name, ""));
        let mut group = criterion.benchmark_group(group);
        group.throughput(Throughput::Bytes(workload.bytes as u64));
        group.bench_function(case, |bencher| bencher.iter(&mut workload.run));
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = protocol
}
criterion_main!(benches);
