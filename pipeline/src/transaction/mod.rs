//! One transaction: begin, send, commit, abort. Here is the producer that begins it.
//!
//! Everything that leaves the pipeline leaves through here. It does not know
//! tasks or stores: it is told what to send, and which positions to commit.

mod deliveries;
mod native;
mod open;
mod trouble;

use std::time::{Duration, Instant};

use anyhow::anyhow;
use rdkafka::ClientConfig;
use rdkafka::error::RDKafkaErrorCode;

use crate::commit_record::{IdsRecord, NOTHING_KEY};
use crate::stage::Stage;
use crate::topology::{KeyedBy, TRANSACTION_TIMEOUT_MS, Topology};
use deliveries::Deliveries;
use native::{Client, Failure};
use trouble::{is_permanent, remedy};

pub use native::{add_brokers, has_joined, knows_a_broker, read_headers};
pub use open::{Moved, Receipt, Transaction};
pub use trouble::Trouble;

/// librdkafka's default.
const SOCKET_TIMEOUT_MS: u64 = 60_000;

/// So long librdkafka is given to fence a predecessor before it is asked again, the first time and in the end.
const FENCE_STEP_MIN: Duration = Duration::from_millis(20);
const FENCE_STEP_MAX: Duration = Duration::from_millis(500);

/// A coordinator that lives has written a commit's markers long before.
pub(crate) const MARKED_WITHIN: Duration = Duration::from_secs(25);

/// A worker's transactional producer.
pub struct Producer {
    client: Client,
    routes: Routes,
    input_topic: String,
    group: String,
    transactional_id: String,
    /// A larger value is never taken into the queue.
    queue_bytes: usize,
    /// After an end that took longer, a request of it that was given up and sent again may still
    /// arrive, and decide the next transaction; a new producer's epoch fences that.
    end_time_max: Duration,
    sent: u64,
    sent_bytes: usize,
    committed_at: Option<Instant>,
    /// The losses of the coordinator's connection that endanger no commit of ours.
    losses: u64,
}

/// Where each destination stands among the client's topics.
struct Routes {
    events: Vec<usize>,
    late: usize,
    dead_letter: usize,
    changelog: usize,
    ids: usize,
    /// `None` where nothing is re-keyed: there is no such topic then.
    rekeyed: Option<usize>,
}

/// A partition whose ids log lacks the marker of a transaction that was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unmarked {
    /// The changelog lacks it too.
    pub changelog: bool,
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer").finish_non_exhaustive()
    }
}

impl Producer {
    /// Connects, for a worker of a stage. Nothing of a predecessor's is decided
    /// yet: see [`Producer::fence`].
    ///
    /// # Errors
    /// Where the configuration is refused.
    pub fn connect(
        topology: &Topology,
        stage: Stage,
        config: &ClientConfig,
        partitions: i32,
    ) -> Result<Producer, Trouble> {
        let mut names: Vec<&str> = Vec::new();
        let mut route = |name| {
            names.iter().position(|known| *known == name).unwrap_or_else(|| {
                names.push(name);
                names.len() - 1
            })
        };
        let routes = Routes {
            events: topology.event_types.iter().map(|event| route(event.topic.as_str())).collect(),
            late: route(topology.late_topic.as_str()),
            dead_letter: route(topology.dead_letter_topic.as_str()),
            changelog: route(topology.changelog_topic.as_str()),
            ids: route(topology.ids_topic.as_str()),
            rekeyed: (topology.source.keyed_by == KeyedBy::Nothing)
                .then(|| route(topology.rekeyed_topic.as_str())),
        };
        // These carry raw records as they came, and the raw topic's limit counts compressed bytes.
        let is_untouched = |topic: &usize| *topic == routes.dead_letter || Some(*topic) == routes.rekeyed;
        let untouched: Vec<usize> = (0..names.len()).filter(is_untouched).collect();
        let client = Client::connect(config, Deliveries::new(partitions), &names, &untouched)?;
        let queue_kib = number(config, "queue.buffering.max.kbytes").unwrap_or(u64::MAX);
        Ok(Producer {
            client,
            routes,
            input_topic: stage.topic(topology).to_owned(),
            group: stage.group(topology),
            transactional_id: config.get("transactional.id").unwrap_or_default().to_owned(),
            queue_bytes: usize::try_from(queue_kib.saturating_mul(1024)).unwrap_or(usize::MAX),
            end_time_max: end_time_max(config),
            sent: 0,
            sent_bytes: 0,
            committed_at: None,
            losses: 0,
        })
    }

    /// Ends whatever a predecessor of the same transactional id left open, and
    /// fences it. `false`: not yet, ask again.
    ///
    /// librdkafka tries again after half a second where it has no connection yet, or
    /// where the coordinator still ends what the predecessor left; asked again, it
    /// tries at once (`rd_kafka_txn_op_init_transactions`).
    ///
    /// # Errors
    /// Where asking again cannot help.
    pub fn fence(&mut self, timeout: Duration) -> Result<bool, Trouble> {
        let (started, mut step) = (Instant::now(), FENCE_STEP_MIN);
        loop {
            let timeout_ms = i32::try_from(step.as_millis()).unwrap_or(i32::MAX);
            match self.client.init_transactions(timeout_ms) {
                Ok(()) => return Ok(true),
                Err(failure) if !failure.is_retriable => {
                    return Err(self.judge("init the producer's transactions", &failure));
                }
                Err(_) if started.elapsed() >= timeout => return Ok(false),
                Err(_) => step = (step * 2).min(FENCE_STEP_MAX),
            }
        }
    }

    /// Looks whether the last commit may have lost its markers. Its coordinator
    /// acknowledges a commit first and writes the markers then. Where it died
    /// between, they may never come (see ARCHITECTURE.md), and whatever decides the
    /// *next* transaction of this producer decides the records of both. So the next
    /// one must not come before the log says that the last one is there.
    ///
    /// # Errors
    /// Where the connection to the coordinator was lost soon after a commit, or in it.
    pub fn check_coordinator(&mut self) -> Result<(), Trouble> {
        let losses = self.client.coordinator_losses();
        if losses != self.losses && self.committed_at.is_some_and(|at| at.elapsed() < MARKED_WITHIN) {
            return Err(Trouble::Rebuild(
                "the connection to the transaction coordinator was lost after a commit".into(),
            ));
        }
        self.losses = losses;
        Ok(())
    }

    /// Gives logs of a partition a commit marker, behind records of nothing and of no time. It
    /// decides whatever this producer had left undecided there (Kafka's
    /// `ProducerStateManager.completeTxn`), so that must be known as committed.
    ///
    /// # Errors
    /// Where the transaction for it is not committed. It is then aborted, and what was
    /// undecided with it, in the ids log in any case: that comes first.
    pub fn mark(&mut self, partition: i32, Unmarked { changelog }: Unmarked) -> Result<(), Trouble> {
        let mut transaction = self.begin()?;
        transaction.ids(partition, &IdsRecord::Nothing, 0)?;
        transaction.flush()?;
        if changelog {
            transaction.changelog(partition, NOTHING_KEY, None, 0)?;
            transaction.flush()?;
        }
        transaction.end_well()
    }

    /// Opens a transaction. Nothing is sent by this.
    ///
    /// # Errors
    /// Where the producer is not usable any more.
    pub fn begin(&mut self) -> Result<Transaction<'_>, Trouble> {
        self.client.deliveries().reset();
        self.sent = 0;
        self.sent_bytes = 0;
        self.client.begin_transaction().map_err(|failure| self.judge("begin a transaction", &failure))?;
        Ok(Transaction { producer: self, open: true })
    }

    /// What an error asks for where there is no transaction to abort.
    fn judge(&self, what: &str, failure: &Failure) -> Trouble {
        let fatal = self.client.fatal_error().map_or_else(String::new, |why| format!(" ({why})"));
        if is_permanent(failure.code) {
            return Trouble::Stop(anyhow!("{what}: {failure}{fatal}; {}", self.remedy(failure.code)));
        }
        Trouble::Rebuild(format!("{what}: {failure}{fatal}"))
    }

    fn remedy(&self, code: RDKafkaErrorCode) -> String {
        match code {
            RDKafkaErrorCode::GroupAuthorizationFailed => {
                format!("allow the pipeline's user Read on group {} in Kafka's ACLs", self.group)
            }
            RDKafkaErrorCode::TransactionalIdAuthorizationFailed => format!(
                "allow the pipeline's user Write on transactional id {} in Kafka's ACLs, and on all others that begin \
                 with its group",
                self.transactional_id
            ),
            code => remedy(code).to_owned(),
        }
    }
}

/// Two thirds of the time after which librdkafka gives a request up: `socket.timeout.ms`, for
/// which a transactional producer takes no more than `transaction.timeout.ms`.
fn end_time_max(config: &ClientConfig) -> Duration {
    let socket_ms = number(config, "socket.timeout.ms").unwrap_or(SOCKET_TIMEOUT_MS);
    let transaction_ms = number(config, "transaction.timeout.ms").unwrap_or(TRANSACTION_TIMEOUT_MS);
    Duration::from_millis(socket_ms.min(transaction_ms) * 2 / 3)
}

fn number(config: &ClientConfig, name: &str) -> Option<u64> {
    config.get(name)?.trim().parse().ok()
}
