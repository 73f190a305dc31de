//! What workers measure themselves: how long and how large, once for each
//! transaction. Whatever can be counted is observed from their statuses instead.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Histogram, Meter};

use super::metrics::{
    self, Kind, LATENCY, Metric, TRANSACTION_DURATION, TRANSACTION_RECORDS, TRANSACTION_SIZE,
};

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Kafka has it.
    Committed,
    /// Nothing of it will be read; it is made again.
    Aborted,
    /// Nobody knows before the log is asked.
    Unknown,
}

impl Outcome {
    /// All of them.
    pub(super) const ALL: [Outcome; 3] = [Outcome::Committed, Outcome::Aborted, Outcome::Unknown];

    /// In a word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Committed => "committed",
            Outcome::Aborted => "aborted",
            Outcome::Unknown => "unknown",
        }
    }
}

/// What workers measure themselves; clones share it.
#[derive(Debug, Clone)]
pub struct Instruments {
    latency: Histogram<f64>,
    duration: Histogram<f64>,
    records: Histogram<f64>,
    size: Histogram<f64>,
    outcomes: [[KeyValue; 1]; 3],
}

impl Instruments {
    pub(super) fn new(meter: &Meter) -> Instruments {
        let outcome = |outcome: Outcome| [KeyValue::new(metrics::OUTCOME, outcome.as_str())];
        Instruments {
            latency: histogram(meter, &LATENCY),
            duration: histogram(meter, &TRANSACTION_DURATION),
            records: histogram(meter, &TRANSACTION_RECORDS),
            size: histogram(meter, &TRANSACTION_SIZE),
            outcomes: Outcome::ALL.map(outcome),
        }
    }

    /// A transaction has ended.
    pub fn transaction(&self, outcome: Outcome, duration: Duration) {
        let attributes = self.outcomes.get(outcome as usize).map_or(&[][..], <[KeyValue; 1]>::as_slice);
        self.duration.record(duration.as_secs_f64(), attributes);
    }

    /// A transaction of so many records and bytes was committed just now, with
    /// these Kafka timestamps; a negative one says nothing.
    pub fn committed(&self, records: usize, bytes: usize, times_ms: impl Iterator<Item = i64>) {
        self.records.record(records as f64, &[]);
        self.size.record(bytes as f64, &[]);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
        for time_ms in times_ms.filter(|time_ms| *time_ms >= 0) {
            // A producer's clock may be ahead of ours.
            self.latency.record((now_ms - time_ms).max(0) as f64 / 1000.0, &[]);
        }
    }
}

fn histogram(meter: &Meter, metric: &Metric) -> Histogram<f64> {
    let Kind::Histogram(bounds) = metric.kind else { unreachable!("{} is a histogram", metric.name) };
    meter
        .f64_histogram(metric.name)
        .with_unit(metric.unit)
        .with_description(metric.meaning)
        .with_boundaries(bounds.to_vec())
        .build()
}
