//! How fast a backlog is worked off, by the pipeline and by the limit in turn.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::contestant::{Contestant, Kind, Settings};
use crate::report::{self, Column, Row};
use ticket_harness::process::{self, Meter};
use ticket_harness::stream::Expectation;

const LOOK_EVERY: Duration = Duration::from_millis(20);
const TIME_MAX: Duration = Duration::from_secs(1_800);

const COLUMNS: [Column; 9] = [
    Column { name: "events/s", decimals: 0 },
    Column { name: "CPU-s/M", decimals: 1 },
    Column { name: "broker's", decimals: 1 },
    Column { name: "peak RSS MB", decimals: 0 },
    Column { name: "MB out", decimals: 0 },
    Column { name: "MB in the broker's log", decimals: 0 },
    Column { name: "changelog records", decimals: 0 },
    Column { name: "cores used by others", decimals: 2 },
    Column { name: "cores taken by the host", decimals: 2 },
];

/// What is run: a name for the row, which program, with which settings.
#[derive(Debug, Clone)]
pub(crate) struct Variant {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) settings: Settings,
}

/// Rounds of the variants in turn, each from the beginning of the raw topic.
pub(crate) fn run(
    variants: &mut [Variant],
    source: &str,
    expectation: &Expectation,
    rounds: usize,
) -> Result<Value> {
    let mut rows: Vec<Row> =
        variants.iter().map(|variant| Row { name: variant.name.clone(), rounds: Vec::new() }).collect();
    // A broker that has just started compiles itself: whoever is first would pay for all.
    let mut changelog_bytes = None;
    if let Some(first) = variants.first() {
        let (_, bytes) = one(first, &format!("bench-{}-warm-up", std::process::id()), source, expectation)
            .context("warm up")?;
        changelog_bytes = (first.kind == Kind::Pipeline).then_some(bytes);
    }
    for round in 0..rounds {
        for (index, variant) in variants.iter_mut().enumerate() {
            if let Some(bytes) = changelog_bytes {
                variant.settings.changelog_bytes = bytes;
            }
            let name = format!("bench-{}-{round}-{index}", std::process::id());
            let (figures, bytes) = one(variant, &name, source, expectation)
                .with_context(|| format!("round {} of {}", round + 1, variant.name))?;
            if variant.kind == Kind::Pipeline {
                changelog_bytes = Some(bytes);
            }
            let [speed, cpu, broker_cpu, rss_peak_mb, .., others, _] = figures;
            eprintln!(
                "round {} of {rounds}, {}: {speed:.0} events/s, {cpu:.1} CPU-s/M, broker {broker_cpu:.1}, \
                 {rss_peak_mb:.0} MB, others {others:.2} cores",
                round + 1,
                variant.name,
            );
            if let Some(row) = rows.get_mut(index) {
                row.rounds.push(figures.to_vec());
            }
        }
    }
    println!("{}", report::table(&COLUMNS, &rows));
    let mut result =
        json!({ "events": expectation.events, "rounds": rounds, "rows": report::json(&COLUMNS, &rows) });
    let limit = variants.iter().position(|variant| variant.kind == Kind::Limit).and_then(|at| rows.get(at));
    if let Some(limit) = limit {
        for (row, variant) in
            rows.iter().zip(variants.iter()).filter(|(_, variant)| variant.kind == Kind::Pipeline)
        {
            let (speed, cpu) = (row.median(0) / limit.median(0), row.median(1) / limit.median(1));
            println!("{}: {:.0} % of the limit's throughput, {cpu:.2}x its CPU", variant.name, speed * 100.0);
            if let Some(result) = result.as_object_mut() {
                let ratio = json!({ "throughput": speed, "cpu": cpu });
                result.insert(format!("ratio of {} to the limit", variant.name), ratio);
            }
        }
    }
    if let ([first, .., last], None) = (rows.as_slice(), limit) {
        println!("{}: {:.3}x the CPU of {}", first.name, first.median(1) / last.median(1), last.name);
    }
    Ok(result)
}

fn one(
    variant: &Variant,
    name: &str,
    source: &str,
    expectation: &Expectation,
) -> Result<([f64; COLUMNS.len()], usize)> {
    let mut contestant = Contestant::prepare(variant.kind, name, source, &variant.settings)?;
    let watch = contestant.watch()?;
    let events = expectation.events;
    let pids = contestant.start()?;
    let meter = Meter::begin(&pids, variant.settings.broker.pid)?;
    let first = watch.reach(1, LOOK_EVERY, TIME_MAX, || contestant.must_run())?;
    let began = Instant::now();
    watch.reach(events, LOOK_EVERY, TIME_MAX, || contestant.must_run())?;
    let seconds = began.elapsed().as_secs_f64();
    let used = meter.used()?;
    let rss_peak_mb = process::rss_peaks_mb(&pids)?;
    contestant.stop()?;
    let audit = contestant.audit(expectation)?;
    contestant.remove()?;
    let millions = events as f64 / 1e6;
    // Where half is done at the first commit, what is between it and the last says little.
    let speed = if first * 2 > events { f64::NAN } else { (events - first) as f64 / seconds };
    let figures = [
        speed,
        used.cpu_s / millions,
        used.broker_cpu_s / millions,
        rss_peak_mb,
        audit.bytes as f64 / 1e6,
        audit.disk_bytes as f64 / 1e6,
        audit.changelog_records as f64,
        used.others_cpu_s / used.seconds,
        used.stolen_s / used.seconds,
    ];
    let changelog_bytes = audit.changelog_bytes.checked_div(audit.changelog_records).unwrap_or(0);
    Ok((figures, usize::try_from(changelog_bytes)?))
}
