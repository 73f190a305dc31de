//! A little of what is quick: kill -9, and faults of the network, in less than a
//! minute, for the tests of every day.

use anyhow::Result;
use ticket_harness::random::Random;

use super::network;
use crate::outcome::Outcome;
use crate::scene::{Scene, Settings, World};

const TIMES: u64 = 10;

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
    network::over_and_over(scene, outcome, &mut random, times, |scene, outcome, random, time| {
        if time % 2 == 1 {
            network::lose_some_reply(&controls, outcome, random);
            return Ok(());
        }
        scene.kill("a")?;
        outcome.fired("kill -9", 1);
        scene.start("a")
    })
}
