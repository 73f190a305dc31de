//! librdkafka's C API, where rust-rdkafka is in the way: its `flush` waits in
//! steps of 100 ms, it looks a topic up by its name for each record, and its
//! headers must be UTF-8. All `unsafe` of the program is here; what it gives out
//! is safe, and it decides nothing.

use std::ffi::{CStr, CString, c_void};
use std::ptr;

use anyhow::{Context, Result, anyhow, bail};
use rdkafka::bindings as c;
use rdkafka::bindings::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR as NO_ERROR;
use rdkafka::bindings::rd_kafka_vtype_t as vtype;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::BorrowedMessage;
use rdkafka::producer::{Producer, ThreadedProducer};
use rdkafka::{ClientConfig, TopicPartitionList};

use super::deliveries::{Deliveries, Report};
use crate::record::Header;

/// An error of the transactional API, with what it says of itself.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: RDKafkaErrorCode,
    pub(super) text: String,
    pub(super) is_retriable: bool,
    pub(super) requires_abort: bool,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.text)
    }
}

/// A record to be sent.
pub(super) struct Outgoing<'a> {
    /// The index of its topic.
    pub(super) topic: usize,
    pub(super) partition: i32,
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
    pub(super) timestamp_ms: i64,
    pub(super) report: Report,
}

/// The producer's client and its topics. Its fields are dropped in their order:
/// librdkafka wants a client's topics gone before the client.
pub(super) struct Client {
    topics: Vec<Topic>,
    producer: ThreadedProducer<Deliveries>,
}

impl Client {
    pub(super) fn connect(config: &ClientConfig, context: Deliveries, topics: &[&str]) -> Result<Client> {
        let producer =
            ThreadedProducer::from_config_and_context(config, context).context("create the producer")?;
        let topics = topics.iter().map(|name| Topic::new(&producer, name)).collect::<Result<_>>()?;
        Ok(Client { topics, producer })
    }

    pub(super) fn deliveries(&self) -> &Deliveries {
        self.producer.client().context()
    }

    /// Why the client cannot be used any more, if so.
    pub(super) fn fatal_error(&self) -> Option<String> {
        self.producer.client().fatal_error().map(|(_, why)| why)
    }

    pub(super) fn topic_name(&self, topic: usize) -> String {
        self.topics.get(topic).map_or_else(String::new, Topic::name)
    }

    pub(super) fn init_transactions(&self, timeout_ms: i32) -> Result<(), Failure> {
        // SAFETY: the client outlives the call.
        outcome(unsafe { c::rd_kafka_init_transactions(self.ptr(), timeout_ms) })
    }

    pub(super) fn begin_transaction(&self) -> Result<(), Failure> {
        // SAFETY: the client outlives the call.
        outcome(unsafe { c::rd_kafka_begin_transaction(self.ptr()) })
    }

    /// Waits, without a timeout, until every record has arrived or failed. The
    /// client's own thread serves the reports.
    pub(super) fn flush(&self) -> bool {
        // SAFETY: the client outlives the call.
        unsafe { c::rd_kafka_flush(self.ptr(), -1) == NO_ERROR }
    }

    pub(super) fn send_offsets(
        &self,
        offsets: &TopicPartitionList,
        member: &Membership,
    ) -> Result<(), Failure> {
        // SAFETY: client, list and membership outlive the call.
        outcome(unsafe { c::rd_kafka_send_offsets_to_transaction(self.ptr(), offsets.ptr(), member.0, -1) })
    }

    /// Without a timeout: with one, client and broker may come to disagree.
    pub(super) fn commit_transaction(&self) -> Result<(), Failure> {
        // SAFETY: the client outlives the call.
        outcome(unsafe { c::rd_kafka_commit_transaction(self.ptr(), -1) })
    }

    /// Without a timeout, as a commit.
    pub(super) fn abort_transaction(&self) -> Result<(), Failure> {
        // SAFETY: the client outlives the call.
        outcome(unsafe { c::rd_kafka_abort_transaction(self.ptr(), -1) })
    }

    /// Puts a record into the queue. It takes the headers only where it succeeds.
    pub(super) fn produce(&self, record: &Outgoing<'_>, headers: &mut OutgoingHeaders) -> RDKafkaErrorCode {
        let topic = self.topics.get(record.topic).expect("a record's topic is one of the client's");
        let (key, key_bytes) = pointer(record.key);
        let (value, value_bytes) = pointer(record.value);
        // librdkafka takes 0 for "now", and nothing that leaves depends on a clock.
        let timestamp_ms = if record.timestamp_ms == 0 { 1 } else { record.timestamp_ms };
        // SAFETY: every pointer outlives the call, which copies key and value; the
        // arguments are of the types that `rd_kafka_producev` reads for their tags.
        let code = unsafe {
            c::rd_kafka_producev(
                self.ptr(),
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
        if code == NO_ERROR {
            headers.0 = ptr::null_mut(); // The record owns them now.
        }
        code.into()
    }

    fn ptr(&self) -> *mut c::rd_kafka_t {
        self.producer.client().native_ptr()
    }
}

fn outcome(error: *mut c::rd_kafka_error_t) -> Result<(), Failure> {
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

/// A consumer's place in its group, as of now.
pub(super) struct Membership(*mut c::rd_kafka_consumer_group_metadata_t);

impl Membership {
    pub(super) fn of<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Membership {
        // SAFETY: the client outlives the call; what it returns is ours.
        Membership(unsafe { c::rd_kafka_consumer_group_metadata(consumer.client().native_ptr()) })
    }

    pub(super) fn has_joined(&self) -> bool {
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
    fn new(producer: &ThreadedProducer<Deliveries>, name: &str) -> Result<Topic> {
        let c_name = CString::new(name).map_err(|_| anyhow!("a topic's name {name:?} holds a zero"))?;
        // SAFETY: the client outlives the handle: `Client` drops its topics first.
        let topic = unsafe {
            c::rd_kafka_topic_new(producer.client().native_ptr(), c_name.as_ptr(), ptr::null_mut())
        };
        if topic.is_null() {
            bail!("{name:?} is no name for a topic");
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
pub(super) struct OutgoingHeaders(*mut c::rd_kafka_headers_t);

impl OutgoingHeaders {
    pub(super) fn new<'h>(headers: impl ExactSizeIterator<Item = Header<'h>>) -> OutgoingHeaders {
        if headers.len() == 0 {
            return OutgoingHeaders(ptr::null_mut());
        }
        // SAFETY: the list that comes back is ours.
        let list = unsafe { c::rd_kafka_headers_new(headers.len()) };
        for (name, value) in headers {
            let (value, value_bytes) = pointer(value);
            // SAFETY: the list is ours; name and value outlive the call, which copies them.
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
            // SAFETY: ours, for a record that takes them leaves null.
            unsafe { c::rd_kafka_headers_destroy(self.0) };
        }
    }
}

/// Null for what is absent; what is empty has an address.
fn pointer(bytes: Option<&[u8]>) -> (*mut c_void, usize) {
    bytes.map_or((ptr::null_mut(), 0), |bytes| (bytes.as_ptr().cast_mut().cast(), bytes.len()))
}

/// A consumed record's headers, in their order, into `headers`. A name ends at
/// its first zero, as librdkafka keeps it.
pub fn read_headers<'m>(record: &'m BorrowedMessage<'_>, headers: &mut Vec<Header<'m>>) {
    headers.clear();
    let mut list = ptr::null_mut();
    // SAFETY: the record is alive, and the list belongs to it.
    let code = unsafe { c::rd_kafka_message_headers(record.ptr(), &raw mut list) };
    if code != NO_ERROR {
        return; // There are none.
    }
    let (mut name, mut value, mut value_bytes) = (ptr::null(), ptr::null(), 0);
    for index in 0.. {
        // SAFETY: the list is alive; the call says where it ends.
        let code = unsafe {
            c::rd_kafka_header_get_all(list, index, &raw mut name, &raw mut value, &raw mut value_bytes)
        };
        if code != NO_ERROR {
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
