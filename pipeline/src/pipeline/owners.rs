//! Notices that the group has left partitions without an owner.
//!
//! A cooperative rebalance takes two rounds: in the first a partition is taken
//! from its old owner, and in the second, for which that owner asks, it is given
//! to the new one. A static member that dies between the two comes back with what
//! the first round left it and asks for nothing (KIP-345: no rebalance), so the
//! second round never comes: the group is stable, and nobody reads the partition.
//! Any member that leaves and joins again brings it about.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use rdkafka::consumer::Consumer;

use super::Every;
use crate::clients::{self, Asker};
use crate::restore::Setup;
use crate::stage::Stage;

/// Two looks in a row must see the same: between the rounds all is well for a moment, too.
const LOOK: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The state of a group of the classic protocol that is not in a rebalance.
const STABLE: &str = "Stable";

pub(super) struct Owners {
    stage: Stage,
    group: String,
    topic: String,
    observer: Asker,
    partitions: i32,
    /// What had no owner at the last look.
    ownerless: BTreeSet<i32>,
    look: Every,
}

impl Owners {
    /// Connects.
    ///
    /// # Errors
    /// Where a client cannot be made.
    pub(super) fn connect(setup: &Setup) -> Result<Owners> {
        let Setup { topology, stage, .. } = setup;
        Ok(Owners {
            stage: *stage,
            group: stage.group(topology),
            topic: stage.topic(topology).to_owned(),
            observer: Asker::new(&clients::observer(topology))?,
            partitions: setup.partitions,
            ownerless: BTreeSet::new(),
            look: Every::new(LOOK),
        })
    }

    /// Looks, every so often; the stage of which a member should leave and join again.
    pub(super) fn tick(&mut self) -> Option<Stage> {
        if !self.look.is_due() {
            return None;
        }
        // A broker that does not answer is the workers' to wait for.
        let now = self.ownerless().unwrap_or_default();
        let are_left = now.intersection(&self.ownerless).next().is_some();
        if are_left {
            tracing::warn!(topic = self.topic, partitions = ?now, "partitions have no owner: joining the group again");
        }
        self.ownerless = if are_left { BTreeSet::new() } else { now };
        are_left.then_some(self.stage)
    }

    /// What no member of a stable group is assigned; `None` where the group is not stable, or not known.
    fn ownerless(&self) -> Option<BTreeSet<i32>> {
        let list = self.observer.client().fetch_group_list(Some(&self.group), ANSWER_TIMEOUT).ok()?;
        let group = list.groups().iter().find(|group| group.name() == self.group)?;
        if group.state() != STABLE || group.members().is_empty() {
            return None;
        }
        let mut ownerless: BTreeSet<i32> = (0..self.partitions).collect();
        for member in group.members() {
            for partition in assigned(member.assignment().unwrap_or_default(), &self.topic)? {
                ownerless.remove(&partition);
            }
        }
        Some(ownerless)
    }
}

/// The partitions of a topic in a member's assignment, `None` where the bytes are not one.
///
/// Its form is Kafka's `ConsumerProtocolAssignment.json`: a version (16 bits), then for
/// each topic its name and its partitions (counts of 32 bits), then what the assignor adds.
fn assigned(bytes: &[u8], topic: &str) -> Option<Vec<i32>> {
    if bytes.is_empty() {
        return Some(Vec::new());
    }
    let (_version, mut rest) = bytes.split_first_chunk::<2>()?;
    let mut found = Vec::new();
    for _ in 0..int(&mut rest)? {
        let (length, after) = rest.split_first_chunk::<2>()?;
        let (name, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        rest = after;
        for _ in 0..int(&mut rest)? {
            let partition = int(&mut rest)?;
            if name == topic.as_bytes() {
                found.push(partition);
            }
        }
    }
    Some(found)
}

fn int(rest: &mut &[u8]) -> Option<i32> {
    let (bytes, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    Some(i32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assignment_names_the_partitions_of_each_topic() {
        let bytes =
            b"\0\x01\0\0\0\x02\0\x01a\0\0\0\x01\0\0\0\x07\0\x01b\0\0\0\x02\0\0\0\0\0\0\0\x03\xff\xff\xff\xff";
        assert_eq!(assigned(bytes, "a"), Some(vec![7]));
        assert_eq!(assigned(bytes, "b"), Some(vec![0, 3]));
        assert_eq!(assigned(bytes, "c"), Some(vec![]));
    }

    #[test]
    fn a_member_that_was_given_nothing_has_no_partitions() {
        assert_eq!(assigned(b"", "a"), Some(vec![]));
    }

    #[test]
    fn bytes_that_end_too_early_are_no_assignment() {
        let bytes = b"\0\x01\0\0\0\x01\0\x01a\0\0\0\x01\0\0\0\x07";
        for end in 1..bytes.len() {
            assert_eq!(assigned(&bytes[..end], "a"), None, "{end} bytes");
        }
    }
}
