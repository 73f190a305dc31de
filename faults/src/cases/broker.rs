//! The broker dies and comes back, by kill -9 and in peace, whatever the
//! transactions are at.

use std::time::Duration;

use anyhow::{Result, ensure};
use ticket_harness::random::Random;

use crate::outcome::Outcome;
use crate::scene::{Scene, Settings, World};

const TIMES: u64 = 10;
const PROGRESS_WITHIN: Duration = Duration::from_secs(150);

pub(crate) fn run(world: &World<'_>, seed: u64, outcome: &mut Outcome) -> Result<()> {
    let mut random = Random::new(seed);
    let settings = Settings { commit_interval_ms: 20, rate: 500, ..Settings::default() };
    let scene = Scene::new(world, "broker", &settings)?;
    let times = world.times.unwrap_or(TIMES);
    let skipped = world.cluster.markers_skipped();
    let judged = scene.under_attack(outcome, |scene, outcome| {
        scene.start("a")?;
        for time in 0..times {
            let more = scene.watch.committed()? + 1 + random.below(300);
            ensure!(scene.wait_until_committed(more, PROGRESS_WITHIN)?, "nothing is committed any more");
            // Somewhere in a transaction, of which there are fifty a second.
            scene.pause(Duration::from_micros(random.below(40_000)));
            restart(scene, outcome, time)?;
        }
        Ok(())
    });
    // Told apart from what the pipeline does wrong, and judged all the same.
    let skipped = world.cluster.markers_skipped() - skipped;
    outcome.fired("commit markers skipped by the broker, its own defect", skipped);
    judged
}

fn restart(scene: &Scene<'_>, outcome: &mut Outcome, time: u64) -> Result<()> {
    let cluster = &scene.world.cluster;
    if time % 5 == 4 {
        cluster.down()?;
        outcome.fired("broker ended cleanly", 1);
    } else {
        cluster.kill()?;
        outcome.fired("broker killed", 1);
    }
    let seconds = cluster.up()?;
    eprintln!("the broker was back after {seconds:.0} s");
    Ok(())
}
