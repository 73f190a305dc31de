//! The open transaction: what is sent in it, and how it ends.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use super::Producer;
use super::deliveries::Report;
use super::native::{Client, Failure, Membership, Outgoing, OutgoingHeaders};
use super::trouble::{Trouble, is_forgotten, is_permanent};
use crate::commit_record::{Ends, IdsRecord};
use crate::crash::{self, Step};
use crate::record::{Destination, Header, OutgoingRecord};

/// The longest that a full queue may stay full. Records time out before.
const QUEUE_FULL_TIME_MAX: Duration = Duration::from_secs(60);

/// A call that may be repeated is repeated for so long.
const RETRY_TIME_MAX: Duration = Duration::from_secs(60);

/// So often a flush looks whether the coordinator is still there; a broker takes longer to restart.
const FLUSH_STEP_MS: i32 = 100;

/// A partition that the transaction moved.
#[derive(Debug, Clone, Copy)]
pub struct Moved {
    /// The input partition.
    pub partition: i32,
    /// Its new input position.
    pub position: i64,
    /// The ends of changelog and ids log before this transaction.
    pub ends: Ends,
    /// The state does not belong to that position yet. What is committed then
    /// names no ends: it is as the reset left it, and fences all the same.
    pub is_rebuilding: bool,
}

/// What a commit brought.
#[derive(Debug)]
pub struct Receipt {
    /// The partitions, in the order of the request, with the ends after it.
    pub ends: Vec<Ends>,
    /// It took so long that the producer must be made anew.
    pub slow: bool,
}

/// An open transaction. Dropped without a commit, it is aborted.
#[derive(Debug)]
pub struct Transaction<'p> {
    pub(super) producer: &'p mut Producer,
    pub(super) open: bool,
}

impl Transaction<'_> {
    /// How much was sent, in bytes of keys and values.
    #[must_use]
    pub fn sent_bytes(&self) -> usize {
        self.producer.sent_bytes
    }

    /// Sends an outgoing record.
    ///
    /// # Errors
    /// Where it cannot be sent.
    pub fn send(&mut self, record: &OutgoingRecord<'_>) -> Result<(), Trouble> {
        let routes = &self.producer.routes;
        let topic = match record.destination {
            Destination::Event(index) => *routes
                .events
                .get(index)
                .ok_or_else(|| anyhow!("send a record of event type {index}, which the topology lacks"))?,
            Destination::Late => routes.late,
            Destination::DeadLetter => routes.dead_letter,
            Destination::Rekeyed => routes
                .rekeyed
                .ok_or_else(|| anyhow!("send a re-keyed record where the topology re-keys none"))?,
        };
        let outgoing = Outgoing {
            topic,
            partition: record.partition,
            key: record.key,
            value: record.value,
            timestamp_ms: record.timestamp_ms,
            report: Report::Arrival,
        };
        self.produce(&outgoing, record.headers())
    }

    /// Sends an entry to the changelog; `None` is a tombstone.
    ///
    /// # Errors
    /// Where it cannot be sent.
    pub fn changelog(
        &mut self,
        partition: i32,
        uid: &[u8],
        entry: Option<&[u8]>,
        timestamp_ms: i64,
    ) -> Result<(), Trouble> {
        let topic = self.producer.routes.changelog;
        let report = Report::ChangelogEnd(partition);
        let outgoing = Outgoing { topic, partition, key: Some(uid), value: entry, timestamp_ms, report };
        self.produce(&outgoing, std::iter::empty())
    }

    /// Sends a record to the ids log.
    ///
    /// # Errors
    /// Where it cannot be sent.
    pub fn ids(&mut self, partition: i32, record: &IdsRecord, timestamp_ms: i64) -> Result<(), Trouble> {
        let value = record.encode();
        let topic = self.producer.routes.ids;
        let report = Report::IdsEnd(partition);
        let outgoing = Outgoing { topic, partition, key: None, value: Some(&value), timestamp_ms, report };
        self.produce(&outgoing, std::iter::empty())
    }

    /// Commits what was sent together with the input positions.
    ///
    /// # Errors
    /// Only `Ok` means that it is committed; [`Trouble::Again`] that it is not.
    pub fn commit<C: ConsumerContext>(
        mut self,
        moved: &[Moved],
        consumer: &BaseConsumer<C>,
    ) -> Result<Receipt, Trouble> {
        self.flush()?;
        crash::at(Step::SendOffsets);
        let ends = self.ends(moved)?;
        let start = Instant::now();
        self.send_offsets(moved, &ends, consumer)?;
        crash::at(Step::Commit);
        self.end_well()?;
        crash::at(Step::Apply);
        Ok(Receipt { ends, slow: start.elapsed() > self.producer.end_time_max })
    }

    /// Commits what was sent, and no position.
    pub(super) fn end_well(&mut self) -> Result<(), Trouble> {
        self.repeat("commit a transaction", Client::commit_transaction)?;
        self.open = false;
        self.producer.committed_at = Some(Instant::now());
        Ok(())
    }

    /// Ends the transaction; nothing that was sent will be read.
    ///
    /// # Errors
    /// Where the producer is not usable any more.
    pub fn abort(mut self) -> Result<(), Trouble> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Trouble> {
        self.open = false;
        // The first error is the cause: what follows it, a failing abort as well, would hide it.
        match self.producer.client.abort_cause() {
            Some(cause) if is_permanent(cause.code) => {
                let remedy = self.producer.remedy(cause.code);
                return Err(Trouble::Stop(anyhow!("send records in a transaction: {cause}; {remedy}")));
            }
            // It knows neither whether the transaction was committed before, nor that it is to be aborted.
            Some(cause) if is_forgotten(cause.code) => {
                return Err(Trouble::Rebuild(format!(
                    "the coordinator has forgotten the transaction: {cause}"
                )));
            }
            _ => {}
        }
        self.producer.check_coordinator()?;
        let started = Instant::now();
        loop {
            match self.producer.client.abort_transaction() {
                Ok(()) => return Ok(()),
                Err(failure) if failure.is_retriable && started.elapsed() < RETRY_TIME_MAX => {}
                Err(failure) => return Err(self.producer.judge("abort a transaction", &failure)),
            }
        }
    }

    /// An undelivered record would make the commit a lie, so it is counted, not
    /// believed: a fenced producer's flush succeeds with nothing sent.
    pub(super) fn flush(&mut self) -> Result<(), Trouble> {
        while !self.producer.client.flush(FLUSH_STEP_MS) {
            // Before the coordinator is back: it has not taken this transaction's partitions yet.
            if let Err(trouble) = self.producer.check_coordinator() {
                self.open = false;
                return Err(trouble);
            }
        }
        let deliveries = self.producer.client.deliveries();
        let (delivered, sent) = (deliveries.delivered(), self.producer.sent);
        match deliveries.take_failure() {
            None if delivered == sent => Ok(()),
            None => Err(self.give_up(format!("deliver {sent} records: {delivered} arrived"))),
            Some((code, why)) if is_permanent(code) => {
                Err(Trouble::Stop(anyhow!("deliver a record: {why}; {}", self.producer.remedy(code))))
            }
            Some((_, why)) => Err(self.give_up(format!("deliver a record: {why}"))),
        }
    }

    fn ends(&self, moved: &[Moved]) -> Result<Vec<Ends>, Trouble> {
        let Producer { client, routes, .. } = &*self.producer;
        let end = |topic, partition, report, before| {
            client.deliveries().end_after(report, before).map_err(|first| {
                Trouble::Stop(anyhow!(
                    "a record to {} [{partition}] came to lie at offset {first}, where there had been {before} before: the \
                     topic was deleted and made anew while this ran, and the state cannot be restored from it",
                    client.topic_name(topic)
                ))
            })
        };
        let ends = moved.iter().map(|&Moved { partition, ends, .. }| {
            let changelog = Report::ChangelogEnd(partition);
            Ok(Ends {
                changelog: end(routes.changelog, partition, changelog, ends.changelog)?,
                ids: end(routes.ids, partition, Report::IdsEnd(partition), ends.ids)?,
            })
        });
        ends.collect()
    }

    fn send_offsets<C: ConsumerContext>(
        &mut self,
        moved: &[Moved],
        ends: &[Ends],
        consumer: &BaseConsumer<C>,
    ) -> Result<(), Trouble> {
        let mut offsets = TopicPartitionList::with_capacity(moved.len());
        for (moved, ends) in moved.iter().zip(ends) {
            let mut offset = offsets.add_partition(&self.producer.input_topic, moved.partition);
            offset
                .set_offset(Offset::Offset(moved.position))
                .map_err(|error| anyhow!(error).context("set a position to commit"))?;
            if !moved.is_rebuilding {
                offset.set_metadata(ends.to_metadata());
            }
        }
        // While the group is active the broker takes offsets of a member that
        // never joined it for those of an outsider, and does not fence them.
        let member = Membership::of(consumer);
        if !member.has_joined() || consumer.assignment_lost() {
            return Err(self.give_up("send offsets: this worker is no member of the group now".into()));
        }
        self.repeat("send offsets", |client| client.send_offsets(&offsets, &member))
    }

    /// Repeats a call while librdkafka says that it may be, with the same arguments.
    fn repeat(&mut self, what: &str, call: impl Fn(&Client) -> Result<(), Failure>) -> Result<(), Trouble> {
        let started = Instant::now();
        loop {
            let Err(failure) = call(&self.producer.client) else { return Ok(()) };
            if failure.requires_abort {
                return Err(self.give_up(format!("{what}: {failure}")));
            }
            if !failure.is_retriable || started.elapsed() > RETRY_TIME_MAX {
                // The outcome is unknown, so there is nothing that may be aborted.
                self.open = false;
                return Err(self.producer.judge(what, &failure));
            }
            tracing::debug!(what, %failure, "repeating a call");
        }
    }

    fn give_up(&mut self, why: String) -> Trouble {
        match self.end() {
            Ok(()) => Trouble::Again(why),
            Err(trouble) => trouble,
        }
    }

    fn produce<'h>(
        &mut self,
        record: &Outgoing<'_>,
        headers: impl ExactSizeIterator<Item = Header<'h>>,
    ) -> Result<(), Trouble> {
        let mut headers = OutgoingHeaders::new(headers);
        let (value_bytes, queue_bytes) = (record.value.map_or(0, <[u8]>::len), self.producer.queue_bytes);
        let started = Instant::now();
        loop {
            match self.producer.client.produce(record, &mut headers) {
                RDKafkaErrorCode::NoError => {
                    self.producer.sent += 1;
                    self.producer.sent_bytes +=
                        [record.key, record.value].into_iter().flatten().map(<[u8]>::len).sum::<usize>();
                    crash::at(Step::Send);
                    return Ok(());
                }
                RDKafkaErrorCode::QueueFull if value_bytes > queue_bytes => {
                    return Err(Trouble::Stop(anyhow!(
                        "send a record of {value_bytes} bytes to {}: the producer's queue holds {queue_bytes}; raise \
                         limits.memory_mb",
                        self.producer.client.topic_name(record.topic)
                    )));
                }
                RDKafkaErrorCode::QueueFull if started.elapsed() < QUEUE_FULL_TIME_MAX => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                code if is_permanent(code) => {
                    let topic = self.producer.client.topic_name(record.topic);
                    let remedy = self.producer.remedy(code);
                    return Err(Trouble::Stop(anyhow!("send a record to {topic}: {code}; {remedy}")));
                }
                code => return Err(self.give_up(format!("send a record: {code}"))),
            }
        }
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if self.open
            && let Err(trouble) = self.end()
        {
            tracing::warn!(?trouble, "a transaction could not be aborted");
        }
    }
}
