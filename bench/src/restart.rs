//! How long it takes after SIGKILL under load: from the new start to the first
//! new commit, and until caught up; with the disk kept, and with it gone.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::contestant::{Contestant, Settings};
use crate::report::{self, Column, Row};
use ticket_harness::broker::Watch;
use ticket_harness::histories::Histories;
use ticket_harness::load;
use ticket_harness::process;
use ticket_harness::stream::{Shape, Stream};

const LOOK_EVERY: Duration = Duration::from_millis(5);
const TIME_MAX: Duration = Duration::from_secs(900);

/// The load runs for so long before each kill.
const RUN_TIME: Duration = Duration::from_secs(4);

/// What the broker was doing for the dead process is over by then.
const AFTER_KILL: Duration = Duration::from_millis(200);

const COLUMNS: [Column; 4] = [
    Column { name: "first new commit, s", decimals: 2 },
    Column { name: "caught up, s", decimals: 2 },
    Column { name: "events behind at the start", decimals: 0 },
    Column { name: "peak RSS MB", decimals: 0 },
];

/// Kills and restarts so many times with the disk kept, then as often without.
pub(crate) fn run(
    settings: &Settings,
    histories: &Histories,
    tickets: u64,
    per_second: u32,
    rounds: usize,
) -> Result<Value> {
    let name = format!("bench-{}-restart-{tickets}", std::process::id());
    let (mut contestant, mut expectation) = Contestant::with_tickets(&name, settings, histories, tickets)?;
    let (topology, watch) = (contestant.topology.clone(), contestant.watch()?);
    let shape = Shape { first_event: tickets, ..Shape::of(tickets, settings.partitions) };
    let mut updates = Stream::new(histories, shape);
    let stop = AtomicBool::new(false);
    let began = Instant::now();
    let rows = std::thread::scope(|scope| {
        let load =
            scope.spawn(|| load::open_loop(&topology, &mut updates, began, per_second, u64::MAX, &stop));
        let rows = kills(&mut contestant, &watch, settings, per_second, rounds);
        stop.store(true, Ordering::Relaxed);
        load.join().map_err(|_| anyhow::anyhow!("the load's thread panicked"))??;
        rows
    })?;
    expectation.add(std::mem::take(&mut updates.expectation));
    watch.reach(expectation.events, LOOK_EVERY, TIME_MAX, || contestant.must_run())?;
    contestant.stop()?;
    let audit = contestant.audit(&expectation).context("after the kills")?;
    contestant.remove_with_source()?;
    println!("{tickets} tickets, {per_second} events/s\n{}", report::table(&COLUMNS, &rows));
    println!(
        "{} events and {} derived ones came out once; {} changes compared\n",
        expectation.events,
        expectation.derived(),
        audit.sampled
    );
    Ok(json!({ "tickets": tickets, "events_per_second": per_second, "rows": report::json(&COLUMNS, &rows) }))
}

fn kills(
    contestant: &mut Contestant,
    watch: &Watch,
    settings: &Settings,
    per_second: u32,
    rounds: usize,
) -> Result<[Row; 2]> {
    let mut rows = ["disk kept", "disk gone"].map(|name| Row { name: name.to_owned(), rounds: Vec::new() });
    // What a commit interval or two bring is always under way.
    let slack = u64::from(per_second) * (2 * settings.commit_interval_ms + 100) / 1_000;
    for (row, keep) in rows.iter_mut().zip([true, false]) {
        for _ in 0..rounds {
            std::thread::sleep(RUN_TIME);
            contestant.kill()?;
            std::thread::sleep(AFTER_KILL);
            if !keep {
                std::fs::remove_dir_all(contestant.state()).context("remove the state")?;
            }
            let committed = watch.committed()?;
            let behind = watch.end()?.saturating_sub(committed);
            let started = Instant::now();
            let pids = contestant.start()?;
            watch.reach(committed + 1, LOOK_EVERY, TIME_MAX, || contestant.must_run())?;
            let first_commit_s = started.elapsed().as_secs_f64();
            while watch.committed()? + slack < watch.end()? {
                anyhow::ensure!(started.elapsed() < TIME_MAX, "the pipeline does not catch up");
                std::thread::sleep(LOOK_EVERY);
            }
            let caught_up_s = started.elapsed().as_secs_f64();
            eprintln!("{}: first new commit {first_commit_s:.2} s, caught up {caught_up_s:.2} s", row.name);
            row.rounds.push(vec![first_commit_s, caught_up_s, behind as f64, process::rss_peaks_mb(&pids)?]);
        }
    }
    Ok(rows)
}
