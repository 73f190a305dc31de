//! A ticket event whose trace is sampled is followed through the pipeline, and
//! nothing that leaves is changed by it.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use ticket_pipeline::lines::RawLine;

use crate::collector::{Collector, attributes};
use crate::pipeline::{Pipeline, Settings};
use crate::story::{in_every_partition, moved, opened, record};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PRODUCER: &str = "b7ad6b7169203331";

/// A record as a producer sends it that traces.
fn traced(mut raw: RawLine, flags: &str) -> RawLine {
    let traceparent = format!("00-{TRACE}-{PRODUCER}-{flags}");
    raw.headers.push((b"traceparent".to_vec(), Some(traceparent.into_bytes())));
    raw
}

fn run(pipeline: &Pipeline, environment: &[(&str, &str)]) {
    let ended = pipeline.start_in(environment, &["--until-caught-up"]).wait();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.log.0);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn told(span: &Span) -> BTreeMap<String, String> {
    attributes(&span.attributes).into_iter().collect()
}

#[test]
fn a_sampled_record_has_a_span_in_its_trace_that_is_linked_to_its_transactions() {
    let collector = Collector::start();
    let pipeline = Pipeline::new("traced", &Settings { workers: 1, ..Settings::default() });
    let uid = &in_every_partition("T")[2];
    pipeline.append([
        opened(uid),
        traced(moved(uid, "closed"), "01"),
        traced(moved(uid, "open"), "00"),
        traced(record(uid, b"no JSON"), "01"),
    ]);
    run(&pipeline, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint())]);

    let spans = collector.spans();
    let (records, transactions): (Vec<&Span>, Vec<&Span>) =
        spans.iter().partition(|span| span.name.starts_with("process "));
    assert_eq!(records.len(), 2, "the sampled ones: {records:?}");
    for span in &records {
        assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (TRACE.to_owned(), PRODUCER.to_owned()));
        assert_eq!(span.links.len(), 1);
        let linked = transactions.iter().find(|transaction| transaction.span_id == span.links[0].span_id);
        let transaction = linked.expect("a record is linked to the transaction that it was in");
        assert_eq!(transaction.name, "transaction");
        assert_eq!(told(transaction)["ticket.outcome"], "committed");
        let inside = transaction.start_time_unix_nano <= span.start_time_unix_nano
            && span.end_time_unix_nano <= transaction.end_time_unix_nano;
        assert!(inside, "{span:?} in {transaction:?}");
    }
    let by_outcome: BTreeMap<String, &Span> =
        records.iter().map(|span| (told(span)["ticket.outcome"].clone(), *span)).collect();
    let emitted = told(by_outcome["emitted"]);
    assert_eq!(emitted["ticket.event.type"], "ticket:updated");
    assert_eq!(emitted["messaging.destination.partition.id"], "2");
    assert!(emitted["ticket.derived"].contains('1'), "{emitted:?}");
    let dead = by_outcome["dead_letter"];
    assert_eq!(told(dead)["error.type"], "not_json");
    assert_eq!(dead.status.as_ref().map(|status| status.code), Some(StatusCode::Error as i32));
    // What leaves carries the source's traceparent as it came.
    pipeline.assert_emitted_as_expected();
    let carried = pipeline.emitted().iter().filter_map(|line| line.header("traceparent")).count();
    assert_eq!(carried, 5, "two updates with a change each, and a dead letter");
}

#[test]
fn who_does_not_want_traces_has_none() {
    let collector = Collector::start();
    let pipeline = Pipeline::new("untraced", &Settings { workers: 1, ..Settings::default() });
    let endpoint = collector.endpoint();
    let uid = &in_every_partition("T")[0];
    for (number, off) in
        [("OTEL_TRACES_SAMPLER", "always_off"), ("OTEL_TRACES_EXPORTER", "none")].into_iter().enumerate()
    {
        pipeline.append([traced(moved(uid, &format!("step-{number}")), "01")]);
        run(&pipeline, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), off]);
        assert!(collector.spans().is_empty(), "{off:?}");
    }
    assert!(!collector.metrics().is_empty(), "metrics are another matter");
}
