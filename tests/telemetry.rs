//! What is told of a run equals what happened in it, on the page for Prometheus
//! and by OTLP alike.

use std::collections::BTreeMap;
use std::sync::Arc;

use ticket_pipeline::task::Fate;
use ticket_pipeline::telemetry::metrics::{METRICS, label};
use ticket_pipeline::topology::Topology;

use crate::collector::{Collector, attributes, metrics_of, numbers};
use crate::datasets::NASTY;
use crate::pages::{Pages, served};
use crate::pipeline::{Pipeline, Settings};
use crate::story::{in_every_partition, opened};
use crate::tasks::Tasks;
use crate::wait;

const COMMITTED: &[(&str, &str)] = &[("ticket_outcome", "committed")];

/// The samples of a page: a line's name and labels, and its number.
struct Samples(BTreeMap<String, f64>);

impl Samples {
    fn of(pages: &Pages) -> Samples {
        let (code, text) = pages.get("/metrics");
        assert_eq!(code, 200, "{text}");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let samples = lines.map(|line| {
            let (name, number) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
            (name.to_owned(), number.parse().unwrap_or_else(|error| panic!("{line}: {error}")))
        });
        Samples(samples.collect())
    }

    /// The sum of a metric's samples that have these labels.
    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has =
            |sample: &str, (name, value): &(&str, &str)| sample.contains(&format!("{name}=\"{value}\""));
        let samples = self.0.iter().filter(|(sample, _)| sample.split('{').next() == Some(name));
        samples
            .filter(|(sample, _)| labels.iter().all(|label| has(sample, label)))
            .map(|(_, number)| number)
            .sum()
    }
}

/// What the tasks make of the records, which are held against the expected files elsewhere.
#[derive(Debug, Default, PartialEq)]
struct Happened {
    records: f64,
    duplicates: f64,
    late: f64,
    truncated: f64,
    natives_dropped: f64,
    twins_dropped: f64,
    /// By event type and outcome.
    consumed: BTreeMap<(String, &'static str), f64>,
    /// By contract topic and origin.
    sent: BTreeMap<(String, String), f64>,
    dead_letters: BTreeMap<&'static str, f64>,
}

impl Happened {
    fn in_tasks(topology: &Arc<Topology>) -> Happened {
        let mut tasks = Tasks::in_memory(topology);
        let mut happened = Happened::default();
        for raw in NASTY.raw() {
            let (outcome, lines) = tasks.process(&raw);
            happened.records += 1.0;
            happened.late += f64::from(u8::from(outcome.late));
            happened.truncated += f64::from(outcome.truncated);
            happened.twins_dropped += f64::from(outcome.twins_dropped);
            let word = match outcome.fate {
                Fate::Emitted => "emitted",
                Fate::Duplicate => "duplicate",
                Fate::Dropped => "dropped",
                Fate::Rekeyed => "rekeyed",
                Fate::DeadLetter(code) => {
                    *happened.dead_letters.entry(code.as_str()).or_default() += 1.0;
                    "dead_letter"
                }
            };
            happened.duplicates += f64::from(u8::from(word == "duplicate"));
            happened.natives_dropped += f64::from(u8::from(word == "dropped"));
            if let Some(event_type) = outcome.event_type {
                let name = topology.event_types[event_type].name.clone();
                *happened.consumed.entry((name, word)).or_default() += 1.0;
            }
            for line in lines {
                let origin = line.origin.expect("a task says where a record comes from");
                let origin = if origin == "dlq" { "dead_letter".to_owned() } else { origin };
                *happened.sent.entry((line.topic, origin)).or_default() += 1.0;
            }
        }
        happened
    }
}

#[test]
fn the_metrics_count_what_happened() {
    let pipeline = Pipeline::new("metrics", &served());
    pipeline.feed(&NASTY);
    let process = pipeline.start("a");
    let pages = Pages::of(&process);
    pipeline.wait_until_caught_up();
    let happened = Happened::in_tasks(&Arc::new(Topology::shipped()));
    let samples = wait::until("the last commit is told, the lag known, and no partition on its way", || {
        let samples = Samples::of(&pages);
        let runs = samples.sum("ticket_tasks", &[("ticket_task_state", "running")]) == 4.0;
        let ready = samples.sum("ticket_ready", &[]) == 1.0;
        // What a worker measures of a transaction it notes one by one behind what it publishes.
        let committed = samples.sum("ticket_transaction_duration_seconds_count", COMMITTED);
        let told = samples.sum("messaging_client_consumed_messages_total", &[]) >= happened.records
            && samples.sum("ticket_transaction_records_sum", &[]) >= happened.records
            && samples.sum("ticket_latency_seconds_count", &[]) >= happened.records
            && samples.sum("ticket_transaction_records_count", &[]) == committed;
        (told && runs && ready && samples.0.keys().any(|name| name.starts_with("ticket_lag{")))
            .then_some(samples)
    });

    let consumed = "messaging_client_consumed_messages_total";
    assert_eq!(samples.sum(consumed, &[]), happened.records);
    for ((event_type, outcome), count) in &happened.consumed {
        let labels = [("ticket_event_type", event_type.as_str()), ("ticket_outcome", outcome)];
        assert_eq!(samples.sum(consumed, &labels), *count, "{event_type} {outcome}");
    }
    let sent = "messaging_client_sent_messages_total";
    for ((topic, origin), count) in &happened.sent {
        let topic = pipeline.topic(topic);
        let labels = [("messaging_destination_name", topic.as_str()), ("ticket_origin", origin)];
        assert_eq!(samples.sum(sent, &labels), *count, "{topic} {origin}");
    }
    assert_eq!(samples.sum(sent, &[]), happened.sent.values().sum::<f64>());
    assert!(!happened.dead_letters.is_empty() && happened.duplicates > 0.0 && happened.late > 0.0);
    for (code, count) in &happened.dead_letters {
        assert_eq!(samples.sum("ticket_dead_letters_total", &[("error_type", code)]), *count, "{code}");
    }
    assert_eq!(samples.sum("ticket_duplicates_total", &[]), happened.duplicates);
    assert_eq!(samples.sum("ticket_late_total", &[]), happened.late);
    assert_eq!(samples.sum("ticket_truncated_total", &[]), happened.truncated);
    let twins = |origin| samples.sum("ticket_twins_dropped_total", &[("ticket_origin", origin)]);
    assert_eq!(twins("native"), happened.natives_dropped);
    assert_eq!(twins("derived"), happened.twins_dropped);

    assert_eq!(samples.sum("ticket_latency_seconds_count", &[]), happened.records);
    let transactions = samples.sum("ticket_transaction_duration_seconds_count", COMMITTED);
    assert!(transactions > 0.0);
    assert_eq!(samples.sum("ticket_transaction_records_sum", &[]), happened.records);
    assert_eq!(samples.sum("ticket_transaction_records_count", &[]), transactions);
    assert_eq!(samples.sum("ticket_lag", &[]), 0.0);
    assert_eq!(samples.sum("ticket_tasks", &[("ticket_task_state", "running")]), 4.0);
    assert_eq!(samples.sum("ticket_ready", &[]), 1.0);
    assert!(samples.sum("ticket_rebalances_total", &[]) >= 1.0);
    assert!(samples.sum("ticket_store_memory_bytes", &[]) > 0.0);
    process.end_well();
}

#[test]
fn no_label_is_anything_but_what_the_table_says() {
    let pipeline = Pipeline::new("labels", &served());
    pipeline.feed(&NASTY);
    let process = pipeline.start("a");
    let pages = Pages::of(&process);
    pipeline.wait_until_caught_up();
    let labels: Vec<String> =
        METRICS.iter().flat_map(|metric| metric.attributes).map(|name| label(name)).collect();
    let (_, text) = pages.get("/metrics");
    let ours = |line: &&str| !line.starts_with('#') && !line.starts_with("target_info");
    for line in text.lines().filter(ours) {
        let Some((_, rest)) = line.split_once('{') else { continue };
        let (inside, _) = rest.rsplit_once('}').expect("what opens closes");
        for named in inside.split("\",").filter(|named| !named.is_empty()) {
            let (name, _) = named.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            assert!(name == "le" || labels.iter().any(|known| known == name), "{name} in {line}");
        }
    }
    process.end_well();
}

#[test]
fn a_restore_is_told_while_and_after_it_happens() {
    // With one worker no partition is on its way when all that it has run.
    let pipeline = Pipeline::new("restore-told", &Settings { workers: 1, ..served() });
    pipeline.feed(&NASTY);
    pipeline.run_until_caught_up();
    pipeline.lose_disk("a");
    let process = pipeline.start("a");
    let pages = Pages::of(&process);
    pages.wait_until_ready();
    let read: i64 = process.log().numbers("restored", "records").iter().sum();
    assert!(read > 0);
    let samples = Samples::of(&pages);
    assert_eq!(
        samples.sum("ticket_restore_records_total", &[("ticket_restore_phase", "restore")]),
        read as f64
    );
    assert_eq!(samples.sum("ticket_restore_remaining", &[]), 0.0);
    process.end_well();
}

#[test]
fn the_same_numbers_are_pushed_by_otlp_the_last_ones_at_the_end() {
    let collector = Collector::start();
    let pipeline = Pipeline::new("otlp", &served());
    pipeline.feed(&NASTY);
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint()),
        ("OTEL_SERVICE_NAME", "tickets-of-the-test".to_owned()),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test".to_owned()),
        ("OTEL_METRIC_EXPORT_INTERVAL", "100".to_owned()),
    ];
    let environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let process = pipeline.start_in(&environment, &[]);
    pipeline.wait_until_caught_up();
    wait::until("it is pushed while it runs", || (!collector.metrics().is_empty()).then_some(()));
    let while_it_ran = collector.metrics().len();
    process.end_well();

    let pushed = collector.metrics();
    assert!(pushed.len() > while_it_ran, "and at the end");
    let last = pushed.last().expect("there is one");
    let resource = last.resource_metrics[0].resource.as_ref().expect("a push says whose it is");
    let whose = attributes(&resource.attributes);
    for (name, value) in [
        ("service.name", "tickets-of-the-test"),
        ("service.instance.id", "a"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("deployment.environment.name", "test"),
    ] {
        assert!(whose.contains(&(name.to_owned(), value.to_owned())), "{name} in {whose:?}");
    }
    let happened = Happened::in_tasks(&Arc::new(Topology::shipped()));
    let metric = |name: &str| metrics_of(last).find(|metric| metric.name == name).expect("it is pushed");
    let consumed = metric("messaging.client.consumed.messages");
    assert_eq!(consumed.unit, "{message}");
    assert_eq!(numbers(consumed).iter().map(|(_, number)| number).sum::<f64>(), happened.records);
    let dead_letters: BTreeMap<String, f64> = numbers(metric("ticket.dead_letters"))
        .into_iter()
        .filter(|(_, count)| *count > 0.0)
        .map(|(attributes, count)| (attributes[0].1.clone(), count))
        .collect();
    let expected: BTreeMap<String, f64> =
        happened.dead_letters.into_iter().map(|(code, count)| (code.to_owned(), count)).collect();
    assert_eq!(dead_letters, expected);
}

#[test]
fn a_collector_that_is_gone_is_told_once_and_harms_nothing() {
    // The port that no service is given.
    let endpoint = "http://127.0.0.1:1";
    let pipeline = Pipeline::new("otlp-gone", &served());
    pipeline.append(in_every_partition("T").iter().map(|uid| opened(uid)));
    let environment =
        [("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", endpoint), ("OTEL_METRIC_EXPORT_INTERVAL", "20")];
    let process = pipeline.start_in(&environment, &[]);
    wait::until("it is told", || {
        (!process.log().lines("OTLP export does not work").is_empty()).then_some(())
    });
    pipeline.wait_until_caught_up();
    let log = process.end_well();
    assert_eq!(log.lines("OTLP export does not work").len(), 1, "{}", log.0);
    pipeline.assert_emitted_as_expected();
}

#[test]
fn what_is_switched_off_is_not_pushed() {
    let collector = Collector::start();
    let pipeline = Pipeline::new("otlp-off", &served());
    pipeline.append(in_every_partition("T").iter().map(|uid| opened(uid)));
    for (name, value) in [("OTEL_SDK_DISABLED", "true"), ("OTEL_METRICS_EXPORTER", "none")] {
        let endpoint = collector.endpoint();
        let environment = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), (name, value)];
        let ended = pipeline.start_in(&environment, &["--until-caught-up"]).wait();
        assert_eq!(ended.status.code(), Some(0), "{}", ended.log.0);
        assert!(collector.metrics().is_empty(), "{name}");
    }
}

#[test]
fn a_protocol_that_is_not_spoken_ends_the_run_before_it_connects() {
    let pipeline = Pipeline::without_topics("otlp-grpc", &served());
    let environment =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")];
    let ended = pipeline.start_in(&environment, &[]).wait();
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.log.0.contains("only http/protobuf is spoken"), "{}", ended.log.0);
}
