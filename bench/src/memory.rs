//! What memory grows with: the tickets, and the event ids in the window.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::contestant::{Contestant, Kind, Settings};
use crate::report::{self, Column, Row};
use ticket_harness::histories::Histories;
use ticket_harness::load;
use ticket_harness::process;
use ticket_harness::stream::{Shape, Stream};

const LOOK_EVERY: Duration = Duration::from_millis(100);
const TIME_MAX: Duration = Duration::from_secs(3_600);

const COLUMNS: [Column; 3] = [
    Column { name: "peak RSS MB", decimals: 0 },
    Column { name: "of it at the start MB", decimals: 0 },
    Column { name: "store MB on disk", decimals: 0 },
];

/// So many events over so many tickets, one run for each; the window holds all of the ids.
pub(crate) fn run(settings: &Settings, histories: &Histories, cases: &[(u64, u64)]) -> Result<Value> {
    let mut rows = Vec::new();
    for (number, (tickets, events)) in cases.iter().enumerate() {
        let name = format!("bench-{}-memory-{number}", std::process::id());
        let figures = one(&name, settings, histories, *tickets, *events)
            .with_context(|| format!("{events} events over {tickets} tickets"))?;
        eprintln!("{events} events over {tickets} tickets: {:.0} MB", figures[0]);
        rows.push(Row {
            name: format!("{tickets} tickets, {events} events"),
            rounds: vec![figures.to_vec()],
        });
    }
    println!("{}\n", report::table(&COLUMNS, &rows));
    Ok(json!({ "rows": report::json(&COLUMNS, &rows) }))
}

fn one(
    name: &str,
    settings: &Settings,
    histories: &Histories,
    tickets: u64,
    events: u64,
) -> Result<[f64; COLUMNS.len()]> {
    let source = format!("{name}-raw");
    let mut contestant = Contestant::prepare(Kind::Pipeline, name, &source, settings)?;
    let topology = contestant.topology.clone();
    // Each ticket begins before any comes again.
    let shape = Shape {
        history_events_max: if events > tickets { usize::MAX } else { 1 },
        ..Shape::of(tickets, settings.partitions)
    };
    let mut stream = Stream::new(histories, shape);
    load::backlog(&topology, &mut stream, 1)?;
    let watch = contestant.watch()?;
    let pids = contestant.start()?;
    watch.reach(1, LOOK_EVERY, TIME_MAX, || contestant.must_run())?;
    let at_start_mb = process::rss_peaks_mb(&pids)?;
    load::backlog(&topology, &mut stream, events - 1)?;
    watch.reach(events, LOOK_EVERY, TIME_MAX, || contestant.must_run())?;
    let peak_mb = process::rss_peaks_mb(&pids)?;
    contestant.stop()?;
    contestant.audit(&stream.expectation)?;
    let disk_mb = bytes_in(&contestant.state())? as f64 / 1e6;
    contestant.remove_with_source()?;
    Ok([peak_mb, at_start_mb, disk_mb])
}

fn bytes_in(folder: &std::path::Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        bytes += if kind.is_dir() { bytes_in(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}
