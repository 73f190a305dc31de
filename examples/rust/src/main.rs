//! A subscriber of three derived topics that does the work of each event once,
//! also where it is killed in the middle, and where events come again.
//!
//! ```text
//! ticket-subscriber         reads on from where its group has come to
//! ticket-subscriber show    what it has counted: ticket, event type, changes, the last one
//! ticket-subscriber reset   forgets all of it and begins at the beginning again
//! ```
//!
//! `docs/subscribing.md` says why each setting is as it is. Its work is to count
//! changes: work that shows when it is done twice.

use std::env;
use std::io::{Write, stdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use rocksdb::{DB, Direction, IteratorMode, WriteBatch};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

const TOPICS: [&str; 3] = ["ticket.status.changed", "ticket.priority.changed", "ticket.assigned"];
/// For so long an event is known again: as long as the pipeline itself knows one.
const WINDOW_S: u64 = 48 * 60 * 60;
const FORGET_INTERVAL: Duration = Duration::from_secs(60 * 60);
const BATCH_RECORDS_MAX: usize = 500;
const BATCH_TIME_MAX: Duration = Duration::from_millis(200);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

fn main() -> Result<()> {
    let folder = setting("STATE_DIR", "subscriber-state");
    let db = DB::open_default(&folder).with_context(|| format!("open {folder}"))?;
    match env::args().nth(1).as_deref() {
        None => follow(&db),
        Some("show") => show(&db),
        Some("reset") => reset(&db),
        Some(other) => bail!("{other:?} is no command; there are show and reset"),
    }
}

fn setting(name: &str, default: &str) -> String {
    env::var(name).unwrap_or_else(|_| default.to_owned())
}

fn consumer() -> Result<BaseConsumer> {
    ClientConfig::new()
        .set("bootstrap.servers", setting("KAFKA_BROKERS", "localhost:9092"))
        .set("group.id", setting("GROUP", "subscriber-rust"))
        // librdkafka's default; said because the promise rests on it.
        .set("isolation.level", "read_committed")
        // The default commits by a timer, done or not.
        .set("enable.auto.commit", "false")
        // The default, latest, loses what a new group finds there.
        .set("auto.offset.reset", "earliest")
        // After a crash its partitions are free again so much later; the default is 45 s.
        .set("session.timeout.ms", "10000")
        .create()
        .context("make a consumer")
}

fn follow(db: &DB) -> Result<()> {
    let stop = stop_on_signal()?;
    let consumer = consumer()?;
    consumer.subscribe(&TOPICS).context("subscribe")?;
    let (mut done, mut seen_before) = (0_u64, 0_u64);
    // Not at the start: after a crash, what was not committed comes again first, however long ago that was.
    let mut forget_at = Instant::now() + FORGET_INTERVAL;
    while !stop.load(Ordering::Relaxed) {
        let batch_end = Instant::now() + BATCH_TIME_MAX;
        let mut records = 0;
        while records < BATCH_RECORDS_MAX {
            let left = batch_end.saturating_duration_since(Instant::now());
            let Some(record) = consumer.poll(left) else { break };
            records += 1;
            match handle(db, &record.context("read the topics")?)? {
                Outcome::Done => done += 1,
                Outcome::SeenBefore => seen_before += 1,
                Outcome::NotOurs => {}
            }
        }
        if records > 0 {
            // What Kafka is told must be on the disk first.
            db.flush_wal(true)?;
            if let Err(error) = consumer.commit_consumer_state(CommitMode::Sync) {
                // The group has moved on. Whatever comes again is known.
                eprintln!("commit: {error}");
            }
        }
        if Instant::now() >= forget_at {
            forget(db)?;
            forget_at = Instant::now() + FORGET_INTERVAL;
        }
    }
    eprintln!("{done} events done, {seen_before} seen before");
    Ok(())
}

fn stop_on_signal() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut terminate = runtime.block_on(async { signal(SignalKind::terminate()) })?;
    std::thread::spawn(move || {
        runtime.block_on(terminate.recv());
        told.store(true, Ordering::Relaxed);
    });
    Ok(stop)
}

enum Outcome {
    Done,
    SeenBefore,
    NotOurs,
}

/// The work and the mark that it is done are written together: a crash leaves both or neither.
fn handle(db: &DB, record: &BorrowedMessage<'_>) -> Result<Outcome> {
    // Headers decide without the value being parsed.
    if header(record, "context_user_type") == Some("BOT") {
        return Ok(Outcome::NotOurs);
    }
    let id = header(record, "event_id").context("a record without event_id")?;
    let mark = format!("done/{id}");
    if db.get(&mark)?.is_some() {
        return Ok(Outcome::SeenBefore);
    }
    let event_type = header(record, "event_name").context("a record without event_name")?;
    let uid = record.key_view::<str>().context("a record without a key")??;
    let event: Value = serde_json::from_slice(record.payload().unwrap_or_default())
        .with_context(|| format!("read event {id}"))?;
    let change = describe(event.pointer("/payload/change"));
    let fetched = match header(record, "truncated_fields") {
        None => None,
        Some(fields) => Some(fetch_ticket(uid, fields)?),
    };
    let ticket = fetched.as_ref().or_else(|| event.pointer("/payload/ticket")).unwrap_or(&Value::Null);

    let counter = format!("changes/{uid}\t{event_type}");
    let before = db.get(&counter)?.unwrap_or_default();
    let before = String::from_utf8(before)?;
    let count = before.split('\t').next().unwrap_or_default().parse::<u64>().unwrap_or(0) + 1;
    let mut together = WriteBatch::default();
    together.put(&counter, format!("{count}\t{change}"));
    together.put(&mark, now_s()?.to_be_bytes());
    db.write(together)?;

    let time = header(record, "event_timestamp").unwrap_or_default();
    let title = ticket.get("title").and_then(Value::as_str).unwrap_or_default();
    let note = if fetched.is_some() { " (fetched whole)" } else { "" };
    writeln!(stdout(), "{time}  {uid}  {event_type}  {change}  {title}{note}")?;
    Ok(Outcome::Done)
}

fn header<'a>(record: &'a BorrowedMessage<'_>, name: &str) -> Option<&'a str> {
    let found = record.headers()?.iter().find(|header| header.key == name)?;
    std::str::from_utf8(found.value?).ok()
}

fn describe(change: Option<&Value>) -> String {
    let Some(change) = change else { return "announced by the platform itself".to_owned() };
    let side = |name: &str| {
        let side = change.get(name).unwrap_or(&Value::Null);
        side.get("name").or_else(|| side.get("id")).and_then(Value::as_str).unwrap_or("nothing").to_owned()
    };
    format!("{} -> {}", side("from"), side("to"))
}

/// The pipeline cuts texts that are too large for a record. The platform has them whole.
fn fetch_ticket(uid: &str, fields: &str) -> Result<Value> {
    let api = env::var("TICKET_API").with_context(|| {
        format!("ticket {uid} is truncated ({fields}): set TICKET_API to where it can be fetched")
    })?;
    let url = format!("{api}/{uid}");
    let answer = reqwest::blocking::get(&url).and_then(|answer| answer.error_for_status()?.text());
    serde_json::from_str(&answer.with_context(|| format!("fetch {url}"))?)
        .with_context(|| format!("read what {url} answers"))
}

fn now_s() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

/// Everything below a prefix, in order, without it.
fn below(db: &DB, prefix: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let mut entries = Vec::new();
    for entry in db.iterator(IteratorMode::From(prefix.as_bytes(), Direction::Forward)) {
        let (key, value) = entry?;
        let Some(name) = key.strip_prefix(prefix.as_bytes()) else { break };
        entries.push((String::from_utf8(name.to_vec())?, value.into_vec()));
    }
    Ok(entries)
}

fn forget(db: &DB) -> Result<()> {
    let oldest_s = now_s()?.saturating_sub(WINDOW_S);
    for (id, at_s) in below(db, "done/")? {
        if at_s.as_slice() < oldest_s.to_be_bytes().as_slice() {
            db.delete(format!("done/{id}"))?;
        }
    }
    Ok(())
}

fn show(db: &DB) -> Result<()> {
    let mut out = stdout().lock();
    for (counter, changes) in below(db, "changes/")? {
        writeln!(out, "{counter}\t{}", String::from_utf8(changes)?)?;
    }
    Ok(())
}

/// Offsets first: a crash before the rest leaves marks by which nothing is done twice.
/// The other way round it would leave nothing done and nothing to come.
fn reset(db: &DB) -> Result<()> {
    let consumer = consumer()?;
    let mut beginning = TopicPartitionList::new();
    for name in TOPICS {
        let metadata = consumer.fetch_metadata(Some(name), ANSWER_TIMEOUT)?;
        let topic = metadata.topics().first().with_context(|| format!("topic {name} does not exist"))?;
        for partition in topic.partitions() {
            let (low, _) = consumer.fetch_watermarks(name, partition.id(), ANSWER_TIMEOUT)?;
            beginning.add_partition_offset(name, partition.id(), Offset::Offset(low))?;
        }
    }
    // Kafka refuses this while the group has members, so nobody is working meanwhile.
    consumer.commit(&beginning, CommitMode::Sync).map_err(|error| {
        anyhow!("reset the group's offsets, which asks for a group without members: {error}")
    })?;
    let mut together = WriteBatch::default();
    for (key, _) in below(db, "")? {
        together.delete(key);
    }
    db.write(together)?;
    db.flush_wal(true)?;
    Ok(())
}
