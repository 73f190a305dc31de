//! How fast a replay makes the state what it was: the raw topic is read from its
//! beginning, and only the tickets of the records that come again are recomputed.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::contestant::{Contestant, Kind, Settings};
use crate::report::{self, Column, Row};
use ticket_harness::broker::Topics;
use ticket_harness::histories::Histories;
use ticket_harness::load;
use ticket_harness::process;
use ticket_harness::stream::Stream;

const LOOK_EVERY: Duration = Duration::from_millis(20);
const TIME_MAX: Duration = Duration::from_secs(900);

/// Records of each partition that come again.
const AGAIN: u64 = 100;

/// A group has members until the sessions of its static ones have ended.
const IDLE_TIME_MAX: Duration = Duration::from_secs(90);

const COLUMNS: [Column; 4] = [
    Column { name: "raw records/s", decimals: 0 },
    Column { name: "to the last commit, s", decimals: 2 },
    Column { name: "records recomputed", decimals: 0 },
    Column { name: "peak RSS MB", decimals: 0 },
];

/// Works a backlog off, then replays its end so many times.
pub(crate) fn run(
    settings: &Settings,
    histories: &Histories,
    shape: ticket_harness::stream::Shape,
    events: u64,
    rounds: usize,
) -> Result<Value> {
    let name = format!("bench-{}-rebuild", std::process::id());
    let source = format!("{name}-raw");
    let mut contestant = Contestant::prepare(Kind::Pipeline, &name, &source, settings)?;
    let mut stream = Stream::new(histories, shape);
    load::backlog(&contestant.topology, &mut stream, events)?;
    let watch = contestant.watch()?;
    contestant.start()?;
    watch.reach(events, LOOK_EVERY, TIME_MAX, || contestant.must_run())?;
    contestant.stop()?;
    let mut row = Row { name: format!("{events} raw records"), rounds: Vec::new() };
    for _ in 0..rounds {
        replay(&contestant)?;
        let known = contestant.log()?.len();
        let began = Instant::now();
        let pids = contestant.start()?;
        watch.reach(events, LOOK_EVERY, TIME_MAX, || contestant.must_run())?;
        let seconds = began.elapsed().as_secs_f64();
        let rss_peak_mb = process::rss_peaks_mb(&pids)?;
        contestant.stop()?;
        let log = contestant.log()?;
        let rebuilt = Rebuilt::read(log.get(known..).unwrap_or_default())?;
        ensure!(rebuilt.partitions == settings.partitions, "not all partitions were rebuilt");
        let per_second = rebuilt.records / rebuilt.seconds;
        eprintln!("{per_second:.0} raw records/s, {seconds:.2} s in all");
        row.rounds.push(vec![per_second, seconds, rebuilt.recomputed, rss_peak_mb]);
    }
    contestant.remove()?;
    let topology = crate::source_topology(&source, settings)?;
    Topics::connect(&topology)?.delete(&[source])?;
    println!("{}\n", report::table(&COLUMNS, std::slice::from_ref(&row)));
    Ok(json!({ "raw_records": events, "rows": report::json(&COLUMNS, &[row]) }))
}

/// Resets the group as soon as it has no members.
fn replay(contestant: &Contestant) -> Result<()> {
    let began = Instant::now();
    let again = format!("-{AGAIN}");
    loop {
        let output = contestant.command().args(["replay", "--shift-by", &again, "--execute"]).output()?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(said.contains("is active") && began.elapsed() < IDLE_TIME_MAX, "replay: {said}");
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// What the partitions' rebuilds came to, by what the pipeline logs of each.
struct Rebuilt {
    partitions: i32,
    records: f64,
    recomputed: f64,
    /// From the first partition's beginning to the last one's end.
    seconds: f64,
}

impl Rebuilt {
    fn read(log: &str) -> Result<Rebuilt> {
        let lines = |text: &'static str| log.lines().filter(move |line| line.contains(text));
        let sum = |field| lines(": rebuilt ").filter_map(|line| number(line, field)).sum();
        let began_s = lines("REPLAYING").filter_map(clock_s).fold(f64::INFINITY, f64::min);
        let ended_s = lines(": rebuilt ").filter_map(clock_s).fold(f64::NEG_INFINITY, f64::max);
        ensure!(ended_s > began_s, "the log does not say how long the rebuilds took");
        Ok(Rebuilt {
            partitions: i32::try_from(lines(": rebuilt ").count())?,
            records: sum("raw_records"),
            recomputed: sum("raw_records_processed"),
            seconds: ended_s - began_s,
        })
    }
}

fn number(line: &str, field: &str) -> Option<f64> {
    line.split_whitespace().find_map(|word| word.strip_prefix(field)?.strip_prefix('=')?.parse().ok())
}

/// The time of day at which a line was logged: `2026-01-01T12:30:00.250000Z  INFO ...`.
fn clock_s(line: &str) -> Option<f64> {
    let (_, time) = line.split_whitespace().next()?.trim_end_matches('Z').split_once('T')?;
    time.split(':').try_fold(0.0, |seconds, part| Some(seconds * 60.0 + part.parse::<f64>().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_tells_how_long_all_rebuilds_took() {
        let log = "2026-01-01T12:30:00.250000Z  WARN ticket_pipeline::rebuild: REPLAYING: the offset partition=0\n\
                   2026-01-01T12:30:01.250000Z  INFO ticket_pipeline::rebuild: rebuilt partition=0 raw_records=10 \
                   raw_records_left=0 raw_records_processed=4\n\
                   2026-01-01T12:30:02.750000Z  INFO ticket_pipeline::rebuild: rebuilt partition=1 raw_records=30 \
                   raw_records_left=0 raw_records_processed=6\n";
        let rebuilt = Rebuilt::read(log).unwrap();
        assert_eq!((rebuilt.partitions, rebuilt.records, rebuilt.recomputed), (2, 40.0, 10.0));
        assert!((rebuilt.seconds - 2.5).abs() < 1e-6, "{}", rebuilt.seconds);
    }
}
