//! What the contract states for every ticket and every record, held against
//! tickets and bytes that nobody has thought of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestCaseResult, TestRng, TestRunner};
use serde_json::{Map, Value, json};
use ticket_pipeline::lines::RawLine;
use ticket_pipeline::task::Fate;

use crate::datasets::{self, NASTY, VARIANTS};
use crate::lines::Line;
use crate::random::Random;
use crate::story::{envelope, record};
use crate::tasks::{Tasks, state_directory, topology};

const CASES: u32 = 256;

/// Holds a law against many inputs, from a seed that is printed.
fn law<S: Strategy>(cases: u32, inputs: &S, law: impl Fn(S::Value) -> TestCaseResult) {
    let mut random = Random::new();
    let seed: Vec<u8> = (0..4).flat_map(|_| random.next().to_le_bytes()).collect();
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 4_000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    runner.run(inputs, law).unwrap_or_else(|failure| panic!("{failure}"));
}

// --- Tickets ---------------------------------------------------------------

const REFERENCES: [&str; 7] =
    ["status", "priority", "assignedAgent", "type", "sentiment", "team", "requester"];
const SETS: [&str; 2] = ["tags", "watchers"];
const MAPS: [&str; 2] = ["customFields", "slaPolicies"];

/// A ticket that speaks of every tracked field, in few enough words to meet again.
fn ticket() -> impl Strategy<Value = Value> {
    let reference = prop_oneof![
        Just(Value::Null),
        Just(json!("")),
        Just(json!({})),
        "[ab]".prop_map(Value::from),
        ("[ab]", "[xy]").prop_map(|(id, name)| json!({"id": id, "name": name})),
        (0..3u8, "[xyé\"]").prop_map(|(id, name)| json!({"uid": id, "displayName": name})),
    ];
    let references = proptest::collection::vec(reference, REFERENCES.len());
    let sets = proptest::collection::vec(proptest::collection::vec("[abé]", 0..4), SETS.len());
    let maps =
        proptest::collection::vec(proptest::collection::btree_map("[klé\"]", scalar(), 0..4), MAPS.len());
    (references, sets, maps, any::<[bool; 2]>(), scalar()).prop_map(|(references, sets, maps, flags, due)| {
        let mut ticket = Map::new();
        ticket.extend(REFERENCES.iter().zip(references).map(|(name, value)| ((*name).to_owned(), value)));
        ticket.extend(SETS.iter().zip(sets).map(|(name, value)| ((*name).to_owned(), value.into())));
        ticket.extend(MAPS.iter().zip(maps).map(|(name, value)| ((*name).to_owned(), json!(value))));
        ticket.insert("isEscalated".to_owned(), flags[0].into());
        ticket.insert("isVip".to_owned(), flags[1].into());
        ticket.insert("dueDate".to_owned(), due);
        ticket.into()
    })
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        Just(json!([])),
        any::<bool>().prop_map(Value::from),
        (-2..3i64).prop_map(Value::from),
        "[ab\\\\\"\u{1}é]{0,2}".prop_map(Value::from),
        proptest::collection::btree_map("[kl]", 0..3i64, 1..3).prop_map(|map| json!(map)),
    ]
}

/// What a ticket says of each tracked field, by the name in `change.field`.
fn said(ticket: &Value) -> BTreeMap<String, Value> {
    let mut said = BTreeMap::new();
    for name in REFERENCES {
        let value = &ticket[name];
        let identity = [&value["uid"], &value["id"], value].into_iter().find(|value| !value.is_null());
        let identity = match identity {
            Some(Value::Number(number)) => number.to_string().into(),
            Some(Value::String(text)) if !text.is_empty() => text.clone().into(),
            _ => Value::Null,
        };
        said.insert(name.to_owned(), identity);
    }
    for name in SETS {
        let set: BTreeSet<&str> =
            ticket[name].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        said.insert(name.to_owned(), json!(set));
    }
    for (name, field) in MAPS.iter().zip(["customField", "slaPolicy"]) {
        let values = ticket[*name].as_object().into_iter().flatten();
        let values = values.filter(|(_, value)| !is_no_value(value));
        said.insert(
            field.to_owned(),
            values.map(|(key, value)| (key.clone(), value.clone())).collect::<Map<_, _>>().into(),
        );
    }
    for name in ["isEscalated", "isVip", "dueDate"] {
        said.insert(name.to_owned(), ticket[name].clone());
    }
    said
}

fn is_no_value(value: &Value) -> bool {
    value.is_null() || *value == json!("") || *value == json!([])
}

/// A change as it is told, done to what a ticket said.
fn apply(said: &mut BTreeMap<String, Value>, change: &Value) -> TestCaseResult {
    let field = change["field"].as_str().expect("a change names its field");
    let known = said.get_mut(field).expect("the field is tracked");
    if let Some(key) = change.get("key").and_then(Value::as_str) {
        let known = known.as_object_mut().expect("a map has keys");
        prop_assert_eq!(known.get(key), change.get("from"));
        match change.get("to") {
            Some(to) => drop(known.insert(key.to_owned(), to.clone())),
            None => drop(known.shift_remove(key)),
        }
    } else if let Some(added) = change.get("added") {
        let texts = |value: &Value| -> BTreeSet<String> {
            value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let (added, removed, mut set) = (texts(added), texts(&change["removed"]), texts(known));
        prop_assert!(removed.is_subset(&set) && added.is_disjoint(&set));
        set.retain(|tag| !removed.contains(tag));
        set.extend(added);
        *known = json!(set);
    } else {
        let side =
            |side: &Value| side.get("id").filter(|_| REFERENCES.contains(&field)).unwrap_or(side).clone();
        prop_assert_eq!(&*known, &side(&change["from"]));
        *known = side(&change["to"]);
    }
    Ok(())
}

fn created(ticket: &Value) -> RawLine {
    event("ticket:created", "created", ticket, None)
}

fn updated(id: &str, ticket: &Value, previous: Option<&Value>) -> RawLine {
    event("ticket:updated", id, ticket, previous)
}

fn event(kind: &str, id: &str, ticket: &Value, previous: Option<&Value>) -> RawLine {
    let mut ticket = ticket.clone();
    ticket["id"] = "T-1".into();
    let mut raw = record("T-1", b"");
    let mut envelope = envelope(id, kind, raw.timestamp_ms, ticket);
    if let Some(previous) = previous {
        envelope["payload"]["previousTicket"] = previous.clone();
    }
    raw.value = Some(envelope.to_string().into_bytes());
    raw
}

fn in_order(mut raw: Vec<RawLine>) -> Vec<RawLine> {
    let mut ends = BTreeMap::new();
    for raw in &mut raw {
        let end = ends.entry(raw.partition).or_insert(0);
        raw.offset = *end;
        *end += 1;
    }
    raw
}

fn all_rules() -> Tasks {
    Tasks::in_memory(&topology(&VARIANTS[3].settings()))
}

fn derived(emitted: &[Line]) -> Vec<Value> {
    emitted.iter().filter(|line| line.origin.as_deref() == Some("derived")).map(Line::json).collect()
}

// --- The laws --------------------------------------------------------------

#[test]
fn the_changes_done_to_the_old_ticket_give_the_new_one() {
    law(CASES * 4, &(ticket(), ticket(), any::<bool>()), |(old, new, from_event)| {
        let mut tasks = all_rules();
        let raw = if from_event {
            vec![updated("u", &new, Some(&old))]
        } else {
            vec![created(&old), updated("u", &new, None)]
        };
        let changes = derived(&tasks.process_all(&in_order(raw)));
        let mut told = said(&old);
        for (index, event) in changes.iter().enumerate() {
            apply(&mut told, &event["payload"]["change"])?;
            let sequence = json!({"position": index + 1, "total": changes.len()});
            prop_assert_eq!(&event["metadata"]["sequence"], &sequence);
            let from = if from_event { "event" } else { "store" };
            prop_assert_eq!(&event["metadata"]["previousFrom"], from);
        }
        let mut new = said(&new);
        // The way back derives nothing.
        if old["isEscalated"] == true {
            new.insert("isEscalated".to_owned(), true.into());
        }
        prop_assert_eq!(told, new);
        Ok(())
    });
}

#[test]
fn a_record_repeated_gives_nothing() {
    law(CASES, &(ticket(), ticket()), |(old, new)| {
        let mut tasks = all_rules();
        let (created, update) = (created(&old), updated("u", &new, None));
        let raw = in_order(vec![created, update.clone(), update, updated("another", &new, None)]);
        let outcomes: Vec<_> = raw.iter().map(|raw| tasks.process(raw)).collect();
        prop_assert_eq!(outcomes[2].0.fate, Fate::Duplicate);
        prop_assert!(outcomes[2].1.is_empty());
        // The same news under another id: handed on, and no change.
        prop_assert_eq!(outcomes[3].0.fate, Fate::Emitted);
        prop_assert_eq!(outcomes[3].1.len(), 1);
        Ok(())
    });
}

#[test]
fn the_same_input_gives_the_same_bytes_wherever_it_is_cut_into_commits() {
    law(24, &(proptest::collection::vec(ticket(), 2..30), 1..9usize), |(tickets, commit_records)| {
        let updates =
            tickets.iter().enumerate().map(|(index, ticket)| updated(&index.to_string(), ticket, None));
        let raw = in_order(updates.collect());
        let topology = topology(&VARIANTS[3].settings());
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let state = state_directory(folder.path(), &topology);
        let mut emitted = Vec::new();
        for batch in raw.chunks(commit_records) {
            // A store that was closed and opened again knows what it knew.
            let mut tasks = Tasks::on_disk(&topology, &state);
            emitted.extend(tasks.process_all(batch));
            let position = batch.last().expect("a chunk is not empty").offset + 1;
            tasks.apply(&BTreeMap::from([(batch[0].partition, position)]));
            tasks.close();
        }
        prop_assert!(emitted == Tasks::in_memory(&topology).process_all(&raw));
        Ok(())
    });
}

// --- Whatever comes in -----------------------------------------------------

/// All raw lines that there are, as the stock of what to spoil.
static STOCK: LazyLock<Vec<RawLine>> = LazyLock::new(|| {
    [NASTY].into_iter().chain(VARIANTS).flat_map(|set| set.raw()).filter(is_short).collect()
});

/// Long ones cost time, and are no better to spoil.
fn is_short(raw: &RawLine) -> bool {
    raw.value.as_ref().is_none_or(|value| value.len() < 4_096)
}

/// One thing done to some bytes.
#[derive(Debug, Clone)]
enum Spoil {
    Set(prop::sample::Index, u8),
    Remove(prop::sample::Index, u8),
    Insert(prop::sample::Index, &'static str),
    /// A piece of it once more, elsewhere.
    Copy(prop::sample::Index, prop::sample::Index, u8),
    CutOff(prop::sample::Index),
}

fn spoil() -> impl Strategy<Value = Spoil> {
    let words = prop::sample::select(vec![
        "\"",
        "\\",
        "\\ud800",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "null",
        "-",
        "1e999",
        "\u{feff}",
        "\u{0}",
        "Payload too large. Use API instead",
        "\"payload\":",
        "\"ticket\":{",
        "\"uid\":7,",
        "\"Message\":\"{}\",",
    ]);
    let at = any::<prop::sample::Index>;
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Spoil::Set(at, byte)),
        (at(), any::<u8>()).prop_map(|(at, count)| Spoil::Remove(at, count)),
        (at(), words).prop_map(|(at, word)| Spoil::Insert(at, word)),
        (at(), at(), any::<u8>()).prop_map(|(from, to, count)| Spoil::Copy(from, to, count)),
        at().prop_map(Spoil::CutOff),
    ]
}

fn spoilt(mut value: Vec<u8>, spoils: &[Spoil]) -> Vec<u8> {
    for spoil in spoils {
        let length = value.len() + 1;
        let end = |at: usize, count: u8| (at + usize::from(count)).min(length - 1);
        match spoil {
            Spoil::Set(at, byte) => {
                if let Some(found) = value.get_mut(at.index(length)) {
                    *found = *byte;
                }
            }
            Spoil::Remove(at, count) => {
                let at = at.index(length);
                value.drain(at..end(at, *count));
            }
            Spoil::Insert(at, word) => {
                let at = at.index(length);
                value.splice(at..at, word.bytes());
            }
            Spoil::Copy(from, to, count) => {
                let from = from.index(length);
                let piece = value[from..end(from, *count)].to_vec();
                let to = to.index(length);
                value.splice(to..to, piece);
            }
            Spoil::CutOff(at) => value.truncate(at.index(length)),
        }
    }
    value
}

/// Raw records, most of them spoilt, some nothing but noise.
fn raw() -> impl Strategy<Value = RawLine> {
    let stock = any::<prop::sample::Index>().prop_map(|index| index.get(STOCK.as_slice()).clone());
    let spoilt = (stock, proptest::collection::vec(spoil(), 0..3)).prop_map(|(mut raw, spoils)| {
        raw.value = raw.value.map(|value| spoilt(value, &spoils));
        raw
    });
    let noise = (proptest::collection::vec(any::<u8>(), 0..200), proptest::option::of("T-[0-9]"))
        .prop_map(|(value, key)| RawLine { key: key.map(String::into_bytes), ..record("T-1", &value) });
    prop_oneof![9 => spoilt, 1 => noise]
}

#[test]
fn whatever_comes_in_ends_in_exactly_one_way_and_nothing_panics() {
    for set in datasets::all().skip(1) {
        let topology = topology(&set.settings());
        law(CASES / 4, &proptest::collection::vec(raw(), 1..40), |raw| {
            let mut tasks = Tasks::in_memory(&topology);
            for raw in in_order(raw) {
                let (outcome, emitted) = tasks.process(&raw);
                let count = |origin: &str| {
                    emitted.iter().filter(|line| line.origin.as_deref() == Some(origin)).count()
                };
                let (forwarded, late) = (count("forwarded"), count("late"));
                let fits = match outcome.fate {
                    Fate::Emitted => forwarded == 1 && late == usize::from(outcome.late) && count("dlq") == 0,
                    Fate::Duplicate | Fate::Dropped => emitted.is_empty(),
                    Fate::DeadLetter(_) => emitted.len() == 1 && is_dead_letter_of(&emitted[0], &raw),
                    Fate::Rekeyed => false,
                };
                prop_assert!(fits, "{:?} of {:?}: {:?}", outcome, raw, emitted);
                prop_assert_eq!(count("derived"), outcome.derived as usize);
            }
            Ok::<(), TestCaseError>(())
        });
    }
}

fn is_dead_letter_of(line: &Line, raw: &RawLine) -> bool {
    let has_reason = line.header("__streams.errors.message").is_some_and(|message| !message.is_empty());
    line.origin.as_deref() == Some("dlq")
        && (line.partition, &line.key, &line.value, line.timestamp_ms)
            == (raw.partition, &raw.key, &raw.value, raw.timestamp_ms)
        && has_reason
}
