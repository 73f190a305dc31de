//! A pipeline with topics of its own on the real broker, as a person runs it:
//! its commands are child processes, and its raw topic is written from outside.

mod emitted;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use ticket_pipeline::lines::RawLine;
use ticket_pipeline::topics::{RawTopic, Role, wanted};
use ticket_pipeline::topology::Topology;

use crate::broker;
use crate::datasets::DataSet;
use crate::lines::Line;
use crate::process::{Log, Process};
use crate::tasks::PARTITIONS;
use crate::wait;

pub(crate) use emitted::Run;

/// As long as the contract's name, so that no derived event changes its size.
const RAW_TOPIC: &str = "ticket.raw";

static PIPELINES: AtomicU32 = AtomicU32::new(0);

/// How a pipeline is set up; what is not said is as shipped.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) workers: usize,
    pub(crate) commit_interval: &'static str,
    /// Few make many transactions, and more moments at which to die.
    pub(crate) batch_records_max: usize,
    /// The raw topic's keys say nothing.
    pub(crate) rekeyed: bool,
    /// Where its pages are: many run side by side.
    pub(crate) http: &'static str,
    /// Policies and rules.
    pub(crate) contract: String,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            workers: 2,
            commit_interval: "20ms",
            batch_records_max: 5_000,
            rekeyed: false,
            http: "off",
            contract: String::new(),
        }
    }
}

impl Settings {
    pub(crate) fn of(set: &DataSet) -> Settings {
        Settings { contract: set.settings(), ..Settings::default() }
    }
}

/// One group on one raw topic, with outputs that are nobody else's.
pub(crate) struct Pipeline {
    group: String,
    raw_topic: String,
    folder: PathBuf,
    topology: Topology,
    /// Asks what is committed; it never joins.
    asker: OnceCell<BaseConsumer>,
    /// The same of re-keying's group.
    rekeying_asker: OnceCell<BaseConsumer>,
    /// All that is in the raw topic.
    fed: RefCell<Vec<RawLine>>,
    runs: Cell<u32>,
}

impl Drop for Pipeline {
    /// A broker holds files open for each partition, and it may have only so many.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let all = wanted(&self.topology, RawTopic::to_be_made(&self.topology));
        // The raw topic may be another's, too.
        let ours: Vec<&str> =
            all.iter().filter(|topic| topic.role != Role::Raw).map(|topic| topic.name.as_str()).collect();
        let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
            .set("bootstrap.servers", broker::address())
            .create()
            .expect("an admin client can be made");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        // What a test has deleted itself is gone already.
        drop(runtime.block_on(admin.delete_topics(&ours, &AdminOptions::new())));
    }
}

impl Pipeline {
    /// With its topics made.
    pub(crate) fn new(name: &str, settings: &Settings) -> Pipeline {
        let pipeline = Pipeline::without_topics(name, settings);
        pipeline.apply_topics();
        pipeline
    }

    pub(crate) fn without_topics(name: &str, settings: &Settings) -> Pipeline {
        let number = PIPELINES.fetch_add(1, Ordering::Relaxed);
        Pipeline::reading(&format!("raw-{number:06}"), name, number, settings)
    }

    /// Another group, with outputs of its own, on the raw topic of this one.
    pub(crate) fn beside(&self, name: &str, settings: &Settings) -> Pipeline {
        let number = PIPELINES.fetch_add(1, Ordering::Relaxed);
        let beside = Pipeline::reading(&self.raw_topic, name, number, settings);
        beside.apply_topics();
        *beside.fed.borrow_mut() = self.fed.borrow().clone();
        beside
    }

    fn reading(raw_topic: &str, name: &str, number: u32, settings: &Settings) -> Pipeline {
        assert_eq!(raw_topic.len(), RAW_TOPIC.len(), "a longer name would make larger events");
        let group = format!("{name}-{number}");
        let folder = broker::folder().join(&group);
        std::fs::create_dir_all(&folder).expect("the folder of tests can be written to");
        let text = topology_text(&group, raw_topic, settings);
        let file = folder.join("topology.yaml");
        std::fs::write(&file, &text).expect("the folder of tests can be written to");
        let topology = Topology::load(&file).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        Pipeline {
            group,
            raw_topic: raw_topic.to_owned(),
            folder,
            topology,
            asker: OnceCell::new(),
            rekeying_asker: OnceCell::new(),
            fed: RefCell::default(),
            runs: Cell::new(0),
        }
    }

    fn apply_topics(&self) {
        let output = self.command(&["topics", "apply"]);
        assert!(output.status.success(), "topics apply: {}", text(&output.stderr));
    }

    /// Sets one thing of a topic, behind the pipeline's back.
    pub(crate) fn alter(&self, topic: &str, setting: &str, value: &str) {
        let change = format!("{setting}={value}");
        broker::tool(&[
            "configs",
            "--alter",
            "--entity-type",
            "topics",
            "--entity-name",
            topic,
            "--add-config",
            &change,
        ]);
        // The controller says that it is done before the broker that is asked shows it.
        wait::until(&format!("{topic} has {change}"), || {
            let described = broker::try_tool(&[
                "configs",
                "--describe",
                "--entity-type",
                "topics",
                "--entity-name",
                topic,
            ]);
            text(&described.stdout).contains(&format!(" {change} ")).then_some(())
        });
    }

    /// Gives a topic more partitions, behind the pipeline's back.
    pub(crate) fn add_partitions(&self, topic: &str, partitions: i32) {
        broker::tool(&["topics", "--alter", "--topic", topic, "--partitions", &partitions.to_string()]);
        // The controller says that it is done before the broker that is asked shows it.
        wait::until(&format!("{topic} has {partitions} partitions"), || {
            let described = broker::try_tool(&["topics", "--describe", "--topic", topic]);
            text(&described.stdout).contains(&format!("PartitionCount: {partitions}\t")).then_some(())
        });
    }

    /// Puts settings in place of what the topology says elsewhere.
    pub(crate) fn rewrite(&self, change: impl FnOnce(String) -> String) {
        let file = self.topology_file();
        let text = std::fs::read_to_string(&file).expect("the topology was written");
        std::fs::write(&file, change(text)).expect("the folder of tests can be written to");
    }

    /// How long a member that says nothing, such as one that has stopped, counts as one of the group.
    pub(crate) fn set_session(&self, timeout_ms: u32) {
        let session = format!("\n  consumer:\n    session.timeout.ms: {timeout_ms}\n  brokers:");
        self.rewrite(|text| text.replace("\n  brokers:", &session));
    }

    /// As short as the broker allows: the group can be reset soon after a run.
    pub(crate) fn set_shortest_session(&self) {
        self.set_session(6_000);
    }

    pub(crate) fn topology_file(&self) -> PathBuf {
        self.folder.join("topology.yaml")
    }

    pub(crate) fn group(&self) -> &str {
        &self.group
    }

    /// The changelog and the ids log, by their names on the broker.
    pub(crate) fn logs(&self) -> [&str; 2] {
        [&self.topology.changelog_topic, &self.topology.ids_topic]
    }

    /// Where a partition ends, markers of transactions and all.
    pub(crate) fn true_end(&self, topic: &str, partition: i32) -> i64 {
        self.asker().fetch_watermarks(topic, partition, wait::PATIENCE).expect("the broker answers").1
    }

    /// The topic's name on the broker.
    pub(crate) fn topic(&self, name: &str) -> String {
        if name == RAW_TOPIC { self.raw_topic.clone() } else { format!("{}.{name}", self.group) }
    }

    /// Runs a command to its end.
    pub(crate) fn command(&self, arguments: &[&str]) -> Output {
        self.binary("a").args(arguments).output().expect("the program can be started")
    }

    fn binary(&self, instance: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ticket-pipeline"));
        command
            .arg("--topology")
            .arg(self.topology_file())
            .env("STATE_DIR", self.state(instance))
            .env("INSTANCE_ID", instance)
            .env_remove("RUST_LOG")
            .env_remove("OTEL_EXPORTER_OTLP_ENDPOINT")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn state(&self, instance: &str) -> PathBuf {
        self.folder.join(format!("state-{instance}"))
    }

    // --- In --------------------------------------------------------------

    /// Feeds a data set as a person would.
    pub(crate) fn feed(&self, set: &DataSet) {
        let file = set.raw_file();
        let output = self.command(&["feed", file.to_str().expect("the path is text")]);
        assert!(output.status.success(), "feed {}: {}", set.name, text(&output.stderr));
        self.fed.borrow_mut().extend(set.raw());
    }

    /// Appends records to the raw topic; their offsets are those that they get.
    pub(crate) fn append(&self, raw: impl IntoIterator<Item = RawLine>) {
        self.append_as("none", -1, raw);
    }

    /// The same, compressed as well as that level of zstd can.
    pub(crate) fn append_compressed(&self, level: i32, raw: impl IntoIterator<Item = RawLine>) {
        self.append_as("zstd", level, raw);
    }

    fn append_as(&self, codec: &str, level: i32, raw: impl IntoIterator<Item = RawLine>) {
        let mut fed = self.fed.borrow_mut();
        let mut new = Vec::new();
        for mut raw in raw {
            raw.offset = fed.iter().filter(|fed| fed.partition == raw.partition).count() as i64;
            fed.push(raw.clone());
            new.push(raw);
        }
        produce(&self.raw_topic, codec, level, &new);
    }

    /// Writes a record to the internal topic behind the pipeline's back.
    pub(crate) fn tamper(&self, rekeyed: &RawLine) {
        produce(&self.topology.rekeyed_topic, "none", -1, std::slice::from_ref(rekeyed));
    }

    /// What `derive` makes of records.
    pub(crate) fn derive(&self, raw: &[RawLine]) -> Vec<Line> {
        let input = self.folder.join("derive.ndjson");
        let text =
            |bytes: &Option<Vec<u8>>| bytes.as_ref().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let line = |raw: &RawLine| {
            let line = serde_json::json!({
                "partition": raw.partition, "offset": raw.offset, "timestamp": raw.timestamp_ms,
                "key": text(&raw.key), "value": text(&raw.value),
            });
            format!("{line}\n")
        };
        let lines: String = raw.iter().map(line).collect();
        std::fs::write(&input, lines).expect("the folder of tests can be written to");
        let file = std::fs::File::open(&input).expect("it was written");
        let output = self.binary("a").arg("derive").stdin(file).output().expect("the program can be started");
        assert!(output.status.success(), "derive: {}", self::text(&output.stderr));
        self::text(&output.stdout).lines().map(Line::parse).collect()
    }

    // --- Running ---------------------------------------------------------

    /// Starts a process of the group; equal instances have one state directory.
    pub(crate) fn start(&self, instance: &str) -> Process {
        self.start_with(instance, &[])
    }

    /// Runs until everything is committed, and does this to a record on the way.
    #[cfg(feature = "broken")]
    pub(crate) fn start_broken(&self, what: &str) -> Process {
        self.spawn(self.binary("a").env("BROKEN", what), "a", &["--until-caught-up"])
    }

    pub(crate) fn start_with(&self, instance: &str, arguments: &[&str]) -> Process {
        self.spawn(&mut self.binary(instance), instance, arguments)
    }

    /// A member of the group as a worker of that instance would be one.
    pub(crate) fn member<C: ConsumerContext>(
        &self,
        instance: &str,
        slot: usize,
        context: C,
    ) -> BaseConsumer<C> {
        let member: BaseConsumer<C> =
            client("group.instance.id", &format!("{}-{instance}-{slot}", self.group))
                .set("group.id", &self.group)
                .set("partition.assignment.strategy", "cooperative-sticky")
                .create_with_context(context)
                .expect("a consumer");
        member.subscribe(&[&self.raw_topic]).expect("the topic can be subscribed to");
        member
    }

    /// As on a disk that is full: no file grows beyond about so much.
    pub(crate) fn start_on_small_disk(&self, instance: &str, file_kib_max: u32) -> Process {
        let binary = self.binary(instance);
        let mut limited = Command::new("sh");
        // Where the signal is ignored, writing on is an error like any other.
        let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", 2 * file_kib_max);
        limited.args(["-c", &script]).arg(binary.get_program()).args(binary.get_args());
        limited.envs(binary.get_envs().filter_map(|(name, value)| Some((name, value?))));
        self.spawn(limited.env_remove("RUST_LOG").stdin(Stdio::null()), instance, &[])
    }

    /// The same with more variables in its environment.
    pub(crate) fn start_in(&self, environment: &[(&str, &str)], arguments: &[&str]) -> Process {
        let mut binary = self.binary("a");
        binary.envs(environment.iter().copied());
        self.spawn(&mut binary, "a", arguments)
    }

    fn spawn(&self, binary: &mut Command, instance: &str, arguments: &[&str]) -> Process {
        self.runs.set(self.runs.get() + 1);
        let log = self.folder.join(format!("run-{}-{instance}.log", self.runs.get()));
        Process::start(binary.arg("run").args(arguments), log)
    }

    /// Runs until everything is committed; the run's log.
    pub(crate) fn run_until_caught_up(&self) -> Log {
        let ended = self.start_with("a", &["--until-caught-up"]).wait();
        assert_eq!(ended.status.code(), Some(0), "{}", ended.log.0);
        ended.log
    }

    /// The disk is gone: nothing of the state directory is left.
    pub(crate) fn lose_disk(&self, instance: &str) {
        std::fs::remove_dir_all(self.state(instance)).expect("there is a state directory to lose");
    }

    /// How many records of the raw topic are committed; transactions that are open do not count.
    pub(crate) fn committed(&self) -> i64 {
        self.committed_positions().values().sum()
    }

    /// The same for each partition.
    pub(crate) fn committed_positions(&self) -> BTreeMap<i32, i64> {
        self.positions(self.asker(), &self.raw_topic)
    }

    /// How many records of the raw topic are re-keyed, dead letters included.
    pub(crate) fn rekeyed(&self) -> i64 {
        let asker = self.rekeying_asker.get_or_init(|| asker_of(&format!("{}-rekey", self.group)));
        self.positions(asker, &self.raw_topic).values().sum()
    }

    fn positions(&self, asker: &BaseConsumer, topic: &str) -> BTreeMap<i32, i64> {
        let mut list = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            list.add_partition(topic, partition);
        }
        // A group that is new has no coordinator yet.
        let committed = wait::until("the broker knows what is committed", || {
            asker.committed_offsets(list.clone(), wait::PATIENCE).ok()
        });
        let position = |offset| match offset {
            Offset::Offset(position) => position,
            _ => 0,
        };
        committed.elements().iter().map(|element| (element.partition(), position(element.offset()))).collect()
    }

    /// How many records are in the raw topic.
    pub(crate) fn end(&self) -> i64 {
        self.fed.borrow().len() as i64
    }

    pub(crate) fn wait_until_committed(&self, records: i64) {
        wait::until(&format!("{}: {records} records are committed", self.group), || {
            (self.committed() >= records).then_some(())
        });
    }

    pub(crate) fn wait_until_caught_up(&self) {
        self.wait_until_committed(self.end());
    }

    fn asker(&self) -> &BaseConsumer {
        self.asker.get_or_init(|| asker_of(&self.group))
    }

    // --- Replays ---------------------------------------------------------

    /// Runs `replay` as soon as the group's members have left; what it says.
    pub(crate) fn replay(&self, arguments: &[&str]) -> String {
        let output = self.replay_when_idle(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// The same where it is refused; why.
    pub(crate) fn refused_replay(&self, arguments: &[&str]) -> String {
        let output = self.replay_when_idle(arguments);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
        text(&output.stderr)
    }

    fn replay_when_idle(&self, arguments: &[&str]) -> Output {
        wait::until(&format!("{}: the group has no members", self.group), || {
            let output = self.command(&[&["replay"], arguments].concat());
            (!text(&output.stderr).contains("is active")).then_some(output)
        })
    }

    /// Resets the group's offsets on the raw topic with Kafka's own tool.
    pub(crate) fn reset_by_tool(&self, to: &[&str]) {
        self.replay(&["--to-current"]);
        let arguments = [
            &["consumer-groups", "--reset-offsets", "--group", &self.group, "--topic", &self.raw_topic],
            to,
            &["--execute"],
        ];
        broker::tool(&arguments.concat());
    }

    /// Resets re-keying's group with Kafka's own tool; `false` while it has members.
    pub(crate) fn reset_re_keying(&self, to: &str) -> bool {
        let group = format!("{}-rekey", self.group);
        let arguments = [
            "consumer-groups",
            "--reset-offsets",
            "--group",
            &group,
            "--topic",
            &self.raw_topic,
            to,
            "--execute",
        ];
        let output = broker::try_tool(&arguments);
        let said = text(&[output.stdout, output.stderr].concat());
        output.status.success() && !said.contains("Error") && said.contains(&self.raw_topic)
    }

    /// Has Kafka forget what re-keying's group has committed; `false` while it has members.
    pub(crate) fn forget_re_keying(&self) -> bool {
        let group = format!("{}-rekey", self.group);
        let arguments =
            ["consumer-groups", "--delete-offsets", "--group", &group, "--topic", &self.raw_topic];
        let output = broker::try_tool(&arguments);
        output.status.success() && text(&output.stdout).contains("Successful")
    }

    /// Deletes the records of the raw topic before those offsets.
    pub(crate) fn delete_records_before(&self, offsets: &BTreeMap<i32, i64>) {
        let partitions: Vec<serde_json::Value> = offsets
            .iter()
            .map(|(partition, offset)| {
                serde_json::json!({"topic": self.raw_topic, "partition": partition, "offset": offset})
            })
            .collect();
        let file = self.folder.join("delete-records.json");
        let list = serde_json::json!({"version": 1, "partitions": partitions});
        std::fs::write(&file, list.to_string()).expect("the folder of tests can be written to");
        broker::tool(&["delete-records", "--offset-json-file", file.to_str().expect("the path is text")]);
    }

    /// How many records are in a partition of the raw topic.
    pub(crate) fn end_of(&self, partition: i32) -> i64 {
        self.fed.borrow().iter().filter(|raw| raw.partition == partition).count() as i64
    }
}

fn topology_text(group: &str, raw_topic: &str, settings: &Settings) -> String {
    let of_contract = Topology::parse("topology.yaml", &settings.contract, &|_| None)
        .unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let Settings { workers, commit_interval, batch_records_max, http, contract, .. } = settings;
    let keyed_by = if settings.rekeyed { "\n  keyed_by: nothing" } else { "" };
    let mut text = format!(
        "group: {group}\nsource:\n  topic: {raw_topic}\n  partitions: {PARTITIONS}{keyed_by}\nkafka:\n  brokers: {}\n\
         runtime:\n  workers: {workers}\n  commit_interval: {commit_interval}\n\
         limits:\n  batch_records_max: {batch_records_max}\n  memory_mb: 256\nhttp:\n  listen: {http}\n{contract}\noutputs:\n  late: {group}.ticket.late\n  \
         dead_letter: {group}.ticket.dlq\n  events:\n",
        broker::address()
    );
    // The alias has no topic of its own to name.
    let mut named = BTreeSet::new();
    for event_type in of_contract.event_types.iter().filter(|event_type| named.insert(&event_type.topic)) {
        text += &format!("    {}: {group}.{}\n", event_type.name, event_type.topic);
    }
    text
}

fn produce(topic: &str, codec: &str, level: i32, records: &[RawLine]) {
    let mut config = client("enable.idempotence", "true");
    config.set("compression.type", codec).set("compression.level", level.to_string());
    // The topic's limit is to decide, not the client's.
    let producer: BaseProducer = config.set("message.max.bytes", "20000000").create().expect("a producer");
    for raw in records {
        let mut headers = OwnedHeaders::new();
        for (name, value) in &raw.headers {
            let key = std::str::from_utf8(name).expect("a header's name is text");
            headers = headers.insert(Header { key, value: value.as_ref() });
        }
        let mut record = BaseRecord::<[u8], [u8]>::to(topic)
            .partition(raw.partition)
            .timestamp(raw.timestamp_ms)
            .headers(headers);
        record.key = raw.key.as_deref();
        record.payload = raw.value.as_deref();
        producer.send(record).map_err(|(error, _)| error).expect("the record can be produced");
    }
    producer.flush(wait::PATIENCE).expect("the broker takes the records");
}

/// It is told what is committed at once, also while a transaction is under way.
fn asker_of(group: &str) -> BaseConsumer {
    client("group.id", group).set("isolation.level", "read_uncommitted").create().expect("a consumer")
}

fn client(name: &str, value: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    // librdkafka hands out no record without a group's name, though it is never joined.
    config.set("bootstrap.servers", broker::address()).set("group.id", "nobody");
    config.set(name, value);
    config
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
