//! Traces: a span for each transaction, and one for the processing of a record
//! whose `traceparent` says that its trace is sampled.
//!
//! A record's span is a child of the span that its producer named, and linked to
//! its transaction's. A record without a `traceparent`, or with one that is not
//! sampled, has none: who publishes a ticket event decides whether it is
//! followed. What leaves carries the source's `traceparent` as it came, for its
//! bytes are the contract's; so consumers' spans and ours are siblings.

use std::time::SystemTime;

use anyhow::{Context as _, Result};
use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags,
    TraceId, TraceState, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span};

use super::metrics::{ERROR, EVENT_TYPE, GROUP, OPERATION, OUTCOME, PARTITION, SYSTEM, TOPIC};
use super::otlp::Told;
use super::{Outcome, SCOPE};
use crate::record::RawRecord;
use crate::stage::Stage;
use crate::task::{self, Fate};
use crate::topology::Topology;

/// One transaction has at most so many spans of records; the others are counted in its own.
const RECORD_SPANS_MAX: usize = 100;

/// A tracer, or none; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Traces {
    tracer: Option<SdkTracer>,
}

/// A transaction's span, and those of its records. Dropped before its end is
/// known, it says that the transaction was not committed.
#[derive(Debug)]
pub struct Transaction<'t> {
    open: Option<Box<Open<'t>>>,
}

#[derive(Debug)]
struct Open<'t> {
    tracer: &'t SdkTracer,
    topology: &'t Topology,
    stage: Stage,
    span: Span,
    /// Each with when its processing ended.
    records: Vec<(Span, SystemTime)>,
    records_left_out: i64,
    is_over: bool,
}

/// A provider that pushes spans by OTLP, as the `OTEL_*` variables say.
pub(super) fn provider(resource: Resource) -> Result<SdkTracerProvider> {
    let exporter = SpanExporter::builder().with_http().build().context("set up OTLP for traces")?;
    let exporter = Told::new(exporter, "traces");
    Ok(SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build())
}

impl Traces {
    pub(super) fn of(provider: Option<&SdkTracerProvider>) -> Traces {
        Traces { tracer: provider.map(|provider| provider.tracer(SCOPE)) }
    }

    /// A transaction begins. Where there is no tracer, nothing is done here or by what comes back.
    #[must_use]
    pub fn transaction<'t>(&'t self, topology: &'t Topology, stage: Stage) -> Transaction<'t> {
        let open = self.tracer.as_ref().map(|tracer| {
            let builder = SpanBuilder::from_name("transaction").with_attributes([
                KeyValue::new(SYSTEM, "kafka"),
                KeyValue::new(TOPIC, stage.topic(topology).to_owned()),
                KeyValue::new(GROUP, stage.group(topology)),
            ]);
            let span = builder.start_with_context(tracer, &Context::new());
            Box::new(Open {
                tracer,
                topology,
                stage,
                span,
                records: Vec::new(),
                records_left_out: 0,
                is_over: false,
            })
        });
        Transaction { open }
    }
}

impl Transaction<'_> {
    /// When a record's processing begins, where it is traced.
    #[must_use]
    pub fn begin(&self, raw: &RawRecord<'_>) -> Option<(SpanContext, SystemTime)> {
        self.open.as_ref()?;
        Some((producers_span(raw).filter(SpanContext::is_sampled)?, SystemTime::now()))
    }

    /// A record that is traced was processed.
    pub fn processed(
        &mut self,
        raw: &RawRecord<'_>,
        begun: (SpanContext, SystemTime),
        outcome: &task::Outcome,
    ) {
        let Some(open) = &mut self.open else { return };
        if open.records.len() >= RECORD_SPANS_MAX {
            open.records_left_out += 1;
            return;
        }
        let (parent, began_at) = begun;
        let topic = open.stage.topic(open.topology);
        let mut attributes = vec![
            KeyValue::new(SYSTEM, "kafka"),
            KeyValue::new(OPERATION, "process"),
            KeyValue::new("messaging.operation.type", "process"),
            KeyValue::new(TOPIC, topic.to_owned()),
            KeyValue::new(PARTITION, raw.partition.to_string()),
            KeyValue::new("messaging.kafka.offset", raw.offset),
            KeyValue::new(GROUP, open.stage.group(open.topology)),
            KeyValue::new("ticket.derived", i64::from(outcome.derived)),
        ];
        let word = match outcome.fate {
            Fate::Emitted => "emitted",
            Fate::Duplicate => "duplicate",
            Fate::Dropped => "dropped",
            Fate::Rekeyed => "rekeyed",
            Fate::DeadLetter(code) => {
                attributes.push(KeyValue::new(ERROR, code.as_str()));
                "dead_letter"
            }
        };
        attributes.push(KeyValue::new(OUTCOME, word));
        if let Some(of) = outcome.event_type.and_then(|index| open.topology.event_types.get(index)) {
            attributes.push(KeyValue::new(EVENT_TYPE, of.name.clone()));
        }
        let mut span = SpanBuilder::from_name(format!("process {topic}"))
            .with_kind(SpanKind::Consumer)
            .with_start_time(began_at)
            .with_attributes(attributes)
            .with_links(vec![Link::with_context(open.span.span_context().clone())])
            .start_with_context(open.tracer, &Context::new().with_remote_span_context(parent));
        if matches!(outcome.fate, Fate::DeadLetter(_)) {
            span.set_status(Status::error("it went to the dead-letter topic"));
        }
        open.records.push((span, SystemTime::now()));
    }

    /// The transaction has ended, and so have the spans.
    pub fn end(mut self, outcome: Outcome, records: usize) {
        if let Some(open) = &mut self.open {
            open.span.set_attribute(KeyValue::new(
                "messaging.batch.message_count",
                i64::try_from(records).unwrap_or(i64::MAX),
            ));
            open.end(outcome);
        }
    }
}

impl Open<'_> {
    fn end(&mut self, outcome: Outcome) {
        self.is_over = true;
        for (mut span, ended_at) in self.records.drain(..) {
            if outcome != Outcome::Committed {
                span.set_status(Status::error("its transaction was not committed"));
            }
            span.end_with_timestamp(ended_at);
        }
        if self.records_left_out > 0 {
            self.span.set_attribute(KeyValue::new("ticket.records_left_out", self.records_left_out));
        }
        self.span.set_attribute(KeyValue::new(OUTCOME, outcome.as_str()));
        if outcome != Outcome::Committed {
            self.span.set_status(Status::error("not committed"));
        }
        self.span.end();
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.end(Outcome::Aborted);
        }
    }
}

/// The span that a record's `traceparent` names; the first one counts.
fn producers_span(raw: &RawRecord<'_>) -> Option<SpanContext> {
    let value = |wanted: &[u8]| {
        let (_, value) = raw.headers.iter().find(|(name, _)| *name == wanted)?;
        std::str::from_utf8((*value)?).ok()
    };
    let (trace_id, span_id, flags) = parse_traceparent(value(b"traceparent")?.trim())?;
    let state = value(b"tracestate").and_then(|state| state.parse::<TraceState>().ok()).unwrap_or_default();
    let context = SpanContext::new(trace_id, span_id, flags, true, state);
    context.is_valid().then_some(context)
}

/// W3C Trace Context: `version-trace-span-flags`, in lower-case hexadecimal.
fn parse_traceparent(text: &str) -> Option<(TraceId, SpanId, TraceFlags)> {
    let mut parts = text.split('-');
    let mut next = |length: usize| {
        let part = parts.next()?;
        let is_hex = part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (part.len() == length && is_hex).then_some(part)
    };
    let (version, trace, span, flags) = (next(2)?, next(32)?, next(16)?, next(2)?);
    // Version 0 ends here; a later one may go on, and 255 is none.
    if version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    Some((TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?, flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_read_as_w3c_says() {
        let (trace, span, flags) = parse_traceparent(SAMPLED).unwrap();
        assert_eq!(trace.to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(span.to_string(), "b7ad6b7169203331");
        assert!(flags.is_sampled());
        assert!(!parse_traceparent(&SAMPLED.replace("-01", "-00")).unwrap().2.is_sampled());
        assert!(parse_traceparent(&SAMPLED.replacen("00-", "cc-", 1).replace("-01", "-01-later")).is_some());
        for bad in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
        ] {
            assert!(parse_traceparent(bad).is_none(), "{bad}");
        }
    }

    fn raw<'a>(headers: &'a [(&'a [u8], Option<&'a [u8]>)]) -> RawRecord<'a> {
        RawRecord { partition: 1, offset: 7, timestamp_ms: 0, key: None, value: None, headers }
    }

    #[test]
    fn only_a_sampled_record_is_traced_and_none_where_there_is_no_tracer() {
        let topology = Topology::shipped();
        let off = Traces::default();
        let sampled = [(&b"traceparent"[..], Some(SAMPLED.as_bytes()))];
        assert!(off.transaction(&topology, Stage::Tickets).begin(&raw(&sampled)).is_none());

        let provider = SdkTracerProvider::builder().build();
        let on = Traces::of(Some(&provider));
        let transaction = on.transaction(&topology, Stage::Tickets);
        let (parent, _) = transaction.begin(&raw(&sampled)).unwrap();
        assert!(parent.is_remote() && parent.is_sampled());
        let unsampled = SAMPLED.replace("-01", "-00");
        let zero = "00-00000000000000000000000000000000-b7ad6b7169203331-01";
        for headers in [
            &[][..],
            &[(&b"traceparent"[..], None)],
            &[(&b"traceparent"[..], Some(unsampled.as_bytes()))],
            &[(&b"traceparent"[..], Some(zero.as_bytes()))],
        ] {
            assert!(transaction.begin(&raw(headers)).is_none(), "{headers:?}");
        }
    }
}
