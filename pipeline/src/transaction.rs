//! One transaction: begin, send, commit, abort; and what an error asks of the
//! worker.
//!
//! Everything that leaves the pipeline leaves through here. It does not know
//! tasks or stores: it is told what to send, and which positions to commit. It
//! calls librdkafka's C API where rust-rdkafka is in the way: its `flush` waits
//! in steps of 100 ms, and its headers must be UTF-8. All `unsafe` is here.

use std::ffi::{CStr, CString, c_void};
use std::ptr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use rdkafka::bindings as c;
use rdkafka::bindings::rd_kafka_vtype_t as vtype;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, DeliveryResult, Message};
use rdkafka::producer::{Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext, Offset, TopicPartitionList};

use crate::clients;
use crate::commit_record::{Ends, IdsRecord};
use crate::crash::{self, Step};
use crate::record::{Destination, Header, OutgoingRecord};
use crate::topology::Topology;

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
    fn from(error: anyhow::Error) -> Trouble {
        Trouble::Stop(error)
    }
}

/// After a commit that took longer, a delayed request of it could decide the
/// next transaction; a new producer's epoch fences that. It is below the
/// producer's socket timeout, which is the transaction's less 100 ms.
const COMMIT_TIME_MAX: Duration = Duration::from_millis(clients::TRANSACTION_TIMEOUT_MS - 5_000);

/// The longest that a full queue may stay full. Records time out before.
const QUEUE_FULL_TIME_MAX: Duration = Duration::from_secs(60);

/// A call that may be repeated is repeated for so long.
const RETRY_TIME_MAX: Duration = Duration::from_secs(60);

/// A worker's transactional producer.
///
/// Its fields are dropped in their order: librdkafka wants its topics gone
/// before the client.
pub struct Producer {
    topics: Vec<Topic>,
    routes: Routes,
    client: ThreadedProducer<Deliveries>,
    source_topic: String,
    sent: u64,
}

/// Where each destination stands among the producer's topics.
struct Routes {
    events: Vec<usize>,
    late: usize,
    dead_letter: usize,
    changelog: usize,
    ids: usize,
}

/// A partition that the transaction moved.
#[derive(Debug, Clone, Copy)]
pub struct Moved {
    /// The input partition.
    pub partition: i32,
    /// Its new input position.
    pub position: i64,
    /// The ends of changelog and ids log before this transaction.
    pub ends: Ends,
}

/// What a commit brought.
#[derive(Debug)]
pub struct Receipt {
    /// The partitions, in the order of the request, with the ends after it.
    pub ends: Vec<Ends>,
    /// It took so long that the producer must be made anew.
    pub slow: bool,
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer").finish_non_exhaustive()
    }
}

impl Producer {
    /// Connects. Nothing of a predecessor's is decided yet: see [`Producer::fence`].
    ///
    /// # Errors
    /// Where the configuration is refused.
    pub fn connect(topology: &Topology, config: &ClientConfig, partitions: i32) -> Result<Producer, Trouble> {
        let client = ThreadedProducer::from_config_and_context(config, Deliveries::new(partitions))
            .map_err(|error| Trouble::Stop(anyhow!(error).context("create the producer")))?;
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
        };
        let topics = names.iter().map(|name| Topic::new(&client, name)).collect::<Result<_, _>>()?;
        Ok(Producer { topics, routes, client, source_topic: topology.source.topic.clone(), sent: 0 })
    }

    /// Ends whatever a predecessor of the same transactional id left open, and
    /// fences it. `false`: not yet, ask again.
    ///
    /// # Errors
    /// Where asking again cannot help.
    pub fn fence(&mut self, timeout: Duration) -> Result<bool, Trouble> {
        let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the client outlives the call.
        let failure = native(unsafe { c::rd_kafka_init_transactions(self.native(), timeout_ms) });
        match failure {
            Ok(()) => Ok(true),
            Err(failure) if failure.is_retriable => Ok(false),
            Err(failure) => Err(self.judge("init the producer's transactions", &failure)),
        }
    }

    /// Opens a transaction. Nothing is sent by this.
    ///
    /// # Errors
    /// Where the producer is not usable any more.
    pub fn begin(&mut self) -> Result<Transaction<'_>, Trouble> {
        self.client.client().context().reset();
        self.sent = 0;
        // SAFETY: the client outlives the call.
        native(unsafe { c::rd_kafka_begin_transaction(self.native()) })
            .map_err(|failure| self.judge("begin a transaction", &failure))?;
        Ok(Transaction { producer: self, open: true })
    }

    fn native(&self) -> *mut c::rd_kafka_t {
        self.client.client().native_ptr()
    }

    /// What an error asks for where there is no transaction to abort.
    fn judge(&self, what: &str, failure: &Failure) -> Trouble {
        let fatal =
            self.client.client().fatal_error().map_or_else(String::new, |(_, why)| format!(" ({why})"));
        if is_permanent(failure.code) {
            return Trouble::Stop(anyhow!("{what}: {failure}{fatal}; {}", remedy(failure.code)));
        }
        Trouble::Rebuild(format!("{what}: {failure}{fatal}"))
    }
}

/// An open transaction. Dropped without a commit, it is aborted.
#[derive(Debug)]
pub struct Transaction<'p> {
    producer: &'p mut Producer,
    open: bool,
}

/// Which record's delivery report tells an end.
#[derive(Debug, Clone, Copy)]
enum Report {
    Nothing,
    ChangelogEnd(i32),
    IdsEnd(i32),
}

struct Outgoing<'a> {
    topic: usize,
    partition: i32,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    timestamp_ms: i64,
    report: Report,
}

impl Transaction<'_> {
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
        };
        let outgoing = Outgoing {
            topic,
            partition: record.partition,
            key: record.key,
            value: record.value,
            timestamp_ms: record.timestamp_ms,
            report: Report::Nothing,
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
        // An undelivered record would make the commit a lie.
        self.flush()?;
        crash::at(Step::SendOffsets);
        let ends = self.ends(moved);
        self.send_offsets(moved, &ends, consumer)?;
        crash::at(Step::Commit);
        let start = Instant::now();
        let native_ptr = self.producer.native();
        // SAFETY: the client outlives the call.
        self.retry("commit a transaction", || unsafe { c::rd_kafka_commit_transaction(native_ptr, -1) })?;
        self.open = false;
        crash::at(Step::Apply);
        Ok(Receipt { ends, slow: start.elapsed() > COMMIT_TIME_MAX })
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
        let started = Instant::now();
        loop {
            // SAFETY: the client outlives the call.
            match native(unsafe { c::rd_kafka_abort_transaction(self.producer.native(), -1) }) {
                Ok(()) => return Ok(()),
                Err(failure) if failure.is_retriable && started.elapsed() < RETRY_TIME_MAX => continue,
                Err(failure) => return Err(self.producer.judge("abort a transaction", &failure)),
            }
        }
    }

    fn flush(&mut self) -> Result<(), Trouble> {
        // SAFETY: the client outlives the call; its own thread serves the delivery
        // reports. Without a timeout, for records have one of their own.
        let outcome = unsafe { c::rd_kafka_flush(self.producer.native(), -1) };
        let deliveries = self.producer.client.client().context();
        let delivered = deliveries.delivered.load(Ordering::Acquire);
        let failed = deliveries.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        let sent = self.producer.sent;
        if failed.is_none()
            && delivered == sent
            && outcome == c::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
        {
            return Ok(());
        }
        if let Some((code, why)) = failed {
            if is_permanent(code) {
                return Err(Trouble::Stop(anyhow!("deliver a record: {why}; {}", remedy(code))));
            }
            return Err(self.give_up(format!("deliver a record: {why}")));
        }
        Err(self.give_up(format!("deliver {sent} records: {delivered} arrived")))
    }

    fn ends(&self, moved: &[Moved]) -> Vec<Ends> {
        let deliveries = self.producer.client.client().context();
        let end = |told: Option<&AtomicI64>, before: i64| {
            told.map_or(before, |end| end.load(Ordering::Acquire).max(before))
        };
        moved
            .iter()
            .map(|moved| Ends {
                changelog: end(deliveries.end(Report::ChangelogEnd(moved.partition)), moved.ends.changelog),
                ids: end(deliveries.end(Report::IdsEnd(moved.partition)), moved.ends.ids),
            })
            .collect()
    }

    fn send_offsets<C: ConsumerContext>(
        &mut self,
        moved: &[Moved],
        ends: &[Ends],
        consumer: &BaseConsumer<C>,
    ) -> Result<(), Trouble> {
        let mut offsets = TopicPartitionList::with_capacity(moved.len());
        for (moved, ends) in moved.iter().zip(ends) {
            let mut offset = offsets.add_partition(&self.producer.source_topic, moved.partition);
            offset
                .set_offset(Offset::Offset(moved.position))
                .map_err(|error| anyhow!(error).context("set a position to commit"))?;
            offset.set_metadata(ends.to_metadata());
        }
        // While the group is active the broker takes offsets of a member that
        // never joined it for those of an outsider, and does not fence them.
        let member = Membership::of(consumer);
        if !member.has_joined() || consumer.assignment_lost() {
            return Err(self.give_up("send offsets: this worker is no member of the group now".into()));
        }
        let native_ptr = self.producer.native();
        // SAFETY: client, list and membership outlive the call.
        self.retry("send offsets", || unsafe {
            c::rd_kafka_send_offsets_to_transaction(native_ptr, offsets.ptr(), member.0, -1)
        })
    }

    /// Repeats a call while librdkafka says that it may be, with the same arguments.
    fn retry(
        &mut self,
        what: &str,
        mut call: impl FnMut() -> *mut c::rd_kafka_error_t,
    ) -> Result<(), Trouble> {
        let started = Instant::now();
        loop {
            let Err(failure) = native(call()) else { return Ok(()) };
            if failure.requires_abort {
                return Err(self.give_up(format!("{what}: {failure}")));
            }
            if !failure.is_retriable || started.elapsed() > RETRY_TIME_MAX {
                // The outcome is unknown; an abort now could be one of a commit.
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
        let topic = self.producer.topics.get(record.topic).expect("routes are made from the topics");
        let headers = OutgoingHeaders::new(headers);
        // librdkafka takes 0 for "now", and nothing that leaves depends on a clock.
        let timestamp_ms = if record.timestamp_ms == 0 { 1 } else { record.timestamp_ms };
        let (key, key_bytes) = pointer(record.key);
        let (value, value_bytes) = pointer(record.value);
        let started = Instant::now();
        loop {
            // SAFETY: every pointer outlives the call, which copies key and value;
            // the arguments are of the types that `rd_kafka_producev` reads for their tags.
            let code = unsafe {
                c::rd_kafka_producev(
                    self.producer.native(),
                    vtype::RD_KAFKA_VTYPE_RKT,
                    topic.0,
                    vtype::RD_KAFKA_VTYPE_PARTITION,
                    record.partition,
                    vtype::RD_KAFKA_VTYPE_MSGFLAGS,
                    c::RD_KAFKA_MSG_F_COPY,
                    vtype::RD_KAFKA_VTYPE_VALUE,
                    value,
                    value_bytes,
                    vtype::RD_KAFKA_VTYPE_KEY,
                    key,
                    key_bytes,
                    vtype::RD_KAFKA_VTYPE_TIMESTAMP,
                    timestamp_ms,
                    vtype::RD_KAFKA_VTYPE_OPAQUE,
                    record.report.to_opaque() as *mut c_void,
                    vtype::RD_KAFKA_VTYPE_HEADERS,
                    headers.0,
                    vtype::RD_KAFKA_VTYPE_END,
                )
            };
            match RDKafkaErrorCode::from(code) {
                RDKafkaErrorCode::NoError => {
                    // The record owns its headers now.
                    std::mem::forget(headers);
                    self.producer.sent += 1;
                    return Ok(());
                }
                RDKafkaErrorCode::QueueFull if started.elapsed() < QUEUE_FULL_TIME_MAX => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                code if is_permanent(code) => {
                    return Err(Trouble::Stop(anyhow!(
                        "send a record to {}: {code}; {}",
                        topic.name(),
                        remedy(code)
                    )));
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

fn is_permanent(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
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

fn remedy(code: RDKafkaErrorCode) -> &'static str {
    use RDKafkaErrorCode as Code;
    match code {
        Code::MessageSizeTooLarge => {
            "raise the topic's max.message.bytes, as `ticket-pipeline topics apply` sets it"
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
        _ => "give the pipeline's user that right in Kafka",
    }
}

/// Every delivery's fate, and the ends of changelog and ids log that it tells.
struct Deliveries {
    changelog_ends: Vec<AtomicI64>,
    ids_ends: Vec<AtomicI64>,
    delivered: AtomicU64,
    failed: Mutex<Option<(RDKafkaErrorCode, String)>>,
}

impl Report {
    fn to_opaque(self) -> usize {
        let index = |partition| usize::try_from(partition).expect("a partition is not negative");
        match self {
            Report::Nothing => 0,
            Report::ChangelogEnd(partition) => 1 + 2 * index(partition),
            Report::IdsEnd(partition) => 2 + 2 * index(partition),
        }
    }

    fn of_opaque(opaque: usize) -> Report {
        let Some(number) = opaque.checked_sub(1) else { return Report::Nothing };
        let partition = i32::try_from(number / 2).expect("an opaque is made from a partition");
        if number % 2 == 0 { Report::ChangelogEnd(partition) } else { Report::IdsEnd(partition) }
    }
}

impl Deliveries {
    fn new(partitions: i32) -> Deliveries {
        let ends = || (0..partitions).map(|_| AtomicI64::new(-1)).collect();
        Deliveries {
            changelog_ends: ends(),
            ids_ends: ends(),
            delivered: AtomicU64::new(0),
            failed: Mutex::default(),
        }
    }

    /// Flush and abort wait for every report, so none of an earlier transaction is to come.
    fn reset(&self) {
        for end in self.changelog_ends.iter().chain(&self.ids_ends) {
            end.store(-1, Ordering::Release);
        }
        self.delivered.store(0, Ordering::Release);
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn end(&self, report: Report) -> Option<&AtomicI64> {
        let (ends, partition) = match report {
            Report::Nothing => return None,
            Report::ChangelogEnd(partition) => (&self.changelog_ends, partition),
            Report::IdsEnd(partition) => (&self.ids_ends, partition),
        };
        usize::try_from(partition).ok().and_then(|index| ends.get(index))
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        clients::log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        clients::log_error(&error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        match result {
            Ok(record) => {
                if let Some(end) = self.end(Report::of_opaque(opaque)) {
                    end.fetch_max(record.offset() + 1, Ordering::AcqRel);
                }
                self.delivered.fetch_add(1, Ordering::AcqRel);
            }
            Err((error, record)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
                let why = format!("{} [{}]: {code}", record.topic(), record.partition());
                // The first is the cause; what is purged after it is not.
                self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert((code, why));
            }
        }
    }
}

/// An error of librdkafka's transactional API.
#[derive(Debug)]
struct Failure {
    code: RDKafkaErrorCode,
    text: String,
    is_retriable: bool,
    requires_abort: bool,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.text)
    }
}

fn native(error: *mut c::rd_kafka_error_t) -> Result<(), Failure> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: a non-null error is ours until it is destroyed, which is the last thing done with it.
    unsafe {
        let failure = Failure {
            code: c::rd_kafka_error_code(error).into(),
            text: CStr::from_ptr(c::rd_kafka_error_string(error)).to_string_lossy().into_owned(),
            is_retriable: c::rd_kafka_error_is_retriable(error) != 0,
            requires_abort: c::rd_kafka_error_txn_requires_abort(error) != 0,
        };
        c::rd_kafka_error_destroy(error);
        Err(failure)
    }
}

/// The consumer's place in its group, as of now.
struct Membership(*mut c::rd_kafka_consumer_group_metadata_t);

impl Membership {
    fn of<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Membership {
        // SAFETY: the client outlives the call; what it returns is ours.
        Membership(unsafe { c::rd_kafka_consumer_group_metadata(consumer.client().native_ptr()) })
    }

    fn has_joined(&self) -> bool {
        if self.0.is_null() {
            return false;
        }
        // SAFETY: not null, and alive as long as `self`; the member id is a string or null.
        unsafe {
            let member = c::rd_kafka_consumer_group_metadata_member_id(self.0);
            c::rd_kafka_consumer_group_metadata_generation_id(self.0) >= 0
                && !member.is_null()
                && *member != 0
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: ours, and not used again.
            unsafe { c::rd_kafka_consumer_group_metadata_destroy(self.0) };
        }
    }
}

/// A topic's handle: finding a topic by its name costs a search for each record.
struct Topic(*mut c::rd_kafka_topic_t);

impl Topic {
    fn new(client: &ThreadedProducer<Deliveries>, name: &str) -> Result<Topic, Trouble> {
        let c_name =
            CString::new(name).map_err(|error| anyhow!(error).context(format!("name topic {name:?}")))?;
        // SAFETY: the client outlives the handle: `Producer` drops its topics first.
        let topic =
            unsafe { c::rd_kafka_topic_new(client.client().native_ptr(), c_name.as_ptr(), ptr::null_mut()) };
        if topic.is_null() {
            return Err(Trouble::Stop(anyhow!("{name:?} is no name for a topic")));
        }
        Ok(Topic(topic))
    }

    fn name(&self) -> String {
        // SAFETY: the handle is alive, and its name with it.
        unsafe { CStr::from_ptr(c::rd_kafka_topic_name(self.0)) }.to_string_lossy().into_owned()
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        // SAFETY: ours, and not used again.
        unsafe { c::rd_kafka_topic_destroy(self.0) };
    }
}

/// Headers of a record to be sent: names as bytes, null values as null.
struct OutgoingHeaders(*mut c::rd_kafka_headers_t);

impl OutgoingHeaders {
    fn new<'h>(headers: impl ExactSizeIterator<Item = Header<'h>>) -> OutgoingHeaders {
        if headers.len() == 0 {
            return OutgoingHeaders(ptr::null_mut());
        }
        // SAFETY: the list is ours; names and values outlive the calls, which copy them.
        let list = unsafe { c::rd_kafka_headers_new(headers.len()) };
        for (name, value) in headers {
            let (value, value_bytes) = pointer(value);
            // SAFETY: as above.
            unsafe {
                c::rd_kafka_header_add(
                    list,
                    name.as_ptr().cast(),
                    name.len().cast_signed(),
                    value,
                    value_bytes.cast_signed(),
                );
            }
        }
        OutgoingHeaders(list)
    }
}

impl Drop for OutgoingHeaders {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: ours, for a record that took them has made us forget them.
            unsafe { c::rd_kafka_headers_destroy(self.0) };
        }
    }
}

/// Null for what is absent; what is empty has an address.
fn pointer(bytes: Option<&[u8]>) -> (*mut c_void, usize) {
    bytes.map_or((ptr::null_mut(), 0), |bytes| (bytes.as_ptr().cast_mut().cast(), bytes.len()))
}

/// A consumed record's headers, in their order, into `headers`.
pub fn read_headers<'m>(record: &'m BorrowedMessage<'_>, headers: &mut Vec<Header<'m>>) {
    headers.clear();
    let mut list = ptr::null_mut();
    // SAFETY: the record is alive, and the list belongs to it.
    let code = unsafe { c::rd_kafka_message_headers(record.ptr(), &raw mut list) };
    if code != c::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        return; // There are none.
    }
    let (mut name, mut value, mut value_bytes) = (ptr::null(), ptr::null(), 0);
    for index in 0.. {
        // SAFETY: the list is alive; the call says where it ends.
        let code = unsafe {
            c::rd_kafka_header_get_all(list, index, &raw mut name, &raw mut value, &raw mut value_bytes)
        };
        if code != c::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return;
        }
        // SAFETY: name and value live as long as the record; a name ends with a zero.
        let header = unsafe {
            let name = CStr::from_ptr(name).to_bytes();
            let value =
                (!value.is_null()).then(|| std::slice::from_raw_parts(value.cast::<u8>(), value_bytes));
            (name, value)
        };
        headers.push(header);
    }
}
