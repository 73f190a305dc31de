//! The pipeline and the limit, as things to be started, watched, and asked for
//! what they have written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rdkafka::message::Message;
use ticket_pipeline::topology::Topology;

use ticket_harness::broker::{self, Broker, Topics, Watch};
use ticket_harness::histories::{self, Histories, Means, UID_BYTES};
use ticket_harness::load;
use ticket_harness::process::Process;
use ticket_harness::stream::{Expectation, Shape, Stream};
use ticket_harness::topology;

const LOOK_EVERY: Duration = Duration::from_millis(5);
const TIME_MAX: Duration = Duration::from_secs(900);

/// Which program is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Pipeline,
    Limit,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Pipeline => "pipeline",
            Kind::Limit => "limit",
        }
    }
}

/// What both are run with.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) pipeline: PathBuf,
    pub(crate) broker: Broker,
    /// State, topologies and logs go here.
    pub(crate) folder: PathBuf,
    pub(crate) partitions: i32,
    pub(crate) commit_interval_ms: u64,
    /// The pipeline's workers in each process; `None`: its default.
    pub(crate) workers: Option<usize>,
    /// Processes of the pipeline in one group.
    pub(crate) processes: usize,
    /// More lines for the pipeline's topology, whole sections.
    pub(crate) sections: String,
    pub(crate) means: Means,
    /// The mean size of the pipeline's changelog records.
    pub(crate) changelog_bytes: usize,
}

/// One of the two, with topics, group and state of its own.
pub(crate) struct Contestant {
    pub(crate) kind: Kind,
    pub(crate) topology: Topology,
    name: String,
    settings: Settings,
    processes: Vec<Process>,
}

/// What was found in the outputs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Audit {
    pub(crate) records: u64,
    /// Keys, values, and headers' names and values.
    pub(crate) bytes: u64,
    /// As the broker keeps them.
    pub(crate) disk_bytes: u64,
    pub(crate) changelog_records: u64,
    pub(crate) changelog_bytes: u64,
    pub(crate) sampled: u64,
}

impl Contestant {
    /// With fresh topics and no state; `name` is used once. The raw topic is made where there is none.
    pub(crate) fn prepare(kind: Kind, name: &str, source: &str, settings: &Settings) -> Result<Contestant> {
        let text = topology_text(name, source, settings);
        let path = settings.folder.join(format!("{name}.yaml"));
        std::fs::write(&path, &text)?;
        let topology = Topology::load(&path)?;
        let contestant = Contestant {
            kind,
            topology,
            name: name.to_owned(),
            settings: settings.clone(),
            processes: Vec::new(),
        };
        let topics = Topics::connect(&contestant.topology)?;
        topics.create_missing(&[source.to_owned()], settings.partitions)?;
        match kind {
            Kind::Pipeline => {
                let output = contestant.command().args(["topics", "apply"]).output()?;
                ensure!(
                    output.status.success(),
                    "topics apply: {}{}",
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr)
                );
            }
            Kind::Limit => topics.create_missing(&contestant.topics(), settings.partitions)?,
        }
        Ok(contestant)
    }

    /// The pipeline, running, with one event of each ticket behind it; and what must come of those.
    pub(crate) fn with_tickets(
        name: &str,
        settings: &Settings,
        histories: &Histories,
        tickets: u64,
    ) -> Result<(Contestant, Expectation)> {
        let mut contestant = Contestant::prepare(Kind::Pipeline, name, &format!("{name}-raw"), settings)?;
        let shape = Shape { history_events_max: 1, ..Shape::of(tickets, settings.partitions) };
        let mut stream = Stream::new(histories, shape);
        load::backlog(&contestant.topology, &mut stream, tickets)?;
        contestant.start()?;
        let watch = contestant.watch()?;
        watch.reach(tickets, LOOK_EVERY, TIME_MAX, || contestant.must_run())?;
        Ok((contestant, stream.expectation))
    }

    /// Starts its processes, and says which they are.
    pub(crate) fn start(&mut self) -> Result<Vec<u32>> {
        let count = if self.kind == Kind::Pipeline { self.settings.processes } else { 1 };
        for _ in 0..count {
            let mut command = self.command();
            if self.kind == Kind::Pipeline {
                command.arg("run");
            }
            self.processes.push(Process::start(&self.name, &mut command, &self.log_path())?);
        }
        Ok(self.processes.iter().map(Process::pid).collect())
    }

    pub(crate) fn must_run(&mut self) -> Result<()> {
        ensure!(!self.processes.is_empty(), "it was not started");
        self.processes.iter_mut().try_for_each(Process::must_run)
    }

    /// Lets the pipeline end cleanly; the limit knows no end.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.must_run()?;
        std::mem::take(&mut self.processes).into_iter().try_for_each(|process| match self.kind {
            Kind::Pipeline => process.stop(),
            Kind::Limit => process.kill(),
        })
    }

    pub(crate) fn kill(&mut self) -> Result<()> {
        self.must_run()?;
        std::mem::take(&mut self.processes).into_iter().try_for_each(Process::kill)
    }

    pub(crate) fn watch(&self) -> Result<Watch> {
        Watch::of(&self.topology, self.settings.partitions)
    }

    /// What all its runs have logged.
    pub(crate) fn log(&self) -> Result<String> {
        std::fs::read_to_string(self.log_path()).context("read the log")
    }

    fn log_path(&self) -> PathBuf {
        self.settings.folder.join(format!("{}.log", self.name))
    }

    /// The folder that holds the state directory of each process.
    pub(crate) fn state(&self) -> PathBuf {
        state(&self.name, &self.settings)
    }

    /// The topics that forwarded records go to.
    pub(crate) fn forwarded_topics(&self, histories: &Histories) -> BTreeSet<String> {
        match self.kind {
            Kind::Limit => [format!("{}.forwarded", self.name)].into(),
            Kind::Pipeline => {
                let events = histories.all.iter().flatten();
                events.map(|event| format!("{}.{}", self.name, event.forwarded_to)).collect()
            }
        }
    }

    /// All that it writes.
    pub(crate) fn topics(&self) -> Vec<String> {
        match self.kind {
            Kind::Limit => {
                ["forwarded", "changelog", "derived"].map(|topic| format!("{}.{topic}", self.name)).into()
            }
            Kind::Pipeline => self
                .topology
                .output_topics()
                .chain([self.topology.changelog_topic.as_str(), self.topology.ids_topic.as_str()])
                .map(str::to_owned)
                .collect(),
        }
    }

    /// Everything that must be there is there, once, and nothing else.
    pub(crate) fn audit(&self, expectation: &Expectation) -> Result<Audit> {
        let mut audit = Audit::default();
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        let mut sample: BTreeMap<(Vec<u8>, String), Vec<Vec<u8>>> = BTreeMap::new();
        let changelog = match self.kind {
            Kind::Limit => format!("{}.changelog", self.name),
            Kind::Pipeline => self.topology.changelog_topic.clone(),
        };
        let topics = self.topics();
        broker::read_all(&self.topology, &topics, self.settings.partitions, |record| {
            let value = record.payload().unwrap_or_default();
            let headers = if record.topic() == changelog { 0.0 } else { self.settings.means.header_bytes };
            audit.records += 1;
            audit.bytes += (value.len() + record.key_len()) as u64 + headers as u64;
            if record.topic() == changelog {
                audit.changelog_records += 1;
                audit.changelog_bytes += value.len() as u64;
            }
            match counts.get_mut(record.topic()) {
                Some(count) => *count += 1,
                None => {
                    counts.insert(record.topic().to_owned(), 1);
                }
            }
            let key = record.key().unwrap_or_default();
            let sampled =
                <&[u8; UID_BYTES]>::try_from(key).is_ok_and(|uid| expectation.sample.contains_key(uid));
            if sampled
                && self.kind == Kind::Pipeline
                && let Some(change) = histories::change(value)
            {
                sample.entry((key.to_vec(), record.topic().to_owned())).or_default().push(change.to_vec());
            }
            Ok(())
        })?;
        for topic in &topics {
            audit.disk_bytes += self.settings.broker.disk_bytes(topic)?;
        }
        match self.kind {
            Kind::Limit => self.check_limit(&counts, expectation)?,
            Kind::Pipeline => {
                self.check_pipeline(&counts, expectation)?;
                audit.sampled = self.check_sample(sample, expectation)?;
            }
        }
        Ok(audit)
    }

    /// Deletes its topics, the raw one too, and its state.
    pub(crate) fn remove_with_source(self) -> Result<()> {
        let topics = Topics::connect(&self.topology)?;
        topics.delete(std::slice::from_ref(&self.topology.source.topic))?;
        self.remove()
    }

    /// Deletes its topics and its state.
    pub(crate) fn remove(self) -> Result<()> {
        Topics::connect(&self.topology)?.delete(&self.topics())?;
        match std::fs::remove_dir_all(self.state()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("remove the state")
            }
            _ => Ok(()),
        }
    }

    fn check_limit(&self, counts: &BTreeMap<String, u64>, expectation: &Expectation) -> Result<()> {
        let derived = (expectation.events as f64 * self.settings.means.derived_per_event) as u64;
        let events = expectation.events;
        for (topic, wanted, slack) in
            [("forwarded", events, 0), ("changelog", events, 0), ("derived", derived, 1)]
        {
            let found = counts.get(&format!("{}.{topic}", self.name)).copied().unwrap_or(0);
            ensure!(
                found.abs_diff(wanted) <= slack,
                "the limit wrote {found} records to {topic}, not {wanted}"
            );
        }
        Ok(())
    }

    fn check_pipeline(&self, counts: &BTreeMap<String, u64>, expectation: &Expectation) -> Result<()> {
        let mut wrong = String::new();
        for topic in self.topology.output_topics() {
            let original = topic.strip_prefix(&format!("{}.", self.name)).unwrap_or(topic);
            let wanted = expectation.by_topic.get(original).copied().unwrap_or(0);
            let found = counts.get(topic).copied().unwrap_or(0);
            if found != wanted {
                write!(wrong, " {topic} holds {found} records, not {wanted};")?;
            }
        }
        ensure!(wrong.is_empty(), "the outputs are wrong:{wrong}");
        Ok(())
    }

    fn check_sample(
        &self,
        found: BTreeMap<(Vec<u8>, String), Vec<Vec<u8>>>,
        expectation: &Expectation,
    ) -> Result<u64> {
        let mut wanted: BTreeMap<(Vec<u8>, String), Vec<Vec<u8>>> = BTreeMap::new();
        for (uid, derived) in &expectation.sample {
            for (topic, change) in derived {
                let place = (uid.to_vec(), format!("{}.{topic}", self.name));
                wanted.entry(place).or_default().push(change.clone().into_bytes());
            }
        }
        if let Some((uid, topic)) =
            wanted.iter().find(|(place, changes)| found.get(place) != Some(changes)).map(|(place, _)| place)
        {
            bail!("the changes of ticket {} in {topic} are others than must be", uid.escape_ascii());
        }
        ensure!(found.len() == wanted.len(), "there are changes of sampled tickets that must not be");
        Ok(wanted.values().map(|changes| changes.len() as u64).sum())
    }

    /// The program, before its command.
    pub(crate) fn command(&self) -> Command {
        let settings = &self.settings;
        match self.kind {
            Kind::Pipeline => {
                let mut command = Command::new(&settings.pipeline);
                command.arg("--topology").arg(settings.folder.join(format!("{}.yaml", self.name)));
                command
            }
            Kind::Limit => {
                let mut command =
                    Command::new(std::env::current_exe().unwrap_or_else(|_| PathBuf::from("ticket-bench")));
                command.arg("limit").args(["--brokers", &settings.broker.address]);
                command.args(["--source", &self.topology.source.topic, "--group", &self.name]);
                for (name, value) in [
                    ("--commit-interval-ms", settings.commit_interval_ms as f64),
                    ("--derived-per-event", settings.means.derived_per_event),
                    ("--derived-bytes", settings.means.derived_bytes.round()),
                    ("--changelog-bytes", settings.changelog_bytes as f64),
                    ("--header-bytes", settings.means.header_bytes.round()),
                ] {
                    command.args([name, &value.to_string()]);
                }
                command
            }
        }
    }
}

fn state(name: &str, settings: &Settings) -> PathBuf {
    settings.folder.join(name)
}

/// The shipped topology with names, state and pace of its own.
pub(crate) fn topology_text(name: &str, source: &str, settings: &Settings) -> String {
    let mut text = topology::text(name, source, settings.partitions, &settings.broker.address);
    // Each process takes the first that is free, and its name with it.
    text += &format!("state:\n  dir: {}/instance-*\n", state(name, settings).display());
    text += &format!("runtime:\n  commit_interval: {}ms\n", settings.commit_interval_ms);
    if let Some(workers) = settings.workers {
        text += &format!("  workers: {workers}\n");
    }
    text + &settings.sections
}
