//! Tables of topologies: what they mean, and what is wrong with them.

use std::fmt::Write;

use proptest::prelude::*;
use rdkafka::ClientConfig;

use super::properties::{ALIASES, COMMON, CONSUMER, PRODUCER, REFUSED};
use super::*;

fn empty(_: &str) -> Option<String> {
    None
}

fn parsed(text: &str) -> Topology {
    Topology::parse("t.yaml", text, &empty).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

/// Everything in a topology as text; the index, in no order of its own, aside.
fn told(mut topology: Topology) -> String {
    let indexes: std::collections::BTreeMap<String, EventTypeIndex> =
        topology.event_type_indexes.drain().collect();
    format!("{topology:#?}{indexes:#?}")
}

/// Exactly these mistakes, a line each, without the file's name.
#[track_caller]
fn check(text: &str, expected: &[&str]) {
    let mistakes = match Topology::parse("t.yaml", text, &empty) {
        Ok(_) => Vec::new(),
        Err(mistakes) => mistakes.to_string().lines().map(str::to_owned).collect(),
    };
    let expected: Vec<String> = expected.iter().map(|line| format!("t.yaml:{line}")).collect();
    assert_eq!(mistakes, expected, "\n{text}");
}

/// A mistake on that line, whose text holds that part.
#[track_caller]
fn check_holds(text: &str, line: usize, part: &str) {
    let mistakes = Topology::parse("t.yaml", text, &empty).expect_err(text);
    let found = mistakes.iter().any(|mistake| {
        mistake.line == line && format!("{}; {}", mistake.what, mistake.remedy).contains(part)
    });
    assert!(found, "line {line}: {part}\nis not among\n{mistakes}");
}

#[derive(Debug, PartialEq)]
struct Told<'a> {
    kind: Kind,
    field: &'a str,
    paths: Vec<String>,
    email: bool,
    events: Vec<Option<&'a str>>,
}

fn rules(topology: &Topology) -> Vec<Told<'_>> {
    let name = |index: usize| topology.event_types[index].name.as_str();
    topology
        .rules
        .iter()
        .map(|rule| Told {
            kind: rule.kind,
            field: &rule.field,
            paths: rule.paths.iter().map(|path| path.join(".")).collect(),
            email: rule.email,
            events: match rule.events {
                RuleEvents::One(index) => vec![Some(name(index))],
                RuleEvents::OnOff { on, off } => vec![on.map(name), off.map(name)],
                RuleEvents::AddedRemovedChanged { added, removed, changed } => {
                    vec![added.map(name), removed.map(name), changed.map(name)]
                }
            },
        })
        .collect()
}

fn rule<'a>(kind: Kind, field: &'a str, paths: &[&str], events: &[Option<&'a str>]) -> Told<'a> {
    let paths = paths.iter().map(|path| (*path).to_owned()).collect();
    Told { kind, field, paths, email: false, events: events.to_vec() }
}

fn default_rules() -> Vec<Told<'static>> {
    use Kind::{Flag, Map, Reference, Set};
    vec![
        rule(Reference, "status", &["status"], &[Some("ticket:status:changed")]),
        rule(Reference, "priority", &["priority"], &[Some("ticket:priority:changed")]),
        Told {
            email: true,
            ..rule(Reference, "assignedAgent", &["assignedAgent", "assignedTo"], &[Some("ticket:assigned")])
        },
        rule(Reference, "type", &["type"], &[Some("ticket:type:changed")]),
        rule(Reference, "sentiment", &["sentiment"], &[Some("ticket:sentiment:changed")]),
        rule(Flag, "isEscalated", &["isEscalated"], &[Some("ticket:escalated"), None]),
        rule(
            Map,
            "customField",
            &["customFields", "customFieldValues"],
            &[
                Some("ticket:custom_field_value:added"),
                Some("ticket:custom_field_value:removed"),
                Some("ticket:custom_field_value:changed"),
            ],
        ),
        rule(Set, "tags", &["tags"], &[Some("ticket:tag:updated")]),
        rule(Reference, "team", &["team"], &[Some("ticket:migrated")]),
    ]
}

#[test]
fn the_shipped_topology_is_the_contracts_defaults() {
    let shipped = Topology::shipped();
    assert_eq!(shipped.group, "ticket-pipeline");
    assert_eq!(shipped.source.topic, "ticket.raw");
    assert_eq!(shipped.source.partitions, 4);
    assert_eq!(shipped.source.keyed_by, KeyedBy::TicketUid);
    assert_eq!(shipped.late_topic, "ticket.late");
    assert_eq!(shipped.dead_letter_topic, "ticket.dlq");
    assert_eq!(shipped.changelog_topic, "ticket-pipeline-changelog");
    assert_eq!(shipped.ids_topic, "ticket-pipeline-ids");
    assert_eq!(shipped.rekeyed_topic, "ticket-pipeline-rekeyed");
    assert_eq!(shipped.topic_settings.retention_ms, -1);
    assert_eq!(shipped.topic_settings.replication_factor, -1);
    assert_eq!(shipped.policies.ordering, Ordering::Timestamp);
    assert_eq!(shipped.policies.native_specifics, NativeSpecifics::Once);
    assert_eq!(shipped.policies.dedupe_window_ms, 48 * 3600 * 1000);
    assert!(!shipped.policies.cloudevents);
    assert_eq!(shipped.state.dir, Path::new("state"));
    assert_eq!(shipped.state.flush_records_max, 50_000);
    assert_eq!(shipped.state.flush_interval_ms, 30_000);
    assert_eq!(shipped.runtime.workers, None);
    assert_eq!(shipped.runtime.instance, None);
    assert_eq!(shipped.runtime.commit_interval_ms, 100);
    assert_eq!(shipped.http.listen, "127.0.0.1:9464".parse().ok(), "loopback");
    assert_eq!(shipped.limits.record_bytes_max, 262_144);
    assert_eq!(shipped.limits.emitted_bytes_max, 512 * 1024 * 1024);
    assert_eq!(shipped.limits.entry_bytes_max, 4_000 * 1024);
    assert_eq!(shipped.limits.batch_records_max, 8000);
    assert_eq!(shipped.limits.batch_bytes_max, 16 * 1024 * 1024);
    assert_eq!(shipped.limits.memory_mb, 320);
    assert_eq!(shipped.kafka.brokers, "localhost:9092");
    assert_eq!(shipped.kafka.masked_properties().count(), 0);
    assert_eq!(rules(&shipped), default_rules());
}

#[test]
fn the_shipped_topics_follow_the_contracts_naming() {
    let shipped = Topology::shipped();
    assert_eq!(shipped.event_types.len(), 26);
    let topics: Vec<(&str, &str)> = shipped
        .event_types
        .iter()
        .map(|event_type| (event_type.name.as_str(), event_type.topic.as_str()))
        .collect();
    for (name, topic) in topics.iter().take(25) {
        assert_eq!(*topic, name.replace(':', ".").replace('_', "-"));
    }
    assert_eq!(topics[11], ("ticket:custom_field_value:added", "ticket.custom-field-value.added"));
    assert_eq!(topics[24], ("ticket:sla:breach_warning", "ticket.sla.breach-warning"));
    assert_eq!(topics[25], ("ticket:comment:created", "ticket.comment.added"));
    assert!(shipped.event_types.iter().all(|event_type| event_type.native));
    for (index, (name, _)) in topics.iter().enumerate() {
        assert_eq!(shipped.event_type(name), Some(index));
    }
    assert_eq!(shipped.event_type("ticket:due_date:changed"), None);
    // The file writes all of them out, so that a user sees them.
    for (name, topic) in topics.iter().take(25) {
        assert!(SHIPPED.contains(&format!("\n    {name}: {topic}")), "{name}");
    }

    let outputs: Vec<&str> = shipped.output_topics().collect();
    assert_eq!(outputs.len(), 27);
    assert_eq!(outputs[25..], ["ticket.late", "ticket.dlq"]);
}

#[test]
fn what_is_left_out_is_as_shipped() {
    let shipped = told(Topology::shipped());
    for text in ["", "---\n", "# nothing\n", "source:\n", "source: {}\nkafka: {consumer: }\n", "state: ~\n"] {
        assert_eq!(told(parsed(text)), shipped, "{text:?}");
    }
    let one = parsed("source: {topic: other}\n");
    assert_eq!((one.source.topic.as_str(), one.source.partitions), ("other", 4));
}

#[test]
fn the_shipped_file_takes_four_variables() {
    let environment = |name: &str| match name {
        "KAFKA_BROKERS" => Some("one:9092,two:9093".to_owned()),
        "STATE_DIR" => Some("/var/state".to_owned()),
        "INSTANCE_ID" => Some("7".to_owned()),
        "HTTP_LISTEN" => Some("0.0.0.0:80".to_owned()),
        _ => None,
    };
    for text in [SHIPPED, ""] {
        let topology = Topology::parse("t.yaml", text, &environment).unwrap();
        assert_eq!(topology.kafka.brokers, "one:9092,two:9093");
        assert_eq!(topology.state.dir, Path::new("/var/state"));
        assert_eq!(topology.runtime.instance.as_deref(), Some("7"));
        assert_eq!(topology.http.listen, "0.0.0.0:80".parse().ok());
    }
    let mistakes = Topology::parse("t.yaml", "", &|name| (name == "INSTANCE_ID").then(|| "a b".to_owned()));
    let mistakes = mistakes.unwrap_err().to_string();
    assert!(mistakes.starts_with("t.yaml: \"runtime.instance\" is \"a b\"; write "), "{mistakes}");
}

#[test]
fn a_variable_never_changes_the_structure() {
    let environment = |name: &str| match name {
        "COUNT" => Some("17".to_owned()),
        "YES" => Some("true".to_owned()),
        "TRICK" => Some("x, partitions: 9 # \n  keyed_by: nothing".to_owned()),
        _ => None,
    };
    let text = "source: {partitions: $COUNT}\npolicies: {cloudevents: \"${YES}\"}\n";
    let topology = Topology::parse("t.yaml", text, &environment).unwrap();
    assert_eq!(topology.source.partitions, 17);
    assert!(topology.policies.cloudevents);
    let mistakes =
        Topology::parse("t.yaml", "source:\n  topic: ${TRICK}\n", &environment).unwrap_err().to_string();
    assert!(mistakes.starts_with("t.yaml:2: \"source.topic\" is \"x, partitions: 9 # \\n"), "{mistakes}");
    assert_eq!(mistakes.lines().count(), 1);
}

#[test]
fn every_setting_is_read() {
    let topology = parsed(
        "group: g\n\
         source: {topic: in, partitions: 12, keyed_by: nothing}\n\
         outputs: {late: l, dead_letter: d, events: {'ticket:created': c, 'ticket:comment:added': n}}\n\
         topics: {retention: 30d, replication_factor: 3}\n\
         rules: []\n\
         policies: {ordering: offset, native_specifics: drop, dedupe_window: 24h, cloudevents: true}\n\
         state: {dir: /s, flush_records: 10, flush_interval: 1m}\n\
         runtime: {workers: 2, instance: i, commit_interval: 2s}\n\
         limits: {record_size_max: 1MiB, emitted_size_max: 2MiB, entry_size_max: 3MiB, batch_records_max: 1, batch_size_max: 64KiB, memory_mb: 1024}\n\
         kafka:\n  brokers: PLAINTEXT://a:1, [::1]:2, c\n  properties: {client.id: 5}\n  \
         consumer: {group.protocol: consumer, fetch.message.max.bytes: 1000}\n  \
         producer: {queue.buffering.max.ms: 5, compression.type: '${NONE:-}', transaction.timeout.ms: 15000}\n",
    );
    assert_eq!((topology.group.as_str(), topology.changelog_topic.as_str()), ("g", "g-changelog"));
    assert_eq!((topology.ids_topic.as_str(), topology.rekeyed_topic.as_str()), ("g-ids", "g-rekeyed"));
    let source = &topology.source;
    assert_eq!((source.topic.as_str(), source.partitions, source.keyed_by), ("in", 12, KeyedBy::Nothing));
    assert_eq!((topology.late_topic.as_str(), topology.dead_letter_topic.as_str()), ("l", "d"));
    assert_eq!(topology.event_types[0].topic, "c");
    let alias = topology.event_type("ticket:comment:created").unwrap();
    assert_eq!(topology.event_types[alias].topic, "n", "the alias shares its original's topic");
    assert_eq!(topology.topic_settings.retention_ms, 30 * 24 * 3600 * 1000);
    assert_eq!(topology.topic_settings.replication_factor, 3);
    assert_eq!(topology.rules, []);
    assert_eq!(topology.policies.ordering, Ordering::Offset);
    assert_eq!(topology.policies.native_specifics, NativeSpecifics::Drop);
    assert_eq!(topology.policies.dedupe_window_ms, 24 * 3600 * 1000);
    assert!(topology.policies.cloudevents);
    assert_eq!(topology.state.dir, Path::new("/s"));
    assert_eq!((topology.state.flush_records_max, topology.state.flush_interval_ms), (10, 60_000));
    assert_eq!((topology.runtime.workers, topology.runtime.instance.as_deref()), (Some(2), Some("i")));
    assert_eq!(topology.runtime.commit_interval_ms, 2000);
    let limits = &topology.limits;
    assert_eq!((limits.record_bytes_max, limits.batch_records_max), (1 << 20, 1));
    assert_eq!((limits.emitted_bytes_max, limits.entry_bytes_max), (2 << 20, 3 << 20));
    assert_eq!((limits.batch_bytes_max, limits.memory_mb), (65_536, 1024));
    assert_eq!(topology.kafka.brokers, "PLAINTEXT://a:1, [::1]:2, c");
    let properties: Vec<_> = topology.kafka.masked_properties().collect();
    // Aliases become the name that defaults use; what is empty on purpose is left out.
    let expected = [
        ("properties", "client.id", "5"),
        ("consumer", "group.protocol", "consumer"),
        ("consumer", "max.partition.fetch.bytes", "1000"),
        ("producer", "linger.ms", "5"),
        ("producer", "transaction.timeout.ms", "15000"),
    ];
    assert_eq!(properties, expected);
}

const USER_RULES: &str = "
  - event_type: ticket:due_date:changed
    kind: scalar
    path: ticket.dueDate
  - event_type: { on: ticket:vip:set, off: ticket:vip:cleared }
    kind: flag
    path: ticket.isVip
  - event_type: ticket:requester:changed
    kind: reference
    path: ticket.requester
  - event_type: ticket:watchers:updated
    kind: set
    path: ticket.watchers
  - event_type:
      added: ticket:sla_policy:added
      removed: ticket:sla_policy:removed
      changed: ticket:sla_policy:changed
    kind: map
    path: ticket.slaPolicies
    field: slaPolicy
";

#[test]
fn user_rules_stand_behind_the_defaults() {
    let text = SHIPPED.replace("\npolicies:\n", &format!("{USER_RULES}\npolicies:\n"));
    let topology = parsed(&text);
    let mut expected = default_rules();
    expected.extend([
        rule(Kind::Scalar, "dueDate", &["dueDate"], &[Some("ticket:due_date:changed")]),
        rule(Kind::Flag, "isVip", &["isVip"], &[Some("ticket:vip:set"), Some("ticket:vip:cleared")]),
        rule(Kind::Reference, "requester", &["requester"], &[Some("ticket:requester:changed")]),
        rule(Kind::Set, "watchers", &["watchers"], &[Some("ticket:watchers:updated")]),
        rule(
            Kind::Map,
            "slaPolicy",
            &["slaPolicies"],
            &[
                Some("ticket:sla_policy:added"),
                Some("ticket:sla_policy:removed"),
                Some("ticket:sla_policy:changed"),
            ],
        ),
    ]);
    assert_eq!(rules(&topology), expected);
    let users: Vec<(&str, &str, bool)> = topology.event_types[26..]
        .iter()
        .map(|event_type| (event_type.name.as_str(), event_type.topic.as_str(), event_type.native))
        .collect();
    assert_eq!(users.len(), 8);
    assert_eq!(users[0], ("ticket:due_date:changed", "ticket.due-date.changed", false));
    assert_eq!(users[7], ("ticket:sla_policy:changed", "ticket.sla-policy.changed", false));
    assert_eq!(topology.event_type("ticket:vip:set"), Some(27));
    assert_eq!(topology.output_topics().count(), 27 + 8);
    let keys: HashSet<[u8; 4]> = topology.rules.iter().map(|rule| rule.store_key).collect();
    assert_eq!(keys.len(), topology.rules.len());
}

#[test]
fn archived_and_unarchived_need_only_be_enabled() {
    let text = SHIPPED.replace("    enabled: false", "    enabled: true");
    let topology = parsed(&text);
    let events = [Some("ticket:archived"), Some("ticket:unarchived")];
    assert_eq!(rules(&topology).last(), Some(&rule(Kind::Flag, "isArchived", &["isArchived"], &events)));
}

#[test]
fn a_field_is_named_after_its_first_path_below_the_ticket() {
    let topology = parsed("rules: [{event_type: a, kind: scalar, paths: [ticket.sla.due, ticket.due]}]");
    assert_eq!(rules(&topology), [rule(Kind::Scalar, "sla.due", &["sla.due", "due"], &[Some("a")])]);
    assert_eq!(topology.rules[0].paths, [vec!["sla", "due"], vec!["due"]]);
}

#[test]
fn a_rule_that_moves_or_is_renamed_keeps_its_store_key() {
    let one = parsed("rules: [{event_type: a, kind: scalar, path: ticket.x.y}]");
    let other = parsed(
        "rules: [{event_type: c, kind: set, path: ticket.x.y}, \
         {event_type: b, kind: scalar, path: ticket.x.y, field: z}]",
    );
    assert_eq!(one.rules[0].store_key, other.rules[1].store_key);
    assert_ne!(other.rules[0].store_key, other.rules[1].store_key);
    // Stores hold this: whoever changes it forgets every known value.
    assert_eq!(Topology::shipped().rules[0].store_key, [122, 134, 163, 230]);
}

#[test]
fn a_users_type_may_have_a_topic_of_any_name() {
    let topology = parsed(
        "outputs: {events: {'ticket:vip:set': vip, 'off:one': unused}}\n\
         rules:\n- {event_type: {on: 'ticket:vip:set'}, kind: flag, path: ticket.isVip}\n\
         - {event_type: 'off:one', kind: set, path: ticket.a, enabled: false}\n",
    );
    let last = topology.event_types.last().unwrap();
    assert_eq!((last.name.as_str(), last.topic.as_str(), last.native), ("ticket:vip:set", "vip", false));
    assert_eq!(topology.rules.len(), 1, "a disabled rule is as if it were not there");
}

#[test]
fn mistakes_name_their_line_and_a_remedy() {
    const KNOWN: &str =
        "group, source, outputs, topics, rules, policies, state, runtime, limits, http, kafka";
    check(
        "sorce: {}\n",
        &[&format!("1: the key \"sorce\" is not known; did you mean \"source\"? known here: {KNOWN}")],
    );
    check(
        "\nsource:\n  partition: 4\n",
        &["3: the key \"partition\" is not known in \"source\"; did you mean \"partitions\"? \
         known here: topic, partitions, keyed_by"],
    );
    check(
        "state:\n  commit_interval: 1s\n",
        &["2: the key \"commit_interval\" is not known in \"state\"; it belongs to \"runtime\""],
    );
    check(
        "source:\n  group: g\n",
        &["2: the key \"group\" is not known in \"source\"; it stands at the left margin, in no section"],
    );
    check(
        "group: a\ngroup: b\n",
        &["2: the key \"group\" is there twice, first on line 1; keep one of them"],
    );
    check(
        "source:\n  partitions: '4'\n",
        &["2: \"source.partitions\" is \"4\"; write a whole number from 1 to 10000, without quotes"],
    );
    check(
        "policies: {cloudevents: yes}\n",
        &["1: \"policies.cloudevents\" is \"yes\"; write true or false, without quotes"],
    );
    check(
        "policies:\n  ordering: [timestamp]\n",
        &["2: \"policies.ordering\" is a list; write timestamp or offset"],
    );
    check(
        "policies:\n  ordering: ofset\n",
        &["2: \"policies.ordering\" is \"ofset\"; did you mean \"offset\"? write timestamp or offset"],
    );
    check(
        "state: here\n",
        &["1: \"state\" is a single value; write keys and values, \"key: value\", a line each"],
    );
    check("- a\n", &["1: the file is a list; write keys and values, \"key: value\", a line each"]);
    check(
        "policies: {dedupe_window: 23h}\n",
        &[
            "1: \"policies.dedupe_window\" is \"23h\"; write a whole number and a unit (ms, s, m, h, d), from 24h to 3650d",
        ],
    );
    check(
        "kafka: {brokers: '${BROKERS}'}\n",
        &[
            "1: \"kafka.brokers\" is empty, for BROKERS is not set; write host:port, several with commas between them",
        ],
    );
    check(
        "group: ${GROUP:?name it}\n",
        &["1: GROUP is not set, or empty: name it; set GROUP in the environment"],
    );
    check(
        "rules:\n",
        &["1: \"rules\" has no value; write [] for no rules, or remove \"rules\" for the default ones"],
    );
}

#[test]
fn all_mistakes_are_told_at_once_in_the_order_of_lines() {
    check(
        "kafka:\n  producer:\n    acks: 1\ngroup: ''\nlimits:\n  record_size_max: 1\nruntime:\n  workers: 0\n",
        &[
            "3: the property \"acks\" is the pipeline's to set: a commit is a promise only where all replicas \
             have the records; remove it",
            "4: \"group\" is empty; write 1 to 200 of the letters a-z A-Z, digits and . _ -, for topics begin with it",
            "6: \"limits.record_size_max\" is \"1\"; write a whole number and a unit (B, KiB, MiB, GiB), \
             from 1KiB to 64MiB",
            "8: \"runtime.workers\" is \"0\"; write cores, or a whole number from 1 to 1024, without quotes",
        ],
    );
    check(
        "rules:\n- kind: refrence\n  paths: []\n- event_type: ticket:comment:added\n  kind: flag\n  path: isVip\n",
        &[
            "2: the rule that begins here has no \"event_type\"; add it",
            "2: \"rules.kind\" is \"refrence\"; did you mean \"reference\"? \
             write reference or flag or scalar or set or map",
            "3: \"rules.paths\" is no list of paths; write at least one, such as [ticket.dueDate]",
            "4: \"ticket:comment:added\" is the platform's own and never derived; \
             choose a name that is none of the 25",
            "6: the path is \"isVip\"; write ticket. and member names with dots between them, such as ticket.dueDate",
        ],
    );
}

#[test]
fn what_is_no_plain_yaml_is_refused_where_it_stands() {
    check_holds("group: [\n", 2, "this is not YAML");
    check_holds("a: b: c\n", 1, "this is not YAML");
    check_holds("group: &g a\n", 1, "anchors are not read here");
    check_holds("group: &g a\nsource: {topic: *g}\n", 2, "aliases are not read here");
    check_holds("group: !!str a\n", 1, "tags are not read here");
    check_holds("group: a\n---\ngroup: b\n", 2, "a second document begins here");
    check_holds("? [a]\n: b\n", 1, "a key is no text");
    check_holds(&("[".repeat(20) + &"]".repeat(20)), 1, "nested too deep");
    check_holds(&("- ".repeat(20) + "a"), 1, "nested too deep");
    check_holds(&"[".repeat(100_000), 1, "this is not YAML");
    check_holds(&"- ".repeat(100_000), 1, "nested too deep");
    check_holds(&"a: ".repeat(1000), 1, "this is not YAML");
    check_holds(&" ".repeat(2_000_000), 0, "larger than 1 MiB");
    check_holds("group: a$\n", 1, "stands before no variable's name");
}

#[test]
fn topics_are_legal_and_each_has_one_purpose() {
    for name in ["a b", "ä", ".", "..", "__consumer_offsets", &"x".repeat(250), "''"] {
        check_holds(&format!("outputs:\n  late: {name}\n"), 2, "write 1 to 249");
    }
    parsed(&format!("outputs:\n  late: {}\n", "x".repeat(249)));
    check_holds(
        "outputs: {late: ticket.raw}",
        1,
        "the topic \"ticket.raw\" is that of the raw topic and of late records",
    );
    check_holds("outputs: {late: ticket_raw}", 1, "are one to Kafka");
    check_holds("source: {topic: ticket.dlq}", 1, "the raw topic and of dead letters");
    check_holds("group: g\noutputs: {late: g-ids}", 2, "late records and of the event ids");
    check_holds("outputs:\n  events:\n    ticket:created: ticket.updated", 3, "give each its own");
    check_holds(
        "outputs:\n  events:\n    ticket:created: a/b",
        3,
        "the topic of \"ticket:created\" is \"a/b\"",
    );
    check_holds("outputs:\n  events:\n    ticket:craeted: a", 3, "did you mean \"ticket:created\"?");
    check_holds(
        "outputs:\n  events:\n    ticket:comment:created: a",
        3,
        "it shares that of \"ticket:comment:added\"",
    );
    // Types that differ only in : and . have one topic; the contract's naming decides.
    check_holds(
        "rules: [{event_type: 'ticket:late', kind: set, path: ticket.a}]",
        1,
        "is that of late records",
    );
    check_holds("rules: [{event_type: ticket.created, kind: set, path: ticket.a}]", 1, "\"ticket:created\"");
}

#[test]
fn rules_are_checked() {
    let one = |rule: &str| format!("rules:\n- {{{rule}}}\n");
    for (text, part) in [
        ("kind: set, path: ticket.a", "has no \"event_type\""),
        ("event_type: a, path: ticket.a", "has no \"kind\""),
        ("event_type: a, kind: set", "has no \"path\""),
        ("event_type: a, kind: set, path: ticket.a, paths: [ticket.b]", "both \"path\" and \"paths\""),
        ("event_type: a, kind: set, path: a", "write ticket. and member names"),
        ("event_type: a, kind: set, path: ticket.", "write ticket. and member names"),
        ("event_type: a, kind: set, path: ticket.a..b", "write ticket. and member names"),
        ("event_type: a, kind: set, path: [ticket.a]", "the path is a list"),
        ("event_type: a, kind: set, paths: [ticket.a, b]", "the path is \"b\""),
        ("event_type: a, kind: set, path: ticket.a, email: true", "only a reference has an \"email\""),
        ("event_type: a, kind: set, path: ticket.a, enabled: no", "write true or false"),
        ("event_type: a, kind: set, path: ticket.a, field: ''", "\"rules.field\" is empty"),
        ("event_type: a, kind: set, path: ticket.a, fild: b", "did you mean \"field\"?"),
        ("event_type: {on: a}, kind: set, path: ticket.a", "only a flag (on, off) and a map"),
        ("event_type: {on: a}, kind: map, path: ticket.a", "is not known in \"event_type of a map\""),
        ("event_type: {added: a}, kind: flag, path: ticket.a", "is not known in \"event_type of a flag\""),
        ("event_type: {}, kind: flag, path: ticket.a", "the rule derives nothing"),
        ("event_type: {on: }, kind: flag, path: ticket.a", "the rule derives nothing"),
        ("event_type: [a], kind: map, path: ticket.a", "\"event_type of a map\" is a list"),
        ("event_type: 'a b', kind: set, path: ticket.a", "must be a Kafka name"),
        ("event_type: '${E}', kind: set, path: ticket.a", "is empty, for E is not set"),
        ("event_type: 'ticket:updated', kind: set, path: ticket.a", "never derived"),
        ("event_type: 'ticket:comment:created', kind: set, path: ticket.a", "never derived"),
        ("event_type: 'ticket:tag:updated', kind: map, path: ticket.a", "is derived of a set only"),
        ("event_type: 'ticket:escalated', kind: flag, path: ticket.a", "is derived of a flag on only"),
        ("event_type: {off: 'ticket:archived'}, kind: flag, path: ticket.a", "is derived of a flag on only"),
        ("event_type: {added: 'ticket:migrated'}, kind: map, path: ticket.a", "of a reference only"),
    ] {
        check_holds(&one(text), 2, part);
    }
    check_holds("rules: {}\n", 1, "\"rules\" is no list");
    check_holds("rules:\n- \n- a\n", 3, "\"rules\" is a single value");
    check_holds("rules:\n-\n", 2, "a rule has no value");
    let twice = "rules:\n- {event_type: a, kind: set, path: ticket.a}\n- {event_type: a, kind: set, path: ticket.b}\n";
    check(twice, &["3: the rule on line 2 derives \"a\" too; give each rule event types of its own"]);
    // A disabled rule is in nobody's way.
    parsed(&twice.replacen("ticket.a", "ticket.a, enabled: false", 1));
    // The way back of a built-in type may be the user's own.
    parsed(&one("event_type: {on: 'ticket:escalated', off: 'ticket:calmed'}, kind: flag, path: ticket.hot"));
}

#[test]
fn what_would_break_the_guarantee_is_refused_by_name() {
    for section in ["properties", "consumer", "producer"] {
        for (name, reason) in REFUSED {
            let text = format!("kafka:\n  {section}:\n    {name}: 1\n");
            check(
                &text,
                &[&format!("3: the property \"{name}\" is the pipeline's to set: {reason}; remove it")],
            );
        }
    }
    for name in [
        "enable.auto.commit",
        "enable.auto.offset.store",
        "isolation.level",
        "transactional.id",
        "enable.idempotence",
        "acks",
        "group.id",
        "group.instance.id",
        "auto.offset.reset",
        "partition.assignment.strategy",
        "max.in.flight.requests.per.connection",
        "retries",
        "enable.gapless.guarantee",
        "delivery.report.only.error",
        "enable.partition.eof",
        "bootstrap.servers",
    ] {
        assert!(REFUSED.iter().any(|(refused, _)| *refused == name), "{name}");
    }
}

#[test]
fn kafkas_properties_are_checked_without_connecting() {
    let one = |section: &str, property: &str| format!("kafka:\n  {section}:\n    {property}\n");
    check_holds(&one("producer", "linger.msec: 5"), 3, "did you mean \"linger.ms\"?");
    check_holds(&one("producer", "ssl_key: 5"), 3, "librdkafka has no property \"ssl_key\"");
    check_holds(&one("producer", "ut_handle_ProduceResponse: 5"), 3, "librdkafka has no property");
    check_holds(&one("producer", "linger.ms: soon"), 3, "\"linger.ms\" is \"soon\"");
    check_holds(&one("producer", "batch.size: 0"), 3, "outside allowed range");
    check_holds(&one("producer", "client.id: [a]"), 3, "has no single value");
    check_holds(&one("producer", "client.id: \"a\\0b\""), 3, "which no property can be");
    check_holds(&one("producer", "client.id: ${ME}"), 3, "is empty, for ME is not set");
    check_holds(&one("producer", "check.crcs: true"), 3, "move it to \"kafka.consumer\"");
    check_holds(&one("properties", "linger.ms: 5"), 3, "move it to \"kafka.producer\"");
    check_holds(&one("properties", "security.protocol: tls"), 3, "\"security.protocol\" is \"tls\"");
    check_holds(
        &one("producer", "linger.ms: 5\n    queue.buffering.max.ms: 6"),
        4,
        "says the same as line 3",
    );
    check_holds(&one("producer", "transaction.timeout.ms: 9999"), 3, "write 10000 ");
    check_holds(
        &(one("producer", "transaction.timeout.ms: 12000") + "runtime: {commit_interval: 5s}\n"),
        3,
        "write 15000 ",
    );
    let text = one("producer", "transaction.timeout.ms: 12000\n    socket.timeout.ms: 13000");
    check_holds(&text, 4, "write at most 12000");
    check_holds(&one("properties", "socket.timeout.ms: 60000"), 3, "write at most 15000");
    parsed(&one("consumer", "socket.timeout.ms: 60000"));
    parsed(&one("producer", "socket.timeout.ms: 60000\n    transaction.timeout.ms: 60000"));
    let text = one("consumer", "group.protocol: consumer\n    session.timeout.ms: 6000");
    check_holds(&text, 4, "the broker decides \"session.timeout.ms\"");
    parsed(&text.replace("protocol: consumer", "protocol: classic"));
    let text = one("consumer", "max.poll.interval.ms: 6000\n    session.timeout.ms: 7000");
    check_holds(&text, 3, "is shorter than");
    for brokers in ["''", "'a:'", "'a:0'", "'a:b'", "'a,,b'", "'a b'", "[a]", "{a: b}"] {
        check_holds(&format!("kafka:\n  brokers: {brokers}"), 2, "write host:port");
    }
}

#[test]
fn librdkafka_knows_every_property_that_may_be_set() {
    let defaults = ClientConfig::new().create_native_config().unwrap();
    for name in COMMON.iter().chain(CONSUMER).chain(PRODUCER) {
        assert!(!REFUSED.iter().any(|(refused, _)| refused == name), "{name} is refused too");
        // A build without a feature knows its properties by name and refuses their values.
        let error = ClientConfig::new().set(*name, "\u{1}").create_native_config().err();
        let unknown = error.is_some_and(|error| error.to_string().contains("No such configuration property"));
        assert!(!unknown, "{name}");
    }
    for (alias, name) in ALIASES {
        assert_eq!(defaults.get(alias).ok(), defaults.get(name).ok(), "{alias}");
    }
}

#[test]
fn secrets_are_never_shown() {
    let mut text = "kafka:\n  properties:\n".to_owned();
    let secrets = [
        "sasl.username",
        "sasl.password",
        "sasl.oauthbearer.config",
        "ssl.key.location",
        "ssl.key.password",
        "ssl.key.pem",
        "ssl.keystore.password",
    ];
    for name in secrets {
        writeln!(text, "    {name}: hunter2").unwrap();
    }
    let topology = parsed(&text);
    assert_eq!(topology.kafka.properties.len(), secrets.len());
    assert!(topology.kafka.properties.iter().all(|(_, value)| value == "hunter2"));
    assert!(!format!("{topology:?}").contains("hunter2"));
    assert!(topology.kafka.masked_properties().all(|(_, _, value)| value == "********"));

    let wrong = "kafka:\n  properties:\n    sasl.pasword: hunter2\n    sasl.password: [hunter2]\n    \
                 ssl.key.pem: \"hunter2\\0\"\n    sasl.oauthbearer.client.secret: hunter2\n    \
                 group.id: hunter2\n    ssl.key.password: hunter2${\n  password: hunter2\npassword: hunter2\n";
    let mistakes = Topology::parse("t.yaml", wrong, &empty).unwrap_err();
    assert!(mistakes.iter().len() >= 6, "{mistakes}");
    assert!(!format!("{mistakes}{mistakes:?}").contains("hunter2"), "{mistakes}");
}

#[test]
fn a_file_that_cannot_be_read_is_a_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("topology.yaml");
    let mistakes = Topology::load(&path).unwrap_err().to_string();
    assert!(
        mistakes.contains("topology.yaml: read the file: ") && mistakes.contains("--topology"),
        "{mistakes}"
    );
    std::fs::write(&path, b"group: a\n# \xff\n").unwrap();
    let mistakes = Topology::load(&path).unwrap_err().to_string();
    assert!(mistakes.contains("topology.yaml:2: this is not UTF-8; "), "{mistakes}");
    std::fs::write(&path, "\u{feff}group: a\r\nsource:\r\n  topic: b\r\n").unwrap();
    let topology = Topology::load(&path).unwrap();
    assert_eq!((topology.group.as_str(), topology.source.topic.as_str()), ("a", "b"));
}

#[test]
fn durations_and_sizes_are_written_as_they_are_read() {
    for (text, duration_ms) in [
        ("100ms", 100),
        ("30s", 30_000),
        ("90s", 90_000),
        ("5m", 300_000),
        ("48h", 172_800_000),
        ("7d", 604_800_000),
    ] {
        assert_eq!(section::duration_ms(text), Some(duration_ms));
        assert_eq!(written_duration(duration_ms), text);
    }
    assert_eq!(section::duration_ms("2 h"), Some(7_200_000));
    for text in
        ["", "5", "h", "-1s", "+1s", "1.5s", "1 hour", "1H", "99999999999999999999s", "9999999999999999d"]
    {
        assert_eq!(section::duration_ms(text), None, "{text}");
    }
    for (size_bytes, text) in [(0, "0B"), (1000, "1000B"), (262_144, "256KiB"), (1 << 30, "1GiB")] {
        assert_eq!(written_size(size_bytes), text);
    }
}

/// Something like a topology: the shipped one with pieces cut out and put in.
fn mangled() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[-\\[\\]{}:,#&*!|>'\"%@`$?~ \\t\\n\\\\a1é]{0,4}",
        Just("${".to_owned()),
        Just("\n- ".to_owned()),
        Just(": ".to_owned()),
        Just("\u{0}".to_owned()),
    ];
    let edits = prop::collection::vec((any::<prop::sample::Index>(), 0..40_usize, piece), 1..8);
    edits.prop_map(|edits| {
        let mut text: Vec<char> = SHIPPED.chars().collect();
        for (at, cut, piece) in edits {
            let from = at.index(text.len() + 1);
            let to = (from + cut).min(text.len());
            text.splice(from..to, piece.chars());
        }
        text.into_iter().collect()
    })
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC*|[-\\[\\]{}:,#&*!|>'\"%@`$?~ \\t\\n\\r\\\\a1]*") {
        let _ = Topology::parse("t.yaml", &text, &empty);
    }

    #[test]
    fn no_mangled_topology_panics(text in mangled()) {
        if let Err(mistakes) = Topology::parse("t.yaml", &text, &empty) {
            prop_assert!(mistakes.iter().len() > 0);
            let lines = text.lines().count() + 1;
            prop_assert!(mistakes.iter().all(|mistake| mistake.line <= lines && !mistake.remedy.is_empty()));
        }
    }
}
