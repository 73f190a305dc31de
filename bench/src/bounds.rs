//! Whether memory stays under `limits.memory_mb`: with a large backlog, one hot
//! ticket, records near the contract's limit, a broker that is slow, and when all of
//! the state is restored.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

use crate::contestant::{Contestant, Kind, Settings};
use crate::report::{self, Column, Row};
use crate::restore;
use ticket_harness::broker::Topics;
use ticket_harness::histories::Histories;
use ticket_harness::load;
use ticket_harness::process;
use ticket_harness::stream::{Expectation, Shape, Stream};

const LOOK_EVERY: Duration = Duration::from_millis(100);
const TIME_MAX: Duration = Duration::from_secs(1_800);

/// With the event around it a ticket so much longer comes near 262,144 bytes, and so does what is derived.
pub(crate) const PADDING_BYTES: usize = 255_000;
/// Of the large events so many fewer.
const LARGE_FEWER: u64 = 100;

/// A slow broker stands still for so long, and works for so long, in turn.
const STANDS: Duration = Duration::from_millis(400);
const WORKS: Duration = Duration::from_millis(100);

const COLUMNS: [Column; 5] = [
    Column { name: "limits.memory_mb", decimals: 0 },
    Column { name: "peak RSS MB", decimals: 0 },
    Column { name: "of its restore", decimals: 0 },
    Column { name: "events/s", decimals: 0 },
    Column { name: "raw MB/s", decimals: 1 },
];

/// What comes in, and how the broker is.
struct Case<'h> {
    name: &'static str,
    histories: &'h Histories,
    events: u64,
    tickets: u64,
    is_slow: bool,
}

/// Each backlog with each limit, one run each; an error where a limit does not hold.
pub(crate) fn run(
    settings: &Settings,
    histories: &Histories,
    large: &Histories,
    events: u64,
    limits_mb: &[u64],
) -> Result<Value> {
    let case = |name, tickets, is_slow| Case { name, histories, events, tickets, is_slow };
    let large = |name, is_slow| Case {
        histories: large,
        events: events / LARGE_FEWER,
        ..case(name, events, is_slow)
    };
    let cases = [
        case("a backlog", events, false),
        case("a backlog, slow broker", events, true),
        case("one hot ticket", 1, false),
        large("records of 256 KB", false),
        large("records of 256 KB, slow broker", true),
    ];
    let mut rows = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let source = format!("bench-{}-bounds-{number}", std::process::id());
        let topology = crate::source_topology(&source, settings)?;
        let topics = Topics::connect(&topology)?;
        topics.create_missing(std::slice::from_ref(&source), settings.partitions)?;
        let shape = Shape::of(case.tickets, settings.partitions);
        let mut stream = Stream::new(case.histories, shape);
        load::backlog(&topology, &mut stream, case.events)?;
        for limit_mb in limits_mb {
            let limits = format!("{}limits:\n  memory_mb: {limit_mb}\n", settings.sections);
            let settings = Settings { sections: limits, ..settings.clone() };
            let name = format!("{source}-{limit_mb}");
            let (peaks_mb, seconds) = one(&name, &source, &settings, case.is_slow, &stream.expectation)
                .with_context(|| format!("{}, limits.memory_mb: {limit_mb}", case.name))?;
            let [peak_mb, restore_mb] = peaks_mb;
            eprintln!("{}, {limit_mb} MB: {peak_mb:.0} MB at most, {restore_mb:.0} when restored", case.name);
            let per_second = case.events as f64 / seconds;
            let raw_bytes = case.histories.means.raw_bytes;
            rows.push(Row {
                name: case.name.to_owned(),
                rounds: vec![vec![
                    *limit_mb as f64,
                    peak_mb,
                    restore_mb,
                    per_second,
                    per_second * raw_bytes / 1e6,
                ]],
            });
        }
        topics.delete(&[source])?;
    }
    println!("{}\n", report::table(&COLUMNS, &rows));
    let is_beyond = |row: &&Row| row.median(1).max(row.median(2)) > row.median(0);
    let beyond: Vec<&str> = rows.iter().filter(is_beyond).map(|row| row.name.as_str()).collect();
    ensure!(beyond.is_empty(), "memory grew beyond its limit: {}", beyond.join("; "));
    Ok(json!({ "rows": report::json(&COLUMNS, &rows) }))
}

/// The most memory in MB, and that of a restore of what came of it; how long it took in seconds.
fn one(
    name: &str,
    source: &str,
    settings: &Settings,
    is_slow: bool,
    expectation: &Expectation,
) -> Result<([f64; 2], f64)> {
    let mut contestant = Contestant::prepare(Kind::Pipeline, name, source, settings)?;
    let watch = contestant.watch()?;
    let pids = contestant.start()?;
    let (began, is_over) = (Instant::now(), AtomicBool::new(false));
    let reached = std::thread::scope(|scope| {
        let slow = is_slow.then(|| scope.spawn(|| slow_down(settings.broker.pid, &is_over)));
        let reached = watch.reach(expectation.events, LOOK_EVERY, TIME_MAX, || contestant.must_run());
        is_over.store(true, Ordering::Relaxed);
        let stood = slow.map(|slow| slow.join().map_err(|_| anyhow!("a thread panicked")).flatten());
        ensure!(stood.transpose()? != Some(0), "the broker was not slow");
        reached.map(|_| ())
    });
    reached?;
    let seconds = began.elapsed().as_secs_f64();
    let peak_mb = process::rss_peaks_mb(&pids)?;
    contestant.stop()?;
    contestant.audit(expectation)?;
    let restore_mb = restore::start_without_disk(&mut contestant, settings)?.peak_mb;
    contestant.remove()?;
    Ok(([peak_mb, restore_mb], seconds))
}

/// Lets a process stand still for most of the time, and says how often; in the end it works.
fn slow_down(pid: u32, is_over: &AtomicBool) -> Result<u64> {
    let mut times = 0;
    while !is_over.load(Ordering::Relaxed) {
        process::signal(pid, "STOP")?;
        std::thread::sleep(STANDS);
        process::signal(pid, "CONT")?;
        std::thread::sleep(WORKS);
        times += 1;
    }
    Ok(times)
}
