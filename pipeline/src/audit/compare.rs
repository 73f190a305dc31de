//! What must be there against what was found, one ticket after the other.
//!
//! Pure: rows in, findings out. Where both agree, nothing is kept in memory; where
//! they do not, the rest of one ticket's records in one output partition.

use std::collections::{HashMap, HashSet, VecDeque};
use std::iter::Peekable;

use anyhow::Result;

use super::rows::{Proof, Row};

/// So many findings are kept for the report; all are counted.
pub(super) const FINDINGS_MAX: usize = 10_000;

/// What is wrong with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// It must be there, and is not.
    Missing,
    /// It is there more often than it must be.
    Doubled,
    /// It is there, before one of the same ticket that it must follow.
    OutOfOrder,
    /// It is there in another form or place.
    Different,
    /// Nothing explains it.
    Unexpected,
}

impl Fault {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Fault::Missing => "missing",
            Fault::Doubled => "doubled",
            Fault::OutOfOrder => "out of order",
            Fault::Different => "different",
            Fault::Unexpected => "unexpected",
        }
    }
}

/// One fault, by rows; of a doubled one `expected` is empty and `first` the
/// offset at which it stands already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) fault: Fault,
    pub(super) expected: Option<Row>,
    pub(super) found: Option<Row>,
    pub(super) first: Option<i64>,
}

/// What the comparison came to.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    pub(super) findings: Vec<Finding>,
    pub(super) counts: HashMap<Fault, u64>,
    /// Records that are as they must be, by topic.
    pub(super) matched: HashMap<u16, u64>,
    /// Expected ones that retention has taken from the outputs.
    pub(super) expired: u64,
    /// Expected ones that cannot be proven, for what they depend on is gone.
    pub(super) unprovable: u64,
    /// Found ones that come from before the raw topic's first record, or depend on it.
    pub(super) before_head: u64,
}

/// What must be borne in mind.
#[derive(Debug, Default)]
pub(super) struct Circumstances {
    /// Input partitions whose head is gone. A ticket's records go to the output
    /// partition of the same number.
    pub(super) cut_inputs: HashSet<i32>,
    /// Output partitions of which retention has taken the head.
    pub(super) expired: HashSet<(u16, i32)>,
}

type Key = (u16, i32, [u8; 16]);

fn key(row: &Row) -> Key {
    (row.topic, row.partition, row.ticket)
}

/// Compares two sorted streams.
///
/// # Errors
/// Where a stream cannot be read.
pub(super) fn compare(
    expected: impl Iterator<Item = Result<Row>>,
    found: impl Iterator<Item = Result<Row>>,
    circumstances: &Circumstances,
) -> Result<Comparison> {
    let (mut expected, mut found) = (expected.peekable(), found.peekable());
    let mut comparison = Comparison::default();
    let mut agreed = Vec::new();
    while let Some(ticket) = next_key(&mut expected, &mut found)? {
        agreed.clear();
        while let (Some(Ok(one)), Some(Ok(other))) = (expected.peek(), found.peek()) {
            if key(one) != ticket || key(other) != ticket || one.digest != other.digest {
                break;
            }
            agreed.push((other.digest, other.offset));
            expected.next();
            found.next();
        }
        *comparison.matched.entry(ticket.0).or_default() += agreed.len() as u64;
        let expected = rest(&mut expected, ticket)?;
        let found = rest(&mut found, ticket)?;
        if !expected.is_empty() || !found.is_empty() {
            judge(&mut comparison, circumstances, &agreed, expected, found);
        }
    }
    comparison.find_elsewhere();
    Ok(comparison)
}

fn next_key<I: Iterator<Item = Result<Row>>, J: Iterator<Item = Result<Row>>>(
    expected: &mut Peekable<I>,
    found: &mut Peekable<J>,
) -> Result<Option<Key>> {
    // An error is taken out of its stream, so that it can be handed on.
    if let Some(error) = expected.next_if(Result::is_err).or_else(|| found.next_if(Result::is_err)) {
        error?;
    }
    let keys = [expected.peek(), found.peek()];
    Ok(keys.into_iter().flatten().flatten().map(key).min())
}

fn rest(rows: &mut Peekable<impl Iterator<Item = Result<Row>>>, ticket: Key) -> Result<Vec<Row>> {
    let mut rest = Vec::new();
    while let Some(row) = rows.next_if(|row| row.as_ref().map_or(true, |row| key(row) == ticket)) {
        rest.push(row?);
    }
    Ok(rest)
}

/// One ticket in one output partition, from where the two no longer agree.
fn judge(
    comparison: &mut Comparison,
    circumstances: &Circumstances,
    agreed: &[([u8; 16], i64)],
    expected: Vec<Row>,
    found: Vec<Row>,
) {
    let pairs = pair(&expected, &found);
    let mut taken: HashSet<usize> = pairs.iter().flatten().copied().collect();
    if let Some(row) = expected.first() {
        *comparison.matched.entry(row.topic).or_default() += taken.len() as u64;
    }

    for (one, other) in out_of_order(&expected, &pairs) {
        comparison.note(Fault::OutOfOrder, expected.get(one), found.get(other), None);
    }

    // What has the event id of one that is missing is that one in another form.
    let mut by_identity: HashMap<u64, VecDeque<usize>> = HashMap::new();
    for (at, row) in found.iter().enumerate().filter(|(at, row)| row.identity != 0 && !taken.contains(at)) {
        by_identity.entry(row.identity).or_default().push_back(at);
    }
    let is_head_cut = expected
        .iter()
        .map(|row| row.input)
        .chain(found.first().map(|row| row.partition))
        .any(|input| circumstances.cut_inputs.contains(&input));
    let mut proven_from = agreed.first().map(|_| 0);
    for (at, row) in expected.iter().enumerate() {
        if let Some(pair) = pairs.get(at).copied().flatten() {
            if row.proof != Proof::Unprovable {
                proven_from = Some(proven_from.map_or(pair, |from: usize| from.min(pair)));
            }
            continue;
        }
        let twin = by_identity.get_mut(&row.identity).and_then(VecDeque::pop_front);
        let followed = || {
            let same = |(other, pair): (&Row, &Option<usize>)| pair.is_some() && other.input == row.input;
            expected.iter().zip(&pairs).skip(at).any(same)
        };
        let preceded = || !agreed.is_empty() || pairs.iter().take(at).any(Option::is_some);
        if row.proof == Proof::Unprovable {
            comparison.unprovable += 1;
        } else if let Some(twin) = twin {
            taken.insert(twin);
            comparison.note(Fault::Different, Some(row), found.get(twin), None);
        } else if row.proof == Proof::BeyondCut && !followed() {
            // Its transaction came after the cut.
        } else if circumstances.expired.contains(&(row.topic, row.partition)) && !preceded() {
            comparison.expired += 1;
        } else {
            comparison.note(Fault::Missing, Some(row), None, None);
        }
    }

    let mut first: HashMap<[u8; 16], i64> = agreed.iter().rev().copied().collect();
    for row in pairs.iter().flatten().rev().filter_map(|at| found.get(*at)) {
        first.entry(row.digest).or_insert(row.offset);
    }
    for (at, row) in found.iter().enumerate().filter(|(at, _)| !taken.contains(at)) {
        if let Some(first) = first.get(&row.digest) {
            comparison.note(Fault::Doubled, None, Some(row), Some(*first));
        } else if is_head_cut && proven_from.is_none_or(|from| at < from) {
            comparison.before_head += 1;
        } else {
            comparison.note(Fault::Unexpected, None, Some(row), None);
        }
    }
}

/// Each expected row's equal among the found ones, the first that is left.
fn pair(expected: &[Row], found: &[Row]) -> Vec<Option<usize>> {
    let mut by_digest: HashMap<[u8; 16], VecDeque<usize>> = HashMap::new();
    for (at, row) in found.iter().enumerate() {
        by_digest.entry(row.digest).or_default().push_back(at);
    }
    expected.iter().map(|row| by_digest.get_mut(&row.digest)?.pop_front()).collect()
}

/// The fewest pairs whose absence leaves all others in order. Between input
/// partitions no order is promised.
fn out_of_order(expected: &[Row], pairs: &[Option<usize>]) -> Vec<(usize, usize)> {
    let mut misplaced = Vec::new();
    let mut all: Vec<(usize, usize)> =
        pairs.iter().enumerate().filter_map(|(at, pair)| Some((at, (*pair)?))).collect();
    while let Some((first, _)) = all.first() {
        let input = expected.get(*first).map(|row| row.input);
        let of_input = |at: usize| expected.get(at).map(|row| row.input) == input;
        let until = all.iter().position(|(at, _)| !of_input(*at)).unwrap_or(all.len());
        let one: Vec<(usize, usize)> = all.drain(..until).collect();
        let ordered = longest_rising(&one);
        misplaced.extend(one.into_iter().filter(|(at, _)| !ordered.contains(at)));
    }
    misplaced
}

/// The first halves of the longest sequence of pairs whose second halves rise.
fn longest_rising(pairs: &[(usize, usize)]) -> HashSet<usize> {
    // `tails` holds, for each length, where the sequence with the least end ends.
    let mut tails: Vec<usize> = Vec::new();
    let mut before: Vec<Option<usize>> = Vec::with_capacity(pairs.len());
    let end = |at: usize| pairs.get(at).map(|pair| pair.1);
    for (at, pair) in pairs.iter().enumerate() {
        let length = tails.partition_point(|tail| end(*tail) < Some(pair.1));
        before.push(length.checked_sub(1).and_then(|shorter| tails.get(shorter).copied()));
        match tails.get_mut(length) {
            Some(tail) => *tail = at,
            None => tails.push(at),
        }
    }
    let mut rising = HashSet::new();
    let mut next = tails.last().copied();
    while let Some(at) = next {
        rising.extend(pairs.get(at).map(|pair| pair.0));
        next = before.get(at).copied().flatten();
    }
    rising
}

impl Comparison {
    fn note(&mut self, fault: Fault, expected: Option<&Row>, found: Option<&Row>, first: Option<i64>) {
        *self.counts.entry(fault).or_default() += 1;
        if self.findings.len() < FINDINGS_MAX {
            let (expected, found) = (expected.cloned(), found.cloned());
            self.findings.push(Finding { fault, expected, found, first });
        }
    }

    /// A missing record that stands under another key, partition or topic is one
    /// fault, not two.
    fn find_elsewhere(&mut self) {
        let mut missing: HashMap<u64, VecDeque<usize>> = HashMap::new();
        for (at, finding) in self.findings.iter().enumerate().filter(|(_, one)| one.fault == Fault::Missing) {
            if let Some(row) = finding.expected.as_ref().filter(|row| row.identity != 0) {
                missing.entry(row.identity).or_default().push_back(at);
            }
        }
        let mut moved = Vec::new();
        for (at, finding) in
            self.findings.iter().enumerate().filter(|(_, one)| one.fault == Fault::Unexpected)
        {
            let identity = finding.found.as_ref().map_or(0, |row| row.identity);
            if let Some(lost) = missing.get_mut(&identity).and_then(VecDeque::pop_front) {
                moved.push((lost, at));
            }
        }
        let gone: HashSet<usize> = moved.iter().map(|(_, at)| *at).collect();
        for (lost, at) in &moved {
            let found = self.findings.get(*at).and_then(|finding| finding.found.clone());
            if let Some(finding) = self.findings.get_mut(*lost) {
                (finding.fault, finding.found) = (Fault::Different, found);
            }
        }
        let moved = moved.len() as u64;
        for (fault, less) in [(Fault::Missing, moved), (Fault::Unexpected, moved)] {
            self.counts.entry(fault).and_modify(|count| *count -= less);
        }
        *self.counts.entry(Fault::Different).or_default() += moved;
        let mut at = 0;
        self.findings.retain(|_| {
            at += 1;
            !gone.contains(&(at - 1))
        });
    }
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
