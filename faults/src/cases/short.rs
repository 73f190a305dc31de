//! A little of what is quick: kill -9, and faults of the network, in less than a
//! minute, for the tests of every day.

use std::time::Duration;

use anyhow::{Result, ensure};
use ticket_harness::random::Random;

use super::network;
use crate::outcome::Outcome;
use crate::scene::{Scene, Settings, World};

const TIMES: u64 = 10;
const PROGRESS_WITHIN: Duration = Duration::from_secs(150);

pub(crate) fn run(world: &World<'_>, seed: u64, outcome: &mut Outcome) -> Result<()> {
    let mut random = Random::new(seed);
    let (brokers, controls) = world.cluster.proxies()?;
    let settings = Settings {
        commit_interval_ms: 20,
        rate: 400,
        brokers: Some(brokers),
        with_histories: false,
        ..Settings::default()
    };
    let scene = Scene::new(world, "short", &settings)?;
    let times = world.times.unwrap_or(TIMES);
    scene.under_attack(outcome, |scene, outcome| {
        scene.start("a")?;
        for time in 0..times {
            let more = scene.watch.committed()? + 1 + random.below(200);
            ensure!(scene.wait_until_committed(more, PROGRESS_WITHIN)?, "nothing is committed any more");
            if time % 2 == 0 {
                scene.kill("a")?;
                outcome.fired("kill -9", 1);
                scene.start("a")?;
            } else {
                network::lose_some_reply(&controls, outcome, &mut random);
            }
        }
        Ok(())
    })
}
