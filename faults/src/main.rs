//! Attacks the pipeline on real brokers, and judges what came out.
//!
//! Each case breaks something over and over under load. Then it must hold that
//! the outputs are what the model says, record by record; that `audit --state`
//! finds nothing; that no transaction is left open; and that the pipeline goes
//! on once the faults have ended. A fault that did not happen proves nothing, so
//! each is counted.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::Parser;
use ticket_harness::histories::Histories;

mod cases;
mod cluster;
mod model;
mod outcome;
mod proxy;
mod readers;
mod scene;

use cases::CASES;
use cluster::Cluster;
use outcome::Outcome;
use scene::World;

/// Attacks the pipeline on real brokers, and judges what came out.
#[derive(Debug, Parser)]
struct Arguments {
    /// The project's folder.
    #[arg(long, default_value = ".")]
    project: PathBuf,
    /// The pipeline's program, as it ships.
    #[arg(long)]
    pipeline: PathBuf,
    /// The same with crash points, for the case of that name.
    #[arg(long)]
    with_crash_points: Option<PathBuf>,
    /// State, topologies and logs go here.
    #[arg(long)]
    folder: PathBuf,
    /// The broker's port; the suite may use some more above it.
    #[arg(long, default_value_t = 29800)]
    port: u16,
    /// What is left to chance follows from it; by default from the clock.
    #[arg(long)]
    seed: Option<u64>,
    /// How often a case's fault is to happen; by default as the case says.
    #[arg(long)]
    times: Option<u64>,
    /// Leave the broker's data and its log behind.
    #[arg(long)]
    keep: bool,
    /// Outcomes are added to this file, a line each.
    #[arg(long)]
    outcomes: PathBuf,
    /// Only print the table of all outcomes in the file.
    #[arg(long)]
    table: bool,
    /// The cases; by default all of them.
    names: Vec<String>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.table {
        print!("{}", outcome::table(&outcome::read(&arguments.outcomes)?));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(name) = arguments.names.iter().find(|name| !CASES.iter().any(|case| case.name == **name)) {
        let names: Vec<&str> = CASES.iter().map(|case| case.name).collect();
        bail!("{name:?} is no case; there are {}", names.join(", "));
    }
    std::fs::create_dir_all(&arguments.folder)?;
    let folder = arguments.folder.canonicalize()?;
    let seed = arguments.seed.map_or_else(seed_of_clock, Ok)?;
    let histories = Histories::read(&arguments.project.join("tests/data"))?;
    let world = World {
        project: arguments.project.canonicalize()?,
        pipeline: arguments.pipeline.canonicalize().context("find the pipeline's program")?,
        with_crash_points: arguments.with_crash_points.clone(),
        cluster: Cluster::new(&arguments.project, &folder, arguments.port, arguments.keep)?,
        folder,
        histories: &histories,
        times: arguments.times,
    };
    world.cluster.up()?;
    let mut is_right = true;
    let is_wanted = |name: &str| arguments.names.is_empty() || arguments.names.iter().any(|one| one == name);
    for case in CASES.iter().filter(|case| is_wanted(case.name)) {
        eprintln!("\n== {} (--seed {seed})", case.name);
        let mut outcome = Outcome::begin(case.name, seed);
        // What could not be judged is not right.
        if let Err(error) = (case.run)(&world, seed, &mut outcome) {
            outcome.wrong.push(format!("the case came to no end: {error:#}"));
        }
        outcome.end();
        eprintln!("{outcome}");
        outcome::append(&arguments.outcomes, &outcome)?;
        is_right &= outcome.wrong.is_empty();
    }
    Ok(if is_right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn seed_of_clock() -> Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(now.as_secs() % 1_000_000)
}
