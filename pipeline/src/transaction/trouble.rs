//! What an error asks of the worker: variants are named by the answer.

use rdkafka::error::RDKafkaErrorCode as Code;

use crate::store::Damaged;

/// What an error asks of the worker.
#[derive(Debug)]
pub enum Trouble {
    /// The transaction is aborted: drop the overlays, poll, and process what is
    /// still ours again.
    Again(String),
    /// The client is unusable, or the outcome unknown: drop the overlays, build
    /// the clients anew and ask the log what was committed.
    Rebuild(String),
    /// No retry can help: stop, and tell a person.
    Stop(anyhow::Error),
}

impl From<anyhow::Error> for Trouble {
    /// A damaged store is mended by what follows from building anew: it is closed, wiped and restored.
    fn from(error: anyhow::Error) -> Trouble {
        match error.downcast_ref::<Damaged>() {
            Some(damaged) => Trouble::Rebuild(damaged.to_string()),
            None => Trouble::Stop(error),
        }
    }
}

/// Whether the same call would fail again, and for ever.
pub(super) fn is_permanent(code: Code) -> bool {
    matches!(
        code,
        Code::MessageSizeTooLarge
            | Code::InvalidRecord
            | Code::InvalidTimestamp
            | Code::InvalidTransactionTimeout
            | Code::PolicyViolation
            | Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::UnknownPartition
            | Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::InvalidTopic
            | Code::UnsupportedVersion
    )
}

/// Whether the coordinator knows nothing of this producer any more. librdkafka asks
/// for an abort then, which succeeds by another producer id (`rdkafka_txnmgr.c`, EndTxn's
/// `require_bump`) and leaves what the old one has written undecided.
pub(super) fn is_forgotten(code: Code) -> bool {
    code == Code::InvalidProducerIdMapping
}

/// What a person can do about a permanent error.
pub(super) fn remedy(code: Code) -> &'static str {
    match code {
        Code::MessageSizeTooLarge => {
            "raise that topic's max.message.bytes beyond it: `ticket-pipeline topics plan` says what it needs at least, \
             and a record that came compressed may need more"
        }
        Code::InvalidTimestamp | Code::InvalidRecord => {
            "the topic must take any CreateTime: see `ticket-pipeline topics plan`"
        }
        Code::UnknownPartition | Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::InvalidTopic => {
            "create the topics with `ticket-pipeline topics apply`"
        }
        Code::InvalidTransactionTimeout => {
            "the broker's transaction.max.timeout.ms is below the producer's transaction.timeout.ms"
        }
        Code::UnsupportedVersion => "the broker is too old for transactions that are fenced by the group",
        Code::PolicyViolation => "a policy of the broker forbids it",
        Code::TopicAuthorizationFailed => {
            "allow the pipeline's user Write in Kafka's ACLs on the topics that it writes to"
        }
        _ => "allow it to the pipeline's user in Kafka's ACLs",
    }
}
