//! kill -9 at random moments: of one to three processes, at commit intervals
//! from 5 ms to 1 s, some in the middle of their start, some with the disk lost.

use std::time::Duration;

use anyhow::Result;
use ticket_harness::random::Random;

use crate::outcome::Outcome;
use crate::scene::{Scene, Settings, World};

const TIMES: u64 = 60;
/// So many kills in each scene.
const OF_SCENE: u64 = 20;
const INTERVALS_MS: [u64; 5] = [5, 20, 100, 300, 1_000];
const INSTANCES: [&str; 3] = ["a", "b", "c"];
/// Somebody has committed something by then, or nobody lives.
const PROGRESS_WITHIN: Duration = Duration::from_secs(120);

pub(crate) fn run(world: &World<'_>, seed: u64, outcome: &mut Outcome) -> Result<()> {
    let times = world.times.unwrap_or(TIMES);
    let mut random = Random::new(seed);
    let mut done = 0;
    while done < times {
        let processes = 1 + random.below(3) as usize;
        let interval = random.below(INTERVALS_MS.len() as u64) as usize;
        let settings = Settings {
            workers: 1 + random.below(2) as usize,
            commit_interval_ms: INTERVALS_MS.get(interval).copied().unwrap_or(5),
            batch_records_max: if random.once_in(2) { 20 } else { 5_000 },
            ..Settings::default()
        };
        let kills = OF_SCENE.min(times - done);
        eprintln!(
            "{kills} kills among {processes} processes of {} workers, a commit each {} ms or {} records",
            settings.workers, settings.commit_interval_ms, settings.batch_records_max
        );
        let scene = Scene::new(world, "kill", &settings)?;
        scene
            .under_attack(outcome, |scene, outcome| attack(scene, outcome, &mut random, processes, kills))?;
        done += kills;
    }
    Ok(())
}

fn attack(
    scene: &mut Scene<'_>,
    outcome: &mut Outcome,
    random: &mut Random,
    processes: usize,
    kills: u64,
) -> Result<()> {
    let instances = INSTANCES.get(..processes).unwrap_or(&INSTANCES);
    for instance in instances {
        scene.start(instance)?;
    }
    for _ in 0..kills {
        let victim = instances.get(random.below(processes as u64) as usize).copied().unwrap_or("a");
        if random.once_in(4) {
            // In the middle of whatever it is at, its start too.
            scene.pause(Duration::from_millis(random.below(1_500)));
        } else {
            scene.wait_for_more(1 + random.below(600), PROGRESS_WITHIN)?;
        }
        scene.kill(victim)?;
        outcome.fired("kill -9", 1);
        if random.once_in(5) && scene.state(victim).exists() {
            std::fs::remove_dir_all(scene.state(victim))?;
            outcome.fired("disk lost with it", 1);
        }
        // A while without it, now and then: the others take over, or nobody does.
        if random.once_in(3) {
            scene.pause(Duration::from_millis(random.below(800)));
        }
        scene.start(victim)?;
    }
    Ok(())
}
