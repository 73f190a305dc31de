//! What became of each record that was sent, and which ends of changelog and
//! ids log that tells.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::ProducerContext;

use crate::clients;

/// What a record's delivery report tells.
#[derive(Debug, Clone, Copy)]
pub(super) enum Report {
    /// That it arrived.
    Arrival,
    /// Where the changelog's partition now ends.
    ChangelogEnd(i32),
    /// Where the ids log's partition now ends.
    IdsEnd(i32),
}

impl Report {
    /// As the number that goes along with the record.
    pub(super) fn to_opaque(self) -> usize {
        let index = |partition| usize::try_from(partition).expect("a partition is not negative");
        match self {
            Report::Arrival => 0,
            Report::ChangelogEnd(partition) => 1 + 2 * index(partition),
            Report::IdsEnd(partition) => 2 + 2 * index(partition),
        }
    }

    fn of_opaque(opaque: usize) -> Report {
        let Some(number) = opaque.checked_sub(1) else { return Report::Arrival };
        let partition = i32::try_from(number / 2).expect("an opaque is made from a partition");
        if number % 2 == 0 { Report::ChangelogEnd(partition) } else { Report::IdsEnd(partition) }
    }
}

/// The producer's context: one transaction's deliveries.
#[derive(Debug)]
pub(super) struct Deliveries {
    changelog_ends: Vec<AtomicI64>,
    ids_ends: Vec<AtomicI64>,
    delivered: AtomicU64,
    failed: Mutex<Option<(RDKafkaErrorCode, String)>>,
}

impl Deliveries {
    pub(super) fn new(partitions: i32) -> Deliveries {
        let ends = || (0..partitions).map(|_| AtomicI64::new(-1)).collect();
        Deliveries {
            changelog_ends: ends(),
            ids_ends: ends(),
            delivered: AtomicU64::new(0),
            failed: Mutex::default(),
        }
    }

    /// Flush and abort wait for every report, so none of an earlier transaction is to come.
    pub(super) fn reset(&self) {
        for end in self.changelog_ends.iter().chain(&self.ids_ends) {
            end.store(-1, Ordering::Release);
        }
        self.delivered.store(0, Ordering::Release);
        self.take_failure();
    }

    /// How many records arrived.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Acquire)
    }

    /// The first failure.
    pub(super) fn take_failure(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// An end after this transaction, given what it was before.
    pub(super) fn end_after(&self, report: Report, before: i64) -> i64 {
        self.end(report).map_or(before, |end| end.load(Ordering::Acquire).max(before))
    }

    fn end(&self, report: Report) -> Option<&AtomicI64> {
        let (ends, partition) = match report {
            Report::Arrival => return None,
            Report::ChangelogEnd(partition) => (&self.changelog_ends, partition),
            Report::IdsEnd(partition) => (&self.ids_ends, partition),
        };
        usize::try_from(partition).ok().and_then(|index| ends.get(index))
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        clients::log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        clients::log_error(&error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        match result {
            Ok(record) => {
                if let Some(end) = self.end(Report::of_opaque(opaque)) {
                    // A position is the next offset, hence the one.
                    end.fetch_max(record.offset() + 1, Ordering::AcqRel);
                }
                self.delivered.fetch_add(1, Ordering::AcqRel);
            }
            Err((error, record)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
                let why = format!("{} [{}]: {code}", record.topic(), record.partition());
                // The first is the cause; what is purged after it is not.
                self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert((code, why));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_comes_back_as_it_went() {
        for report in
            [Report::Arrival, Report::ChangelogEnd(0), Report::IdsEnd(0), Report::ChangelogEnd(i32::MAX)]
        {
            let back = Report::of_opaque(report.to_opaque());
            assert_eq!(format!("{back:?}"), format!("{report:?}"));
        }
    }
}
