//! Whether a commit whose markers Kafka has lost can be given others.
//!
//! A producer's next marker decides whatever it had left undecided in a partition, so it
//! is given only where nothing else would be decided: nothing lies behind the commit in
//! the logs, and no output hangs with them, which the transaction after it would decide.
//! Should that fail, the ids log lacks what was committed, and it is seen there.

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use super::{Course, Restore, Setup, create};
use crate::clients::{self, Logs};
use crate::commit_record::Ends;
use crate::transaction::{MARKED_WITHIN, Trouble, Unmarked};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How far that is for one commit.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// Where the outputs ended when it was first asked.
    outputs: Option<HashMap<(String, i32), i64>>,
    is_given: bool,
}

impl Restore {
    /// What is to be given a marker now: once, and after a coordinator would have written it.
    /// `ends` are the logs' true ends, `stable` is up to where they are readable.
    pub(super) fn unmarked(
        &mut self,
        setup: &Setup,
        asker: &BaseConsumer<Logs>,
        course: &mut Course,
        (ends, stable): (Ends, Ends),
    ) -> Result<Option<Unmarked>, Trouble> {
        let targets = course.targets;
        let unmarked = Unmarked { changelog: stable.changelog < targets.changelog };
        let is_last = ends.ids == targets.ids && (!unmarked.changelog || ends.changelog == targets.changelog);
        let is_due = !course.marks.is_given && self.waiting.lasts() > MARKED_WITHIN;
        if !(is_due && course.is_ours() && stable.ids < targets.ids && is_last) {
            return Ok(None);
        }
        let outputs = every_partition(setup.topology.output_topics(), setup.partitions)?;
        let noted = match course.marks.outputs.take() {
            Some(noted) => Some(noted),
            None => ends_of(&create(&clients::observer(&setup.topology))?, &outputs),
        };
        let Some(noted) = noted.filter(|noted| noted.len() == outputs.count()) else { return Ok(None) };
        let readable = ends_of(asker, &outputs).unwrap_or_default();
        course.marks.is_given =
            noted.iter().all(|(place, end)| readable.get(place).is_some_and(|stable| stable >= end));
        course.marks.outputs = Some(noted);
        Ok(course.marks.is_given.then_some(unmarked))
    }
}

/// Every partition of these topics.
///
/// # Errors
/// Where librdkafka does not take one.
pub(crate) fn every_partition<'t>(
    topics: impl Iterator<Item = &'t str>,
    partitions: i32,
) -> anyhow::Result<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for topic in topics {
        for partition in 0..partitions {
            list.add_partition_offset(topic, partition, Offset::End)?;
        }
    }
    Ok(list)
}

/// Where each partition ends for a client, whose isolation level says up to where it is told;
/// `None` where Kafka does not answer in time, for one of them or all.
pub(crate) fn ends_of(
    client: &BaseConsumer<Logs>,
    places: &TopicPartitionList,
) -> Option<HashMap<(String, i32), i64>> {
    // A time of -1 asks for the end (Kafka's `ListOffsetsRequest.json`), of all partitions at once.
    let answer = client.offsets_for_times(places.clone(), ANSWER_TIMEOUT).ok()?;
    let found = answer.elements().into_iter().filter_map(|found| match found.offset() {
        Offset::Offset(end) if found.error().is_ok() => {
            Some(((found.topic().to_owned(), found.partition()), end))
        }
        _ => None,
    });
    Some(found.collect())
}
