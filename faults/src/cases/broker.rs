//! A broker dies and comes back, by kill -9 and in peace, in each phase of a
//! transaction and at random moments, and its disk is full: the only one there
//! is, or each of three in turn. The only one also forgets its transactions, which
//! hang then; of three, coordinators move among those that live.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ticket_harness::random::Random;

use crate::outcome::Outcome;
use crate::proxy::{Controls, KINDS, Moment};
use crate::scene::{Scene, Settings, World};

const TIMES: u64 = 12;
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
/// Where Kafka keeps what coordinators know of transactions.
const TRANSACTIONS: &str = "__transaction_state";

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
            let before = coordinators(scene)?;
            let hangs = time % 6 == 5 && world.cluster.size() == 1;
            match time % 6 {
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
                5 if hangs => make_hang(world, &controls, outcome)?,
                5 => elect(world)?,
                _ => {
                    kill_in_phase(world, &controls, outcome, phase)?;
                    phase += 1;
                }
            }
            let seconds = world.cluster.up()?;
            eprintln!("the broker was back after {seconds:.0} s");
            if hangs {
                let code = scene.ends_by_itself("a", PROGRESS_WITHIN)?;
                mend_as_told(scene, outcome, code)?;
            }
            let moved = before.iter().zip(coordinators(scene)?).filter(|(before, after)| **before != *after);
            outcome.fired("coordinator moved to another broker", moved.count() as u64);
        }
        catch_up(scene, outcome)
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

/// The broker dies with a transaction whose offsets are sent, and comes back
/// without its coordinator's memory: nobody will ever end that transaction.
fn make_hang(world: &World<'_>, controls: &Controls, outcome: &mut Outcome) -> Result<()> {
    let (end_txn, _) = *KINDS.first().context("there are kinds of request")?;
    let node = controls.catch(end_txn, Moment::Asked, CAUGHT_WITHIN).context("no EndTxn was made")?;
    world.cluster.kill(node)?;
    controls.let_go();
    world.cluster.forget(node, TRANSACTIONS)?;
    outcome.fired("transaction made to hang", 1);
    Ok(())
}

/// Every partition goes back to the broker that it was given first, coordinators
/// among them; no broker dies.
fn elect(world: &World<'_>) -> Result<()> {
    let said =
        world.cluster.tool(&["leader-election", "--election-type", "preferred", "--all-topic-partitions"])?;
    eprintln!("{said}");
    Ok(())
}

/// The brokers that coordinate the group and the transactions of both workers: those
/// that lead the partitions which Kafka keeps them in.
fn coordinators(scene: &Scene<'_>) -> Result<Vec<i32>> {
    let group = &scene.topology.group;
    let transactions = (0..scene.settings.workers).map(|slot| (TRANSACTIONS, format!("{group}-a-{slot}")));
    let all = [("__consumer_offsets", group.clone())].into_iter().chain(transactions);
    all.map(|(topic, name)| scene.world.cluster.leader(topic, &name)).collect()
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

/// Waits until more is committed.
fn go_on(scene: &mut Scene<'_>, outcome: &mut Outcome, more: u64) -> Result<()> {
    let position = scene.watch.committed()? + more;
    wait_mending(scene, outcome, |positions| positions.iter().sum::<u64>() >= position)
}

/// Waits until every partition is where it ends now: others may go on while one hangs.
fn catch_up(scene: &mut Scene<'_>, outcome: &mut Outcome) -> Result<()> {
    let ends = scene.watch.ends()?;
    wait_mending(scene, outcome, |positions| {
        positions.iter().zip(&ends).all(|(position, end)| position >= end)
    })
}

/// Waits for positions. A pipeline that says that a transaction hangs is mended as it says.
fn wait_mending(
    scene: &mut Scene<'_>,
    outcome: &mut Outcome,
    are_there: impl Fn(&[u64]) -> bool,
) -> Result<()> {
    let mut began = Instant::now();
    // While the broker is down nobody answers.
    while !scene.watch.positions().is_ok_and(|positions| are_there(&positions)) {
        ensure!(began.elapsed() < PROGRESS_WITHIN, "nothing is committed any more");
        if let Some(status) = scene.has_ended("a")? {
            mend_as_told(scene, outcome, status.code())?;
            began = Instant::now();
        }
        scene.pause(LOOK);
    }
    Ok(())
}

/// The run has ended with an exit code: with the words for it, or it is no end that may be.
fn mend_as_told(scene: &mut Scene<'_>, outcome: &mut Outcome, code: Option<i32>) -> Result<()> {
    let log = scene.logged("a");
    let words = log.lines().last().unwrap_or_default();
    ensure!(words.contains("hanging transaction"), "it ended with {code:?}: {words}");
    let of = [("Kafka holds back the offset", "the offsets"), ("is committed up to", "the logs")];
    let whose =
        of.iter().find(|(said, _)| words.contains(said)).map_or("what is written", |(_, whose)| whose);
    outcome.fired(&format!("hanging transaction of {whose} told, and mended"), 1);
    mend(scene)
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
