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
        std::fs::remove_dir_all(contestant.state()).context("remove the state")?;
        let started = Instant::now();
        let pids = contestant.start()?;
        lines(&mut contestant, "restoring", 1)?;
        let (began, used_s) = (Instant::now(), process::cpu_s(&pids)?);
        let log = lines(&mut contestant, "restored", usize::try_from(settings.partitions)?)?;
        let (seconds, start_s) = (began.elapsed().as_secs_f64(), started.elapsed().as_secs_f64());
        let used_s = process::cpu_s(&pids)? - used_s;
        let records: u64 = log.lines().filter_map(|line| number(line, "restored", "records")).sum();
        ensure!(
            records >= audit.changelog_records,
            "{records} of {} records were restored",
            audit.changelog_records
        );
        let records = records as f64;
        let mb = audit.changelog_bytes as f64 / 1e6;
        let rss_mb = process::rss_peaks_mb(&pids)?;
        row.rounds.push(vec![
            records / seconds,
            mb / seconds,
            seconds,
            start_s,
            used_s / records * 1e6,
            rss_mb,
        ]);
        contestant.stop()?;
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
