//! A pipeline under attack: topics, a load, processes, and the verdict in the end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use ticket_harness::broker::Watch;
use ticket_harness::histories::{self, Histories};
use ticket_harness::load;
use ticket_harness::process::Process;
use ticket_harness::stream::{Expectation, Shape, Stream};
use ticket_harness::topology;
use ticket_pipeline::clients;
use ticket_pipeline::topology::Topology;

use crate::cluster::Cluster;
use crate::model;
use crate::outcome::Outcome;
use crate::readers;

pub(crate) const PARTITIONS: i32 = 4;

/// Whoever has not caught up by then once the faults have ended does not live:
/// longer than a session and a transaction that was left open together.
const LIVE_WITHIN: Duration = Duration::from_secs(180);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);
/// What the pipeline says of a client that had lost sight of its cluster.
const TOLD: &str = "a client knows no broker any more";

static SCENES: AtomicU32 = AtomicU32::new(0);

/// What all cases share.
pub(crate) struct World<'h> {
    pub(crate) project: PathBuf,
    pub(crate) pipeline: PathBuf,
    pub(crate) with_crash_points: Option<PathBuf>,
    pub(crate) cluster: Cluster,
    pub(crate) folder: PathBuf,
    pub(crate) histories: &'h Histories,
    /// How often a fault is to happen, where that was asked for.
    pub(crate) times: Option<u64>,
}

/// How a pipeline is set up.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) workers: usize,
    pub(crate) commit_interval_ms: u64,
    /// Few make many transactions.
    pub(crate) batch_records_max: usize,
    /// Where the pipeline finds the broker, if not at its own address.
    pub(crate) brokers: Option<String>,
    /// More lines under `kafka`, with their indent.
    pub(crate) kafka: String,
    /// A store is flushed after so many changelog records.
    pub(crate) flush_records: u64,
    /// Events a second.
    pub(crate) rate: u32,
    /// Whether the real histories go in first.
    pub(crate) with_histories: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            workers: 2,
            commit_interval_ms: 50,
            batch_records_max: 5_000,
            brokers: None,
            kafka: String::new(),
            flush_records: 2_000,
            rate: 800,
            with_histories: true,
        }
    }
}

/// A pipeline with topics of its own.
pub(crate) struct Scene<'w> {
    pub(crate) world: &'w World<'w>,
    pub(crate) name: String,
    /// As the judges see it: at the broker's own address.
    pub(crate) topology: Arc<Topology>,
    pub(crate) settings: Settings,
    pub(crate) watch: Watch,
    program: PathBuf,
    file: PathBuf,
    processes: BTreeMap<String, Process>,
}

impl<'w> Scene<'w> {
    /// With its topics made, and the real histories in the raw one.
    pub(crate) fn new(world: &'w World<'w>, name: &str, settings: &Settings) -> Result<Scene<'w>> {
        let number = SCENES.fetch_add(1, Ordering::Relaxed);
        let name = format!("{name}-{}-{number}", std::process::id());
        let text = |brokers: &str| {
            let Settings { workers, commit_interval_ms, batch_records_max, kafka, flush_records, .. } =
                settings;
            let text = topology::text(&name, &format!("{name}.raw"), PARTITIONS, brokers);
            format!(
                "{text}{kafka}runtime:\n  workers: {workers}\n  commit_interval: {commit_interval_ms}ms\n\
                 state:\n  flush_records: {flush_records}\nlimits:\n  batch_records_max: {batch_records_max}\n  memory_mb: 256\n"
            )
        };
        let direct = text(&world.cluster.address());
        let topology = Arc::new(Topology::parse(&name, &direct, &|_| None)?);
        let file = world.folder.join(format!("{name}.yaml"));
        std::fs::write(&file, settings.brokers.as_deref().map_or(direct, text))?;
        let watch = Watch::of(&topology, PARTITIONS)?;
        let (settings, processes) = (settings.clone(), BTreeMap::new());
        let program = world.pipeline.clone();
        let scene = Scene { world, name, topology, settings, watch, program, file, processes };
        scene.command_well(&["topics", "apply"])?;
        if scene.settings.with_histories {
            let file = world.project.join("tests/data/histories.raw.ndjson.zst");
            scene.command_well(&["feed", file.to_str().context("a path that is text")?])?;
        }
        Ok(scene)
    }

    /// Runs another build of the pipeline from here on.
    pub(crate) fn set_program(&mut self, program: &Path) {
        self.program = program.to_owned();
    }

    // --- Processes ---------------------------------------------------------------

    fn command(&self, instance: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--topology")
            .arg(&self.file)
            .env("STATE_DIR", self.state(instance))
            .env("INSTANCE_ID", instance)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub(crate) fn command_to_end(&self, arguments: &[&str]) -> Result<Output> {
        self.command("a").args(arguments).output().context("start the pipeline's program")
    }

    fn command_well(&self, arguments: &[&str]) -> Result<()> {
        let output = self.command_to_end(arguments)?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    pub(crate) fn state(&self, instance: &str) -> PathBuf {
        self.world.folder.join(format!("{}-{instance}", self.name))
    }

    fn log(&self, instance: &str) -> PathBuf {
        self.world.folder.join(format!("{}-{instance}.log", self.name))
    }

    /// All that the processes of an instance have logged.
    pub(crate) fn logged(&self, instance: &str) -> String {
        std::fs::read_to_string(self.log(instance)).unwrap_or_default()
    }

    /// Starts a process; equal instances have one state directory.
    pub(crate) fn start(&mut self, instance: &str) -> Result<()> {
        self.start_with(instance, &[])
    }

    /// The same with variables in its environment.
    pub(crate) fn start_with(&mut self, instance: &str, environment: &[(&str, &str)]) -> Result<()> {
        ensure!(!self.processes.contains_key(instance), "instance {instance} runs already");
        let mut command = self.command(instance);
        command.arg("run").envs(environment.iter().copied());
        let process =
            Process::start(&format!("{} {instance}", self.name), &mut command, &self.log(instance))?;
        self.processes.insert(instance.to_owned(), process);
        Ok(())
    }

    /// Starts a process whose files may not grow beyond so many KiB.
    pub(crate) fn start_limited(&mut self, instance: &str, kib: u64) -> Result<()> {
        ensure!(!self.processes.contains_key(instance), "instance {instance} runs already");
        let pipeline = self.command(instance);
        let mut command = Command::new("bash");
        // Where the signal is ignored, the write fails as on a full disk. The log goes by a pipe, which has no limit.
        command
            .args(["-c", "trap '' XFSZ; exec 3> >(cat >&2); ulimit -f \"$0\"; exec \"$@\" 2>&3"])
            .arg(kib.to_string())
            .arg(pipeline.get_program())
            .args(pipeline.get_args())
            .arg("run")
            .envs(pipeline.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let process =
            Process::start(&format!("{} {instance}", self.name), &mut command, &self.log(instance))?;
        self.processes.insert(instance.to_owned(), process);
        Ok(())
    }

    fn process(&mut self, instance: &str) -> Result<&mut Process> {
        self.processes.get_mut(instance).with_context(|| format!("instance {instance} does not run"))
    }

    /// kill -9, of a process that lives.
    pub(crate) fn kill(&mut self, instance: &str) -> Result<()> {
        let process = self.processes.remove(instance).context("it was not started")?;
        process.kill().with_context(|| self.last_words(instance))
    }

    /// SIGTERM, and a clean end.
    pub(crate) fn stop(&mut self, instance: &str) -> Result<()> {
        let process = self.processes.remove(instance).context("it was not started")?;
        process.stop().with_context(|| self.last_words(instance))
    }

    pub(crate) fn signal(&mut self, instance: &str, signal: &str) -> Result<()> {
        self.process(instance)?.signal(signal)
    }

    /// Whether a process has ended by itself; it is then gone.
    pub(crate) fn has_ended(&mut self, instance: &str) -> Result<Option<std::process::ExitStatus>> {
        let ended = self.process(instance)?.ended()?;
        if ended.is_some() {
            self.processes.remove(instance);
        }
        Ok(ended)
    }

    /// Waits for a process to end by itself; its exit code, `None` where a signal ended it.
    pub(crate) fn ends_by_itself(&mut self, instance: &str, within: Duration) -> Result<Option<i32>> {
        let began = Instant::now();
        while began.elapsed() < within {
            if let Some(status) = self.has_ended(instance)? {
                return Ok(status.code());
            }
            std::thread::sleep(LOOK);
        }
        bail!("instance {instance} does not end within {within:?}")
    }

    fn last_words(&self, instance: &str) -> String {
        let log = self.logged(instance);
        let lines: Vec<&str> = log.lines().rev().take(4).collect();
        format!(
            "instance {instance}, which said last:\n{}",
            lines.into_iter().rev().collect::<Vec<_>>().join("\n")
        )
    }

    // --- What is committed ---------------------------------------------------------

    /// Waits until more is committed than was; `false` where the time is up first.
    pub(crate) fn wait_until_committed(&self, position: u64, within: Duration) -> Result<bool> {
        let began = Instant::now();
        loop {
            // While the broker is down nobody answers.
            if self.watch.committed().is_ok_and(|committed| committed >= position) {
                return Ok(true);
            }
            if began.elapsed() > within {
                return Ok(false);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until so many more are committed.
    pub(crate) fn wait_for_more(&self, more: u64, within: Duration) -> Result<()> {
        let position = self.watch.committed()? + more;
        ensure!(self.wait_until_committed(position, within)?, "nothing is committed any more");
        Ok(())
    }

    /// Sleeps for so long; it is the faults that are to meet a moment, not the suite a condition.
    pub(crate) fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }

    fn stream(&self) -> Stream<'w> {
        let shape = Shape { under_way_max: 200, ..Shape::of(2_000, PARTITIONS) };
        Stream::new(self.world.histories, shape)
    }

    /// More events behind those in the raw topic, as fast as the broker takes them.
    pub(crate) fn append(&self, events: u64) -> Result<()> {
        load::backlog(&self.topology, &mut self.stream(), events)
    }

    /// How many records readers of committed ones find in the outputs.
    pub(crate) fn emitted_so_far(&self) -> Result<u64> {
        let found = model::found(&self.topology, PARTITIONS)?;
        Ok(found.values().map(|records| records.len() as u64).sum())
    }

    /// Runs a command until it succeeds: Kafka may not be as far yet.
    pub(crate) fn command_until_well(&self, arguments: &[&str], within: Duration) -> Result<()> {
        let began = Instant::now();
        loop {
            let done = self.command_well(arguments);
            if done.is_ok() || began.elapsed() > within {
                return done;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Runs one of Kafka's tools until it says so: a group that has stopped
    /// counts as active until its members' sessions end.
    pub(crate) fn when_idle(&self, arguments: &[&str], says: &str) -> Result<()> {
        let began = Instant::now();
        loop {
            let said = self.world.cluster.tool(arguments);
            if said.as_ref().is_ok_and(|said| said.contains(says)) {
                return Ok(());
            }
            ensure!(began.elapsed() < LIVE_WITHIN, "{arguments:?}: {said:?}");
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    // --- The attack -----------------------------------------------------------------

    /// Attacks under load, with readers beside it, and judges in the end. At
    /// least one process must run when the attack is over.
    pub(crate) fn under_attack(
        mut self,
        outcome: &mut Outcome,
        attack: impl FnOnce(&mut Scene<'w>, &mut Outcome) -> Result<()>,
    ) -> Result<()> {
        let mut stream = self.stream();
        let (stop_load, found) = (AtomicBool::new(false), OnceLock::new());
        let (topology, rate) = (Arc::clone(&self.topology), self.settings.rate);
        std::thread::scope(|scope| {
            let load = scope.spawn(|| {
                let began = Instant::now();
                load::open_loop(&topology, &mut stream, began, rate, u64::MAX, &stop_load)?;
                anyhow::Ok(std::mem::take(&mut stream.expectation))
            });
            let read = |isolation: &'static str| {
                let (topology, found) = (&topology, &found);
                scope.spawn(move || readers::follow(topology, PARTITIONS, isolation, found))
            };
            let (committed, uncommitted) = (read("read_committed"), read("read_uncommitted"));
            let attacked = attack(&mut self, outcome);
            stop_load.store(true, Ordering::Relaxed);
            let loaded = load.join().map_err(|_| anyhow!("the load's thread panicked")).flatten();
            let judged = attacked.and(loaded).and_then(|expectation| self.judge(outcome, &expectation));
            // Whatever happened, the readers are to end.
            let in_the_end = model::found(&self.topology, PARTITIONS);
            let found = found.get_or_init(|| in_the_end.as_ref().cloned().unwrap_or_default());
            let committed = committed.join().map_err(|_| anyhow!("a reader panicked")).flatten()?;
            let uncommitted = uncommitted.join().map_err(|_| anyhow!("a reader panicked")).flatten()?;
            judged?;
            in_the_end?;
            readers::judge_committed(&committed, found, outcome);
            readers::judge_uncommitted(&uncommitted, found, outcome);
            Ok(())
        })
    }

    /// The same with no load beside it: the raw topic is what it is.
    pub(crate) fn judge_as_it_is(mut self, outcome: &mut Outcome) -> Result<()> {
        self.catch_up(outcome)?;
        self.judge_outputs(outcome)
    }

    fn judge(&mut self, outcome: &mut Outcome, expectation: &Expectation) -> Result<()> {
        if self.catch_up(outcome)? {
            self.judge_counts(outcome, expectation)?;
        }
        self.judge_outputs(outcome)
    }

    /// Liveness, which is judged apart from safety: all partitions go on.
    fn catch_up(&mut self, outcome: &mut Outcome) -> Result<bool> {
        let began = Instant::now();
        let ends = self.watch.ends()?;
        let mut positions = Vec::new();
        while began.elapsed() < LIVE_WITHIN {
            positions = self.watch.positions()?;
            if positions.iter().zip(&ends).all(|(position, end)| position >= end) {
                break;
            }
            std::thread::sleep(LOOK);
        }
        let seconds = began.elapsed().as_secs_f64();
        outcome.caught_up_s = outcome.caught_up_s.max(seconds);
        let is_live = positions.iter().zip(&ends).all(|(position, end)| position >= end);
        outcome.expect(is_live, || {
            format!(
                "{}: not live: {positions:?} of {ends:?} are committed {seconds:.0} s after the faults",
                self.name
            )
        });
        let instances: Vec<String> = self.processes.keys().cloned().collect();
        for instance in instances {
            let told = self.logged(&instance).matches(TOLD).count();
            outcome.fired("client that knew no broker any more told of them", told as u64);
            if let Err(error) = self.stop(&instance) {
                outcome.expect(false, || format!("{}: no clean end: {error:#}", self.name));
            }
        }
        Ok(is_live)
    }

    /// What the histories' expected files say, which share nothing with the pipeline's core.
    fn judge_counts(&self, outcome: &mut Outcome, expectation: &Expectation) -> Result<()> {
        let mut wanted = expectation.by_topic.clone();
        if self.settings.with_histories {
            let data = self.world.project.join("tests/data");
            for (topic, count) in histories::expected_counts(&data)? {
                *wanted.entry(topic).or_default() += count;
            }
        }
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for ((topic, _), records) in model::found(&self.topology, PARTITIONS)? {
            let topic = topic.strip_prefix(&format!("{}.", self.name)).unwrap_or(&topic).to_owned();
            *counts.entry(topic).or_default() += records.len() as u64;
        }
        let topics: std::collections::BTreeSet<&String> = wanted.keys().chain(counts.keys()).collect();
        for topic in topics {
            let [wanted, found] = [&wanted, &counts].map(|counts| counts.get(topic).copied().unwrap_or(0));
            outcome.expect(wanted == found, || {
                format!("{}: {topic} holds {found} records, and the expected files say {wanted}", self.name)
            });
        }
        Ok(())
    }

    fn judge_outputs(&self, outcome: &mut Outcome) -> Result<()> {
        let (raw_records, expected) = model::expected(&self.topology, &self.watch.positions()?)?;
        let (compared, wrong) = model::compare(expected, &model::found(&self.topology, PARTITIONS)?);
        outcome.raw_records += raw_records;
        outcome.compared += compared;
        for what in wrong {
            outcome.expect(false, || format!("{}: {what}", self.name));
        }
        self.judge_by_audit(outcome)
    }

    /// After a replay, which repeats by design: the audit knows what.
    pub(crate) fn judge_replayed(mut self, outcome: &mut Outcome) -> Result<()> {
        self.catch_up(outcome)?;
        outcome.compared += self.emitted_so_far()?;
        self.judge_by_audit(outcome)
    }

    fn judge_by_audit(&self, outcome: &mut Outcome) -> Result<()> {
        self.judge_open_transactions(outcome)?;
        let audit = self.command_to_end(&["audit", "--state"])?;
        outcome.expect(audit.status.success(), || {
            let text = String::from_utf8_lossy(&audit.stdout).into_owned();
            let text = text + &String::from_utf8_lossy(&audit.stderr);
            let lines: Vec<&str> = text.lines().take(12).collect();
            format!("{}: audit --state: {}", self.name, lines.join("\n    "))
        });
        Ok(())
    }

    /// Readers of committed records are let up to the true end.
    fn judge_open_transactions(&self, outcome: &mut Outcome) -> Result<()> {
        let observer: BaseConsumer = clients::observer(&self.topology).create()?;
        let reader: BaseConsumer = clients::log_reader(&self.topology).create()?;
        let logs = [self.topology.changelog_topic.as_str(), self.topology.ids_topic.as_str()];
        for topic in self.topology.output_topics().chain(logs) {
            for partition in 0..PARTITIONS {
                let end = observer.fetch_watermarks(topic, partition, ANSWER_TIMEOUT)?.1;
                let stable = reader.fetch_watermarks(topic, partition, ANSWER_TIMEOUT)?.1;
                outcome.expect(stable == end, || {
                    format!("{topic} [{partition}] ends at {end}, and its last stable offset is {stable}")
                });
            }
        }
        Ok(())
    }
}
