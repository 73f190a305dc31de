//! What became of each record that was sent, and which ends of changelog and
//! ids log that tells.
//!
//! librdkafka's own threads tell it here, in passing ([`super::native`]): a report
//! of each record for another thread to fetch would cost more than the commit.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rdkafka::error::RDKafkaErrorCode;

use super::trouble::is_permanent;

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

/// Where the first record of a transaction came to lie in a log, and where the log ends behind the last.
#[derive(Debug)]
struct Span {
    first: AtomicI64,
    end: AtomicI64,
}

impl Span {
    fn new() -> Span {
        Span { first: AtomicI64::new(i64::MAX), end: AtomicI64::new(-1) }
    }
}

/// One transaction's deliveries.
#[derive(Debug)]
pub(super) struct Deliveries {
    changelog: Vec<Span>,
    ids: Vec<Span>,
    delivered: AtomicU64,
    failed: Mutex<Option<(RDKafkaErrorCode, String)>>,
}

impl Deliveries {
    pub(super) fn new(partitions: i32) -> Deliveries {
        let spans = || (0..partitions).map(|_| Span::new()).collect();
        Deliveries {
            changelog: spans(),
            ids: spans(),
            delivered: AtomicU64::new(0),
            failed: Mutex::default(),
        }
    }

    /// Flush and abort wait for every record, so none of an earlier transaction is to come.
    pub(super) fn reset(&self) {
        for span in self.changelog.iter().chain(&self.ids) {
            span.first.store(i64::MAX, Ordering::Release);
            span.end.store(-1, Ordering::Release);
        }
        self.delivered.store(0, Ordering::Release);
        self.take_failure();
    }

    /// A record arrived at this offset.
    pub(super) fn arrived(&self, report: Report, offset: i64) {
        if let Some(span) = self.span(report) {
            span.first.fetch_min(offset, Ordering::AcqRel);
            // A position is the next offset, hence the one.
            span.end.fetch_max(offset + 1, Ordering::AcqRel);
        }
        self.delivered.fetch_add(1, Ordering::AcqRel);
    }

    /// A record did not arrive, and will not.
    pub(super) fn failed(&self, code: RDKafkaErrorCode, place: &str) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        // The first is the cause; what is purged after it is not. But a broker that refuses a batch for
        // some of its records lets all others fail, too, with a code that says nothing of why.
        let is_cause = failed.as_ref().is_none_or(|(first, _)| is_permanent(code) && !is_permanent(*first));
        if is_cause {
            *failed = Some((code, format!("{place}: {code}")));
        }
    }

    /// How many records arrived.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Acquire)
    }

    /// The first failure, or the first that no retry can help.
    pub(super) fn take_failure(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// An end after this transaction, given what it was before.
    ///
    /// # Errors
    /// Where a record came to lie before that: the log is not the one that it was.
    pub(super) fn end_after(&self, report: Report, before: i64) -> Result<i64, i64> {
        let Some(span) = self.span(report) else { return Ok(before) };
        let first = span.first.load(Ordering::Acquire);
        if first < before { Err(first) } else { Ok(span.end.load(Ordering::Acquire).max(before)) }
    }

    fn span(&self, report: Report) -> Option<&Span> {
        let (spans, partition) = match report {
            Report::Arrival => return None,
            Report::ChangelogEnd(partition) => (&self.changelog, partition),
            Report::IdsEnd(partition) => (&self.ids, partition),
        };
        usize::try_from(partition).ok().and_then(|index| spans.get(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_failures_the_first_that_no_retry_can_help_counts_else_the_first() {
        let deliveries = Deliveries::new(1);
        let fail = |code| deliveries.failed(code, "t [0]");
        fail(RDKafkaErrorCode::MessageTimedOut);
        fail(RDKafkaErrorCode::PurgeQueue);
        assert_eq!(deliveries.take_failure().unwrap().0, RDKafkaErrorCode::MessageTimedOut);
        fail(RDKafkaErrorCode::PurgeQueue);
        fail(RDKafkaErrorCode::InvalidTimestamp);
        fail(RDKafkaErrorCode::InvalidRecord);
        assert_eq!(deliveries.take_failure().unwrap().0, RDKafkaErrorCode::InvalidTimestamp);
    }

    #[test]
    fn a_log_that_was_made_anew_is_noticed_by_where_a_record_came_to_lie() {
        let deliveries = Deliveries::new(1);
        let report = Report::ChangelogEnd(0);
        assert_eq!(deliveries.end_after(report, 7), Ok(7));
        let arrives = |offset| {
            let span = deliveries.span(report).unwrap();
            span.first.fetch_min(offset, Ordering::AcqRel);
            span.end.fetch_max(offset + 1, Ordering::AcqRel);
        };
        (7..9).for_each(arrives);
        assert_eq!(deliveries.end_after(report, 7), Ok(9));
        deliveries.reset();
        (0..20).for_each(arrives);
        assert_eq!(deliveries.end_after(report, 9), Err(0));
    }

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
