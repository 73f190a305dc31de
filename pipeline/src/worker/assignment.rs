//! The consumer's side of a rebalance: what the group gave and took, in order.
//!
//! Callbacks run only while the consumer is polled, on the worker's thread, and
//! never with a transaction open. They accept the change and note it; the worker
//! follows it right after the poll. A partition that was given is paused until
//! its store is restored.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use crate::clients;

/// What the group did with a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It is ours, and paused.
    Assigned(i32),
    /// It is to be another's: what is not committed is dropped.
    Revoked(i32),
    /// It was another's already: we may not commit what was in hand.
    Lost(i32),
}

/// The consumer's context.
#[derive(Debug, Default)]
pub(super) struct Assignment {
    changes: Mutex<Vec<Change>>,
    rebalances: AtomicU64,
    failure: Mutex<Option<KafkaError>>,
}

impl Assignment {
    /// What has changed since the last time, in order.
    ///
    /// # Errors
    /// Where librdkafka did not accept a change.
    pub(super) fn take_changes(&self) -> KafkaResult<Vec<Change>> {
        if let Some(error) = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        Ok(std::mem::take(&mut *self.changes.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// How often the group has told this consumer what is its own, if only nothing new.
    pub(super) fn rebalances(&self) -> u64 {
        self.rebalances.load(Ordering::Relaxed)
    }

    fn note(&self, list: &TopicPartitionList, change: impl Fn(i32) -> Change) {
        self.rebalances.fetch_add(1, Ordering::Relaxed);
        let partitions = list.elements().iter().map(|element| element.partition()).collect::<Vec<_>>();
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.extend(partitions.into_iter().map(change));
    }
}

impl ClientContext for Assignment {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        clients::log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        clients::log_error(&error, reason);
    }
}

impl ConsumerContext for Assignment {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let outcome = if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.note(list, Change::Assigned);
            // The true position is known only after the restore, which seeks. Where
            // that went wrong, reading too early does no harm: the task ignores it.
            list.set_all_offsets(Offset::Beginning)
                .and_then(|()| consumer.incremental_assign(list))
                .and_then(|()| if list.count() == 0 { Ok(()) } else { consumer.pause(list) })
        } else {
            let lost = consumer.assignment_lost();
            self.note(
                list,
                |partition| if lost { Change::Lost(partition) } else { Change::Revoked(partition) },
            );
            consumer.incremental_unassign(list)
        };
        if let Err(error) = outcome {
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    }
}
