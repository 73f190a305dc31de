//! A broker dies and comes back, by kill -9 and in peace, in each phase of a
//! transaction and at random moments, and its disk is full: the only one there
//! is, or each of three in turn.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ticket_harness::random::Random;

use crate::outcome::Outcome;
use crate::proxy::{Controls, KINDS, Moment};
use crate::scene::{Scene, Settings, World};

const TIMES: u64 = 10;
/// Longer than a restart, a transaction that hangs, and a person who mends it.
const PROGRESS_WITHIN: Duration = Duration::from_secs(240);
const LOOK: Duration = Duration::from_secs(1);
/// A request of the kind has been made by then, however slow brokers are that have just started.
const CAUGHT_WITHIN: Duration = Duration::from_secs(60);
/// A broker whose disk takes nothing more has noticed by then.
const ENDS_WITHIN: Duration = Duration::from_secs(60);
/// The requests of a transaction are the first of the kinds.
const PHASES: usize = 5;
/// When a broker is killed; under way it has the request already, and may have done any part of it.
const MOMENTS: [(Moment, &str); 3] =
    [(Moment::Asked, "asked"), (Moment::Asked, UNDER_WAY), (Moment::Answered, "answered")];
const UNDER_WAY: &str = "under way";

pub(crate) fn run(world: &World<'_>, seed: u64, outcome: &mut Outcome) -> Result<()> {
    let mut random = Random::new(seed);
    let (brokers, controls) = world.cluster.proxies()?;
    let settings =
        Settings { commit_interval_ms: 20, rate: 500, brokers: Some(brokers), ..Settings::default() };
    let scene = Scene::new(world, outcome.case.clone().as_str(), &settings)?;
    let times = world.times.unwrap_or(TIMES);
    let judged = scene.under_attack(outcome, |scene, outcome| {
        scene.start("a")?;
        let mut phase = random.below((PHASES * MOMENTS.len()) as u64) as usize;
        for time in 0..times {
            go_on(scene, outcome, 1 + random.below(300))?;
            world.cluster.wait_in_sync()?;
            let some_node = random.below(world.cluster.size() as u64) as usize;
            match time % 5 {
                2 => {
                    scene.pause(Duration::from_micros(random.below(40_000)));
                    world.cluster.kill(some_node)?;
                    outcome.fired("broker killed at random", 1);
                }
                3 => {
                    world.cluster.down(some_node)?;
                    outcome.fired("broker ended cleanly", 1);
                }
                4 => fill_disk(world, outcome)?,
                _ => {
                    kill_in_phase(world, &controls, outcome, phase)?;
                    phase += 1;
                }
            }
            let seconds = world.cluster.up()?;
            eprintln!("the broker was back after {seconds:.0} s");
        }
        go_on(scene, outcome, 100)
    });
    // Told apart from what the pipeline does wrong, and judged all the same.
    outcome.fired("commit markers skipped by the broker, its own defect", world.cluster.markers_skipped());
    judged
}

/// kill -9 of the broker that has a request, or has just done it.
fn kill_in_phase(world: &World<'_>, controls: &Controls, outcome: &mut Outcome, phase: usize) -> Result<()> {
    let (kind, name) = *KINDS.get(phase / MOMENTS.len() % PHASES).context("a phase is a kind of request")?;
    let (moment, word) = *MOMENTS.get(phase % MOMENTS.len()).context("a phase has a moment")?;
    let node = controls.catch(kind, moment, CAUGHT_WITHIN).with_context(|| format!("no {name} was made"))?;
    if word == UNDER_WAY {
        controls.let_go();
    }
    world.cluster.kill(node)?;
    controls.let_go();
    outcome.fired(&format!("broker killed, {name} {word}"), 1);
    Ok(())
}

/// The last node's disk takes nothing more, until somebody makes room.
fn fill_disk(world: &World<'_>, outcome: &mut Outcome) -> Result<()> {
    let node = world.cluster.size() - 1;
    // Without root there is none; the counts say so.
    let Ok(disk) = world.cluster.disk(node) else { return world.cluster.down(node) };
    disk.fill()?;
    ensure!(world.cluster.ends_by_itself(node, ENDS_WITHIN)?, "a broker does not mind its full disk");
    outcome.fired("log disk full", 1);
    disk.free()
}

/// Waits until more is committed. A pipeline that says that a transaction hangs
/// is mended as it says.
fn go_on(scene: &mut Scene<'_>, outcome: &mut Outcome, more: u64) -> Result<()> {
    let position = scene.watch.committed()? + more;
    let began = Instant::now();
    while !scene.wait_until_committed(position, LOOK)? {
        ensure!(began.elapsed() < PROGRESS_WITHIN, "nothing is committed any more");
        if let Some(status) = scene.has_ended("a")? {
            let log = scene.logged("a");
            let words = log.lines().last().unwrap_or_default();
            ensure!(words.contains("hanging transaction"), "it ended with {status}: {words}");
            outcome.fired("hanging transaction told, and mended", 1);
            mend(scene)?;
        }
    }
    Ok(())
}

/// As the pipeline says: what hangs is aborted, and emitted again.
fn mend(scene: &mut Scene<'_>) -> Result<()> {
    let cluster = &scene.world.cluster;
    for node in 1..=cluster.size() {
        let node = node.to_string();
        let listed = cluster.tool(&[
            "transactions",
            "find-hanging",
            "--broker-id",
            &node,
            "--max-transaction-timeout",
            "0",
        ])?;
        eprintln!("{listed}");
        for line in listed.lines().skip(1) {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let [topic, partition, _, _, _, start, ..] = columns.as_slice() else { continue };
            cluster.tool(&[
                "transactions",
                "abort",
                "--topic",
                topic,
                "--partition",
                partition,
                "--start-offset",
                start,
            ])?;
        }
    }
    std::fs::remove_dir_all(scene.state("a"))?;
    let (group, topic) = (&scene.topology.group, &scene.topology.source.topic);
    scene.when_idle(
        &["consumer-groups", "--delete-offsets", "--group", group, "--topic", topic],
        "Successful",
    )?;
    scene.start("a")
}
