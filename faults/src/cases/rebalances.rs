//! One process, two, three, two, one, over and over under load: every change
//! moves partitions with their states.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ticket_harness::random::Random;

use crate::outcome::Outcome;
use crate::scene::{Scene, Settings, World};

const TIMES: u64 = 12;
const PROGRESS_WITHIN: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(100);

pub(crate) fn run(world: &World<'_>, seed: u64, outcome: &mut Outcome) -> Result<()> {
    let times = world.times.unwrap_or(TIMES);
    // The classic protocol with static members, as it ships, and the broker's own assignor.
    for (protocol, kafka) in [
        ("classic, static members", "  consumer:\n    session.timeout.ms: 6000\n"),
        ("consumer protocol", "  consumer:\n    group.protocol: consumer\n"),
    ] {
        let mut random = Random::new(seed);
        let settings =
            Settings { workers: 1, commit_interval_ms: 20, kafka: kafka.to_owned(), ..Settings::default() };
        let scene = Scene::new(world, "rebalances", &settings)?;
        scene.under_attack(outcome, |scene, outcome| {
            attack(scene, outcome, &mut random, times.div_ceil(2), protocol)
        })?;
    }
    Ok(())
}

fn attack(
    scene: &mut Scene<'_>,
    outcome: &mut Outcome,
    random: &mut Random,
    times: u64,
    protocol: &str,
) -> Result<()> {
    scene.start("a")?;
    let assigned = |scene: &Scene<'_>| -> u64 {
        let log = ["a", "b", "c"].map(|instance| scene.logged(instance)).concat();
        log.lines().filter(|line| line.contains(": assigned partition=")).count() as u64
    };
    wait_until(scene, |scene| assigned(scene) > 0)?;
    for time in 0..times {
        let before = assigned(scene);
        // 1 to 3 to 1: b comes, c comes, c goes, b goes.
        let (instance, comes) = match time % 4 {
            0 => ("b", true),
            1 => ("c", true),
            2 => ("c", false),
            _ => ("b", false),
        };
        if comes {
            scene.start(instance)?;
        } else {
            scene.stop(instance)?;
        }
        // Whoever ends in peace stays a member until its session ends.
        wait_until(scene, |scene| assigned(scene) > before)?;
        scene.wait_for_more(200 + random.below(800), PROGRESS_WITHIN)?;
        outcome.fired(&format!("process {} ({protocol})", if comes { "joined" } else { "left" }), 1);
        outcome.fired("partition moved", assigned(scene).saturating_sub(before));
    }
    Ok(())
}

fn wait_until(scene: &Scene<'_>, moved: impl Fn(&Scene<'_>) -> bool) -> Result<()> {
    let began = Instant::now();
    while !moved(scene) {
        ensure!(began.elapsed() < PROGRESS_WITHIN, "no partition moves");
        scene.pause(LOOK);
    }
    Ok(())
}
