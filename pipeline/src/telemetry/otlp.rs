//! Pushing by OTLP, as the standard `OTEL_*` variables say. It is off where none
//! of them names an endpoint.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use opentelemetry::KeyValue;
use opentelemetry_otlp::MetricExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{PeriodicReader, Temporality};
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

/// What can be pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    Metrics,
    Traces,
}

impl Signal {
    fn word(self) -> &'static str {
        match self {
            Signal::Metrics => "METRICS",
            Signal::Traces => "TRACES",
        }
    }
}

/// The value of a variable that is set and not empty.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// Whether a signal is to be pushed.
///
/// # Errors
/// Where it is, by a protocol that is not spoken here.
pub(super) fn is_wanted(signal: Signal, variable: impl Fn(&str) -> Option<String>) -> Result<bool> {
    let word = signal.word();
    let is = |name: &str, value: &str| {
        variable(name).is_some_and(|found| found.trim().eq_ignore_ascii_case(value))
    };
    if is("OTEL_SDK_DISABLED", "true") || is(&format!("OTEL_{word}_EXPORTER"), "none") {
        return Ok(false);
    }
    let of_signal = |name: &str| {
        let own = format!("OTEL_EXPORTER_OTLP_{word}_{name}");
        let general = format!("OTEL_EXPORTER_OTLP_{name}");
        [own, general].into_iter().find_map(|name| Some((variable(&name)?, name)))
    };
    if of_signal("ENDPOINT").is_none() {
        return Ok(false);
    }
    if let Some((protocol, name)) = of_signal("PROTOCOL")
        && protocol.trim() != "http/protobuf"
    {
        bail!(
            "{name} is {protocol:?}, and only http/protobuf is spoken: set it to that, and name a collector's HTTP \
             port (4318 by default) in the endpoint"
        );
    }
    Ok(true)
}

/// Who tells: our own words, under those of `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`.
pub(super) fn resource(instance: &str) -> Resource {
    let own = Resource::builder_empty()
        .with_service_name("ticket-pipeline")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("service.instance.id", instance.to_owned()))
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()));
    match variable("OTEL_SERVICE_NAME") {
        Some(name) => own.with_service_name(name).build(),
        None => own.build(),
    }
}

/// A reader that pushes the metrics, every `OTEL_METRIC_EXPORT_INTERVAL` (60 s by default).
pub(super) fn metric_reader() -> Result<PeriodicReader<Told<MetricExporter>>> {
    let exporter = MetricExporter::builder().with_http().build().context("set up OTLP for metrics")?;
    Ok(PeriodicReader::builder(Told::new(exporter, "metrics")).build())
}

/// An exporter that says when it begins to fail and when it works again: the
/// collector's absence is worth a line, not one for each attempt.
pub(super) struct Told<E> {
    exporter: E,
    what: &'static str,
    failing: AtomicBool,
}

impl<E> Told<E> {
    pub(super) fn new(exporter: E, what: &'static str) -> Told<E> {
        Told { exporter, what, failing: AtomicBool::new(false) }
    }

    fn tell(&self, outcome: OTelSdkResult) -> OTelSdkResult {
        let what = self.what;
        match &outcome {
            Ok(()) | Err(OTelSdkError::AlreadyShutdown) => {
                if self.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(what, "OTLP export works again");
                }
            }
            Err(error) => {
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(what, %error, "OTLP export does not work: it is tried again, and not told again");
                }
            }
        }
        outcome
    }
}

impl<E> fmt::Debug for Told<E> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An exporter's headers may hold a secret.
        formatter.debug_struct("Told").field("what", &self.what).finish_non_exhaustive()
    }
}

impl<E: PushMetricExporter> PushMetricExporter for Told<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        self.tell(self.exporter.export(metrics).await)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}

impl<E: SpanExporter> SpanExporter for Told<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.tell(self.exporter.export(batch).await)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(signal: Signal, variables: &[(&str, &str)]) -> Result<bool> {
        is_wanted(signal, |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_signal_is_pushed_where_an_endpoint_is_named() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
        for (variables, metrics, traces) in [
            (&[][..], false, false),
            (&[endpoint], true, true),
            (&[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://localhost:4318/v1/metrics")], true, false),
            (&[endpoint, ("OTEL_TRACES_EXPORTER", "none")], true, false),
            (&[endpoint, ("OTEL_METRICS_EXPORTER", "none")], false, true),
            (&[endpoint, ("OTEL_SDK_DISABLED", "TRUE")], false, false),
            (&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")], true, true),
        ] {
            assert_eq!(wanted(Signal::Metrics, variables).unwrap(), metrics, "{variables:?}");
            assert_eq!(wanted(Signal::Traces, variables).unwrap(), traces, "{variables:?}");
        }
    }

    #[test]
    fn a_protocol_that_is_not_spoken_is_refused_with_a_remedy() {
        let variables =
            [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")];
        let said = wanted(Signal::Metrics, &variables).unwrap_err().to_string();
        assert!(
            said.starts_with("OTEL_EXPORTER_OTLP_PROTOCOL is \"grpc\"") && said.contains("4318"),
            "{said}"
        );
    }
}
