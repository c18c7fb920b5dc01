//! Latencies in nanoseconds, to three digits, from a nanosecond to a minute.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// A distribution of latencies.
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    /// An empty distribution.
    pub(crate) fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, HIGHEST.as_nanos() as u64, 3);
        Self(histogram.expect("the bounds are valid"))
    }

    /// Adds one.
    #[inline]
    pub(crate) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(latency.as_nanos() as u64);
    }

    /// The percentiles, in microseconds.
    pub(crate) fn percentiles(&self) -> Value {
        let at = |quantile| self.0.value_at_quantile(quantile) as f64 / 1e3;
        json!({
            "count": self.0.len(),
            "mean_us": self.0.mean() / 1e3,
            "p50_us": at(0.5),
            "p90_us": at(0.9),
            "p99_us": at(0.99),
            "p999_us": at(0.999),
            "max_us": self.0.max() as f64 / 1e3,
        })
    }
}

const HIGHEST: Duration = Duration::from_secs(60);
