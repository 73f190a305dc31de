//! The metrics that are read off what the workers have published, whenever
//! somebody collects. No worker notices.

use std::sync::Arc;

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;

use super::metrics::{
    BUILD, CONSUMED, DEAD_LETTERS, DUPLICATES, ERROR, EVENT_TYPE, GROUP, Kind, LAG, LAG_TIME, LATE,
    LIBRDKAFKA, Metric, OPERATION, ORIGIN, OUTCOME, PART, PARTITION, PHASE, READY, REBALANCES,
    RESTORE_RECORDS, RESTORE_REMAINING, SENT, STATE, STORE_CACHE_LIMIT, STORE_MEMORY, STORE_SIZE,
    STORE_WRITE_BUFFERS, SYSTEM, TASKS, TOPIC, TRUNCATED, TWINS_DROPPED, VERSION,
};
use crate::clients;
use crate::health::{Health, Lag};
use crate::stage::Stage;
use crate::topology::Topology;
use crate::worker::{Counts, Place, TaskState, TaskStatus};

/// Tells a metric's values, each with its attributes, each combination once.
pub(super) type Observe = fn(&Health, &mut dyn FnMut(f64, &[KeyValue]));

/// Every metric that is not a histogram, and how its values are found.
pub(super) const OBSERVED: [(Metric, Observe); 19] = [
    (CONSUMED, consumed),
    (SENT, sent),
    (DUPLICATES, |health, tell| tell(counts(health).duplicates() as f64, &[])),
    (TWINS_DROPPED, twins_dropped),
    (LATE, |health, tell| tell(counts(health).late as f64, &[])),
    (TRUNCATED, |health, tell| tell(counts(health).truncated as f64, &[])),
    (DEAD_LETTERS, dead_letters),
    (LAG, |health, tell| lag(health, &mut |lag, attributes| tell(lag.records as f64, attributes))),
    (LAG_TIME, |health, tell| lag(health, &mut |lag, attributes| tell(lag.time.as_secs_f64(), attributes))),
    (TASKS, tasks),
    (RESTORE_REMAINING, restore_remaining),
    (RESTORE_RECORDS, restore_records),
    (REBALANCES, rebalances),
    (STORE_SIZE, store_size),
    (STORE_MEMORY, store_memory),
    (STORE_WRITE_BUFFERS, |health, tell| tell(health.memory().write_buffers_bytes as f64, &[])),
    (STORE_CACHE_LIMIT, |health, tell| tell(health.memory().cache_bytes_max as f64, &[])),
    (READY, |health, tell| tell(f64::from(u8::from(health.ready().is_sound())), &[])),
    (BUILD, build),
];

/// Has a meter ask here whenever somebody collects.
pub(super) fn register(meter: &Meter, health: &Arc<Health>) {
    for (metric, observe) in OBSERVED {
        let health = Arc::clone(health);
        match metric.kind {
            Kind::Counter => {
                meter
                    .f64_observable_counter(metric.name)
                    .with_unit(metric.unit)
                    .with_description(metric.meaning)
                    .with_callback(move |instrument| {
                        observe(&health, &mut |value, attributes| instrument.observe(value, attributes));
                    })
                    .build();
            }
            Kind::Gauge => {
                meter
                    .f64_observable_gauge(metric.name)
                    .with_unit(metric.unit)
                    .with_description(metric.meaning)
                    .with_callback(move |instrument| {
                        observe(&health, &mut |value, attributes| instrument.observe(value, attributes));
                    })
                    .build();
            }
            Kind::Histogram(_) => unreachable!("{} is no histogram", metric.name),
        }
    }
}

fn counts(health: &Health) -> Counts {
    let mut sum = Counts::default();
    health.statuses().iter().for_each(|status| sum.add(&status.counts));
    sum
}

fn name_of(topology: &Topology, event_type: usize) -> (String, String) {
    topology
        .event_types
        .get(event_type)
        .map_or_else(Default::default, |of| (of.name.clone(), of.topic.clone()))
}

fn consumed(health: &Health, tell: &mut dyn FnMut(f64, &[KeyValue])) {
    let topology = health.topology();
    for stage in Stage::all(topology) {
        let attributes = |outcome: &'static str| {
            vec![
                KeyValue::new(SYSTEM, "kafka"),
                KeyValue::new(OPERATION, "poll"),
                KeyValue::new(TOPIC, stage.topic(topology).to_owned()),
                KeyValue::new(GROUP, stage.group(topology)),
                KeyValue::new(OUTCOME, outcome),
            ]
        };
        let mut counts = Counts::default();
        let statuses = health.statuses();
        statuses.iter().filter(|of| of.stage == *stage).for_each(|of| counts.add(&of.counts));
        for (event_type, of_type) in counts.by_type() {
            let (name, _) = name_of(topology, event_type);
            for (outcome, count) in [
                ("emitted", of_type.emitted),
                ("duplicate", of_type.duplicates),
                ("dropped", of_type.dropped),
            ] {
                if count > 0 {
                    let mut attributes = attributes(outcome);
                    attributes.push(KeyValue::new(EVENT_TYPE, name.clone()));
                    tell(count as f64, &attributes);
                }
            }
        }
        if *stage == Stage::Rekey {
            tell(counts.rekeyed as f64, &attributes("rekeyed"));
        }
        tell(counts.dead_letters() as f64, &attributes("dead_letter"));
    }
}

fn sent(health: &Health, tell: &mut dyn FnMut(f64, &[KeyValue])) {
    let topology = health.topology();
    let attributes = |topic: &str, origin: &'static str| {
        vec![
            KeyValue::new(SYSTEM, "kafka"),
            KeyValue::new(OPERATION, "send"),
            KeyValue::new(TOPIC, topic.to_owned()),
            KeyValue::new(ORIGIN, origin),
        ]
    };
    let counts = counts(health);
    for (event_type, of_type) in counts.by_type() {
        let (name, topic) = name_of(topology, event_type);
        for (origin, count) in [("forwarded", of_type.forwarded), ("derived", of_type.derived)] {
            if count > 0 {
                let mut attributes = attributes(&topic, origin);
                attributes.push(KeyValue::new(EVENT_TYPE, name.clone()));
                tell(count as f64, &attributes);
            }
        }
    }
    if Stage::all(topology).contains(&Stage::Rekey) {
        tell(counts.rekeyed as f64, &attributes(&topology.rekeyed_topic, "rekeyed"));
    }
    tell(counts.late as f64, &attributes(&topology.late_topic, "late"));
    tell(counts.dead_letters() as f64, &attributes(&topology.dead_letter_topic, "dead_letter"));
}

fn twins_dropped(health: &Health, tell: &mut dyn FnMut(f64, &[KeyValue])) {
    let counts = counts(health);
    tell(counts.dropped() as f64, &[KeyValue::new(ORIGIN, "native")]);
    tell(counts.twins_dropped as f64, &[KeyValue::new(ORIGIN, "derived")]);
}

fn dead_letters(health: &Health, tell: &mut dyn FnMut(f64, &[KeyValue])) {
    // Those at zero too: an alert on growth needs to see the first one grow.
    for (code, count) in counts(health).by_code() {
        tell(count as f64, &[KeyValue::new(ERROR, code.as_str())]);
    }
}

fn all_tasks(health: &Health) -> Vec<(Place, TaskStatus)> {
    let statuses = health.statuses();
    let tasks =
        statuses.iter().flat_map(|status| status.tasks.iter().map(|task| (status.place(task), *task)));
    tasks.collect()
}

/// Those that have a state.
fn tasks_with_state(health: &Health) -> impl Iterator<Item = TaskStatus> {
    let tasks = all_tasks(health).into_iter();
    tasks.filter(|((stage, _), _)| *stage == Stage::Tickets).map(|(_, task)| task)
}

fn partition(partition: i32) -> KeyValue {
    // The conventions say that it is a string.
    KeyValue::new(PARTITION, partition.to_string())
}

fn lag(health: &Health, tell: &mut dyn FnMut(Lag, &[KeyValue])) {
    let topology = health.topology();
    for (place, task) in all_tasks(health) {
        let Some(lag) = task.position.and_then(|position| health.lag(place, position)) else { continue };
        let (stage, _) = place;
        let attributes = [
            KeyValue::new(TOPIC, stage.topic(topology).to_owned()),
            partition(task.partition),
            KeyValue::new(GROUP, stage.group(topology)),
        ];
        tell(lag, &attributes);
    }
}

fn tasks(health: &Health, tell: &mut dyn FnMut(f64, &[KeyValue])) {
    let tasks = all_tasks(health);
    for state in [TaskState::Created, TaskState::Restoring, TaskState::Rebuilding, TaskState::Running] {
        let count = tasks.iter().filter(|(_, task)| task.state == state).count();
        tell(count as f64, &[KeyValue::new(STATE, state.as_str())]);
    }
}

fn restore_remaining(health: &Health, tell: &mut dyn FnMut(f64, &[KeyValue])) {
    for task in tasks_with_state(health) {
        let phase = match task.state {
            TaskState::Restoring => "restore",
            TaskState::Rebuilding => "rebuild",
            TaskState::Created | TaskState::Running => continue,
        };
        tell(task.records_left as f64, &[partition(task.partition), KeyValue::new(PHASE, phase)]);
    }
}

fn restore_records(health: &Health, tell: &mut dyn FnMut(f64, &[KeyValue])) {
    let statuses = health.statuses();
    let restored: u64 = statuses.iter().map(|status| status.restored_records).sum();
    let rebuilt: u64 = statuses.iter().map(|status| status.rebuilt_records).sum();
    tell(restored as f64, &[KeyValue::new(PHASE, "restore")]);
    tell(rebuilt as f64, &[KeyValue::new(PHASE, "rebuild")]);
}

fn rebalances(health: &Health, tell: &mut dyn FnMut(f64, &[KeyValue])) {
    let rebalances: u64 = health.statuses().iter().map(|status| status.rebalances).sum();
    tell(rebalances as f64, &[]);
}

fn store_size(health: &Health, tell: &mut dyn FnMut(f64, &[KeyValue])) {
    for task in tasks_with_state(health).filter(|task| task.state == TaskState::Running) {
        tell(task.store.disk_bytes as f64, &[partition(task.partition)]);
    }
}

fn store_memory(health: &Health, tell: &mut dyn FnMut(f64, &[KeyValue])) {
    let recent: u64 = tasks_with_state(health).map(|task| task.store.memory_bytes).sum();
    tell(recent as f64, &[KeyValue::new(PART, "recent")]);
    tell(health.memory().cache_bytes as f64, &[KeyValue::new(PART, "cache")]);
}

fn build(_: &Health, tell: &mut dyn FnMut(f64, &[KeyValue])) {
    let attributes = [
        KeyValue::new(VERSION, env!("CARGO_PKG_VERSION")),
        KeyValue::new(LIBRDKAFKA, clients::librdkafka_version()),
    ];
    tell(1.0, &attributes);
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::metrics::METRICS;
    use super::*;

    #[test]
    fn every_metric_is_observed_or_measured() {
        for metric in METRICS {
            let is_observed = OBSERVED.iter().any(|(observed, _)| observed.name == metric.name);
            assert_eq!(is_observed, !matches!(metric.kind, Kind::Histogram(_)), "{}", metric.name);
        }
    }

    #[test]
    fn only_the_attributes_of_the_table_are_used_and_each_combination_once() {
        let rekeyed = Topology::parse("topology.yaml", "source: { keyed_by: nothing }", &|_| None).unwrap();
        let health = Health::new(Arc::new(rekeyed));
        for (metric, observe) in OBSERVED {
            let mut told = HashSet::new();
            observe(&health, &mut |_, attributes| {
                for attribute in attributes {
                    assert!(
                        metric.attributes.contains(&attribute.key.as_str()),
                        "{}: {attribute:?}",
                        metric.name
                    );
                }
                assert!(told.insert(format!("{attributes:?}")), "{}: {attributes:?} twice", metric.name);
            });
        }
    }
}
