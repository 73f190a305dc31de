//! Pages about the process, for people, probes and Prometheus.
//!
//! They are served by a thread of their own, which asks nobody: what it shows,
//! [`crate::health`] and [`crate::telemetry`] have already. It knows no Kafka.

mod pages;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::health::{Health, Verdict};
use crate::telemetry::MetricsPage;

/// An address that is ours, and nobody served at it yet.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

#[derive(Clone)]
struct Pages {
    health: Arc<Health>,
    metrics: MetricsPage,
}

impl Listener {
    /// Takes an address. Port 0 is a free one of the system's choice.
    ///
    /// # Errors
    /// Where it cannot be had, and what to do about it.
    pub fn bind(address: SocketAddr) -> Result<Listener> {
        let listener = TcpListener::bind(address).map_err(|error| {
            let why = match error.kind() {
                ErrorKind::AddrInUse => "another process listens there".to_owned(),
                _ => error.to_string(),
            };
            anyhow!(
                "serve the pages at {address}: {why}; give this process another address, or none: http.listen in the \
                 topology (HTTP_LISTEN), such as 127.0.0.1:9465 or off"
            )
        })?;
        let address = listener.local_addr().context("ask for the address of the pages")?;
        listener.set_nonblocking(true).context("set up the pages")?;
        Ok(Listener { listener, address })
    }

    /// Serves the pages until the process ends.
    ///
    /// # Errors
    /// Where the thread cannot be started.
    pub fn serve(self, health: Arc<Health>, metrics: MetricsPage) -> Result<()> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("set up the pages")?;
        let Listener { listener, address } = self;
        std::thread::Builder::new()
            .name("http".into())
            .spawn(move || {
                let served = runtime.block_on(async {
                    let listener = tokio::net::TcpListener::from_std(listener)?;
                    axum::serve(listener, router(Pages { health, metrics })).await
                });
                if let Err(error) = served {
                    tracing::error!(%error, "the pages are not served any more");
                }
            })
            .context("start the pages' thread")?;
        tracing::info!(%address, "serving /livez, /readyz, /metrics and /status");
        Ok(())
    }
}

fn router(pages: Pages) -> Router {
    Router::new()
        .route("/", get(|| async { pages::INDEX }))
        .route(
            "/livez",
            get(|State(pages): State<Pages>| async move { verdict(&pages.health.live(), "live") }),
        )
        .route(
            "/readyz",
            get(|State(pages): State<Pages>| async move { verdict(&pages.health.ready(), "ready") }),
        )
        .route("/metrics", get(|State(pages): State<Pages>| async move { metrics(&pages.metrics) }))
        .route("/status", get(|State(pages): State<Pages>| async move { status(&pages.health) }))
        .with_state(pages)
}

fn verdict(verdict: &Verdict, word: &'static str) -> Response {
    if verdict.is_sound() {
        return format!("{word}\n").into_response();
    }
    let mut text = format!("not {word}\n");
    for objection in &verdict.objections {
        text += objection;
        text.push('\n');
    }
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

fn metrics(page: &MetricsPage) -> Response {
    match page.text() {
        Ok(text) => ([(header::CONTENT_TYPE, MetricsPage::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    }
}

fn status(health: &Health) -> Response {
    let text = format!("{:#}\n", pages::status(health));
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_use_is_said_with_a_remedy() {
        let taken = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let said = Listener::bind(taken.address).unwrap_err().to_string();
        assert!(
            said.starts_with(&format!("serve the pages at {}: another process listens there", taken.address))
        );
        assert!(said.contains("http.listen") && said.contains("off"), "{said}");
    }

    #[test]
    fn a_verdict_is_a_code_for_probes_and_lines_for_people() {
        let sound = verdict(&Verdict { objections: Vec::new() }, "live");
        assert_eq!(sound.status(), StatusCode::OK);
        let unsound = verdict(&Verdict { objections: vec!["worker 1 has ended".to_owned()] }, "ready");
        assert_eq!(unsound.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}
