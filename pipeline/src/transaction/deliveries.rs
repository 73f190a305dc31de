//! What became of each record that was sent, and which ends of changelog and
//! ids log that tells.
//!
//! librdkafka's own threads tell it here, in passing ([`super::native`]): a report
//! of each record for another thread to fetch would cost more than the commit.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rdkafka::error::RDKafkaErrorCode;

/// What a record's delivery tells.
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

    pub(super) fn of_opaque(opaque: usize) -> Report {
        let Some(number) = opaque.checked_sub(1) else { return Report::Arrival };
        let partition = i32::try_from(number / 2).expect("an opaque is made from a partition");
        if number % 2 == 0 { Report::ChangelogEnd(partition) } else { Report::IdsEnd(partition) }
    }
}

/// One transaction's deliveries.
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

    /// Flush and abort wait for every record, so none of an earlier transaction is to come.
    pub(super) fn reset(&self) {
        for end in self.changelog_ends.iter().chain(&self.ids_ends) {
            end.store(-1, Ordering::Release);
        }
        self.delivered.store(0, Ordering::Release);
        self.take_failure();
    }

    /// A record arrived at this offset.
    pub(super) fn arrived(&self, report: Report, offset: i64) {
        if let Some(end) = self.end(report) {
            // A position is the next offset, hence the one.
            end.fetch_max(offset + 1, Ordering::AcqRel);
        }
        self.delivered.fetch_add(1, Ordering::AcqRel);
    }

    /// A record did not arrive, and will not.
    pub(super) fn failed(&self, code: RDKafkaErrorCode, place: &str) {
        let why = || (code, format!("{place}: {code}"));
        // The first is the cause; what is purged after it is not.
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(why);
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
