//! Arguments to a command; one file a command.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod audit;
mod config;
mod derive;
mod feed;
mod health;
mod replay;
mod run;
mod topics;
mod watch;

/// Reads raw ticket events from Kafka and says, exactly once and in order, what changed.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The topology: topics, group, rules, state, limits.
    #[arg(long, global = true, value_name = "FILE", default_value = "topology.yaml")]
    topology: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the pipeline.
    Run(run::Arguments),
    /// Check the topology without connecting to anything.
    Config(config::Arguments),
    /// Compare the topics with what the topology needs, or make them so.
    Topics(topics::Arguments),
    /// Raw lines on stdin, what would be emitted on stdout; no Kafka.
    Derive(derive::Arguments),
    /// Load raw lines into the raw topic.
    Feed(feed::Arguments),
    /// Reset the group to an earlier position, so that the next run emits again from there.
    Replay(replay::Arguments),
    /// Show derived events as they come, a line each.
    Watch(watch::Arguments),
    /// Ask a running pipeline whether it is ready.
    Health(health::Arguments),
    /// Prove that nothing was lost, doubled or changed.
    Audit(audit::Arguments),
}

/// Exit codes: 0 done, 1 it went wrong or a check found something, 2 a usage error.
pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let topology = arguments.topology.as_path();
    let result = match arguments.command {
        Command::Run(arguments) => run::run(topology, &arguments),
        Command::Config(arguments) => config::run(topology, &arguments),
        Command::Topics(arguments) => topics::run(topology, &arguments),
        Command::Derive(arguments) => derive::run(topology, &arguments),
        Command::Feed(arguments) => feed::run(topology, &arguments),
        Command::Replay(arguments) => replay::run(topology, &arguments),
        Command::Watch(arguments) => watch::run(topology, &arguments),
        Command::Health(arguments) => health::run(topology, &arguments),
        Command::Audit(arguments) => audit::run(topology, &arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("ticket-pipeline: {error:#}");
        ExitCode::from(1)
    })
}
