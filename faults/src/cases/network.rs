//! Between pipeline and broker: replies lost after the broker has done what was
//! asked (above all EndTxn's), connections cut, slow or stalled, half-open links.

use std::time::Duration;

use anyhow::{Result, ensure};
use ticket_harness::random::Random;

use crate::outcome::Outcome;
use crate::proxy::{Controls, KINDS};
use crate::scene::{Scene, Settings, World};

const TIMES: u64 = 40;
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
    scene.under_attack(outcome, |scene, outcome| {
        scene.start("a")?;
        for time in 0..times {
            let more = scene.watch.committed()? + 1 + random.below(200);
            ensure!(scene.wait_until_committed(more, PROGRESS_WITHIN)?, "nothing is committed any more");
            match time % 8 {
                0..4 => lose_replies(&controls, outcome, KINDS.first().copied(), random.once_in(4)),
                4 | 5 => lose_some_reply(&controls, outcome, &mut random),
                6 => outcome.fired("connection cut", controls.cut()),
                _ => hold_up(&controls, outcome, &mut random),
            }
        }
        outcome.expect(controls.passed() > 0, || "nothing went through the proxy".to_owned());
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

fn hold_up(controls: &Controls, outcome: &mut Outcome, random: &mut Random) {
    if random.once_in(3) {
        // Less than the load: what is under way grows meanwhile.
        controls.throttle(20_000 + random.below(80_000));
        std::thread::sleep(Duration::from_secs(5));
        controls.throttle(0);
        outcome.fired("throttled for 5 s", 1);
    } else if random.once_in(2) {
        controls.delay(Duration::from_millis(20 + random.below(200)));
        std::thread::sleep(Duration::from_secs(3));
        controls.delay(Duration::ZERO);
        outcome.fired("frames held up for 3 s", 1);
    } else {
        controls.freeze(true);
        std::thread::sleep(Duration::from_millis(random.below(8_000)));
        if random.once_in(2) {
            controls.cut();
        }
        controls.freeze(false);
        outcome.fired("nothing passed for some seconds", 1);
    }
}
