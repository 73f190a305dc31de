//! Whether a topic is what it must be: wanted against found, and nothing else.
//! It knows no broker.

use std::collections::BTreeMap;

use super::wanted::{Must, Role, Setting, Wanted};

/// A topic as the broker describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// How many partitions it has.
    pub partitions: i32,
    /// Its settings, by Kafka's own names.
    pub settings: BTreeMap<String, FoundSetting>,
}

/// A setting of a topic as the broker describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundSetting {
    /// Its value.
    pub value: String,
    /// Set for this topic, and not inherited from the broker.
    pub overridden: bool,
}

/// How a topic stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// There is none.
    Missing,
    /// There is one; it differs in these, or in nothing.
    There(Vec<Difference>),
}

/// One setting that is not what it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Kafka's name of it, or `partitions`.
    pub setting: String,
    /// What it is.
    pub is: String,
    /// What it must be, in words.
    pub must_be: String,
    /// What sets it right; `None` where no alteration of ours can.
    pub alter_to: Option<String>,
    /// The pipeline refuses to run with it.
    pub breaks_contract: bool,
}

/// Compares. The raw topic is others', so nothing of it is a difference; what
/// is odd about it becomes a warning of the plan.
#[must_use]
pub fn compare(wanted: &Wanted, found: Option<&Found>) -> Standing {
    let Some(found) = found else { return Standing::Missing };
    if wanted.role == Role::Raw {
        return Standing::There(Vec::new());
    }
    let mut differences = Vec::new();
    if found.partitions != wanted.partitions {
        differences.push(Difference {
            setting: "partitions".to_owned(),
            is: found.partitions.to_string(),
            must_be: format!("{}, as the raw topic has", wanted.partitions),
            // More partitions would send a ticket's next record elsewhere than its last.
            alter_to: None,
            breaks_contract: true,
        });
    }
    differences.extend(wanted.settings.iter().filter_map(|setting| difference(setting, found)));
    Standing::There(differences)
}

/// What is worth knowing of a raw topic that exists. It is not ours to alter.
/// `entry_bytes_max` is what may be remembered of one ticket.
#[must_use]
pub(super) fn raw_warnings(wanted: &Wanted, found: &Found, entry_bytes_max: usize) -> Vec<String> {
    let topic = &wanted.name;
    let value = |setting: &str| found.settings.get(setting).map(|found| found.value.as_str());
    let mut warnings = Vec::new();
    if let Some(policy) = value("cleanup.policy").filter(|policy| policy.contains("compact")) {
        warnings.push(format!(
            "{topic}: cleanup.policy is {policy}, so that all but the last record of a ticket may go; \
             a replay would derive from what is left"
        ));
    }
    for setting in ["retention.ms", "retention.bytes"] {
        if let Some(limit) = value(setting).filter(|limit| !limit.starts_with('-')) {
            warnings.push(format!(
                "{topic}: {setting} is {limit}; a replay reaches back no further, and a record deleted \
                 before the pipeline read it is lost"
            ));
        }
    }
    if value("message.timestamp.type") == Some("LogAppendTime") {
        warnings.push(format!(
            "{topic}: message.timestamp.type is LogAppendTime; windows run by the time of arrival"
        ));
    }
    let largest = value("max.message.bytes").and_then(|bytes| bytes.parse::<usize>().ok());
    if let Some(bytes) = largest.filter(|bytes| *bytes > entry_bytes_max) {
        warnings.push(format!(
            "{topic}: max.message.bytes is {bytes}, more than limits.entry_size_max, {entry_bytes_max} bytes: \
             events of a ticket that is larger than that are dead letters; raise the limit"
        ));
    }
    warnings
}

fn difference(setting: &Setting, found: &Found) -> Option<Difference> {
    let Some(is) = found.settings.get(setting.name) else {
        return Some(Difference {
            setting: setting.name.to_owned(),
            is: "not known to the broker".to_owned(),
            must_be: in_words(&setting.must),
            alter_to: None,
            breaks_contract: true,
        });
    };
    let breaks_contract = match judge(&setting.must, &is.value) {
        Judgement::Right => return None,
        Judgement::Differs => false,
        Judgement::Breaks => true,
    };
    Some(Difference {
        setting: setting.name.to_owned(),
        is: is.value.clone(),
        must_be: in_words(&setting.must),
        alter_to: Some(setting.must.value()),
        breaks_contract,
    })
}

enum Judgement {
    Right,
    Differs,
    Breaks,
}

fn judge(must: &Must, is: &str) -> Judgement {
    match *must {
        Must::Be(wanted) if is == wanted => Judgement::Right,
        Must::Be(_) => Judgement::Breaks,
        Must::Reach { wanted, broken_below } => match is.parse::<i64>() {
            Ok(is) if is >= wanted => Judgement::Right,
            Ok(is) if is >= broken_below => Judgement::Differs,
            _ => Judgement::Breaks,
        },
        Must::Keep { limit, loses } => match is.parse::<i64>() {
            Ok(is) if is == limit || (is < 0 && limit < 0) => Judgement::Right,
            Ok(is) if loses && (is >= 0 && (limit < 0 || is < limit)) => Judgement::Breaks,
            _ => Judgement::Differs,
        },
    }
}

fn in_words(must: &Must) -> String {
    match must {
        Must::Be(_) | Must::Keep { .. } => must.value(),
        Must::Reach { .. } => format!("at least {}", must.value()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topics::wanted::{RawTopic, wanted};
    use crate::topology::Topology;

    /// The default topology's topics, over a raw topic as Kafka makes it by default.
    fn all() -> Vec<Wanted> {
        let topology = Topology::shipped();
        wanted(&topology, RawTopic { partitions: 4, record_bytes_max: 1_048_588, retention_ms: 604_800_000 })
    }

    fn named(name: &str) -> Wanted {
        all().into_iter().find(|wanted| wanted.name == name).unwrap()
    }

    /// A topic just as it is wanted, but for what is given.
    fn found(wanted: &Wanted, but: &[(&str, &str)]) -> Found {
        let mut found = Found { partitions: wanted.partitions, settings: BTreeMap::new() };
        for setting in &wanted.settings {
            let value = setting.must.value();
            found.settings.insert(setting.name.to_owned(), FoundSetting { value, overridden: true });
        }
        for (name, value) in but {
            let value = (*value).to_owned();
            found.settings.insert((*name).to_owned(), FoundSetting { value, overridden: true });
        }
        found
    }

    /// `setting is -> must be`, `!` where it breaks the contract.
    fn differences(topic: &str, but: &[(&str, &str)]) -> Vec<String> {
        let wanted = named(topic);
        match compare(&wanted, Some(&found(&wanted, but))) {
            Standing::Missing => panic!("it is there"),
            Standing::There(differences) => differences
                .iter()
                .map(|d| {
                    let mark = if d.breaks_contract { "!" } else { "" };
                    format!("{} {} -> {}{mark}", d.setting, d.is, d.must_be)
                })
                .collect(),
        }
    }

    #[test]
    fn every_topic_of_the_contract_is_wanted_once() {
        let names: Vec<String> = all().into_iter().map(|wanted| wanted.name).collect();
        // The raw topic, 25 types, late, dead letters, changelog and ids; the alias shares a topic.
        assert_eq!(names.len(), 30, "{names:?}");
        assert_eq!(names.iter().filter(|name| *name == "ticket.comment.added").count(), 1);
        assert!(!names.iter().any(|name| name.ends_with("-rekeyed")), "{names:?}");
        assert!(all().iter().all(|wanted| wanted.partitions == 4));
    }

    #[test]
    fn what_is_as_wanted_does_not_differ() {
        for wanted in all() {
            assert_eq!(compare(&wanted, Some(&found(&wanted, &[]))), Standing::There(Vec::new()));
            assert_eq!(compare(&wanted, None), Standing::Missing);
        }
    }

    #[test]
    fn what_would_break_the_contract_is_told_from_what_merely_differs() {
        let cases: [(&str, (&str, &str), &str); 14] = [
            ("ticket.assigned", ("cleanup.policy", "compact"), "-> delete!"),
            ("ticket.assigned", ("message.timestamp.type", "LogAppendTime"), "-> CreateTime!"),
            ("ticket.assigned", ("retention.ms", "604800000"), "-> -1!"),
            ("ticket.assigned", ("retention.bytes", "1000"), "-> -1!"),
            ("ticket.assigned", ("max.message.bytes", "262144"), "-> at least 2097164!"),
            ("ticket.assigned", ("max.message.bytes", "1048588"), "-> at least 2097164"),
            (
                "ticket.late",
                ("message.timestamp.after.max.ms", "3600000"),
                "-> at least 9223372036854775807!",
            ),
            ("ticket.late", ("message.timestamp.before.max.ms", "1"), "-> at least 9223372036854775807!"),
            ("ticket.dlq", ("max.message.bytes", "1048588"), "-> at least 1114124!"),
            ("ticket-pipeline-changelog", ("cleanup.policy", "compact,delete"), "-> compact!"),
            ("ticket-pipeline-changelog", ("max.message.bytes", "4194351"), "-> at least 4194352!"),
            ("ticket-pipeline-changelog", ("retention.ms", "604800000"), "-> -1"),
            ("ticket-pipeline-ids", ("cleanup.policy", "compact"), "-> delete!"),
            ("ticket-pipeline-ids", ("retention.ms", "86400000"), "-> -1!"),
        ];
        for (topic, (setting, is), expected) in cases {
            assert_eq!(differences(topic, &[(setting, is)]), [format!("{setting} {is} {expected}")]);
        }
    }

    #[test]
    fn more_room_than_wanted_is_right() {
        assert_eq!(differences("ticket.dlq", &[("max.message.bytes", "99999999")]), [""; 0]);
    }

    #[test]
    fn other_partitions_than_the_raw_topic_has_cannot_be_mended() {
        let wanted = named("ticket.assigned");
        let found = Found { partitions: 1, ..found(&wanted, &[]) };
        let Standing::There(differences) = compare(&wanted, Some(&found)) else { panic!("it is there") };
        assert_eq!(differences.len(), 1);
        assert_eq!(differences[0].must_be, "4, as the raw topic has");
        assert!(differences[0].breaks_contract && differences[0].alter_to.is_none());
    }

    #[test]
    fn a_setting_that_the_broker_does_not_know_breaks_the_contract() {
        let wanted = named("ticket.late");
        let mut found = found(&wanted, &[]);
        found.settings.remove("message.timestamp.after.max.ms");
        let Standing::There(differences) = compare(&wanted, Some(&found)) else { panic!("it is there") };
        assert!(differences.len() == 1 && differences[0].breaks_contract);
    }

    #[test]
    fn topics_have_room_for_what_the_limits_let_be_made() {
        let mut topology = Topology::shipped();
        topology.limits.record_bytes_max = 2_000_000;
        topology.limits.entry_bytes_max = 9_000_000;
        let raw = |record_bytes_max| RawTopic { record_bytes_max, ..RawTopic::to_be_made(&topology) };
        let room = |raw: RawTopic, name: &str| {
            let wanted = wanted(&topology, raw).into_iter().find(|wanted| wanted.name == name).unwrap();
            let setting = wanted.settings.iter().find(|setting| setting.name == "max.message.bytes").unwrap();
            setting.must.value().parse::<usize>().unwrap()
        };
        for bytes in [500, 1_048_588, 3_000_000] {
            assert!(room(raw(bytes), "ticket.assigned") >= topology.limits.event_bytes_max());
            assert!(room(raw(bytes), "ticket.late") >= topology.limits.event_bytes_max());
            assert!(room(raw(bytes), "ticket-pipeline-changelog") > 9_000_000 + 60_000);
        }
        assert_eq!(room(raw(3_000_000), "ticket-pipeline-changelog"), 12_000_000);
    }

    #[test]
    fn retention_that_the_topology_sets_is_held_to() {
        let mut topology = Topology::shipped();
        topology.topic_settings.retention_ms = 1000;
        let raw = RawTopic::to_be_made(&topology);
        let wanted = wanted(&topology, raw).into_iter().find(|w| w.name == "ticket.late").unwrap();
        for (is, breaks) in [("999", Some(true)), ("1000", None), ("1001", Some(false)), ("-1", Some(false))]
        {
            let Standing::There(differences) =
                compare(&wanted, Some(&found(&wanted, &[("retention.ms", is)])))
            else {
                panic!("it is there")
            };
            assert_eq!(differences.first().map(|d| d.breaks_contract), breaks, "{is}");
        }
    }

    #[test]
    fn the_raw_topic_is_warned_of_and_never_differs() {
        let wanted = named("ticket.raw");
        let odd =
            found(&wanted, &[("cleanup.policy", "compact"), ("message.timestamp.type", "LogAppendTime")]);
        assert_eq!(compare(&wanted, Some(&odd)), Standing::There(Vec::new()));
        let warnings = |raw: &Found| raw_warnings(&wanted, raw, 2_000_000);
        assert_eq!(warnings(&odd).len(), 2);
        assert_eq!(warnings(&found(&wanted, &[("retention.ms", "5")])).len(), 1);
        assert_eq!(warnings(&found(&wanted, &[("max.message.bytes", "2000001")])).len(), 1);
        assert_eq!(warnings(&found(&wanted, &[("max.message.bytes", "2000000")])), [""; 0]);
    }
}
