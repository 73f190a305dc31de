//! How far committed positions are behind the ends of their partitions, in
//! records and in time.
//!
//! The time is that since the oldest record that is not committed was first seen
//! to be there, so it does not depend on what producers write into a record's
//! timestamp. What lay there before this process looked counts from its first look.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::worker::Place;

/// So many ends of a partition are remembered; past it every second one is forgotten.
const SEEN_MAX: usize = 256;

/// How far a position is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lag {
    /// Where the partition's records end.
    pub end: i64,
    /// End less position, in records.
    pub records: i64,
    /// How long the oldest of them has waited, as far as is known.
    pub time: Duration,
}

/// Where partitions end, and when each end was first seen.
#[derive(Debug, Default)]
pub struct Ends {
    seen: HashMap<Place, VecDeque<(Instant, i64)>>,
}

impl Ends {
    /// Notes partitions with their end and the position that is committed, and
    /// forgets all others, which are no longer ours.
    pub fn note(&mut self, partitions: &[(Place, i64, i64)], now: Instant) {
        self.seen.retain(|place, _| partitions.iter().any(|(ours, ..)| ours == place));
        for (place, end, position) in partitions {
            let seen = self.seen.entry(*place).or_default();
            // What was taken for records may turn out to be markers of transactions.
            while seen.back().is_some_and(|(_, last)| last > end) {
                seen.pop_back();
            }
            if seen.back().is_none_or(|(_, last)| last != end) {
                seen.push_back((now, *end));
            }
            // Of what is committed only the newest end is of use: it is the partition's.
            while seen.len() > 1 && seen.front().is_some_and(|(_, end)| end <= position) {
                seen.pop_front();
            }
            if seen.len() > SEEN_MAX {
                let mut kept = false;
                seen.retain(|_| {
                    kept = !kept;
                    kept
                });
            }
        }
    }

    /// How far a position is behind; `None` where the partition's end is not known.
    #[must_use]
    pub fn lag(&self, place: Place, position: i64, now: Instant) -> Option<Lag> {
        let seen = self.seen.get(&place)?;
        let (_, end) = *seen.back()?;
        let waits_since = seen.iter().find(|(_, end)| *end > position).map(|(since, _)| *since);
        let time = waits_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        Some(Lag { end, records: (end - position).max(0), time })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::Stage::{Rekey, Tickets};

    #[test]
    fn a_record_waits_from_when_it_was_first_seen() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut ends = Ends::default();
        assert_eq!(ends.lag((Tickets, 0), 5, at(0)), None);
        ends.note(&[((Tickets, 0), 10, 10)], at(0));
        let lag = |ends: &Ends, position, seconds| {
            let lag = ends.lag((Tickets, 0), position, at(seconds)).unwrap();
            (lag.records, lag.time.as_secs())
        };
        assert_eq!(lag(&ends, 10, 5), (0, 0));
        ends.note(&[((Tickets, 0), 12, 10)], at(5));
        ends.note(&[((Tickets, 0), 12, 10)], at(10));
        ends.note(&[((Tickets, 0), 20, 10)], at(15));
        assert_eq!(lag(&ends, 10, 18), (10, 13), "11 and 12 came within the first five seconds");
        assert_eq!(lag(&ends, 12, 18), (8, 3));
        // The position may be newer than what was seen of the end.
        assert_eq!(lag(&ends, 25, 18), (0, 0));
        ends.note(&[((Rekey, 0), 3, 3)], at(20));
        assert_eq!(ends.lag((Tickets, 0), 10, at(20)), None, "the partition is another's now");
    }

    #[test]
    fn a_long_backlog_keeps_its_age_and_little_memory() {
        let start = Instant::now();
        let mut ends = Ends::default();
        for second in 0..10_000 {
            ends.note(&[((Tickets, 0), 10 + second, 0)], start + Duration::from_secs(second as u64));
        }
        assert!(ends.seen[&(Tickets, 0)].len() <= SEEN_MAX);
        let lag = ends.lag((Tickets, 0), 0, start + Duration::from_secs(10_000)).unwrap();
        assert_eq!((lag.end, lag.records, lag.time.as_secs()), (10_009, 10_009, 10_000));
    }

    #[test]
    fn what_turns_out_to_be_no_record_does_not_wait() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut ends = Ends::default();
        ends.note(&[((Tickets, 0), 6, 5)], at(0));
        ends.note(&[((Tickets, 0), 5, 5)], at(2));
        assert_eq!(ends.lag((Tickets, 0), 5, at(60)), Some(Lag { end: 5, records: 0, time: Duration::ZERO }));
    }
}
