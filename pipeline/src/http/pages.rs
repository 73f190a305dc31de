//! The page `/status`: all that the process knows of itself, as JSON.
//!
//! It holds names, numbers and what went wrong last, and no settings: there is
//! nothing in it that must not be seen.

use std::time::SystemTime;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::health::{Health, WorkerView};
use crate::worker::{Counts, Place, TaskStatus};

pub(super) const INDEX: &str = "ticket-pipeline

/livez    whether the workers' loops turn
/readyz   whether all is assigned, restored and initialised
/metrics  for Prometheus
/status   workers, tasks, positions and lag, as JSON
";

pub(super) fn status(health: &Health) -> Value {
    let workers = health.workers();
    let topology = health.topology();
    let (running, since) = health.running_since();
    let mut counts = Counts::default();
    workers.iter().for_each(|worker| counts.add(&worker.status.counts));
    let (live, ready) = (health.live(), health.ready());
    let objections = [live.objections.as_slice(), ready.objections.as_slice()].concat();
    let workers: Vec<Value> = workers.iter().map(|worker| of_worker(health, worker)).collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "group": topology.group,
        "instance": health.instance(),
        "source": topology.source.topic,
        "startedAt": written(since),
        "runningSeconds": running.as_secs(),
        "live": live.is_sound(),
        "ready": ready.is_sound(),
        "objections": objections,
        "records": {
            "in": counts.records(),
            "events": counts.events(),
            "duplicates": counts.duplicates(),
            "dropped": counts.dropped(),
            "twinsDropped": counts.twins_dropped,
            "late": counts.late,
            "truncated": counts.truncated,
            "rekeyed": counts.rekeyed,
            "deadLetters": counts.dead_letters(),
        },
        "workers": workers,
    })
}

fn of_worker(health: &Health, worker: &WorkerView) -> Value {
    let status = &worker.status;
    let trouble = status.last_trouble.as_ref();
    let tasks: Vec<Value> =
        status.tasks.iter().map(|task| of_task(health, status.place(task), task)).collect();
    json!({
        "worker": worker.slot,
        "topic": status.stage.topic(health.topology()),
        "state": status.state.as_str(),
        "turnedSecondsAgo": worker.turned_ago.as_secs_f64(),
        "commits": status.commits,
        "rebalances": status.rebalances,
        "lastCommitAt": status.last_commit.map(written),
        "lastTrouble": trouble.map(|trouble| json!({"at": written(trouble.at), "what": trouble.what})),
        "tasks": tasks,
    })
}

fn of_task(health: &Health, place: Place, task: &TaskStatus) -> Value {
    let lag = task.position.and_then(|position| health.lag(place, position));
    json!({
        "partition": task.partition,
        "state": task.state.as_str(),
        "position": task.position,
        "end": lag.map(|lag| lag.end),
        "lag": lag.map(|lag| lag.records),
        "lagSeconds": lag.map(|lag| lag.time.as_secs_f64()),
        "restoreRecordsLeft": task.records_left,
        "storeBytes": task.store.disk_bytes,
    })
}

fn written(time: SystemTime) -> Option<String> {
    Timestamp::try_from(time).ok().map(|time| format!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant, UNIX_EPOCH};

    use super::*;
    use crate::stage::Stage;
    use crate::topology::Topology;
    use crate::worker::{LastTrouble, Published, Status, StoreSize, TaskState, WorkerState};

    #[test]
    fn a_status_tells_workers_tasks_positions_lag_and_the_last_trouble() {
        let health = Health::new(Arc::new(Topology::shipped()));
        health.name("a");
        let published = Arc::new(Published::default());
        let task = TaskStatus {
            partition: 2,
            state: TaskState::Running,
            position: Some(12),
            records_left: 0,
            ids_forgotten_before: None,
            store: StoreSize { disk_bytes: 4096, memory_bytes: 1 },
        };
        published.publish(Status {
            state: WorkerState::Working,
            commits: 3,
            rebalances: 1,
            tasks: vec![task],
            last_commit: Some(UNIX_EPOCH + Duration::from_millis(1_500)),
            last_trouble: Some(LastTrouble { at: UNIX_EPOCH, what: "send offsets: fenced".to_owned() }),
            ..Status::default()
        });
        health.add_worker(0, published);
        health.note_ends(&[((Stage::Tickets, 2), 15, 12)], Instant::now());
        let status = status(&health);
        assert_eq!(status["ready"], true);
        assert_eq!(status["instance"], "a");
        let worker = &status["workers"][0];
        assert_eq!(worker["state"], "working");
        assert_eq!(worker["lastCommitAt"], "1970-01-01T00:00:01.500Z");
        assert_eq!(worker["lastTrouble"]["what"], "send offsets: fenced");
        let task = &worker["tasks"][0];
        assert_eq!(
            (&task["partition"], &task["state"], &task["position"], &task["end"], &task["lag"]),
            (&json!(2), &json!("running"), &json!(12), &json!(15), &json!(3))
        );
    }
}
