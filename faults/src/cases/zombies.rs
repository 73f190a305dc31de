//! A process is stopped past its session and past its transaction's timeout,
//! another takes over, and the first goes on as if nothing had been: what it had
//! in hand must not appear, and it must find its way back by itself.

use std::time::{Duration, Instant};

use anyhow::Result;
use ticket_harness::random::Random;

use crate::outcome::Outcome;
use crate::scene::{Scene, Settings, World};

const TIMES: u64 = 6;
const SESSION_MS: u64 = 6_000;
/// A transaction's timeout, and the ten seconds within which the broker looks.
const TRANSACTION: Duration = Duration::from_secs(25);
const PROGRESS_WITHIN: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(200);
/// What the pipeline logs.
const LOST: &str = "lost: the group gave it to another";
const ASSIGNED: &str = ": assigned partition=";

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
            scene.wait_for_more(1 + random.below(400), PROGRESS_WITHIN)?;
            scene.pause(Duration::from_micros(random.below(20_000)));
            let lost = count(scene, zombie, LOST);
            scene.signal(zombie, "STOP")?;
            outcome.fired("SIGSTOP", 1);
            let is_long = random.once_in(2);
            scene.pause(if is_long { TRANSACTION } else { Duration::from_millis(SESSION_MS + 2_000) });
            // The other has all partitions by now, and works on them.
            scene.wait_for_more(400, PROGRESS_WITHIN)?;
            let assigned = count(scene, zombie, ASSIGNED);
            scene.signal(zombie, "CONT")?;
            outcome.fired(if is_long { "past the transaction's timeout" } else { "past the session" }, 1);
            scene.wait_for_more(400, PROGRESS_WITHIN)?;
            scene.pause(Duration::from_secs(3));
            outcome.fired("expelled, and said so", count(scene, zombie, LOST) - lost);
            let began = Instant::now();
            while count(scene, zombie, ASSIGNED) == assigned && began.elapsed() < PROGRESS_WITHIN {
                scene.pause(LOOK);
            }
            let is_back = count(scene, zombie, ASSIGNED) > assigned;
            outcome.expect(is_back, || format!("{zombie} does not find its way back into the group"));
            outcome.fired("back in the group by itself", u64::from(is_back));
        }
        Ok(())
    })
}

fn count(scene: &Scene<'_>, instance: &str, words: &str) -> u64 {
    scene.logged(instance).lines().filter(|line| line.contains(words)).count() as u64
}
