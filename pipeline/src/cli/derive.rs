//! `derive`: raw lines in, what would be emitted out, and no Kafka: the playground.

use std::collections::HashMap;
use std::io::{self, BufRead, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use ticket_pipeline::envelope;
use ticket_pipeline::lines::{self, RawLine};
use ticket_pipeline::record::{Destination, Header, Outbox, OutgoingRecord, RawRecord};
use ticket_pipeline::rekey::Rekey;
use ticket_pipeline::store::Store;
use ticket_pipeline::task::Task;
use ticket_pipeline::topology::{KeyedBy, Topology};

/// The exit code for a line that is not of the form.
const USAGE_ERROR: u8 = 2;

/// The arguments of `derive`.
#[derive(Debug, Args)]
#[command(after_help = "\
Each line of stdin is a raw line, {\"partition\", \"offset\", \"timestamp\", \"key\", \"value\", \"headers\"}, or a
ticket event as it is, bare or wrapped (taken as partition 0, offset line number - 1, without a key).
Each line of stdout is a record that the pipeline would emit, dead letters included.
Exit codes: 0 done, 1 it went wrong, 2 a line that is neither.

Example:
  zstd -dc --long=27 tests/data/histories.raw.ndjson.zst | ticket-pipeline derive | grep status.changed")]
pub(crate) struct Arguments {}

/// Runs `derive`.
pub(crate) fn run(topology: &Path, _arguments: &Arguments) -> Result<ExitCode> {
    let topology = Arc::new(Topology::load(topology)?);
    let mut output = BufWriter::new(io::stdout().lock());
    let mut playground = Playground::new(topology);
    for (index, line) in io::stdin().lock().split(b'\n').enumerate() {
        let line = line.context("read stdin")?;
        let line = match raw_line(&line, index, playground.topology.source.partitions) {
            Ok(line) => line,
            Err(error) => {
                output.flush().context("write stdout")?;
                eprintln!("ticket-pipeline: line {}: {error:#}", index + 1);
                return Ok(ExitCode::from(USAGE_ERROR));
            }
        };
        match playground.process(&line, &mut output) {
            Err(error) if is_broken_pipe(&error) => return Ok(ExitCode::SUCCESS),
            result => result.with_context(|| format!("process line {}", index + 1))?,
        }
    }
    match output.flush() {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        result => result.context("write stdout").map(|()| ExitCode::SUCCESS),
    }
}

/// The real tasks, over stores without a disk.
struct Playground {
    topology: Arc<Topology>,
    /// How many records each partition of the internal topic holds.
    rekeyed: HashMap<i32, i64>,
    tasks: HashMap<i32, Task>,
    out: Outbox,
}

impl Playground {
    fn new(topology: Arc<Topology>) -> Playground {
        Playground { topology, rekeyed: HashMap::new(), tasks: HashMap::new(), out: Outbox::default() }
    }

    fn process(&mut self, line: &RawLine, output: &mut impl Write) -> Result<()> {
        match self.topology.source.keyed_by {
            KeyedBy::TicketUid => line.with_record(|record| self.derive(record, output)),
            KeyedBy::Nothing => line.with_record(|record| self.rekey(record, output)),
        }
    }

    fn rekey(&mut self, record: &RawRecord<'_>, output: &mut impl Write) -> Result<()> {
        let mut out = Outbox::default();
        Rekey::new(Arc::clone(&self.topology), self.topology.source.partitions).process(record, &mut out);
        for record in out.records() {
            if record.destination != Destination::Rekeyed {
                self.write(&record, output)?;
                continue;
            }
            let next = self.rekeyed.entry(record.partition).or_default();
            let headers: Vec<Header<'_>> = record.headers().collect();
            let rekeyed = RawRecord {
                partition: record.partition,
                offset: *next,
                timestamp_ms: record.timestamp_ms,
                key: record.key,
                value: record.value,
                headers: &headers,
            };
            *next += 1;
            self.derive(&rekeyed, output)?;
        }
        Ok(())
    }

    fn derive(&mut self, record: &RawRecord<'_>, output: &mut impl Write) -> Result<()> {
        let task = self.tasks.entry(record.partition).or_insert_with(|| {
            Task::new(self.topology.clone(), self.topology.source.partitions, Store::in_memory(), i64::MIN)
        });
        task.process(record, &mut self.out)?;
        self.out.records().try_for_each(|record| self.write(&record, output))
    }

    fn write(&self, record: &OutgoingRecord<'_>, output: &mut impl Write) -> Result<()> {
        let topic = record.destination.topic(&self.topology);
        Ok(writeln!(output, "{}", lines::outgoing_line(topic, record))?)
    }
}

/// A raw line as it stands, or a ticket event as a raw line.
fn raw_line(line: &[u8], index: usize, partitions: i32) -> Result<RawLine> {
    let text = std::str::from_utf8(line).context("read the line as UTF-8")?;
    if let Some(time_ms) = envelope::ticket_event_time_ms(line) {
        return Ok(RawLine {
            partition: 0,
            offset: i64::try_from(index).context("count the lines")?,
            timestamp_ms: time_ms,
            key: None,
            value: Some(line.to_vec()),
            headers: Vec::new(),
        });
    }
    let line = RawLine::parse(text).context("neither a raw line nor a ticket event, bare or wrapped")?;
    if !(0..partitions).contains(&line.partition) {
        bail!("partition {} is none of the {partitions} of the topology's source", line.partition);
    }
    Ok(line)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
