//! Between pipeline and broker: replies lost after the broker has done what was
//! asked (above all EndTxn's), connections cut, slow or stalled, half-open links.

use std::time::Duration;

use anyhow::Result;
use ticket_harness::random::Random;

use crate::outcome::Outcome;
use crate::proxy::{Controls, KINDS};
use crate::scene::{Scene, Settings, World};

const TIMES: u64 = 45;
const PROGRESS_WITHIN: Duration = Duration::from_secs(150);
/// A request of the kind has been made by then, if one is made at all.
const FIRES_WITHIN: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);

pub(crate) fn run(world: &World<'_>, seed: u64, outcome: &mut Outcome) -> Result<()> {
    let mut random = Random::new(seed);
    let (brokers, controls) = world.cluster.proxies()?;
    let settings = Settings { commit_interval_ms: 20, brokers: Some(brokers), ..Settings::default() };
    let scene = Scene::new(world, "network", &settings)?;
    let times = world.times.unwrap_or(TIMES);
    over_and_over(scene, outcome, &mut random, times, |_, outcome, random, time| {
        match time % 9 {
            0..4 => lose_replies(&controls, outcome, KINDS.first().copied(), random.once_in(4)),
            4 | 5 => lose_some_reply(&controls, outcome, random),
            6 => outcome.fired("connection cut", controls.cut()),
            7 => hold_up(&controls, outcome, random, time / 9),
            _ => lose_brokers(&controls, outcome, random),
        }
        Ok(())
    })
}

/// A fault so many times, each after some progress.
pub(super) fn over_and_over<'w>(
    scene: Scene<'w>,
    outcome: &mut Outcome,
    random: &mut Random,
    times: u64,
    mut fault: impl FnMut(&mut Scene<'w>, &mut Outcome, &mut Random, u64) -> Result<()>,
) -> Result<()> {
    scene.under_attack(outcome, |scene, outcome| {
        scene.start("a")?;
        for time in 0..times {
            scene.wait_for_more(1 + random.below(200), PROGRESS_WITHIN)?;
            fault(scene, outcome, random, time)?;
        }
        Ok(())
    })
}

/// A reply of any kind.
pub(super) fn lose_some_reply(controls: &Controls, outcome: &mut Outcome, random: &mut Random) {
    let kind = random.below(KINDS.len() as u64) as usize;
    lose_replies(controls, outcome, KINDS.get(kind).copied(), false);
}

/// One reply, perhaps with its connection left open, so that only time tells.
fn lose_replies(controls: &Controls, outcome: &mut Outcome, kind: Option<(i16, &str)>, stays_open: bool) {
    let Some((kind, name)) = kind else { return };
    let before = controls.dropped();
    controls.drop_replies(kind, 1, stays_open);
    let began = std::time::Instant::now();
    while controls.dropped() == before && began.elapsed() < FIRES_WITHIN {
        std::thread::sleep(LOOK);
    }
    controls.drop_no_more();
    let how = if stays_open { "lost, half-open" } else { "lost" };
    outcome.fired(&format!("{name}'s reply {how}"), controls.dropped() - before);
}

/// Clients that connect again are told of a cluster without brokers, which librdkafka may
/// not come back from by itself.
fn lose_brokers(controls: &Controls, outcome: &mut Outcome, random: &mut Random) {
    let before = controls.emptied();
    controls.name_no_brokers(i64::MAX);
    controls.cut();
    let began = std::time::Instant::now();
    while controls.emptied() == before && began.elapsed() < FIRES_WITHIN {
        std::thread::sleep(LOOK);
    }
    std::thread::sleep(Duration::from_millis(500 + random.below(2_500)));
    controls.name_no_brokers(0);
    outcome.fired("cluster without brokers told", controls.emptied() - before);
}

/// Slow, late, or not at all, in turn.
fn hold_up(controls: &Controls, outcome: &mut Outcome, random: &mut Random, time: u64) {
    let before = controls.held_up();
    let name = match time % 3 {
        0 => {
            // Less than the load: what is under way grows meanwhile.
            controls.throttle(20_000 + random.below(80_000));
            std::thread::sleep(Duration::from_secs(5));
            controls.throttle(0);
            "throttled for 5 s"
        }
        1 => {
            controls.delay(Duration::from_millis(20 + random.below(200)));
            std::thread::sleep(Duration::from_secs(3));
            controls.delay(Duration::ZERO);
            "frames held up for 3 s"
        }
        _ => {
            controls.freeze(true);
            std::thread::sleep(Duration::from_millis(1_000 + random.below(7_000)));
            if random.once_in(2) {
                controls.cut();
            }
            controls.freeze(false);
            "nothing passed for some seconds"
        }
    };
    outcome.fired(name, u64::from(controls.held_up() > before));
}
