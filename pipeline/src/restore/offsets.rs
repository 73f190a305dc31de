//! What a group has committed for a partition, which Kafka does not say while a
//! transaction holds it back.
//!
//! One that holds it back for longer than a transaction can live is told, and
//! never guessed around: the offset that lies before it may be one too old.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::losses::how_to_mend;
use super::{Setup, Waiting, create, is_passing};
use crate::clients::{self, Logs};
use crate::commit_record::Ends;
use crate::transaction::Trouble;

/// While a transaction holds offsets back, asking for them blocks; the worker
/// has others to serve meanwhile. A slow broker is given more time by and by.
const TIMEOUT_MIN: Duration = Duration::from_millis(250);
const TIMEOUT_MAX: Duration = Duration::from_secs(4);

/// What the group has committed for a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Committed {
    pub(super) position: i64,
    /// `None` where the offset was not committed by us, as after a reset.
    pub(super) ends: Option<Ends>,
}

/// The question for it, asked again until there is an answer.
#[derive(Debug)]
pub(super) struct Question {
    partition: i32,
    waiting: Waiting,
    /// Since when Kafka has answered whoever takes what is not decided, and nobody else.
    held_back: Option<Instant>,
}

impl Question {
    pub(super) fn new(partition: i32) -> Question {
        Question { partition, waiting: Waiting::default(), held_back: None }
    }

    /// Asks once; [`Trouble::Again`] while it cannot be known. `consumer` reads what is committed.
    ///
    /// # Errors
    /// Where it will not be known by waiting.
    pub(super) fn ask<C: ConsumerContext>(
        &mut self,
        setup: &Setup,
        consumer: &BaseConsumer<C>,
    ) -> Result<Option<Committed>, Trouble> {
        let topic = setup.stage.topic(&setup.topology);
        let timeout = TIMEOUT_MIN.saturating_mul(2u32.saturating_pow(self.waiting.attempts.min(8)));
        let timeout = timeout.min(TIMEOUT_MAX);
        let asked = committed(consumer, topic, self.partition, timeout);
        if let Err(Trouble::Again(why)) = &asked {
            self.waiting.note(setup, self.partition, why);
            if timeout == TIMEOUT_MAX {
                self.look_for_hanging(setup, timeout)?;
            }
        }
        asked
    }

    /// A broker that does not answer is no transaction that hangs: time counts only while it answers.
    fn look_for_hanging(&mut self, setup: &Setup, timeout: Duration) -> Result<(), Trouble> {
        let (topology, stage) = (&setup.topology, setup.stage);
        let observer: BaseConsumer<Logs> = create(&clients::observer_of(topology, stage))?;
        let topic = stage.topic(topology);
        if committed(&observer, topic, self.partition, timeout).is_err() {
            self.held_back = None;
            return Ok(());
        }
        let since = *self.held_back.get_or_insert_with(Instant::now);
        if since.elapsed() <= clients::decided_within(topology) {
            return Ok(());
        }
        Err(Trouble::Stop(anyhow!(
            "hanging transaction: Kafka holds back the offset of group {} for {topic} [{}] for longer than a transaction \
             can live: it has lost the commit markers of one in __consumer_offsets. {}",
            stage.group(topology),
            self.partition,
            how_to_mend(topology, stage),
        )))
    }
}

/// What the group has committed; [`Trouble::Again`] while it cannot be known.
fn committed<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partition: i32,
    timeout: Duration,
) -> Result<Option<Committed>, Trouble> {
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, partition);
    let judge = |error: KafkaError| {
        if is_passing(&error) {
            return Trouble::Again(format!("the committed offset cannot be known yet: {error}"));
        }
        Trouble::Stop(
            anyhow!(error).context(format!("ask for the committed offset of {topic} [{partition}]")),
        )
    };
    let list = consumer.committed_offsets(list, timeout).map_err(judge)?;
    let Some(found) = list.find_partition(topic, partition) else { return Ok(None) };
    found.error().map_err(judge)?;
    let Offset::Offset(position) = found.offset() else { return Ok(None) };
    let ends =
        Ends::of_metadata(found.metadata()).with_context(|| format!("go on with {topic} [{partition}]"))?;
    Ok(Some(Committed { position, ends }))
}
