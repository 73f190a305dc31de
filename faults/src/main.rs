//! Attacks the pipeline on real brokers, and judges what came out.
//!
//! Each case breaks something over and over under load. Then it must hold that
//! the outputs are what the model says, record by record; that `audit --state`
//! finds nothing; that no transaction is left open; and that the pipeline goes
//! on once the faults have ended. A fault that did not happen proves nothing, so
//! each is counted.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::Parser;
use ticket_harness::histories::Histories;

mod cases;
mod cluster;
mod model;
mod mount;
mod outcome;
mod proxy;
mod readers;
mod scene;

use cases::{CASES, Case, SHORT};
use cluster::Cluster;
use outcome::Outcome;
use scene::World;

/// Of a disk that is to be full: a case writes less.
const DISK_MIB: u64 = 2_048;

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
    /// Of which commit the program is, for the table.
    #[arg(long, default_value = "unknown")]
    commit: String,
    /// State, topologies and logs go here.
    #[arg(long)]
    folder: PathBuf,
    /// The first broker's port; the eleven above it may be used too.
    #[arg(long, default_value_t = 29800)]
    port: u16,
    /// What is left to chance follows from it; by default from the clock.
    #[arg(long)]
    seed: Option<u64>,
    /// How often a case's fault is to happen; by default as the case says.
    #[arg(long)]
    times: Option<u64>,
    /// Leave the brokers' data and their logs behind.
    #[arg(long)]
    keep: bool,
    /// Outcomes are added to this file, a line each.
    #[arg(long)]
    outcomes: PathBuf,
    /// Only write the table of all outcomes into this file, between its two marks.
    #[arg(long)]
    table: Option<PathBuf>,
    /// The cases; by default all of them.
    names: Vec<String>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(file) = &arguments.table {
        let text = std::fs::read_to_string(file).with_context(|| format!("read {file:?}"))?;
        let table = outcome::table(&outcome::read(&arguments.outcomes)?);
        std::fs::write(file, outcome::put(&text, &table)?)?;
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
    let project = arguments.project.canonicalize()?;
    let mut is_right = true;
    let is_wanted = |name: &str| match arguments.names.as_slice() {
        [] => name != SHORT,
        names => names.iter().any(|one| one == name),
    };
    for case in CASES.iter().filter(|case| is_wanted(case.name)) {
        eprintln!("\n== {} (--seed {seed})", case.name);
        let mut outcome = Outcome::begin(case.name, seed, &arguments.commit);
        let world = World {
            cluster: cluster(case, &arguments, &project, &folder)?,
            project: project.clone(),
            pipeline: arguments.pipeline.canonicalize().context("find the pipeline's program")?,
            with_crash_points: arguments.with_crash_points.clone(),
            folder: folder.clone(),
            histories: &histories,
            times: arguments.times,
        };
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

/// The brokers of a case, up.
fn cluster(case: &Case, arguments: &Arguments, project: &Path, folder: &Path) -> Result<Cluster> {
    let mut cluster =
        Cluster::new(project, &folder.join(case.name), arguments.port, case.nodes, arguments.keep)?;
    cluster.purge()?;
    if case.own_disk
        && let Err(error) = cluster.give_disk(usize::from(case.nodes) - 1, DISK_MIB)
    {
        eprintln!("no disk will be full: {error:#}");
    }
    cluster.up()?;
    Ok(cluster)
}

fn seed_of_clock() -> Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(now.as_secs() % 1_000_000)
}
