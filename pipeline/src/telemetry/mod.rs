//! OpenTelemetry: one meter provider with two readers, Prometheus's page and
//! OTLP's push; and traces, pushed by OTLP.
//!
//! What is told is in [`metrics`], as data. It knows what workers publish, and
//! neither Kafka nor how a page is served.

mod instruments;
pub mod metrics;
mod observe;
mod otlp;
mod traces;

use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use prometheus::{Registry, TEXT_FORMAT, TextEncoder};

use crate::health::Health;
pub use instruments::{Instruments, Outcome};
use otlp::Signal;
pub use traces::{Traces, Transaction};

const SCOPE: &str = "ticket-pipeline";

/// The process's telemetry. What is not pushed yet is pushed when it ends.
#[derive(Debug)]
pub struct Telemetry {
    provider: SdkMeterProvider,
    tracer_provider: Option<SdkTracerProvider>,
    instruments: Instruments,
    page: MetricsPage,
}

/// The page for Prometheus; clones share it.
#[derive(Debug, Clone)]
pub struct MetricsPage {
    registry: Registry,
}

impl Telemetry {
    /// Begins, as the environment says. `has_page` says that somebody may read the page.
    ///
    /// # Errors
    /// Where a variable says what cannot be done.
    pub fn start(health: &Arc<Health>, has_page: bool) -> Result<Telemetry> {
        let registry = Registry::new();
        let resource = otlp::resource(health.instance());
        let tracer_provider = if otlp::is_wanted(Signal::Traces, otlp::variable)? {
            Some(traces::provider(resource.clone())?)
        } else {
            None
        };
        let mut provider = SdkMeterProvider::builder().with_resource(resource);
        if has_page {
            let page = opentelemetry_prometheus::exporter()
                .with_registry(registry.clone())
                .scope_info_enabled(false)
                .build()
                .context("set up the metrics for Prometheus")?;
            provider = provider.with_reader(page);
        }
        if otlp::is_wanted(Signal::Metrics, otlp::variable)? {
            provider = provider.with_reader(otlp::metric_reader()?);
        }
        let provider = provider.build();
        let meter = provider.meter(SCOPE);
        observe::register(&meter, health);
        let instruments = Instruments::new(&meter);
        Ok(Telemetry { provider, tracer_provider, instruments, page: MetricsPage { registry } })
    }

    /// What workers measure themselves.
    #[must_use]
    pub fn instruments(&self) -> Instruments {
        self.instruments.clone()
    }

    /// How workers trace what they do.
    #[must_use]
    pub fn traces(&self) -> Traces {
        Traces::of(self.tracer_provider.as_ref())
    }

    /// The page for Prometheus.
    #[must_use]
    pub fn page(&self) -> MetricsPage {
        self.page.clone()
    }

    /// Pushes what is not pushed yet, and ends.
    pub fn end(self) {
        // That a collector does not answer has been told where it was tried.
        if let Err(error) = self.provider.shutdown() {
            tracing::debug!(%error, "end the metrics");
        }
        if let Some(Err(error)) = self.tracer_provider.map(|provider| provider.shutdown()) {
            tracing::debug!(%error, "end the traces");
        }
    }
}

impl MetricsPage {
    /// What the page's text is.
    pub const CONTENT_TYPE: &'static str = TEXT_FORMAT;

    /// The page, as of now.
    ///
    /// # Errors
    /// Where the metrics cannot be written as text.
    pub fn text(&self) -> Result<String> {
        let families = self.registry.gather();
        TextEncoder::new().encode_to_string(&families).map_err(|error| anyhow!("write the metrics: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Topology;

    #[test]
    fn the_page_holds_every_metric_by_its_prometheus_name() {
        let health = Arc::new(Health::new(Arc::new(Topology::shipped())));
        let telemetry = Telemetry::start(&health, true).unwrap();
        let instruments = telemetry.instruments();
        instruments.transaction(Outcome::Committed, std::time::Duration::from_millis(30));
        instruments.committed(3, 2_000, [0, i64::MAX, -1].into_iter());
        let text = telemetry.page().text().unwrap();
        // These need a partition.
        let with_tasks = [metrics::LAG, metrics::LAG_TIME, metrics::RESTORE_REMAINING, metrics::STORE_SIZE];
        for metric in metrics::METRICS.iter().filter(|metric| !with_tasks.contains(metric)) {
            let help = format!("# HELP {} {}\n", metric.prometheus_name(), metric.meaning);
            assert!(text.contains(&help), "{help}is not in\n{text}");
        }
        for line in [
            "ticket_transaction_duration_seconds_bucket{ticket_outcome=\"committed\",le=\"0.025\"} 0",
            "ticket_transaction_duration_seconds_bucket{ticket_outcome=\"committed\",le=\"0.05\"} 1",
            "ticket_transaction_records_sum 3",
            "ticket_transaction_size_bytes_sum 2000",
            "ticket_latency_seconds_count 2",
            "ticket_latency_seconds_bucket{le=\"0.005\"} 1",
            "ticket_dead_letters_total{error_type=\"not_json\"} 0",
            "ticket_ready 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nis not in\n{text}");
        }
    }

    #[test]
    fn without_a_page_and_an_endpoint_nothing_is_collected() {
        let health = Arc::new(Health::new(Arc::new(Topology::shipped())));
        let telemetry = Telemetry::start(&health, false).unwrap();
        telemetry.instruments().transaction(Outcome::Committed, std::time::Duration::from_millis(30));
        assert_eq!(telemetry.page().text().unwrap(), "");
    }
}
