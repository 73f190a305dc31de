//! What a poll brings: records for the batch, rebalances, errors of the consumer.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};

use super::Worker;
use super::assignment::Assignment;
use super::batch::Batch;
use crate::transaction::{Trouble, has_joined};

/// An idle poll takes so long: the time in which a stop is noticed.
const IDLE_POLL: Duration = Duration::from_millis(100);

/// While all restores wait for something, the worker looks again after so long.
const RESTORE_POLL: Duration = Duration::from_millis(10);

impl Worker {
    /// Polls until some of the batch is due and it holds all that comes at once, or nothing
    /// more comes at once while there is a restore to advance. Rebalances land
    /// here, with no transaction open. After a trouble it polls at least for that
    /// long, whatever the batch.
    pub(super) fn poll<'c>(
        &mut self,
        consumer: &'c BaseConsumer<Assignment>,
        batch: &mut Batch<BorrowedMessage<'c>>,
        restores_wait: bool,
        pause: Duration,
    ) -> Result<bool, Trouble> {
        let not_before = (!pause.is_zero()).then(|| Instant::now() + pause);
        loop {
            let pausing =
                not_before.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
            let mut wait = batch.wait(Instant::now()).unwrap_or(IDLE_POLL).max(pausing).min(IDLE_POLL);
            let at_once = self.tasks.are_restoring() || self.tasks.are_rebuilding();
            if at_once && pausing.is_zero() {
                wait = wait.min(if restores_wait { RESTORE_POLL } else { Duration::ZERO });
            }
            if !pausing.is_zero() && batch.is_full() {
                // A pause is no reason to take in ever more; rebalances land here all the same.
                std::thread::sleep(wait);
                wait = Duration::ZERO;
            }
            let polled = consumer.poll(whole_ms(wait));
            let came = polled.is_some();
            let changes = consumer
                .context()
                .take_changes()
                .map_err(|error| Trouble::Rebuild(format!("follow a rebalance: {error}")))?;
            if !changes.is_empty() {
                self.tasks.follow(self.setup.stage, &changes)?;
                let tasks = &mut self.tasks;
                batch.retain(|partition| tasks.running(partition).is_some());
                self.publish();
            }
            match polled {
                Some(Ok(record)) => {
                    // What is read before its task runs, or was read before, is not ours to process.
                    let position = self.tasks.running(record.partition()).map(|running| running.position);
                    if position.is_some_and(|position| record.offset() >= position) && !self.is_stopping() {
                        batch.push(record);
                    }
                }
                Some(Err(error)) => self.judge(consumer, &error)?,
                None => {}
            }
            let is_waiting = came || batch.wait(Instant::now()).is_none_or(|wait| !wait.is_zero());
            let due = batch.is_full() || !is_waiting;
            let pausing = not_before.is_some_and(|until| Instant::now() < until);
            if self.is_stopping() || (!pausing && (due || !came)) {
                return Ok(due && !pausing);
            }
        }
    }

    fn judge(&self, consumer: &BaseConsumer<Assignment>, error: &KafkaError) -> Result<(), Trouble> {
        use RDKafkaErrorCode as Code;
        let topology = &self.setup.topology;
        let stage = self.setup.stage;
        let topic = stage.topic(topology);
        let code = error.rdkafka_error_code();
        let fatal = matches!(error, KafkaError::MessageConsumptionFatal(_));
        match code {
            // Where nobody answered for a session's time, librdkafka (2.12.1) forgets its member id and
            // sends a heartbeat without one (`rd_kafka_cgrp_session_timeout_check`), which the broker,
            // when it is back, takes for a second member.
            Some(Code::FencedInstanceId) if fatal && has_joined(consumer) => Err(Trouble::Stop(anyhow!(
                "another process runs as {:?}: give each its own runtime.instance (INSTANCE_ID)",
                self.member.id
            ))),
            Some(Code::OffsetOutOfRange | Code::AutoOffsetReset) => Err(Trouble::Stop(anyhow!(
                "{topic} no longer holds the record to go on from: to skip what is gone, reset the group's offsets \
                 ({error})"
            ))),
            Some(Code::TopicAuthorizationFailed) => Err(Trouble::Stop(anyhow!(
                "read {topic}: {error}; allow the pipeline's user Read on topic {topic} in Kafka's ACLs"
            ))),
            Some(Code::GroupAuthorizationFailed) => {
                let group = stage.group(topology);
                Err(Trouble::Stop(anyhow!(
                    "read {topic} as group {group}: {error}; allow the pipeline's user Read on group {group} in Kafka's ACLs"
                )))
            }
            // librdkafka would try the same batch again for ever.
            Some(Code::BadCompression) => Err(Trouble::Stop(anyhow!(
                "read {topic}: {error}; where a batch is larger than receive.message.max.bytes once it is decompressed, \
                 raise that in kafka.consumer; a damaged one has to be skipped by resetting the group's offsets"
            ))),
            _ if fatal => Err(Trouble::Rebuild(format!("read {topic}: {error}"))),
            // librdkafka goes on by itself, and has said so in the log.
            _ => Ok(()),
        }
    }
}

/// rust-rdkafka (0.39) waits in whole milliseconds, and spends what is left of the last one asking
/// without a pause (`BaseConsumer::poll_queue`).
fn whole_ms(wait: Duration) -> Duration {
    let ms = wait.as_nanos().div_ceil(Duration::from_millis(1).as_nanos());
    Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_never_shorter_for_being_in_whole_milliseconds() {
        for (micros, ms) in [(0, 0), (1, 1), (999, 1), (1_000, 1), (1_001, 2), (99_500, 100)] {
            assert_eq!(whole_ms(Duration::from_micros(micros)), Duration::from_millis(ms), "{micros}");
        }
    }
}
