//! Measures the pipeline, and beside it what librdkafka alone would need.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use serde_json::Value;
use ticket_pipeline::topology::Topology;

mod bounds;
mod contestant;
mod core;
mod latency;
mod limit;
mod memory;
mod rebuild;
mod report;
mod restart;
mod restore;
mod throughput;

use contestant::{Kind, Settings};
use throughput::Variant;
use ticket_harness::broker::{Broker, Topics};
use ticket_harness::histories::Histories;
use ticket_harness::load;
use ticket_harness::stream::{Shape, Stream};

#[derive(Debug, Parser)]
struct Arguments {
    /// The project's folder.
    #[arg(long, global = true, default_value = ".")]
    project: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A backlog, worked off by the pipeline and by the limit in turn.
    Throughput(Throughput),
    /// The same for one, two and four workers, and for two processes.
    Scaling(Throughput),
    /// The same for commits every 100 ms and every 5 s: what exactly once costs.
    Commits(Throughput),
    /// From when an event is due to a reader's hands, by the pipeline and by the limit in turn.
    Latency(Latency),
    /// SIGKILL under load: how long to the first new commit, and until caught up.
    Restart(Restart),
    /// A replay of a backlog's end: how fast the state is made what it was.
    Rebuild(Throughput),
    /// What memory grows with: tickets, and event ids in the window.
    Memory(Memory),
    /// Whether memory stays under its limit, whatever comes in, and however slowly it goes out.
    Bounds(Bounds),
    /// The state removed: how fast it is restored from the log.
    Restore(Restore),
    /// The bare copy that the pipeline is measured against.
    Limit(limit::Limit),
    /// The pure core over real stores, without Kafka: what a profiler runs.
    Core(Core),
}

/// A broker of `scripts/kafka`, and what runs against it.
#[derive(Debug, Args)]
struct Setting {
    #[arg(long, default_value = "127.0.0.1:29700")]
    brokers: String,
    /// The broker's data folder.
    #[arg(long)]
    broker_data: PathBuf,
    /// The pipeline's program.
    #[arg(long)]
    pipeline: PathBuf,
    /// State, topologies and logs go here.
    #[arg(long)]
    folder: PathBuf,
    /// The figures go here as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    #[arg(long, default_value_t = 4)]
    partitions: i32,
    #[arg(long, default_value_t = 100)]
    commit_interval_ms: u64,
    /// The pipeline's workers; by default its own default.
    #[arg(long)]
    workers: Option<usize>,
    /// Histories that are under way at a time, at most.
    #[arg(long, default_value_t = 2_000)]
    under_way: u64,
    /// More sections for the pipeline's topology, from a file.
    #[arg(long)]
    sections: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(args_override_self = true)]
struct Throughput {
    #[command(flatten)]
    setting: Setting,
    #[arg(long, default_value_t = 300_000)]
    events: u64,
    /// By default as many as the histories have for so many events.
    #[arg(long)]
    tickets: Option<u64>,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

#[derive(Debug, Args)]
#[command(args_override_self = true)]
struct Latency {
    #[command(flatten)]
    setting: Setting,
    /// Events a second.
    #[arg(long, value_delimiter = ',', default_value = "1000,5000,10000,20000")]
    rates: Vec<u32>,
    /// How long each is measured.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

#[derive(Debug, Args)]
#[command(args_override_self = true)]
struct Restart {
    #[command(flatten)]
    setting: Setting,
    #[arg(long, default_value_t = 10_000)]
    tickets: u64,
    /// Events a second meanwhile.
    #[arg(long, default_value_t = 2_000)]
    rate: u32,
    /// Kills with the disk kept, and as many with it gone.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

#[derive(Debug, Args)]
#[command(args_override_self = true)]
struct Memory {
    #[command(flatten)]
    setting: Setting,
    /// Tickets with one event each.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000,100000")]
    tickets: Vec<u64>,
    /// Events over the first of these numbers of tickets: only the window of ids grows.
    #[arg(long, value_delimiter = ',', default_value = "10000,100000")]
    events: Vec<u64>,
}

#[derive(Debug, Args)]
#[command(args_override_self = true)]
struct Bounds {
    #[command(flatten)]
    setting: Setting,
    /// Events of each backlog; of the large ones a hundredth.
    #[arg(long, default_value_t = 300_000)]
    events: u64,
    /// For each of these limits, in MB.
    #[arg(long, value_delimiter = ',', default_value = "320,256")]
    memory_mb: Vec<u64>,
}

#[derive(Debug, Args)]
#[command(args_override_self = true)]
struct Restore {
    #[command(flatten)]
    setting: Setting,
    #[arg(long, default_value_t = 300_000)]
    tickets: u64,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

#[derive(Debug, Args)]
struct Core {
    #[arg(long, default_value_t = 100_000)]
    events: u64,
    /// Events in a transaction.
    #[arg(long, default_value_t = 5_000)]
    batch: u64,
    /// An empty folder for the stores.
    #[arg(long)]
    state: PathBuf,
    /// Measures and counts as a worker does.
    #[arg(long)]
    metrics: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let read = || Histories::read(&arguments.project.join("tests/data"));
    match &arguments.command {
        Command::Limit(limit) => limit::run(limit),
        Command::Core(core) => {
            let histories = read()?;
            let shape = shape(&histories, core.events, None, 2_000, 4);
            core::run(
                Topology::shipped(),
                &histories,
                shape,
                core.events,
                core.batch,
                &core.state,
                core.metrics,
            )
        }
        Command::Throughput(throughput) => run_throughput(throughput, &read()?, &beside_the_limit),
        Command::Scaling(throughput) => run_throughput(throughput, &read()?, &by_scale),
        Command::Commits(throughput) => run_throughput(throughput, &read()?, &by_commits),
        Command::Latency(latency) => {
            let (histories, setting) = (read()?, &latency.setting);
            let settings = setting.settings(&histories)?;
            let result =
                latency::run(&settings, &histories, &latency.rates, latency.seconds, latency.rounds)?;
            setting.write_json(&result)
        }
        Command::Restart(restart) => {
            let (histories, setting) = (read()?, &restart.setting);
            let settings = setting.settings(&histories)?;
            let result = restart::run(&settings, &histories, restart.tickets, restart.rate, restart.rounds)?;
            setting.write_json(&result)
        }
        Command::Rebuild(Throughput { setting, events, tickets, rounds }) => {
            let histories = read()?;
            let settings = setting.settings(&histories)?;
            let shape = shape(&histories, *events, *tickets, setting.under_way, settings.partitions);
            setting.write_json(&rebuild::run(&settings, &histories, shape, *events, *rounds)?)
        }
        Command::Memory(Memory { setting, tickets, events }) => {
            let histories = read()?;
            let settings = setting.settings(&histories)?;
            let few = tickets.first().copied().unwrap_or(1);
            let by_tickets = tickets.iter().map(|tickets| (*tickets, *tickets));
            let cases: Vec<(u64, u64)> =
                by_tickets.chain(events.iter().map(|events| (few, *events))).collect();
            setting.write_json(&memory::run(&settings, &histories, &cases)?)
        }
        Command::Bounds(Bounds { setting, events, memory_mb }) => {
            let histories = read()?;
            let settings = setting.settings(&histories)?;
            let large = read()?.padded(bounds::PADDING_BYTES);
            setting.write_json(&bounds::run(&settings, &histories, &large, *events, memory_mb)?)
        }
        Command::Restore(restore) => {
            let (histories, setting) = (read()?, &restore.setting);
            let settings = setting.settings(&histories)?;
            setting.write_json(&restore::run(&settings, &histories, restore.tickets, restore.rounds)?)
        }
    }
}

/// Measures what `variants` makes of the settings, over one backlog.
fn run_throughput(
    arguments: &Throughput,
    histories: &Histories,
    variants: &dyn Fn(&Settings) -> Vec<Variant>,
) -> Result<()> {
    let settings = arguments.setting.settings(histories)?;
    let events = arguments.events;
    let shape = shape(histories, events, arguments.tickets, arguments.setting.under_way, settings.partitions);
    let source = format!("bench-{}-raw", std::process::id());
    let topology = source_topology(&source, &settings)?;
    let topics = Topics::connect(&topology)?;
    topics.create_missing(std::slice::from_ref(&source), settings.partitions)?;
    let mut stream = Stream::new(histories, shape);
    load::backlog(&topology, &mut stream, events)?;
    let means = settings.means;
    println!(
        "{events} events of {:.0} bytes over {} tickets; each brings 1 forwarded and {:.3} derived records of {:.0} bytes \
         with {:.0} bytes of headers",
        means.raw_bytes,
        shape.tickets,
        stream.expectation.derived() as f64 / events as f64,
        means.derived_bytes,
        means.header_bytes
    );
    let mut settings = settings;
    settings.means.derived_per_event = stream.expectation.derived() as f64 / events as f64;
    let mut variants = variants(&settings);
    let result = throughput::run(&mut variants, &source, &stream.expectation, arguments.rounds)?;
    topics.delete(&[source])?;
    arguments.setting.write_json(&result)
}

fn beside_the_limit(settings: &Settings) -> Vec<Variant> {
    [Kind::Pipeline, Kind::Limit]
        .map(|kind| Variant { name: kind.name().to_owned(), kind, settings: settings.clone() })
        .into()
}

fn by_scale(settings: &Settings) -> Vec<Variant> {
    let pipeline = [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2)].map(|(processes, workers)| Variant {
        name: format!("pipeline, processes: {processes}, workers in each: {workers}"),
        kind: Kind::Pipeline,
        settings: Settings { workers: Some(workers), processes, ..settings.clone() },
    });
    pipeline.into_iter().chain(beside_the_limit(settings).pop()).collect()
}

/// A batch's bounds are out of the way, so that time alone decides.
fn by_commits(settings: &Settings) -> Vec<Variant> {
    let limits = "limits:\n  batch_records_max: 200000\n  batch_size_max: 256MiB\n  memory_mb: 2048\n";
    [100, 5_000]
        .map(|commit_interval_ms| Variant {
            name: format!("pipeline, a commit every {commit_interval_ms} ms"),
            kind: Kind::Pipeline,
            settings: Settings {
                commit_interval_ms,
                sections: format!("{}{limits}", settings.sections),
                ..settings.clone()
            },
        })
        .into()
}

/// A topology that only says where the raw topic is.
fn source_topology(source: &str, settings: &Settings) -> Result<Topology> {
    let text = contestant::topology_text("bench-load", source, settings);
    Ok(Topology::parse("bench-load", &text, &|_| None)?)
}

fn shape(histories: &Histories, events: u64, tickets: Option<u64>, under_way: u64, partitions: i32) -> Shape {
    let natural = (events as f64 / histories.events_per_ticket()).ceil() as u64;
    Shape { under_way_max: under_way, ..Shape::of(tickets.unwrap_or(natural).max(1), partitions) }
}

impl Setting {
    fn settings(&self, histories: &Histories) -> Result<Settings> {
        std::fs::create_dir_all(&self.folder)?;
        Ok(Settings {
            pipeline: self.pipeline.clone(),
            broker: Broker::in_folder(&self.brokers, &self.broker_data)?,
            folder: self.folder.canonicalize()?,
            partitions: self.partitions,
            commit_interval_ms: self.commit_interval_ms,
            workers: self.workers,
            processes: 1,
            sections: self.sections.as_ref().map_or(Ok(String::new()), std::fs::read_to_string)?,
            means: histories.means,
            changelog_bytes: 1_000,
        })
    }

    fn write_json(&self, result: &Value) -> Result<()> {
        if let Some(path) = &self.json {
            std::fs::write(path, format!("{result:#}\n"))?;
        }
        Ok(())
    }
}
