//! `run`: the pipeline, until it is told to stop or has caught up.

use std::io::{IsTerminal, stderr};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use ticket_pipeline::pipeline::{self, Options};
use ticket_pipeline::topology::Topology;
use tracing_subscriber::EnvFilter;

/// The arguments of `run`.
#[derive(Debug, Args)]
#[command(
    after_help = "Ends cleanly at SIGTERM or SIGINT: the last transaction commits, the stores close, exit code 0.
RUST_LOG sets what is logged to stderr: error, warn, info (the default) or debug.

Examples:
  ticket-pipeline run
  ticket-pipeline --topology staging.yaml run --until-caught-up
  STATE_DIR=/var/lib/tickets INSTANCE_ID=a KAFKA_BROKERS=kafka:9092 ticket-pipeline run"
)]
pub(crate) struct Arguments {
    /// Stop when everything that is in the raw topic now is committed, by this
    /// process or by others of its group.
    #[arg(long)]
    until_caught_up: bool,
}

/// Where RUST_LOG says nothing: readers of logs are closed before they are dropped, and rust-rdkafka
/// complains that it cannot close them again.
const LOGGED: &str = "info,rdkafka::consumer::base_consumer=off";

/// Runs `run`.
pub(crate) fn run(topology: &Path, arguments: &Arguments) -> Result<ExitCode> {
    let topology = Topology::load(topology)?;
    let on_terminal = stderr().is_terminal();
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::Level::INFO.into())
        .parse(std::env::var("RUST_LOG").unwrap_or_else(|_| LOGGED.to_owned()))
        .context("read RUST_LOG")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(on_terminal)
        .try_init()
        .map_err(|error| anyhow!("start logging: {error}"))?;
    pipeline::run(topology, Options { until_caught_up: arguments.until_caught_up, on_terminal })?;
    Ok(ExitCode::SUCCESS)
}
