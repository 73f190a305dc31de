//! `feed`: raw lines into the raw topic, at exactly their partitions, offsets
//! and timestamps.
//!
//! It does not look into a record's value.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use rdkafka::ClientContext;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use ticket_pipeline::lines::RawLine;
use ticket_pipeline::topology::{Kafka, Topology};
use ticket_pipeline::{clients, topics};

/// The longest raw line; a Kafka record in JSON and base64 stays well below.
const LINE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// The broker is given up when it acknowledges nothing for so long.
const STILL_MAX: Duration = Duration::from_secs(60);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);
/// zstd's own maximum: a file may have been compressed with `--long`.
const WINDOW_LOG_MAX: u32 = if cfg!(target_pointer_width = "64") { 31 } else { 30 };

/// The arguments of `feed`.
#[derive(Debug, Args)]
#[command(after_help = "A raw line is
  {\"partition\": 0, \"offset\": 0, \"timestamp\": 1456708980000, \"key\": \"T-1\", \"value\": \"{…}\",
   \"headers\": [[\"name\", \"value\"], …]}
with bytes that are not UTF-8 in base64 under key_b64 and value_b64. The lines of a partition are
in the order of their offsets, from 0, so the topic must be empty.

Exit code: 0 where every record is in the topic at its offset, else 1.

Examples:
  ticket-pipeline feed tests/data/histories.raw.ndjson.zst
  ticket-pipeline feed --rate 50 tests/data/histories.raw.ndjson.zst
  zcat day.ndjson.gz | ticket-pipeline feed -")]
pub(crate) struct Arguments {
    /// Files of raw lines, one after the other: `.ndjson`, `.zst`, or `-` for stdin.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<String>,
    /// So many records a second; without it, as fast as the broker takes them.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
}

/// Runs `feed`.
pub(crate) fn run(topology: &Path, arguments: &Arguments) -> Result<ExitCode> {
    let topology = Topology::load(topology)?;
    let partitions = empty_partitions(&topology)?;
    let mut feed = Feed::connect(&topology, partitions, arguments.rate)?;
    let fed = arguments.files.iter().try_for_each(|file| feed.file(file)).and_then(|()| feed.settle());
    if let Err(error) = fed {
        ensure!(
            feed.sent == 0,
            "{error:#}. Topic {} now holds a part of the lines: delete it and run `ticket-pipeline topics apply` \
             before the next try",
            feed.topic
        );
        return Err(error);
    }
    println!("{}", feed.summary());
    Ok(ExitCode::SUCCESS)
}

/// How many partitions the raw topic has; it must hold nothing, nor ever have.
fn empty_partitions(topology: &Topology) -> Result<i32> {
    let topic = &topology.source.topic;
    let asker: BaseConsumer = clients::reader(&topology.kafka)?;
    let metadata = asker
        .fetch_metadata(None, ANSWER_TIMEOUT)
        .map_err(|error| topics::no_answer(&topology.kafka, &error))?;
    let partitions = metadata.topics().iter().find(|found| found.name() == topic);
    let partitions = partitions.map_or(0, |found| found.partitions().len());
    ensure!(partitions > 0, "topic {topic} does not exist; run `ticket-pipeline topics apply` first");
    let partitions = i32::try_from(partitions).context("count partitions")?;
    for partition in 0..partitions {
        let (_, end) = topics::bounds(&asker, topic, partition)?;
        ensure!(
            end == 0,
            "topic {topic} is not empty: partition {partition} already reaches to offset {end}. Lines are fed \
             at their own offsets, from 0: delete the topic and run `ticket-pipeline topics apply`, or name \
             another topic in the topology"
        );
    }
    Ok(partitions)
}

struct Feed {
    topic: String,
    kafka: Kafka,
    producer: BaseProducer<Deliveries>,
    /// The offset that each partition's next line must have.
    positions: Vec<i64>,
    sent: u64,
    rate: Option<u32>,
    started: Instant,
    shown: Option<Instant>,
}

/// What the broker acknowledged, against what the lines say.
#[derive(Default)]
struct Deliveries {
    seen: Mutex<Seen>,
}

#[derive(Default, Clone)]
struct Seen {
    delivered: u64,
    trouble: Option<String>,
    /// librdkafka's last word on why brokers do not answer.
    reason: Option<String>,
}

impl Deliveries {
    fn update(&self, update: impl FnOnce(&mut Seen)) {
        // The counts stay right whatever thread panicked while holding them.
        update(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ClientContext for Deliveries {
    fn error(&self, _error: KafkaError, reason: &str) {
        self.update(|seen| seen.reason = Some(reason.to_owned()));
    }
}

impl ProducerContext for Deliveries {
    /// The offset that the line says.
    type DeliveryOpaque = Box<i64>;

    fn delivery(&self, result: &DeliveryResult<'_>, offset: Box<i64>) {
        let trouble = match result {
            Ok(record) if record.offset() == *offset => None,
            Ok(record) => Some(format!(
                "the line of partition {} offset {offset} came to lie at offset {}: somebody else writes to \
                 the topic",
                record.partition(),
                record.offset()
            )),
            Err((error, record)) => {
                Some(format!("deliver the line of partition {} offset {offset}: {error}", record.partition()))
            }
        };
        self.update(|seen| {
            seen.delivered += 1;
            // The first trouble is the cause of those that follow.
            if seen.trouble.is_none() {
                seen.trouble = trouble;
            }
        });
    }
}

impl Feed {
    fn connect(topology: &Topology, partitions: i32, rate: Option<u32>) -> Result<Feed> {
        let config = clients::idempotent_producer(&topology.kafka);
        let producer = BaseProducer::from_config_and_context(&config, Deliveries::default())
            .context("make a producer")?;
        Ok(Feed {
            topic: topology.source.topic.clone(),
            kafka: topology.kafka.clone(),
            producer,
            positions: (0..partitions).map(|_| 0).collect(),
            sent: 0,
            rate,
            started: Instant::now(),
            shown: None,
        })
    }

    fn file(&mut self, file: &str) -> Result<()> {
        let mut lines = open(file).with_context(|| format!("open {file}"))?;
        let mut line = Vec::new();
        for number in 1_u64.. {
            let place = Place { file, number };
            if !read_line(&mut lines, &mut line).with_context(|| place.to_string())? {
                break;
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            let raw = raw_line(&line, &mut self.positions).with_context(|| place.to_string())?;
            self.pace()?;
            self.send(&raw).with_context(|| place.to_string())?;
            self.show();
        }
        Ok(())
    }

    /// Waits until the next record is due.
    fn pace(&mut self) -> Result<()> {
        let due = match self.rate {
            Some(rate) => self.started + Duration::from_secs_f64(self.sent as f64 / f64::from(rate)),
            None => self.started,
        };
        loop {
            let left = due.saturating_duration_since(Instant::now());
            self.producer.poll(left.min(PROGRESS_INTERVAL));
            self.troubles()?;
            if left.is_zero() {
                return Ok(());
            }
            self.show();
        }
    }

    fn send(&mut self, raw: &RawLine) -> Result<()> {
        let headers = headers(raw)?;
        let mut record =
            BaseRecord::<[u8], [u8], Box<i64>>::with_opaque_to(&self.topic, Box::new(raw.offset))
                .partition(raw.partition)
                .timestamp(raw.timestamp_ms);
        record.key = raw.key.as_deref();
        record.payload = raw.value.as_deref();
        record.headers = headers;
        let mut still = self.stillness();
        loop {
            match self.producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), refused)) => {
                    record = refused;
                    self.producer.poll(Duration::from_millis(20));
                    self.troubles()?;
                    self.watch_stillness(&mut still)?;
                }
                Err((error, _)) => return Err(error).context("hand the record to the producer"),
            }
        }
        self.sent += 1;
        Ok(())
    }

    /// Waits until the broker has acknowledged all.
    fn settle(&mut self) -> Result<()> {
        let mut still = self.stillness();
        while self.producer.context().seen().delivered < self.sent {
            self.producer.poll(Duration::from_millis(20));
            self.troubles()?;
            self.watch_stillness(&mut still)?;
            self.show();
        }
        self.troubles()?;
        if self.shown.is_some() {
            eprint!("\r\x1b[K");
        }
        Ok(())
    }

    fn troubles(&self) -> Result<()> {
        match self.producer.context().seen().trouble {
            None => Ok(()),
            Some(trouble) => Err(anyhow!(trouble)),
        }
    }

    fn stillness(&self) -> (u64, Instant) {
        (self.producer.context().seen().delivered, Instant::now())
    }

    fn watch_stillness(&self, still: &mut (u64, Instant)) -> Result<()> {
        let seen = self.producer.context().seen();
        if seen.delivered != still.0 {
            *still = (seen.delivered, Instant::now());
        }
        if still.1.elapsed() > STILL_MAX {
            bail!(
                "{} has acknowledged nothing for {} s ({}); {} of {} records are in {}. Is Kafka up \
                 (scripts/kafka status)?",
                self.kafka.brokers,
                STILL_MAX.as_secs(),
                seen.reason.as_deref().unwrap_or("no reason known"),
                seen.delivered,
                self.sent,
                self.topic
            );
        }
        Ok(())
    }

    fn show(&mut self) {
        let due = self.shown.is_none_or(|shown| shown.elapsed() >= PROGRESS_INTERVAL);
        if due && io::stderr().is_terminal() {
            self.shown = Some(Instant::now());
            eprint!("\r\x1b[K{} records to {}", self.sent, self.topic);
        }
    }

    fn summary(&self) -> String {
        let partitions: Vec<String> = self
            .positions
            .iter()
            .enumerate()
            .map(|(partition, position)| format!("{partition}: {position}"))
            .collect();
        format!(
            "fed {} records to {} in {:.1} s (by partition: {})",
            self.sent,
            self.topic,
            self.started.elapsed().as_secs_f64(),
            partitions.join(", ")
        )
    }
}

/// A line of a file, for a person to find.
struct Place<'a> {
    file: &'a str,
    number: u64,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} line {}", self.file, self.number)
    }
}

fn open(file: &str) -> Result<Box<dyn BufRead>> {
    if file == "-" {
        return Ok(Box::new(io::stdin().lock()));
    }
    let opened = File::open(file)?;
    if Path::new(file).extension().is_none_or(|extension| extension != "zst") {
        return Ok(Box::new(BufReader::new(opened)));
    }
    let mut decoder = zstd::Decoder::new(opened)?;
    decoder.window_log_max(WINDOW_LOG_MAX)?;
    Ok(Box::new(BufReader::new(decoder)))
}

/// Reads the next line into `line`; false at the end.
fn read_line(lines: &mut impl BufRead, line: &mut Vec<u8>) -> Result<bool> {
    line.clear();
    let read = lines.take(LINE_BYTES_MAX).read_until(b'\n', line).context("read the next line")?;
    ensure!(read as u64 != LINE_BYTES_MAX, "the line is longer than {LINE_BYTES_MAX} bytes");
    Ok(read > 0)
}

/// The raw line, if it is the next of its partition.
fn raw_line(line: &[u8], positions: &mut [i64]) -> Result<RawLine> {
    let raw = RawLine::parse(std::str::from_utf8(line).context("read the line as UTF-8")?)?;
    let partitions = positions.len();
    let position = usize::try_from(raw.partition).ok().and_then(|partition| positions.get_mut(partition));
    let Some(position) = position else {
        bail!(
            "partition {} is out of range: the topic has {partitions}, from 0 to {}",
            raw.partition,
            partitions.saturating_sub(1)
        );
    };
    ensure!(
        raw.offset == *position,
        "offset {} of partition {} is out of order: the next must be {position}, for lines go in one by one from 0",
        raw.offset,
        raw.partition
    );
    // To librdkafka a timestamp of 0 means now, and Kafka refuses those below.
    ensure!(raw.timestamp_ms > 0, "timestamp {} must be greater than 0", raw.timestamp_ms);
    *position += 1;
    Ok(raw)
}

fn headers(raw: &RawLine) -> Result<Option<OwnedHeaders>> {
    if raw.headers.is_empty() {
        return Ok(None);
    }
    let mut headers = OwnedHeaders::new_with_capacity(raw.headers.len());
    for (name, value) in &raw.headers {
        let key = std::str::from_utf8(name).context("read a header's name as UTF-8")?;
        headers = headers.insert(Header { key, value: value.as_ref() });
    }
    Ok(Some(headers))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(partition: i32, offset: i64, timestamp_ms: i64) -> String {
        format!(
            r#"{{"partition":{partition},"offset":{offset},"timestamp":{timestamp_ms},"key":null,"value":null}}"#
        )
    }

    /// The error of the last of these lines in a topic of two partitions.
    fn error(lines: &[String]) -> String {
        let mut positions = vec![0, 0];
        let mut results = lines.iter().map(|line| raw_line(line.as_bytes(), &mut positions));
        format!("{:#}", results.next_back().unwrap().unwrap_err())
    }

    #[test]
    fn lines_of_each_partition_go_in_one_by_one() {
        let mut positions = vec![0, 0];
        for (partition, offset) in [(1, 0), (0, 0), (1, 1), (1, 2), (0, 1)] {
            raw_line(line(partition, offset, 1).as_bytes(), &mut positions).unwrap();
        }
        assert_eq!(positions, [2, 3]);
    }

    #[test]
    fn a_line_that_cannot_be_fed_says_why() {
        for (bad, why) in [
            (line(2, 0, 1), "partition 2 is out of range: the topic has 2, from 0 to 1"),
            (line(-1, 0, 1), "partition -1 is out of range"),
            (line(0, 1, 1), "offset 1 of partition 0 is out of order: the next must be 0"),
            (line(0, 0, 0), "timestamp 0 must be greater than 0"),
            ("{}".to_owned(), "missing field `partition`"),
            ("nonsense".to_owned(), "read the raw line"),
        ] {
            let error = error(&[bad]);
            assert!(error.contains(why), "{error}");
        }
        assert!(format!("{:#}", raw_line(b"\xff", &mut [0]).unwrap_err()).contains("UTF-8"));
    }

    #[test]
    fn lines_are_read_from_plain_and_from_long_window_files() {
        let directory = tempfile::tempdir().unwrap();
        let text = "one\ntwo\n\nlast";
        let plain = directory.path().join("a.ndjson");
        std::fs::write(&plain, text).unwrap();
        let packed = directory.path().join("a.ndjson.zst");
        let mut encoder = zstd::Encoder::new(File::create(&packed).unwrap(), 1).unwrap();
        encoder.long_distance_matching(true).unwrap();
        encoder.window_log(28).unwrap();
        io::Write::write_all(&mut encoder, text.as_bytes()).unwrap();
        encoder.finish().unwrap();
        for file in [plain, packed] {
            let mut lines = open(file.to_str().unwrap()).unwrap();
            let mut line = Vec::new();
            let mut all = Vec::new();
            while read_line(&mut lines, &mut line).unwrap() {
                all.push(String::from_utf8(line.clone()).unwrap());
            }
            assert_eq!(all, ["one\n", "two\n", "\n", "last"]);
        }
    }
}
