//! How fast an empty disk is filled from the changelog and the ids log: the
//! process starts with its state removed, and nothing else to do.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::contestant::{Contestant, Settings};
use crate::report::{self, Column, Row};
use ticket_harness::histories::Histories;
use ticket_harness::process;

const LOOK_EVERY: Duration = Duration::from_millis(5);
const TIME_MAX: Duration = Duration::from_secs(900);

const COLUMNS: [Column; 6] = [
    Column { name: "records/s", decimals: 0 },
    Column { name: "MB/s", decimals: 0 },
    Column { name: "first to last partition, s", decimals: 2 },
    Column { name: "from the start, s", decimals: 2 },
    Column { name: "CPU-s/M", decimals: 1 },
    Column { name: "peak RSS MB", decimals: 0 },
];

/// One event for each ticket, then so many starts without a disk.
pub(crate) fn run(settings: &Settings, histories: &Histories, tickets: u64, rounds: usize) -> Result<Value> {
    let name = format!("bench-{}-restore-{tickets}", std::process::id());
    let (mut contestant, expectation) = Contestant::with_tickets(&name, settings, histories, tickets)?;
    contestant.stop()?;
    let audit = contestant.audit(&expectation).context("before the disk is lost")?;

    let mut row = Row { name: format!("{tickets} tickets"), rounds: Vec::new() };
    for _ in 0..rounds {
        let start = start_without_disk(&mut contestant, settings)?;
        ensure!(
            start.records >= audit.changelog_records,
            "{} of {} records were restored",
            start.records,
            audit.changelog_records
        );
        let records = start.records as f64;
        let mb = audit.changelog_bytes as f64 / 1e6;
        row.rounds.push(vec![
            records / start.seconds,
            mb / start.seconds,
            start.seconds,
            start.seconds_in_all,
            start.used_s / records * 1e6,
            start.peak_mb,
        ]);
    }
    contestant.remove_with_source()?;
    println!(
        "{} changelog records of {:.0} bytes\n{}",
        audit.changelog_records,
        audit.changelog_bytes as f64 / audit.changelog_records as f64,
        report::table(&COLUMNS, std::slice::from_ref(&row))
    );
    Ok(json!({ "tickets": tickets, "rows": report::json(&COLUMNS, &[row]) }))
}

/// A start that restored all of its state.
pub(crate) struct Start {
    records: u64,
    /// From the first partition's beginning to the last one's end.
    seconds: f64,
    /// From the process's start to that.
    seconds_in_all: f64,
    /// CPU seconds from the first partition's beginning on.
    used_s: f64,
    /// The most memory of the process.
    pub(crate) peak_mb: f64,
}

/// Removes the state of a contestant that is stopped, starts it and stops it again.
pub(crate) fn start_without_disk(contestant: &mut Contestant, settings: &Settings) -> Result<Start> {
    std::fs::remove_dir_all(contestant.state()).context("remove the state")?;
    let started = Instant::now();
    let pids = contestant.start()?;
    lines(contestant, "restoring", 1)?;
    let (began, used_s) = (Instant::now(), process::cpu_s(&pids)?);
    let log = lines(contestant, "restored", usize::try_from(settings.partitions)?)?;
    let start = Start {
        records: log.lines().filter_map(|line| number(line, "restored", "records")).sum(),
        seconds: began.elapsed().as_secs_f64(),
        seconds_in_all: started.elapsed().as_secs_f64(),
        used_s: process::cpu_s(&pids)? - used_s,
        peak_mb: process::rss_peaks_mb(&pids)?,
    };
    contestant.stop()?;
    Ok(start)
}

/// Waits until the run has logged so many lines of this text; the log so far.
fn lines(contestant: &mut Contestant, text: &str, count: usize) -> Result<String> {
    let deadline = Instant::now() + TIME_MAX;
    loop {
        let log = last_run(&contestant.log()?);
        if log.lines().filter(|line| number(line, text, "partition").is_some()).count() >= count {
            return Ok(log);
        }
        contestant.must_run()?;
        ensure!(Instant::now() < deadline, "the run does not come to {count} lines of {text:?}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// What the last run has logged: each begins with its command.
fn last_run(log: &str) -> String {
    log.rsplit_once("\n--- ").map_or(log, |(_, last)| last).to_owned()
}

/// A field of a line with this text.
fn number(line: &str, text: &str, field: &str) -> Option<u64> {
    let (_, rest) = line.split_once(&format!(": {text} "))?;
    let (_, rest) = rest.split_once(&format!("{field}="))?;
    rest.split_whitespace().next()?.parse().ok()
}
