//! `audit`: proves on the topics that nothing was lost, doubled or changed.

use std::fs;
use std::io::{IsTerminal, Write, stderr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use ticket_pipeline::audit::{self, Options, Progress, Report};
use ticket_pipeline::topology::Topology;
use tracing_subscriber::EnvFilter;

const TICK: Duration = Duration::from_millis(100);
const ON_TERMINAL: Duration = Duration::from_millis(500);
const IN_LOG: Duration = Duration::from_secs(30);

/// The arguments of `audit`.
#[derive(Debug, Args)]
#[command(
    after_help = "Reads the raw topic up to the committed positions, recomputes what must be in the outputs, reads
the outputs as every consumer of committed records does, and compares: records that are missing,
doubled, out of order for their ticket, different (key, value, headers, timestamp, partition), or
explained by nothing. It may run beside the pipeline: it joins no group and commits nothing.
Memory is bounded; about 70 bytes for each output record, expected and found, and a copy of the
state go to --scratch, which is emptied at the end.

A fault is a line on stdout, the summary is the last line. Exit code: 0 where all is as it must
be, 1 where it is not or where the audit could not be done.

Examples:
  ticket-pipeline audit
  ticket-pipeline audit --state
  ticket-pipeline --topology staging.yaml audit --lines 1000 --scratch /var/tmp > faults.txt"
)]
pub(crate) struct Arguments {
    /// Also hold the store on disk, the changelog and a recomputation against
    /// each other, ticket by ticket. The store only where no pipeline runs on it.
    #[arg(long)]
    state: bool,
    /// Tell so many faults in full; all are counted.
    #[arg(long, value_name = "N", default_value_t = 100)]
    lines: usize,
    /// Where to put what does not fit into memory; by default the system's
    /// folder for temporary files (TMPDIR).
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

/// Runs `audit`.
pub(crate) fn run(topology: &Path, arguments: &Arguments) -> Result<ExitCode> {
    let topology = Topology::load(topology)?;
    log()?;
    let scratch = Scratch::new(arguments.scratch.as_deref())?;
    let options = Options { scratch: scratch.0.clone(), state: arguments.state, lines_max: arguments.lines };
    let began = Instant::now();
    let progress = Progress::default();
    let is_done = AtomicBool::new(false);
    let report = thread::scope(|scope| {
        let teller = scope.spawn(|| tell(&progress, &is_done));
        let report = audit::audit(topology, &options, &progress);
        is_done.store(true, Ordering::Relaxed);
        // Telling is no reason to fail.
        let _ = teller.join();
        report
    })?;
    print(&report, began.elapsed());
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// What is wrong with Kafka is worth a word; what the recomputation cuts to size is not.
fn log() -> Result<()> {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn,ticket_pipeline::task=off".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .try_init()
        .map_err(|error| anyhow!("start logging: {error}"))
}

/// A folder that is gone in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(parent: Option<&Path>) -> Result<Scratch> {
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_owned);
        let folder = parent.join(format!("ticket-pipeline-audit-{}", std::process::id()));
        // What a process of the same number left behind when it was killed.
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("remove {folder:?}"))?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("create {folder:?}"))?;
        Ok(Scratch(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("ticket-pipeline: remove {:?}: {error}", self.0);
        }
    }
}

fn tell(progress: &Progress, is_done: &AtomicBool) {
    let on_terminal = stderr().is_terminal();
    let interval = if on_terminal { ON_TERMINAL } else { IN_LOG };
    let began = Instant::now();
    let mut next = began + interval;
    while !is_done.load(Ordering::Relaxed) {
        thread::sleep(TICK);
        if Instant::now() < next {
            continue;
        }
        next += interval;
        let done = progress.done.load(Ordering::Relaxed);
        let total = progress.total.load(Ordering::Relaxed);
        let rate = done as f64 / began.elapsed().as_secs_f64();
        let again =
            if progress.is_second_pass.load(Ordering::Relaxed) { " · looking faults up" } else { "" };
        let line = format!("audit: {done} of {total} offsets so far · {rate:.0}/s{again}");
        let mut terminal = stderr().lock();
        // A terminal that is gone is no reason to stop.
        let _ = if on_terminal {
            write!(terminal, "\r\x1b[2K{line}").and_then(|()| terminal.flush())
        } else {
            writeln!(terminal, "{line}")
        };
    }
    if on_terminal {
        let _ = write!(stderr().lock(), "\r\x1b[2K");
    }
}

fn print(report: &Report, elapsed: Duration) {
    for line in &report.lines {
        println!("{line}");
    }
    let told = report.lines.len() as u64;
    let counted: u64 = report.counts.values().sum();
    if told < counted {
        println!("… and {} more: --lines tells more of them", counted - told);
    }
    if let Some(state) = &report.state {
        for finding in &state.findings {
            println!("{finding}");
        }
    }
    for (topic, (found, matched)) in report.checked.iter().filter(|(_, (found, _))| *found > 0) {
        println!("{topic}: {found} records, {matched} as they must be");
    }
    if let Some(state) = &report.state {
        let on_disk = match state.stores {
            0 => "no store on disk was compared".to_owned(),
            stores => {
                format!("{stores} stores on disk, {} of their tickets still to be restored", state.behind)
            }
        };
        println!(
            "state: {} tickets; {on_disk}; {} written again since the cut, {} not provable; {} faults",
            state.tickets, state.moved_on, state.unprovable, state.faults
        );
    }
    for note in &report.notes {
        println!("note: {note}");
    }
    let outputs: u64 = report.checked.values().map(|(found, _)| found).sum();
    let faults: Vec<String> =
        report.counts.iter().map(|(fault, count)| format!("{count} {}", fault.as_str())).collect();
    let verdict = match (report.is_clean(), faults.is_empty()) {
        (true, _) => "nothing is missing, doubled, out of order or different".to_owned(),
        (false, true) => "FAULTS in the state".to_owned(),
        (false, false) => format!("FAULTS: {}", faults.join(", ")),
    };
    println!(
        "audited {} raw records and {outputs} output records in {:.1} s: {verdict}",
        report.raw_records,
        elapsed.as_secs_f64()
    );
}
