//! A receiver that speaks OTLP over HTTP, as OpenTelemetry's collector does, and
//! keeps what it is sent.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{Metric, metric, number_data_point};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

/// Serves until the tests end.
pub(crate) struct Collector {
    address: SocketAddr,
    received: Arc<Received>,
}

#[derive(Default)]
struct Received {
    metrics: Mutex<Vec<ExportMetricsServiceRequest>>,
    spans: Mutex<Vec<Span>>,
}

impl Collector {
    pub(crate) fn start() -> Collector {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it listens");
        listener.set_nonblocking(true).expect("a socket can be set up");
        let received = Arc::new(Received::default());
        let router = Router::new()
            .route("/v1/metrics", post(take_metrics))
            .route("/v1/traces", post(take_spans))
            .with_state(Arc::clone(&received));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be started").block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("it listens");
                axum::serve(listener, router).await.expect("it serves until the process ends");
            });
        });
        Collector { address, received }
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` is to be.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All spans that were pushed.
    pub(crate) fn spans(&self) -> Vec<Span> {
        self.received.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All metrics that were pushed, in their order.
    pub(crate) fn metrics(&self) -> Vec<ExportMetricsServiceRequest> {
        self.received.metrics.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn take_spans(State(received): State<Arc<Received>>, body: Bytes) -> StatusCode {
    let Ok(request) = ExportTraceServiceRequest::decode(body) else { return StatusCode::BAD_REQUEST };
    let spans = request.resource_spans.into_iter().flat_map(|of| of.scope_spans).flat_map(|of| of.spans);
    received.spans.lock().unwrap_or_else(PoisonError::into_inner).extend(spans);
    StatusCode::OK
}

async fn take_metrics(State(received): State<Arc<Received>>, body: Bytes) -> StatusCode {
    let Ok(request) = ExportMetricsServiceRequest::decode(body) else { return StatusCode::BAD_REQUEST };
    received.metrics.lock().unwrap_or_else(PoisonError::into_inner).push(request);
    StatusCode::OK
}

/// The metrics of a push.
pub(crate) fn metrics_of(request: &ExportMetricsServiceRequest) -> impl Iterator<Item = &Metric> {
    request.resource_metrics.iter().flat_map(|of| &of.scope_metrics).flat_map(|of| &of.metrics)
}

/// The numbers of a counter or gauge, with their attributes.
pub(crate) fn numbers(metric: &Metric) -> Vec<(Vec<(String, String)>, f64)> {
    let points = match &metric.data {
        Some(metric::Data::Sum(sum)) => &sum.data_points,
        Some(metric::Data::Gauge(gauge)) => &gauge.data_points,
        other => panic!("{} is no number: {other:?}", metric.name),
    };
    points
        .iter()
        .map(|point| {
            let value = match point.value {
                Some(number_data_point::Value::AsDouble(value)) => value,
                Some(number_data_point::Value::AsInt(value)) => value as f64,
                None => panic!("{} has a point without a value", metric.name),
            };
            (attributes(&point.attributes), value)
        })
        .collect()
}

/// Attributes as text.
pub(crate) fn attributes(attributes: &[KeyValue]) -> Vec<(String, String)> {
    attributes
        .iter()
        .map(|attribute| {
            let value = attribute.value.as_ref().and_then(|value| value.value.as_ref());
            let text = match value {
                Some(any_value::Value::StringValue(text)) => text.clone(),
                other => format!("{other:?}"),
            };
            (attribute.key.clone(), text)
        })
        .collect()
}
