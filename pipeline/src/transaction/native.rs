//! librdkafka's C API, where rust-rdkafka is in the way: its `flush` waits in
//! steps of 100 ms, it looks a topic up by its name for each record, it reports
//! each delivery through a queue, and its headers must be UTF-8. All `unsafe` of
//! the program is here; what it gives out is safe, and it decides nothing.

use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, bail};
use rdkafka::bindings as c;
use rdkafka::bindings::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR as NO_ERROR;
use rdkafka::bindings::rd_kafka_vtype_t as vtype;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaType;
use rdkafka::{ClientConfig, ClientContext, TopicPartitionList, client};

use super::deliveries::{Deliveries, Report};
use crate::clients::{self, Logs, Sight};
use crate::record::Header;

/// How long a client's own thread waits for an event, and so may take to stop.
const EVENT_WAIT_MS: i32 = 100;

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
/// librdkafka wants a client's topics and queues gone before the client, and it
/// speaks to those who listen as long as the client lives.
pub(super) struct Client {
    topics: Vec<Topic>,
    _events: Events,
    native: Arc<client::Client<Logs>>,
    heard: Arc<Heard>,
}

/// What librdkafka's own threads tell in passing.
struct Heard {
    deliveries: Deliveries,
    coordinator_losses: AtomicU64,
}

impl Client {
    /// The topics at these indices are compressed as much as Kafka can, whatever the others are.
    pub(super) fn connect(
        config: &ClientConfig,
        deliveries: Deliveries,
        topics: &[&str],
        well_compressed: &[usize],
    ) -> Result<Client> {
        let heard = Arc::new(Heard { deliveries, coordinator_losses: AtomicU64::new(0) });
        let native_config = config.create_native_config().context("configure the producer")?;
        let events = c::RD_KAFKA_EVENT_DR
            | c::RD_KAFKA_EVENT_ERROR
            | c::RD_KAFKA_EVENT_STATS
            | c::RD_KAFKA_EVENT_OAUTHBEARER_TOKEN_REFRESH;
        // SAFETY: the configuration lives; what is heard outlives the client that is made of it.
        unsafe {
            c::rd_kafka_conf_set_events(native_config.ptr(), events);
            // An interceptor can only be asked for before there is a client.
            let code = c::rd_kafka_conf_interceptor_add_on_new(
                native_config.ptr(),
                INTERCEPTOR.as_ptr(),
                Some(on_new),
                Arc::as_ptr(&heard).cast_mut().cast(),
            );
            if code != NO_ERROR {
                bail!("listen to the producer: {}", RDKafkaErrorCode::from(code));
            }
        }
        let native = client::Client::new(config, native_config, RDKafkaType::RD_KAFKA_PRODUCER, Logs)
            .context("create the producer")?;
        let native = Arc::new(native);
        let topics = topics.iter().enumerate();
        let topics = topics
            .map(|(index, name)| Topic::new(&native, name, well_compressed.contains(&index)))
            .collect::<Result<_>>()?;
        let events = Events::listen(&native, Sight::new(config)).context("start the producer's thread")?;
        Ok(Client { topics, _events: events, native, heard })
    }

    pub(super) fn deliveries(&self) -> &Deliveries {
        &self.heard.deliveries
    }

    /// How often the connection to the transaction coordinator was lost so far.
    pub(super) fn coordinator_losses(&self) -> u64 {
        self.heard.coordinator_losses.load(Ordering::Acquire)
    }

    /// Why the client cannot be used any more, if so.
    pub(super) fn fatal_error(&self) -> Option<String> {
        self.native.fatal_error().map(|(_, why)| why)
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

    /// Waits until every record has arrived or failed; `false`: not yet.
    pub(super) fn flush(&self, timeout_ms: i32) -> bool {
        // SAFETY: the client outlives the call.
        unsafe { c::rd_kafka_flush(self.ptr(), timeout_ms) == NO_ERROR }
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

    /// Why the open transaction can only be aborted, if so: librdkafka says it to
    /// whoever asks for what cannot be now, and forgets it with the abort.
    pub(super) fn abort_cause(&self) -> Option<Failure> {
        self.begin_transaction().err().filter(|failure| failure.requires_abort)
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
        self.native.native_ptr()
    }
}

const INTERCEPTOR: &CStr = c"heard";
/// librdkafka keeps a connection to the coordinator apart from those to brokers, under this name.
const COORDINATOR: &CStr = c"TxnCoordinator";
const DOWN: &CStr = c"DOWN";

/// librdkafka calls it while it makes the client.
unsafe extern "C" fn on_new(
    native: *mut c::rd_kafka_t,
    _config: *const c::rd_kafka_conf_t,
    heard: *mut c_void,
    _error: *mut c_char,
    _error_bytes: usize,
) -> c::rd_kafka_resp_err_t {
    let name = INTERCEPTOR.as_ptr();
    // SAFETY: the client is being made; what it is given for its calls outlives it.
    unsafe {
        let code =
            c::rd_kafka_interceptor_add_on_acknowledgement(native, name, Some(on_acknowledgement), heard);
        if code != NO_ERROR {
            return code;
        }
        c::rd_kafka_interceptor_add_on_broker_state_change(native, name, Some(on_state_change), heard)
    }
}

/// librdkafka calls it from its own threads when a connection's state has changed.
unsafe extern "C" fn on_state_change(
    _native: *mut c::rd_kafka_t,
    _broker: i32,
    _protocol: *const c_char,
    name: *const c_char,
    _port: i32,
    state: *const c_char,
    heard: *mut c_void,
) -> c::rd_kafka_resp_err_t {
    // SAFETY: both are strings that live during the call, and what is heard outlives the client.
    let (name, state, heard) =
        unsafe { (CStr::from_ptr(name), CStr::from_ptr(state), &*heard.cast::<Heard>()) };
    if name == COORDINATOR && state == DOWN {
        heard.coordinator_losses.fetch_add(1, Ordering::AcqRel);
    }
    NO_ERROR
}

/// librdkafka calls it from its own threads, once for each record, when that has
/// arrived or failed for good, and before it is counted as gone: a flush that has
/// ended has heard of all.
unsafe extern "C" fn on_acknowledgement(
    _native: *mut c::rd_kafka_t,
    record: *mut c::rd_kafka_message_t,
    heard: *mut c_void,
) -> c::rd_kafka_resp_err_t {
    // SAFETY: the record lives during the call, and what is heard longer than
    // the client (see [`Client`]); it is only ever shared.
    let (record, deliveries) = unsafe { (&*record, &(*heard.cast::<Heard>()).deliveries) };
    // A record may be acknowledged without an offset (librdkafka's
    // `rd_kafka_msgbatch_handle_Produce_result`): where it lies is then not known.
    if record.err == NO_ERROR && record.offset >= 0 {
        deliveries.arrived(Report::of_opaque(record._private as usize), record.offset);
    } else {
        let code =
            if record.err == NO_ERROR { RDKafkaErrorCode::OffsetNotAvailable } else { record.err.into() };
        // SAFETY: a record's topic lives as long as the record, and its name with it.
        let topic = unsafe { CStr::from_ptr(c::rd_kafka_topic_name(record.rkt)) };
        let bytes = record.len + record.key_len;
        let place = format!("{} [{}], a record of {bytes} bytes", topic.to_string_lossy(), record.partition);
        deliveries.failed(code, &place);
    }
    NO_ERROR
}

/// A thread that hands a client's log and its errors on, and keeps it in sight of its cluster:
/// the worker may be waiting for it.
struct Events {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Events {
    fn listen(native: &Arc<client::Client<Logs>>, mut sight: Sight) -> std::io::Result<Events> {
        let stop = Arc::new(AtomicBool::new(false));
        let (of_thread, native) = (Arc::clone(&stop), Arc::clone(native));
        let thread = std::thread::Builder::new().name("producer events".into()).spawn(move || {
            // SAFETY: the client lives as long as this thread; the queue is ours until it is destroyed.
            let queue = unsafe { c::rd_kafka_queue_get_main(native.native_ptr()) };
            while !of_thread.load(Ordering::Relaxed) {
                sight.keep(&native);
                // SAFETY: the queue is alive; an event is ours until it is destroyed.
                unsafe {
                    let event = c::rd_kafka_queue_poll(queue, EVENT_WAIT_MS);
                    hand_on(event);
                    c::rd_kafka_event_destroy(event);
                }
            }
            // SAFETY: ours, and not used again.
            unsafe { c::rd_kafka_queue_destroy(queue) };
        })?;
        Ok(Events { stop, thread: Some(thread) })
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::warn!("the producer's thread has panicked");
        }
    }
}

/// Hands an event on; of records that failed the deliveries have heard already.
///
/// # Safety
/// The event is alive, or null.
unsafe fn hand_on(event: *mut c::rd_kafka_event_t) {
    // SAFETY: the event is alive, or null, which is an event of no type; what it
    // says lives as long as it does.
    unsafe {
        match c::rd_kafka_event_type(event) {
            c::RD_KAFKA_EVENT_ERROR => {
                let error = KafkaError::Global(c::rd_kafka_event_error(event).into());
                let why = CStr::from_ptr(c::rd_kafka_event_error_string(event)).to_string_lossy();
                clients::log_error(&error, why.trim());
            }
            c::RD_KAFKA_EVENT_LOG => {
                let (mut facility, mut text, mut level) = (ptr::null(), ptr::null(), 0);
                if c::rd_kafka_event_log(event, &raw mut facility, &raw mut text, &raw mut level) == 0 {
                    let (facility, text) = (CStr::from_ptr(facility), CStr::from_ptr(text));
                    clients::log(
                        log_level(level),
                        &facility.to_string_lossy(),
                        text.to_string_lossy().trim(),
                    );
                }
            }
            _ => {}
        }
    }
}

/// Syslog's levels.
fn log_level(level: i32) -> RDKafkaLogLevel {
    match level {
        ..=3 => RDKafkaLogLevel::Error,
        4 => RDKafkaLogLevel::Warning,
        5 => RDKafkaLogLevel::Notice,
        6 => RDKafkaLogLevel::Info,
        _ => RDKafkaLogLevel::Debug,
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

/// Whether a consumer is a member of its group.
pub fn has_joined<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> bool {
    Membership::of(consumer).has_joined()
}

/// Whether a client knows of any broker, connected or not.
pub fn knows_a_broker<C: ClientContext>(client: &client::Client<C>) -> bool {
    let native = client.native_ptr();
    let mut count = 0;
    // SAFETY: the client outlives the call; what is returned is ours to free, and is not used.
    unsafe {
        let ids = c::rd_kafka_brokers_learned_ids(native, &raw mut count);
        c::rd_kafka_mem_free(native, ids.cast());
    }
    count > 0
}

/// Tells a client of brokers, as `bootstrap.servers` does; of those that it knows it stays as it is.
pub fn add_brokers<C: ClientContext>(client: &client::Client<C>, brokers: &str) {
    // A name with a zero byte in it is no broker's.
    let Ok(brokers) = CString::new(brokers) else { return };
    // SAFETY: the client outlives the call, and the string is copied.
    unsafe { c::rd_kafka_brokers_add(client.native_ptr(), brokers.as_ptr()) };
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
    fn new(native: &client::Client<Logs>, name: &str, is_well_compressed: bool) -> Result<Topic> {
        let c_name = CString::new(name).map_err(|_| anyhow!("a topic's name {name:?} holds a zero"))?;
        let mut config = ptr::null_mut();
        if is_well_compressed {
            // SAFETY: the client is alive; the copy is ours until a topic is made of it. A null text takes no error.
            let set = unsafe {
                config = c::rd_kafka_default_topic_conf_dup(native.native_ptr());
                let (name, codec) = (c"compression.codec".as_ptr(), c"zstd".as_ptr());
                c::rd_kafka_topic_conf_set(config, name, codec, ptr::null_mut(), 0)
            };
            if set != c::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK {
                bail!("this librdkafka was built without zstd");
            }
        }
        // SAFETY: the client outlives the handle: `Client` drops its topics first. It takes the configuration.
        let topic = unsafe { c::rd_kafka_topic_new(native.native_ptr(), c_name.as_ptr(), config) };
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
