//! A process is stopped past its session and past its transaction's timeout,
//! another takes over, and the first goes on as if nothing had been: what it had
//! in hand must not appear, and it must find its way back by itself.

use std::time::Duration;

use anyhow::{Result, ensure};
use ticket_harness::random::Random;

use crate::outcome::Outcome;
use crate::scene::{Scene, Settings, World};

const TIMES: u64 = 6;
const SESSION_MS: u64 = 6_000;
/// A transaction's timeout, and the ten seconds within which the broker looks.
const TRANSACTION: Duration = Duration::from_secs(25);
const PROGRESS_WITHIN: Duration = Duration::from_secs(120);

pub(crate) fn run(world: &World<'_>, seed: u64, outcome: &mut Outcome) -> Result<()> {
    let mut random = Random::new(seed);
    let settings = Settings {
        workers: 1,
        commit_interval_ms: 20,
        kafka: format!("  consumer:\n    session.timeout.ms: {SESSION_MS}\n"),
        ..Settings::default()
    };
    let scene = Scene::new(world, "zombies", &settings)?;
    let times = world.times.unwrap_or(TIMES);
    scene.under_attack(outcome, |scene, outcome| {
        scene.start("a")?;
        scene.start("b")?;
        for time in 0..times {
            let [zombie, _] = if time % 2 == 0 { ["a", "b"] } else { ["b", "a"] };
            wait_for_more(scene, 1 + random.below(400))?;
            scene.pause(Duration::from_micros(random.below(20_000)));
            let lost = count(scene, zombie, "lost: the group gave it to another");
            scene.signal(zombie, "STOP")?;
            outcome.fired("SIGSTOP", 1);
            let is_long = random.once_in(2);
            scene.pause(if is_long { TRANSACTION } else { Duration::from_millis(SESSION_MS + 2_000) });
            // The other has all partitions by now, and works on them.
            wait_for_more(scene, 400)?;
            scene.signal(zombie, "CONT")?;
            outcome.fired(if is_long { "past the transaction's timeout" } else { "past the session" }, 1);
            wait_for_more(scene, 400)?;
            scene.pause(Duration::from_secs(3));
            outcome.fired(
                "expelled, and said so",
                count(scene, zombie, "lost: the group gave it to another") - lost,
            );
        }
        Ok(())
    })
}

fn count(scene: &Scene<'_>, instance: &str, words: &str) -> u64 {
    scene.logged(instance).lines().filter(|line| line.contains(words)).count() as u64
}

fn wait_for_more(scene: &Scene<'_>, more: u64) -> Result<()> {
    let position = scene.watch.committed()? + more;
    ensure!(scene.wait_until_committed(position, PROGRESS_WITHIN)?, "nothing is committed any more");
    Ok(())
}
