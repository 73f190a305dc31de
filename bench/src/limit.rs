//! The limit: what librdkafka alone needs to copy as many records of the same
//! size, exactly once.
//!
//! No parsing, no state, one thread, and the fewest calls: records come in
//! batches, delivery reports are not asked for, every record's headers are one
//! copied list, and nothing of a record is looked at. The settings are the
//! pipeline's own. It runs until it is killed.

use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rdkafka::bindings as c;
use rdkafka::bindings::rd_kafka_resp_err_t as code;
use rdkafka::bindings::rd_kafka_vtype_t as vtype;
use ticket_pipeline::clients;

/// Records that one call hands over at most.
const BATCH_MAX: usize = 1_000;

/// One call waits so long for a full batch: records are on their way while more come.
const BATCH_WAIT: Duration = Duration::from_millis(5);

#[derive(Debug, Args)]
pub(crate) struct Limit {
    #[arg(long)]
    brokers: String,
    /// The topic to copy.
    #[arg(long)]
    source: String,
    /// The consumer group; the topics to write are GROUP.forwarded, GROUP.changelog and GROUP.derived.
    #[arg(long)]
    group: String,
    #[arg(long, default_value_t = 100)]
    commit_interval_ms: u64,
    #[arg(long)]
    derived_per_event: f64,
    #[arg(long)]
    derived_bytes: usize,
    #[arg(long)]
    changelog_bytes: usize,
    /// Names and values of a record's six headers.
    #[arg(long)]
    header_bytes: usize,
}

struct Clients {
    consumer: *mut c::rd_kafka_t,
    queue: *mut c::rd_kafka_queue_t,
    producer: *mut c::rd_kafka_t,
    forwarded: *mut c::rd_kafka_topic_t,
    changelog: *mut c::rd_kafka_topic_t,
    derived: *mut c::rd_kafka_topic_t,
    headers: *mut c::rd_kafka_headers_t,
}

/// Copies until it is killed.
pub(crate) fn run(limit: &Limit) -> Result<()> {
    let clients = Clients::connect(limit)?;
    let interval = Duration::from_millis(limit.commit_interval_ms);
    let mut messages: Vec<*mut c::rd_kafka_message_t> = vec![ptr::null_mut(); BATCH_MAX];
    let mut positions: Vec<(i32, i64)> = Vec::new();
    let mut copier = Copier { derived_due: 0.0, scratch: Vec::new() };
    let mut open_since: Option<Instant> = None;
    loop {
        let left = open_since.map_or(interval, |since| interval.saturating_sub(since.elapsed()));
        // SAFETY: the queue and the array live, and the array is as long as is said.
        let count = unsafe {
            c::rd_kafka_consume_batch_queue(
                clients.queue,
                i32::try_from(left.min(BATCH_WAIT).as_millis())?,
                messages.as_mut_ptr(),
                messages.len(),
            )
        };
        let count = usize::try_from(count).context("consume")?;
        for message in messages.iter().take(count) {
            // SAFETY: the call filled in so many; each is ours until it is destroyed.
            let record = unsafe { &**message };
            if record.err == code::RD_KAFKA_RESP_ERR_NO_ERROR {
                if open_since.is_none() {
                    // SAFETY: the producer lives.
                    check(unsafe { c::rd_kafka_begin_transaction(clients.producer) }, "begin")?;
                    open_since = Some(Instant::now());
                }
                copier.copy(limit, &clients, record)?;
                match positions.iter_mut().find(|(partition, _)| *partition == record.partition) {
                    Some((_, position)) => *position = record.offset + 1,
                    None => positions.push((record.partition, record.offset + 1)),
                }
            }
            // SAFETY: ours, and not used again.
            unsafe { c::rd_kafka_message_destroy(*message) };
        }
        if open_since.is_some_and(|since| since.elapsed() >= interval) {
            clients.commit(limit, &positions)?;
            positions.clear();
            open_since = None;
        }
    }
}

struct Copier {
    derived_due: f64,
    scratch: Vec<u8>,
}

impl Copier {
    fn copy(&mut self, limit: &Limit, clients: &Clients, record: &c::rd_kafka_message_t) -> Result<()> {
        // SAFETY: payload and key belong to the record, which lives.
        let (value, key) = unsafe {
            (
                std::slice::from_raw_parts(record.payload.cast::<u8>(), record.len),
                std::slice::from_raw_parts(record.key.cast::<u8>(), record.key_len),
            )
        };
        // SAFETY: the record lives.
        let timestamp_ms = unsafe { c::rd_kafka_message_timestamp(record, ptr::null_mut()) };
        let place = (record.partition, timestamp_ms, key);
        clients.produce(clients.forwarded, place, value, true)?;
        self.derived_due += limit.derived_per_event;
        if self.derived_due >= 1.0 {
            self.derived_due -= 1.0;
            self.fill(value, limit.derived_bytes);
            clients.produce(clients.derived, place, &self.scratch, true)?;
        }
        self.fill(value, limit.changelog_bytes);
        clients.produce(clients.changelog, place, &self.scratch, false)
    }

    /// The value over and over, so that it compresses as a ticket beside its predecessor does.
    fn fill(&mut self, value: &[u8], bytes: usize) {
        self.scratch.clear();
        while self.scratch.len() < bytes && !value.is_empty() {
            let left = bytes - self.scratch.len();
            self.scratch.extend_from_slice(value.get(..left.min(value.len())).unwrap_or(value));
        }
    }
}

impl Clients {
    fn connect(limit: &Limit) -> Result<Clients> {
        let fetch_wait_ms = clients::fetch_wait_ms(limit.commit_interval_ms).to_string();
        let common = [("bootstrap.servers", limit.brokers.as_str()), ("client.id", "limit")];
        let consumer = [
            ("group.id", limit.group.as_str()),
            ("isolation.level", "read_committed"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "earliest"),
            ("session.timeout.ms", "45000"),
            ("queued.max.messages.kbytes", "65536"),
            ("fetch.queue.backoff.ms", "10"),
            ("fetch.min.bytes", "65536"),
            ("fetch.wait.max.ms", fetch_wait_ms.as_str()),
        ];
        let producer = [
            ("transactional.id", limit.group.as_str()),
            ("transaction.timeout.ms", "15000"),
            ("linger.ms", "10"),
            ("compression.type", "lz4"),
            ("retry.backoff.ms", "20"),
            ("queue.buffering.max.kbytes", "131072"),
            ("queue.buffering.max.messages", "1000000"),
            ("message.max.bytes", "1000000000"),
        ];
        use c::rd_kafka_type_t as kind;
        let consumer = client(kind::RD_KAFKA_CONSUMER, common.into_iter().chain(consumer))?;
        let producer = client(kind::RD_KAFKA_PRODUCER, common.into_iter().chain(producer))?;
        let topic = |name: &str| -> Result<_> {
            let name = CString::new(format!("{}.{name}", limit.group))?;
            // SAFETY: the producer lives as long as the process.
            let topic = unsafe { c::rd_kafka_topic_new(producer, name.as_ptr(), ptr::null_mut()) };
            ensure!(!topic.is_null(), "open topic {name:?}");
            Ok(topic)
        };
        let (forwarded, changelog, derived) = (topic("forwarded")?, topic("changelog")?, topic("derived")?);
        // SAFETY: both clients live as long as the process.
        let queue = unsafe {
            check(c::rd_kafka_init_transactions(producer, 30_000), "init transactions")?;
            c::rd_kafka_poll_set_consumer(consumer);
            c::rd_kafka_queue_get_consumer(consumer)
        };
        subscribe(consumer, &limit.source)?;
        let headers = headers(limit.header_bytes);
        Ok(Clients { consumer, queue, producer, forwarded, changelog, derived, headers })
    }

    fn produce(
        &self,
        topic: *mut c::rd_kafka_topic_t,
        (partition, timestamp_ms, key): (i32, i64, &[u8]),
        value: &[u8],
        with_headers: bool,
    ) -> Result<()> {
        let mut headers = ptr::null_mut();
        if with_headers {
            // SAFETY: the list lives; the copy is ours until a record takes it.
            headers = unsafe { c::rd_kafka_headers_copy(self.headers) };
        }
        loop {
            // SAFETY: every pointer outlives the call, which copies key and value; the
            // arguments are of the types that the call reads for their tags.
            let code = unsafe {
                c::rd_kafka_producev(
                    self.producer,
                    vtype::RD_KAFKA_VTYPE_RKT,
                    topic,
                    vtype::RD_KAFKA_VTYPE_PARTITION,
                    partition,
                    vtype::RD_KAFKA_VTYPE_MSGFLAGS,
                    c::RD_KAFKA_MSG_F_COPY,
                    vtype::RD_KAFKA_VTYPE_VALUE,
                    value.as_ptr().cast_mut().cast::<c_void>(),
                    value.len(),
                    vtype::RD_KAFKA_VTYPE_KEY,
                    key.as_ptr().cast_mut().cast::<c_void>(),
                    key.len(),
                    vtype::RD_KAFKA_VTYPE_TIMESTAMP,
                    timestamp_ms,
                    vtype::RD_KAFKA_VTYPE_HEADERS,
                    headers,
                    vtype::RD_KAFKA_VTYPE_END,
                )
            };
            match code {
                code::RD_KAFKA_RESP_ERR_NO_ERROR => return Ok(()),
                code::RD_KAFKA_RESP_ERR__QUEUE_FULL => std::thread::sleep(Duration::from_millis(1)),
                code => bail!("produce: {code:?}"),
            }
        }
    }

    fn commit(&self, limit: &Limit, positions: &[(i32, i64)]) -> Result<()> {
        let source = CString::new(limit.source.as_str())?;
        // SAFETY: both clients live; list and membership are ours, and destroyed once.
        unsafe {
            let code = c::rd_kafka_flush(self.producer, -1);
            ensure!(code == code::RD_KAFKA_RESP_ERR_NO_ERROR, "flush: {code:?}");
            let offsets = c::rd_kafka_topic_partition_list_new(i32::try_from(positions.len())?);
            for (partition, position) in positions {
                let place = c::rd_kafka_topic_partition_list_add(offsets, source.as_ptr(), *partition);
                (*place).offset = *position;
            }
            let member = c::rd_kafka_consumer_group_metadata(self.consumer);
            let sent = c::rd_kafka_send_offsets_to_transaction(self.producer, offsets, member, -1);
            c::rd_kafka_consumer_group_metadata_destroy(member);
            c::rd_kafka_topic_partition_list_destroy(offsets);
            check(sent, "send offsets")?;
            check(c::rd_kafka_commit_transaction(self.producer, -1), "commit")
        }
    }
}

fn client<'s>(
    kind: c::rd_kafka_type_t,
    settings: impl Iterator<Item = (&'s str, &'s str)>,
) -> Result<*mut c::rd_kafka_t> {
    let mut error: [c_char; 512] = [0; 512];
    // SAFETY: names and values are copied; the error's length is as is said; a
    // client that is made owns its configuration.
    unsafe {
        let config = c::rd_kafka_conf_new();
        for (name, value) in settings {
            let (c_name, c_value) = (CString::new(name)?, CString::new(value)?);
            let outcome = c::rd_kafka_conf_set(
                config,
                c_name.as_ptr(),
                c_value.as_ptr(),
                error.as_mut_ptr(),
                error.len(),
            );
            ensure!(outcome == c::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK, "set {name}: {}", text(&error));
        }
        let client = c::rd_kafka_new(kind, config, error.as_mut_ptr(), error.len());
        ensure!(!client.is_null(), "make a client: {}", text(&error));
        Ok(client)
    }
}

fn subscribe(consumer: *mut c::rd_kafka_t, topic: &str) -> Result<()> {
    let topic = CString::new(topic)?;
    // SAFETY: the consumer lives; the list is ours, and destroyed once.
    unsafe {
        let topics = c::rd_kafka_topic_partition_list_new(1);
        c::rd_kafka_topic_partition_list_add(topics, topic.as_ptr(), -1);
        let code = c::rd_kafka_subscribe(consumer, topics);
        c::rd_kafka_topic_partition_list_destroy(topics);
        ensure!(code == code::RD_KAFKA_RESP_ERR_NO_ERROR, "subscribe: {code:?}");
    }
    Ok(())
}

/// The contract's six, with values that make them as long as is asked for.
fn headers(bytes: usize) -> *mut c::rd_kafka_headers_t {
    const NAMES: [&str; 6] = [
        "event_name",
        "event_id",
        "event_timestamp",
        "context_user_id",
        "context_user_type",
        "context_organization_id",
    ];
    let values = bytes.saturating_sub(NAMES.iter().map(|name| name.len()).sum());
    // SAFETY: the list is ours for as long as the process lives; names and values are copied.
    unsafe {
        let list = c::rd_kafka_headers_new(NAMES.len());
        for (index, name) in NAMES.iter().enumerate() {
            let value = "0123456789abcdef".repeat(16);
            let length = (values * (index + 1) / NAMES.len() - values * index / NAMES.len()).min(value.len());
            c::rd_kafka_header_add(
                list,
                name.as_ptr().cast(),
                name.len().cast_signed(),
                value.as_ptr().cast(),
                length.cast_signed(),
            );
        }
        list
    }
}

/// The bare copy mends nothing: any error ends it.
fn check(error: *mut c::rd_kafka_error_t, what: &str) -> Result<()> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: an error that is not null is ours, and lives as long as this process, which it ends.
    let why = unsafe { CStr::from_ptr(c::rd_kafka_error_string(error)) };
    bail!("{what}: {}", why.to_string_lossy())
}

fn text(error: &[c_char]) -> String {
    // SAFETY: librdkafka ends its text with a zero within the buffer, which began as zeros.
    unsafe { CStr::from_ptr(error.as_ptr()) }.to_string_lossy().into_owned()
}
