//! Topics are made as the contract needs them, and mended where that can be
//! done; a run over topics that would break the contract is refused.

use std::collections::BTreeSet;
use std::process::{Command, Output};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use ticket_pipeline::topics::{self, Done};
use ticket_pipeline::topology::Topology;

/// A topology whose topics are nobody else's, nor an earlier run's.
struct Place {
    name: String,
    directory: tempfile::TempDir,
    topology: Topology,
}

impl Place {
    fn new(name: &str) -> Place {
        Place::with(&Place::name(name), "")
    }

    fn name(name: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        format!("{name}-{}-{}", std::process::id(), now.as_millis())
    }

    /// The full name of a topic of this topology.
    fn topic(&self, name: &str) -> String {
        format!("{}.{name}", self.name)
    }

    /// With more lines of YAML.
    fn with(name: &str, more: &str) -> Place {
        let shipped = Topology::shipped();
        let mut text = format!(
            "group: {name}\nkafka:\n  brokers: {}\nsource:\n  topic: {name}.raw\n{more}outputs:\n  late: {name}.late\n  \
             dead_letter: {name}.dlq\n  events:\n",
            brokers()
        );
        // The alias has no topic of its own to name.
        let mut seen = BTreeSet::new();
        for event_type in shipped.event_types.iter().filter(|event_type| seen.insert(&event_type.topic)) {
            text += &format!("    {}: {name}.{}\n", event_type.name, event_type.topic);
        }
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("topology.yaml");
        std::fs::write(&file, text).unwrap();
        let topology = Topology::load(&file).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        Place { name: name.to_owned(), directory, topology }
    }

    fn command(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_ticket-pipeline"))
            .arg("--topology")
            .arg(self.directory.path().join("topology.yaml"))
            .args(arguments)
            .output()
            .unwrap()
    }

    fn apply(&self) -> Vec<(String, Done)> {
        let mut all = Vec::new();
        topics::apply(&self.topology, |wanted, done| all.push((wanted.name.clone(), done.clone()))).unwrap();
        all
    }

    /// Whether `check` refuses, and with which words.
    fn refusal(&self) -> Option<String> {
        topics::check(&self.topology).err().map(|error| error.to_string())
    }

    /// Writes raw lines to a file, and feeds it.
    fn feed(&self, lines: &[&str]) -> Output {
        let file = self.directory.path().join("lines.ndjson");
        std::fs::write(&file, lines.join("\n")).unwrap();
        self.command(&["feed", file.to_str().unwrap()])
    }
}

fn brokers() -> &'static str {
    crate::broker::address()
}

fn admin() -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", brokers()).create().unwrap()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Sets these of a topic, and takes back all others.
fn set(topic: &str, settings: &[(&str, &str)]) {
    let mut config = AlterConfig::new(ResourceSpecifier::Topic(topic));
    config.entries.extend(settings.iter().copied());
    block_on(admin().alter_configs([&config], &AdminOptions::new())).unwrap();
}

fn create(topic: &str, partitions: i32) {
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    block_on(admin().create_topics([&new], &AdminOptions::new())).unwrap();
}

/// What the broker was told is not at once what it says.
fn eventually<T>(look: impl FnMut() -> Option<T>) -> T {
    crate::wait::until("the broker says so", look)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn apply_makes_every_topic_and_then_has_nothing_to_do() {
    let place = Place::new("made");
    let refusal = place.refusal().unwrap();
    assert!(refusal.contains(&format!("{} does not exist", place.topic("raw"))), "{refusal}");
    assert_eq!(place.command(&["topics", "plan"]).status.code(), Some(1));

    let done = place.apply();
    assert_eq!(done.len(), 30);
    assert!(done.iter().all(|(_, done)| *done == Done::Created(4)), "{done:?}");

    assert_eq!(place.apply(), []);
    assert_eq!(topics::check(&place.topology).unwrap().partitions, 4);
    let plan = place.command(&["topics", "plan"]);
    assert_eq!(plan.status.code(), Some(0), "{}", text(&plan.stdout));
}

#[test]
fn the_raw_topic_that_is_there_sets_the_number_of_partitions_and_is_left_alone() {
    let place = Place::new("raw");
    create(&place.topic("raw"), 2);
    set(&place.topic("raw"), &[("retention.ms", "86400000"), ("max.message.bytes", "2000000")]);
    let plan = eventually(|| {
        let plan = topics::plan(&place.topology).unwrap();
        plan.warnings
            .iter()
            .any(|w| w.contains(&format!("{}: retention.ms is 86400000", place.topic("raw"))))
            .then_some(plan)
    });
    assert!(plan.missing().all(|wanted| wanted.partitions == 2));

    assert_eq!(place.apply().len(), 29);
    assert_eq!(topics::check(&place.topology).unwrap().partitions, 2);
    // Still as it was set, and the others are measured by it.
    let plan = topics::plan(&place.topology).unwrap();
    assert!(plan.is_done() && plan.warnings.len() == 1, "{plan:?}");
    set(&place.topic("dlq"), &[("retention.ms", "-1"), ("max.message.bytes", "2065535")]);
    let refusal = eventually(|| place.refusal().filter(|refusal| refusal.contains("max.message.bytes")));
    assert!(
        refusal.contains(&format!(
            "{}: max.message.bytes is 2065535, must be at least 2065536",
            place.topic("dlq")
        )),
        "{refusal}"
    );
}

#[test]
fn a_topic_that_would_break_the_contract_is_refused_and_mended_with_its_other_settings_kept() {
    let place = Place::new("mended");
    place.apply();
    set(&place.topic("late"), &[("cleanup.policy", "compact"), ("segment.ms", "77777")]);

    let refusal = eventually(|| place.refusal().filter(|refusal| refusal.contains("cleanup.policy")));
    assert!(
        refusal.contains(&format!("{}: cleanup.policy is compact, must be delete", place.topic("late"))),
        "{refusal}"
    );
    assert!(refusal.contains("ticket-pipeline topics apply"), "{refusal}");

    let done = place.apply();
    assert!(matches!(&done[..], [(topic, Done::Altered(_))] if topic == &place.topic("late")), "{done:?}");
    assert_eq!(place.refusal(), None);
    let late = place.topic("late");
    let resource = [ResourceSpecifier::Topic(&late)];
    let found = block_on(admin().describe_configs(&resource, &AdminOptions::new())).unwrap();
    let kept = found[0].as_ref().unwrap().get("segment.ms").unwrap();
    assert_eq!(kept.value.as_deref(), Some("77777"));
}

#[test]
fn other_partitions_than_the_raw_topic_has_cannot_be_mended() {
    let place = Place::new("partitions");
    create(&place.topic("dlq"), 3);
    eventually(|| {
        let plan = topics::plan(&place.topology).unwrap();
        plan.missing().all(|wanted| wanted.name != place.topic("dlq")).then_some(())
    });
    let apply = place.command(&["topics", "apply"]);
    assert_eq!(apply.status.code(), Some(1));
    assert!(text(&apply.stdout).contains("refuse !"), "{}", text(&apply.stdout));
    let refusal = place.refusal().unwrap();
    assert!(refusal.contains(&format!("{}: partitions is 3, must be 4", place.topic("dlq"))), "{refusal}");
}

#[test]
fn an_output_whose_retention_is_shorter_than_the_raw_topic_is_old_is_warned_of() {
    let place = Place::with(&Place::name("old"), "topics:\n  retention: 1h\n");
    place.apply();
    // The raw topic is ours to make with that retention, too; here it is to outlast its old record.
    set(&place.topic("raw"), &[("retention.ms", "-1")]);
    let fed =
        place.feed(&[r#"{"partition":1,"offset":0,"timestamp":1456708980000,"key":"T-1","value":"{}"}"#]);
    assert_eq!(fed.status.code(), Some(0), "{}", text(&fed.stderr));
    let plan = topics::plan(&place.topology).unwrap();
    assert!(plan.warnings.iter().any(|warning| warning.contains("oldest record")), "{:?}", plan.warnings);
}

#[test]
fn fed_lines_come_to_lie_as_they_say_and_are_fed_once() {
    let place = Place::new("fed");
    let missing = place.feed(&[]);
    assert!(text(&missing.stderr).contains("topics apply"), "{}", text(&missing.stderr));
    place.apply();
    let lines = [
        r#"{"partition":2,"offset":0,"timestamp":1456708980000,"key":"T-1","value":"one","headers":[["a",null],["a",""],["b","c"]]}"#,
        r#"{"partition":2,"offset":1,"timestamp":1456708980001,"key":null,"value":null}"#,
        r#"{"partition":2,"offset":2,"timestamp":1456708970000,"key":"","value_b64":"/w=="}"#,
    ];
    let fed = place.feed(&lines);
    assert_eq!(fed.status.code(), Some(0), "{}", text(&fed.stderr));
    assert!(text(&fed.stdout).contains("fed 3 records"), "{}", text(&fed.stdout));

    let reader: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("group.id", &place.name)
        .create()
        .unwrap();
    {
        // A list that outlives its consumer hangs the consumer's drop.
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(&place.topic("raw"), 2, Offset::Beginning).unwrap();
        reader.assign(&assignment).unwrap();
    }
    let mut seen = Vec::new();
    while seen.len() < lines.len() {
        let record = eventually(|| reader.poll(Duration::from_millis(100))).unwrap();
        let headers: Vec<(String, Option<String>)> = record
            .headers()
            .map(|headers| headers.iter().map(|h| (h.key.to_owned(), h.value.map(text))).collect())
            .unwrap_or_default();
        let timestamp_ms = record.timestamp().to_millis().unwrap();
        let key = record.key().map(<[u8]>::to_vec);
        let value = record.payload().map(<[u8]>::to_vec);
        seen.push((record.offset(), timestamp_ms, key, value, headers));
    }
    let header = |name: &str, value: Option<&str>| (name.to_owned(), value.map(str::to_owned));
    let all_headers = vec![header("a", None), header("a", Some("")), header("b", Some("c"))];
    assert_eq!(
        seen,
        [
            (0, 1_456_708_980_000, Some(b"T-1".to_vec()), Some(b"one".to_vec()), all_headers),
            (1, 1_456_708_980_001, None, None, Vec::new()),
            (2, 1_456_708_970_000, Some(Vec::new()), Some(vec![0xff]), Vec::new()),
        ]
    );

    let again = place.feed(&lines);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("is not empty"), "{}", text(&again.stderr));
}

#[test]
fn watching_shows_what_is_there_and_ends_when_nothing_comes() {
    let place = Place::new("watched");
    place.apply();
    // The topic of derived events is fed as if it were a raw one.
    let (raw, changed) = (place.topic("raw"), place.topic("ticket.status.changed"));
    let events = Place::with(&place.name, "");
    let file = events.directory.path().join("topology.yaml");
    let yaml = std::fs::read_to_string(&file)
        .unwrap()
        .replace(&format!("topic: {raw}"), &format!("topic: {changed}"))
        .replace(&format!("status:changed: {changed}"), &format!("status:changed: {raw}"));
    std::fs::write(&file, yaml).unwrap();
    let event = r#"{"eventType":"ticket:status:changed","timestamp":"2026-01-05T06:36:12Z","payload":{"change":{"field":"status","from":{"id":"o","name":"Open"},"to":{"id":"closed"}}},"metadata":{"origin":"derived"}}"#;
    let line = serde_json::json!({
        "partition": 0, "offset": 0, "timestamp": 1_456_708_980_000_i64, "key": "T-1", "value": event
    });
    let fed = events.feed(&[&line.to_string()]);
    assert_eq!(fed.status.code(), Some(0), "{}", text(&fed.stderr));

    let watched = place.command(&["watch", "--from", "beginning", "--until-idle", "1s"]);
    assert_eq!(watched.status.code(), Some(0), "{}", text(&watched.stderr));
    let shown = text(&watched.stdout);
    assert_eq!(
        shown.split_whitespace().collect::<Vec<_>>(),
        ["2026-01-05T06:36:12Z", "T-1", "status", "Open", "->", "closed"]
    );
    let from_now = place.command(&["watch", "--until-idle", "200ms"]);
    assert_eq!((from_now.status.code(), text(&from_now.stdout).as_str()), (Some(0), ""));
    let unknown = place.command(&["watch", "--type", "ticket:nonsense"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown.stderr).contains("ticket:nonsense"), "{}", text(&unknown.stderr));
}

#[test]
fn a_broker_that_does_not_answer_is_named_with_a_remedy() {
    let place = Place::new("nowhere");
    let mut topology = place.topology.clone();
    // Nothing listens on the port that no service is given.
    topology.kafka.brokers = "127.0.0.1:1".to_owned();
    let error = topics::check(&topology).unwrap_err().to_string();
    assert!(error.contains("no broker answers at 127.0.0.1:1"), "{error}");
    assert!(error.contains("scripts/kafka up"), "{error}");
}
