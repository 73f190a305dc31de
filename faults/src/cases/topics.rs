//! What can become of the topics behind the pipeline's back. It goes on safely
//! and says so, or it refuses in plain words; never in silence.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::outcome::Outcome;
use crate::scene::{PARTITIONS, Scene, Settings, World};

/// A run that is refused is refused by then; one that goes on has committed something.
const DECIDED_WITHIN: Duration = Duration::from_secs(90);
const PROGRESS_WITHIN: Duration = Duration::from_secs(60);

/// What is done while the pipeline stands still.
struct Attack {
    name: &'static str,
    does: fn(&Scene<'_>) -> Result<()>,
    /// Words of the refusal, or of the warning with which it goes on.
    refused: bool,
    says: &'static str,
}

const ALL: [Attack; 10] = [
    Attack {
        name: "changelog deleted",
        does: |scene| remake(scene, &scene.topology.changelog_topic.clone()),
        refused: true,
        says: "lost records",
    },
    Attack {
        name: "changelog and disk gone",
        does: |scene| {
            remake(scene, &scene.topology.changelog_topic.clone())?;
            Ok(std::fs::remove_dir_all(scene.state("a"))?)
        },
        refused: true,
        says: "lost records",
    },
    Attack {
        name: "ids log deleted",
        does: |scene| remake(scene, &scene.topology.ids_topic.clone()),
        refused: true,
        says: "lost records",
    },
    Attack {
        name: "changelog truncated, and the disk gone",
        does: |scene| {
            let changelog = scene.topology.changelog_topic.clone();
            // Kafka deletes no records of a topic that is only compacted, until somebody says that it may.
            set_cleanup(scene, &changelog, "[compact,delete]")?;
            truncate(scene, &changelog)?;
            set_cleanup(scene, &changelog, "compact")?;
            Ok(std::fs::remove_dir_all(scene.state("a"))?)
        },
        refused: true,
        says: "lost records",
    },
    Attack {
        name: "ids log truncated, and the disk gone",
        does: |scene| {
            truncate(scene, &scene.topology.ids_topic.clone())?;
            Ok(std::fs::remove_dir_all(scene.state("a"))?)
        },
        refused: true,
        says: "lost records",
    },
    Attack {
        name: "raw topic's head gone past the committed position",
        does: |scene| truncate(scene, &scene.topology.source.topic.clone()),
        refused: true,
        says: "are gone before they were read",
    },
    Attack {
        name: "raw topic made anew",
        does: |scene| remake(scene, &scene.topology.source.topic.clone()),
        refused: true,
        says: "was it deleted and made anew",
    },
    Attack {
        name: "partitions added",
        does: |scene| {
            let topic = scene.topology.source.topic.clone();
            let more = (PARTITIONS + 1).to_string();
            scene
                .world
                .cluster
                .tool(&["topics", "--alter", "--topic", &topic, "--partitions", &more])
                .map(drop)
        },
        refused: true,
        says: "partitions is 4, must be 5",
    },
    Attack {
        name: "the group's offsets forgotten",
        does: |scene| {
            let (group, topic) = (scene.topology.group.clone(), scene.topology.source.topic.clone());
            let arguments = ["consumer-groups", "--delete-offsets", "--group", &group, "--topic", &topic];
            scene.when_idle(&arguments, "Successful")
        },
        refused: false,
        says: "no committed offset: going on from the state's input position",
    },
    Attack {
        name: "the group's offsets forgotten, and the disk gone",
        does: |scene| {
            let (group, topic) = (scene.topology.group.clone(), scene.topology.source.topic.clone());
            let arguments = ["consumer-groups", "--delete-offsets", "--group", &group, "--topic", &topic];
            scene.when_idle(&arguments, "Successful")?;
            Ok(std::fs::remove_dir_all(scene.state("a"))?)
        },
        refused: false,
        says: "no committed offset: going on from the state's input position",
    },
];

pub(crate) fn run(world: &World<'_>, _seed: u64, outcome: &mut Outcome) -> Result<()> {
    for attack in &ALL {
        eprintln!("{}", attack.name);
        one(world, attack, outcome).with_context(|| attack.name)?;
    }
    Ok(())
}

fn one(world: &World<'_>, attack: &Attack, outcome: &mut Outcome) -> Result<()> {
    let kafka = "  consumer:\n    session.timeout.ms: 6000\n".to_owned();
    let settings = Settings { kafka, workers: 1, batch_records_max: 200, ..Settings::default() };
    let mut scene = Scene::new(world, "topics", &settings)?;
    scene.start("a")?;
    // In the middle, so that there is more to read; what was emitted is judged in the end.
    scene.wait_until_committed(1_000, PROGRESS_WITHIN)?;
    scene.stop("a")?;
    scene.append(1_000)?;
    let before = scene.emitted_so_far()?;
    (attack.does)(&scene)?;
    outcome.fired(attack.name, 1);
    let said = scene.logged("a").len();
    scene.start("a")?;
    if attack.refused {
        let code = scene.ends_by_itself("a", DECIDED_WITHIN);
        let log = scene.logged("a");
        let words = log.get(said..).unwrap_or_default();
        outcome.expect(matches!(code, Ok(Some(1))) && words.contains(attack.says), || {
            let last: Vec<&str> = words.lines().rev().take(3).collect();
            format!("{}: it was to refuse with \"{}\"; {code:?}: {last:?}", attack.name, attack.says)
        });
        if code.is_err() {
            scene.kill("a")?;
        }
        // What was emitted before is as it was, and nothing came to it.
        let after = scene.emitted_so_far()?;
        outcome.expect(before == after, || format!("{}: something was emitted all the same", attack.name));
        outcome.compared += before;
        return Ok(());
    }
    let end = scene.watch.end()?;
    outcome.expect(scene.wait_until_committed(end, DECIDED_WITHIN)?, || format!("{}: not live", attack.name));
    let log = scene.logged("a");
    let words = log.get(said..).unwrap_or_default();
    outcome.expect(words.contains(attack.says), || {
        format!("{}: it goes on and does not say \"{}\"", attack.name, attack.says)
    });
    scene.judge_as_it_is(outcome)
}

/// Deletes a topic and makes it again, empty, as a person would.
fn remake(scene: &Scene<'_>, topic: &str) -> Result<()> {
    scene.world.cluster.tool(&["topics", "--delete", "--topic", topic])?;
    // It may be on its way out yet.
    scene.command_until_well(&["topics", "apply"], PROGRESS_WITHIN)
}

/// Deletes all records of a topic.
fn truncate(scene: &Scene<'_>, topic: &str) -> Result<()> {
    // -1 is its end.
    let partitions: Vec<serde_json::Value> = (0..PARTITIONS)
        .map(|partition| serde_json::json!({"topic": topic, "partition": partition, "offset": -1}))
        .collect();
    let file = scene.world.folder.join(format!("{}-delete.json", scene.name));
    std::fs::write(&file, serde_json::json!({"version": 1, "partitions": partitions}).to_string())?;
    let file = file.to_str().context("a path that is text")?;
    scene.world.cluster.tool(&["delete-records", "--offset-json-file", file]).map(drop)
}

fn set_cleanup(scene: &Scene<'_>, topic: &str, policy: &str) -> Result<()> {
    let policy = format!("cleanup.policy={policy}");
    let arguments = ["configs", "--alter", "--topic", topic, "--add-config", &policy];
    scene.world.cluster.tool(&arguments).map(drop)
}
