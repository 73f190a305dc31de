//! What became of records, in numbers that only grow.
//!
//! A record costs a few additions here; whoever reads the sums does so from a
//! copy that was published after a commit.

use crate::envelope::Code;
use crate::record::{Destination, Origin};
use crate::task::{Fate, Outcome};
use crate::topology::EventTypeIndex;

/// What became of records, in numbers that only grow.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    by_type: Vec<OfType>,
    dead_letters: [u64; Code::ALL.len()],
    /// Raw records on their way to their tickets' partitions; they count as
    /// records only once they are there.
    pub rekeyed: u64,
    /// Copies of late records.
    pub late: u64,
    /// Outgoing records that were cut to the size limit.
    pub truncated: u64,
    /// Derived events that met their twin and were dropped.
    pub twins_dropped: u64,
}

/// What became of the records of one event type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OfType {
    /// Raw records that were emitted.
    pub emitted: u64,
    /// Raw records that were duplicates.
    pub duplicates: u64,
    /// Raw records that the policy or their twin dropped.
    pub dropped: u64,
    /// Outgoing records that were forwarded.
    pub forwarded: u64,
    /// Outgoing records that were derived.
    pub derived: u64,
}

impl Counts {
    /// Nothing yet, of so many event types.
    #[must_use]
    pub fn new(event_types: usize) -> Counts {
        Counts { by_type: vec![OfType::default(); event_types], ..Counts::default() }
    }

    /// A raw record was processed.
    pub fn read(&mut self, outcome: &Outcome) {
        if outcome.fate == Fate::Rekeyed {
            self.rekeyed += 1;
            return;
        }
        if outcome.late {
            self.late += 1;
        }
        self.truncated += u64::from(outcome.truncated);
        self.twins_dropped += u64::from(outcome.twins_dropped);
        if let Fate::DeadLetter(code) = outcome.fate {
            if let Some(count) = self.dead_letters.get_mut(code as usize) {
                *count += 1;
            }
            return;
        }
        let Some(of_type) = outcome.event_type.and_then(|index| self.by_type.get_mut(index)) else { return };
        match outcome.fate {
            Fate::Emitted => of_type.emitted += 1,
            Fate::Duplicate => of_type.duplicates += 1,
            Fate::Dropped => of_type.dropped += 1,
            Fate::DeadLetter(_) | Fate::Rekeyed => {}
        }
    }

    /// An outgoing record was sent. Late copies and dead letters are counted where they are read.
    pub fn sent(&mut self, destination: Destination, origin: Origin) {
        let Destination::Event(index) = destination else { return };
        let Some(of_type) = self.by_type.get_mut(index) else { return };
        match origin {
            Origin::Forwarded => of_type.forwarded += 1,
            Origin::Derived => of_type.derived += 1,
            Origin::Late | Origin::DeadLetter | Origin::Rekeyed => {}
        }
    }

    /// Adds another worker's.
    pub fn add(&mut self, other: &Counts) {
        if self.by_type.len() < other.by_type.len() {
            self.by_type.resize(other.by_type.len(), OfType::default());
        }
        for (sum, of_type) in self.by_type.iter_mut().zip(&other.by_type) {
            sum.emitted += of_type.emitted;
            sum.duplicates += of_type.duplicates;
            sum.dropped += of_type.dropped;
            sum.forwarded += of_type.forwarded;
            sum.derived += of_type.derived;
        }
        for (sum, count) in self.dead_letters.iter_mut().zip(&other.dead_letters) {
            *sum += count;
        }
        self.rekeyed += other.rekeyed;
        self.late += other.late;
        self.truncated += other.truncated;
        self.twins_dropped += other.twins_dropped;
    }

    /// Each event type with what became of its records.
    pub fn by_type(&self) -> impl Iterator<Item = (EventTypeIndex, OfType)> + '_ {
        self.by_type.iter().copied().enumerate()
    }

    /// Each code with how many records went to the dead-letter topic for it.
    pub fn by_code(&self) -> impl Iterator<Item = (Code, u64)> + '_ {
        Code::ALL.into_iter().zip(self.dead_letters)
    }

    /// Raw records, whatever became of them.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.sum(|of_type| of_type.emitted + of_type.duplicates + of_type.dropped) + self.dead_letters()
    }

    /// Events: forwarded and derived.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.sum(|of_type| of_type.forwarded + of_type.derived)
    }

    /// Records that were duplicates.
    #[must_use]
    pub fn duplicates(&self) -> u64 {
        self.sum(|of_type| of_type.duplicates)
    }

    /// Records that the policy or their twin dropped.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.sum(|of_type| of_type.dropped)
    }

    /// Records in the dead-letter topic.
    #[must_use]
    pub fn dead_letters(&self) -> u64 {
        self.dead_letters.iter().sum()
    }

    fn sum(&self, of: impl Fn(&OfType) -> u64) -> u64 {
        self.by_type.iter().map(of).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(fate: Fate, event_type: Option<usize>) -> Outcome {
        Outcome { fate, event_type, derived: 0, twins_dropped: 0, late: false, truncated: 0 }
    }

    #[test]
    fn every_record_is_counted_once_under_its_type_or_its_code() {
        let mut counts = Counts::new(2);
        counts.read(&outcome(Fate::Emitted, Some(1)));
        counts.sent(Destination::Event(1), Origin::Forwarded);
        counts.sent(Destination::Event(0), Origin::Derived);
        counts.read(&Outcome { late: true, truncated: 2, ..outcome(Fate::Emitted, Some(0)) });
        counts.sent(Destination::Event(0), Origin::Forwarded);
        counts.sent(Destination::Late, Origin::Late);
        counts.read(&outcome(Fate::Duplicate, Some(1)));
        counts.read(&Outcome { twins_dropped: 3, ..outcome(Fate::Dropped, Some(1)) });
        counts.read(&outcome(Fate::Rekeyed, Some(1)));
        counts.sent(Destination::Rekeyed, Origin::Rekeyed);
        for code in Code::ALL {
            counts.read(&outcome(Fate::DeadLetter(code), None));
            counts.sent(Destination::DeadLetter, Origin::DeadLetter);
        }
        let mut sum = Counts::default();
        sum.add(&counts);
        sum.add(&counts);
        let codes = Code::ALL.len() as u64;
        assert!(Code::ALL.iter().enumerate().all(|(index, code)| *code as usize == index));
        assert_eq!(sum.records(), 2 * (4 + codes));
        assert_eq!((sum.events(), sum.duplicates(), sum.dropped()), (6, 2, 2));
        assert_eq!((sum.late, sum.truncated, sum.twins_dropped, sum.rekeyed), (2, 4, 6, 2));
        assert!(sum.by_code().all(|(_, count)| count == 2));
        let of_type = sum.by_type().map(|(_, of_type)| of_type).collect::<Vec<_>>();
        assert_eq!(
            of_type,
            [
                OfType { emitted: 2, forwarded: 2, derived: 2, ..OfType::default() },
                OfType { emitted: 2, duplicates: 2, dropped: 2, forwarded: 2, derived: 0 },
            ]
        );
    }
}
