//! A build with crash points dies at each step of a transaction, of a restore
//! and of a rebuild, again and again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ticket_harness::random::Random;

use crate::outcome::Outcome;
use crate::scene::{PARTITIONS, Scene, Settings, World};

/// Of each step.
const TIMES: u64 = 4;
const DIES_WITHIN: Duration = Duration::from_secs(60);
const PROGRESS_WITHIN: Duration = Duration::from_secs(120);
/// A replay goes back so many records at most in each partition, past the beginning of some.
const REPLAYED_MAX: u64 = 900;

/// The steps by their names in `crash.rs`, each with the number of the time at which it dies, at most.
const STEPS: [(&str, u64); 12] = [
    ("Begin", 40),
    ("Process", 40),
    ("Send", 3_000),
    ("Changelog", 40),
    ("Flush", 40),
    ("SendOffsets", 40),
    ("Commit", 40),
    ("Apply", 40),
    ("Write", 4),
    ("StoreFlush", 2),
    ("Restore", 3),
    ("Load", 4),
];

pub(crate) fn run(world: &World<'_>, seed: u64, outcome: &mut Outcome) -> Result<()> {
    let program = world
        .with_crash_points
        .as_deref()
        .context("the case needs a build with crash points: --with-crash-points (scripts/faults makes it)")?;
    let mut random = Random::new(seed);
    let settings = Settings {
        commit_interval_ms: 20,
        batch_records_max: 200,
        flush_records: 300,
        ..Settings::default()
    };
    let mut scene = Scene::new(world, "crash", &settings)?;
    scene.set_program(program);
    let times = world.times.unwrap_or(TIMES);
    let judged = scene.under_attack(outcome, |scene, outcome| {
        for (step, most) in &STEPS {
            for _ in 0..times {
                // A restore has something to read only where the disk is behind, and to load where it is empty.
                if ["Restore", "Load"].contains(step) && scene.state("a").exists() {
                    std::fs::remove_dir_all(scene.state("a"))?;
                }
                crash_at(scene, outcome, step, 1 + random.below(*most))?;
            }
        }
        scene.start("a")?;
        scene.wait_for_more(100, PROGRESS_WITHIN)?;
        Ok(())
    });
    judged.and_then(|()| rebuilds(world, &mut random, outcome))
}

fn crash_at(scene: &mut Scene<'_>, outcome: &mut Outcome, step: &str, time: u64) -> Result<()> {
    let at = format!("{step}:{time}");
    scene.start_with("a", &[("CRASH_AT", at.as_str())])?;
    let code = scene.ends_by_itself("a", DIES_WITHIN).with_context(|| at.clone())?;
    // An abort is a signal, and has no exit code.
    ensure!(code.is_none(), "{at}: it ended with {code:?}");
    outcome.fired(step, 1);
    Ok(())
}

/// Replays whose rebuild dies, and dies again when it is taken up.
fn rebuilds(world: &World<'_>, random: &mut Random, outcome: &mut Outcome) -> Result<()> {
    let kafka = "  consumer:\n    session.timeout.ms: 6000\n".to_owned();
    let settings = Settings { kafka, workers: 1, ..Settings::default() };
    let mut scene = Scene::new(world, "crash", &settings)?;
    let program = world.with_crash_points.as_deref().context("a build with crash points")?;
    scene.set_program(program);
    let end = scene.watch.end()?;
    for _ in 0..world.times.unwrap_or(TIMES).div_ceil(2) {
        // A rebuild that has ended is not begun again: each is of a replay of its own.
        scene.start("a")?;
        ensure!(scene.wait_until_committed(end, PROGRESS_WITHIN)?, "it does not come to the end");
        scene.stop("a")?;
        let back = format!("-{}", 1 + random.below(REPLAYED_MAX));
        // Whoever has stopped counts as a member until its session ends.
        scene.command_until_well(&["replay", "--shift-by", &back, "--execute"], PROGRESS_WITHIN)?;
        // Each partition's first transaction and its last. Where the last has died, its first is not made again.
        let all = 2 * PARTITIONS as u64;
        let first = 1 + random.below(all);
        crash_at(&mut scene, outcome, "Rebuild", first)?;
        crash_at(&mut scene, outcome, "Rebuild", 1 + random.below(if first == all { 1 } else { 2 }))?;
    }
    scene.start("a")?;
    scene.judge_replayed(outcome)
}
