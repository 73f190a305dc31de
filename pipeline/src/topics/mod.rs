//! What the topics must be like, and making them so.
//!
//! [`wanted`] is the rule as data, [`compare`] holds a topic against it, `rights`
//! what the user must be allowed against what it is, and the rest asks the broker.
//! The raw topic is made where there is none and otherwise left alone. No record is
//! written here.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};

use crate::topology::{KAFKA_RECORD_BYTES_MAX, Topology};
use admin::{ASK_AGAIN, Cluster};
use rights::Needed;

mod admin;
mod compare;
mod native;
mod rights;
mod wanted;

pub use admin::{bounds, no_answer};
pub use compare::{Difference, Found, FoundSetting, Standing, compare};
pub use wanted::{Must, RawTopic, Role, Setting, Wanted, wanted};

/// How long what was made or altered may take to be seen by a later question.
const SEEN_TIMEOUT: Duration = Duration::from_secs(30);

/// How every topic of the topology stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The topics, in the order in which records flow through them.
    pub topics: Vec<Planned>,
    /// What need not be altered and is worth knowing.
    pub warnings: Vec<String>,
}

/// How one topic stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// What it must be like.
    pub wanted: Wanted,
    /// How it stands.
    pub standing: Standing,
}

/// What [`apply`] did to one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// It was made, with so many partitions.
    Created(i32),
    /// These were altered.
    Altered(Vec<Difference>),
}

/// What a run needs to know of topics that are as they must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// How many partitions the raw topic has, and every other.
    pub partitions: i32,
    /// What differs without breaking the contract, a line each.
    pub warnings: Vec<String>,
}

impl Plan {
    /// Whether [`apply`] would find nothing to do, and nothing to refuse.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.topics.iter().all(|planned| planned.standing == Standing::There(Vec::new()))
    }

    /// Differences, each with its topic's name.
    pub fn differences(&self) -> impl Iterator<Item = (&str, &Difference)> {
        self.topics.iter().flat_map(|planned| match &planned.standing {
            Standing::Missing => [].iter().map(named(&planned.wanted.name)),
            Standing::There(differences) => differences.iter().map(named(&planned.wanted.name)),
        })
    }

    /// The topics that do not exist.
    pub fn missing(&self) -> impl Iterator<Item = &Wanted> {
        self.topics
            .iter()
            .filter(|planned| planned.standing == Standing::Missing)
            .map(|planned| &planned.wanted)
    }
}

fn named<'a>(topic: &'a str) -> impl Fn(&'a Difference) -> (&'a str, &'a Difference) {
    move |difference| (topic, difference)
}

/// Compares the topics with what the topology needs, and alters nothing.
///
/// # Errors
/// Where the broker does not answer, or does not show the topics' settings.
pub fn plan(topology: &Topology) -> Result<Plan> {
    let cluster = Cluster::connect(&topology.kafka)?;
    let (mut plan, found) = survey(&cluster, topology, rights::to_plan)?;
    plan.warnings.extend(beyond_retention(&cluster, topology, &found)?);
    Ok(plan)
}

/// Creates what is missing and alters what can be altered, telling `done` of
/// each topic. What cannot be mended is left, and stands in the plan that
/// comes back.
///
/// # Errors
/// Where the broker does not answer, refuses, or does not do what it says.
pub fn apply(topology: &Topology, mut done: impl FnMut(&Wanted, &Done)) -> Result<Plan> {
    let cluster = Cluster::connect(&topology.kafka)?;
    let (before, found) = survey(&cluster, topology, rights::to_apply)?;
    let missing: Vec<&Wanted> = before.missing().collect();
    if !missing.is_empty() {
        cluster.create(&missing, topology.topic_settings.replication_factor)?;
        for wanted in missing {
            done(wanted, &Done::Created(wanted.partitions));
        }
    }
    for planned in &before.topics {
        let Standing::There(differences) = &planned.standing else { continue };
        let changes: Vec<(&str, &str)> = differences
            .iter()
            .filter_map(|d| d.alter_to.as_deref().map(|value| (d.setting.as_str(), value)))
            .collect();
        let name = &planned.wanted.name;
        let Some(found) = found.get(name).filter(|_| !changes.is_empty()) else { continue };
        cluster.alter(name, found, &changes)?;
        let altered = differences.iter().filter(|d| d.alter_to.is_some()).cloned().collect();
        done(&planned.wanted, &Done::Altered(altered));
    }
    // The binding does not report a single topic's refusal, so the broker is asked what it now says.
    let deadline = Instant::now() + SEEN_TIMEOUT;
    loop {
        let (after, _) = survey(&cluster, topology, rights::to_apply)?;
        let still_missing = after.missing().map(|wanted| format!("{} does not exist", wanted.name)).next();
        let still_differs = after
            .differences()
            .find(|(_, difference)| difference.alter_to.is_some())
            .map(|(topic, difference)| sentence(topic, difference));
        match still_missing.or(still_differs) {
            None => return Ok(after),
            Some(what) if Instant::now() > deadline => {
                bail!("apply topics: the broker took every change, and still {what}; its log may say why")
            }
            Some(_) => thread::sleep(ASK_AGAIN),
        }
    }
}

/// Refuses topics that would break the contract; `run` asks before it starts.
///
/// # Errors
/// Where a topic is missing or would break the contract: the error says which,
/// which setting, what it is, what it must be and the remedy. And where the
/// broker does not answer.
pub fn check(topology: &Topology) -> Result<Checked> {
    let cluster = Cluster::connect(&topology.kafka)?;
    let (plan, _) = survey(&cluster, topology, rights::to_run)?;
    verdict(plan)
}

/// What the user of a run must be allowed to do with topics and is not, in words
/// and with a remedy. `None` where nothing is lacking, or that cannot be known.
pub fn lacking(topology: &Topology) -> Option<String> {
    let wanted = wanted(topology, RawTopic::to_be_made(topology));
    Cluster::connect(&topology.kafka).ok()?.lacking(&wanted, rights::to_run).ok()?
}

fn verdict(plan: Plan) -> Result<Checked> {
    let mut troubles: Vec<String> =
        plan.missing().map(|wanted| format!("{} does not exist", wanted.name)).collect();
    let (breaking, harmless): (Vec<_>, Vec<_>) =
        plan.differences().partition(|(_, difference)| difference.breaks_contract);
    troubles.extend(breaking.iter().map(|(topic, difference)| sentence(topic, difference)));
    if !troubles.is_empty() {
        let mut remedy = "run `ticket-pipeline topics apply`".to_owned();
        if breaking.iter().any(|(_, difference)| difference.alter_to.is_none()) {
            remedy += "; `ticket-pipeline topics plan` says what it cannot mend";
        }
        bail!("the topics would break the contract:\n  {}\n{remedy}", troubles.join("\n  "));
    }
    let partitions = plan.topics.first().map_or(0, |planned| planned.wanted.partitions);
    let harmless: Vec<String> =
        harmless.iter().map(|(topic, difference)| sentence(topic, difference)).collect();
    Ok(Checked { partitions, warnings: plan.warnings.into_iter().chain(harmless).collect() })
}

fn sentence(topic: &str, difference: &Difference) -> String {
    format!("{topic}: {} is {}, must be {}", difference.setting, difference.is, difference.must_be)
}

fn survey(cluster: &Cluster, topology: &Topology, needed: Needed) -> Result<(Plan, BTreeMap<String, Found>)> {
    let found = cluster.find(&wanted(topology, RawTopic::to_be_made(topology)), needed)?;
    let raw = match found.get(&topology.source.topic) {
        Some(found) => measure(found),
        None => RawTopic::to_be_made(topology),
    };
    let mut warnings = Vec::new();
    let topics = wanted(topology, raw)
        .into_iter()
        .map(|wanted| {
            let found = found.get(&wanted.name);
            if let Some(found) = found.filter(|_| wanted.role == Role::Raw) {
                warnings.extend(compare::raw_warnings(&wanted, found, topology.limits.entry_bytes_max));
            }
            Planned { standing: compare(&wanted, found), wanted }
        })
        .collect();
    Ok((Plan { topics, warnings }, found))
}

fn measure(raw: &Found) -> RawTopic {
    let number = |name: &str| raw.settings.get(name).and_then(|setting| setting.value.parse().ok());
    RawTopic {
        partitions: raw.partitions,
        record_bytes_max: number("max.message.bytes").unwrap_or(KAFKA_RECORD_BYTES_MAX.into()),
        retention_ms: number("retention.ms").unwrap_or(-1),
    }
}

/// Output records carry their sources' timestamps, so that a broker deletes
/// those of old raw records as soon as it looks.
fn beyond_retention(
    cluster: &Cluster,
    topology: &Topology,
    found: &BTreeMap<String, Found>,
) -> Result<Option<String>> {
    let limited = |wanted: &Wanted| {
        let wanted_ms = topology.topic_settings.retention_ms;
        let found_ms = found
            .get(&wanted.name)
            .and_then(|found| found.settings.get("retention.ms")?.value.parse::<i64>().ok());
        let retention_ms = found_ms.unwrap_or(wanted_ms);
        (retention_ms >= 0).then(|| (wanted.name.clone(), retention_ms))
    };
    let Some(raw) = found.get(&topology.source.topic) else { return Ok(None) };
    let shortest = wanted(topology, measure(raw))
        .iter()
        .filter(|wanted| matches!(wanted.role, Role::Events | Role::Late | Role::DeadLetter))
        .filter_map(limited)
        .min_by_key(|(_, retention_ms)| *retention_ms);
    let Some((name, retention_ms)) = shortest else { return Ok(None) };
    let Some(oldest_ms) = cluster.oldest_timestamp_ms(&topology.source.topic, raw.partitions)? else {
        return Ok(None);
    };
    Ok(too_old(oldest_ms, now_ms(), &name, retention_ms, &topology.source.topic))
}

fn too_old(oldest_ms: i64, now_ms: i64, output: &str, retention_ms: i64, raw: &str) -> Option<String> {
    let age_ms = now_ms.saturating_sub(oldest_ms);
    (age_ms > retention_ms).then(|| {
        format!(
            "{output}: retention.ms is {retention_ms}, and the oldest record of {raw} is {age_ms} ms old; \
             what is derived from it carries its timestamp and is deleted at once (-1 keeps it)"
        )
    })
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(name: &str, standing: Standing) -> Planned {
        let wanted =
            Wanted { name: name.to_owned(), role: Role::Events, partitions: 4, settings: Vec::new() };
        Planned { wanted, standing }
    }

    fn differs(setting: &str, breaks_contract: bool, mendable: bool) -> Standing {
        Standing::There(vec![Difference {
            setting: setting.to_owned(),
            is: "1".to_owned(),
            must_be: "2".to_owned(),
            alter_to: mendable.then(|| "2".to_owned()),
            breaks_contract,
        }])
    }

    #[test]
    fn a_run_is_refused_with_topic_setting_and_remedy() {
        let plan = Plan {
            topics: vec![
                planned("a", Standing::Missing),
                planned("b", differs("partitions", true, false)),
                planned("c", differs("retention.ms", false, true)),
            ],
            warnings: Vec::new(),
        };
        let error = verdict(plan).unwrap_err().to_string();
        assert!(error.contains("a does not exist\n"), "{error}");
        assert!(error.contains("b: partitions is 1, must be 2\n"), "{error}");
        assert!(!error.contains("c: "), "{error}");
        assert!(error.contains("`ticket-pipeline topics apply`"), "{error}");
        assert!(error.contains("cannot mend"), "{error}");
    }

    #[test]
    fn what_merely_differs_is_a_warning() {
        let plan = Plan {
            topics: vec![planned("c", differs("retention.ms", false, true))],
            warnings: vec!["w".to_owned()],
        };
        let checked = verdict(plan).unwrap();
        assert_eq!(checked.partitions, 4);
        assert_eq!(checked.warnings, ["w", "c: retention.ms is 1, must be 2"]);
    }

    #[test]
    fn an_output_that_would_lose_old_records_at_once_is_warned_of() {
        assert!(too_old(1_000, 2_000, "out", 999, "raw").is_some());
        assert_eq!(too_old(1_000, 2_000, "out", 1_000, "raw"), None);
    }
}
