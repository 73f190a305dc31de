//! The process as seen from outside: what its workers have published, and the
//! judgement on it.
//!
//! Whoever asks (a page, a metric, the progress line) asks here, at any time and
//! from any thread; nothing here waits for a worker. It does not know how it is
//! shown.

mod lag;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::stage::Stage;
use crate::store::SharedMemory;
use crate::topology::Topology;
use crate::worker::{Place, Published, Status, TaskState, WorkerState};
pub use lag::{Ends, Lag};

/// A loop that has not turned for so long is stuck: half of what Kafka gives a
/// member by default. Every call to Kafka within a turn ends by itself before,
/// save commit and abort, which wait for as long as the coordinator is away.
pub const TURN_TIME_MAX: Duration = Duration::from_secs(300);

/// The process as seen from outside.
#[derive(Debug)]
pub struct Health {
    topology: Arc<Topology>,
    instance: OnceLock<String>,
    started: (Instant, SystemTime),
    workers: Mutex<Vec<WorkerOf>>,
    ends: Mutex<Ends>,
    memory: Mutex<SharedMemory>,
}

/// A worker's slot, and where it publishes.
#[derive(Debug, Clone)]
struct WorkerOf {
    slot: usize,
    published: Arc<Published>,
}

/// A worker as it was when somebody asked.
#[derive(Debug)]
pub struct WorkerView {
    /// Its slot in this process.
    pub slot: usize,
    /// What it has published last.
    pub status: Arc<Status>,
    /// How long ago its loop last turned.
    pub turned_ago: Duration,
}

impl WorkerView {
    /// What people call it.
    fn name(&self) -> String {
        format!("{}worker {}", of_stage(self.status.stage), self.slot)
    }
}

/// Where there is one stage only, it needs no name.
fn of_stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Rekey => "re-keying: ",
        Stage::Tickets => "",
    }
}

/// A judgement: sound where nothing speaks against it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What speaks against it, a line each.
    pub objections: Vec<String>,
}

impl Verdict {
    /// Whether nothing speaks against it.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.objections.is_empty()
    }
}

impl Health {
    /// A process that has just begun.
    #[must_use]
    pub fn new(topology: Arc<Topology>) -> Health {
        Health {
            topology,
            instance: OnceLock::new(),
            started: (Instant::now(), SystemTime::now()),
            workers: Mutex::default(),
            ends: Mutex::default(),
            memory: Mutex::default(),
        }
    }

    /// The topology that it runs.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The name of this process in its group; empty before it is known.
    #[must_use]
    pub fn instance(&self) -> &str {
        self.instance.get().map_or("", String::as_str)
    }

    /// Says what the process is called. The first name counts.
    pub fn name(&self, instance: &str) {
        self.instance.get_or_init(|| instance.to_owned());
    }

    /// How long it has run, and since when.
    #[must_use]
    pub fn running_since(&self) -> (Duration, SystemTime) {
        (self.started.0.elapsed(), self.started.1)
    }

    /// Adds a worker. One that has ended stays: its counts do not go away.
    pub fn add_worker(&self, slot: usize, published: Arc<Published>) {
        locked(&self.workers).push(WorkerOf { slot, published });
    }

    /// The workers, as of now.
    #[must_use]
    pub fn workers(&self) -> Vec<WorkerView> {
        let workers = locked(&self.workers).clone();
        workers
            .into_iter()
            .map(|WorkerOf { slot, published }| WorkerView {
                slot,
                status: published.status(),
                turned_ago: published.turned_ago(),
            })
            .collect()
    }

    /// What the workers have published last.
    #[must_use]
    pub fn statuses(&self) -> Vec<Arc<Status>> {
        self.workers().into_iter().map(|worker| worker.status).collect()
    }

    /// Notes where partitions end, with the positions that are committed.
    pub fn note_ends(&self, partitions: &[(Place, i64, i64)], now: Instant) {
        locked(&self.ends).note(partitions, now);
    }

    /// How far a committed position is behind; `None` where the partition's end is not known.
    #[must_use]
    pub fn lag(&self, place: Place, position: i64) -> Option<Lag> {
        locked(&self.ends).lag(place, position, Instant::now())
    }

    /// Notes what the stores' shared memory is used for.
    pub fn note_memory(&self, memory: SharedMemory) {
        *locked(&self.memory) = memory;
    }

    /// What the stores' shared memory is used for.
    #[must_use]
    pub fn memory(&self) -> SharedMemory {
        *locked(&self.memory)
    }

    /// Whether the workers' loops turn. One that waits for Kafka turns too.
    #[must_use]
    pub fn live(&self) -> Verdict {
        live(&self.workers())
    }

    /// Whether every worker has its producer and its partitions, and every task runs.
    #[must_use]
    pub fn ready(&self) -> Verdict {
        ready(&self.workers())
    }
}

fn live(workers: &[WorkerView]) -> Verdict {
    let stuck = workers.iter().filter(|worker| worker.status.state != WorkerState::Ended);
    let objections = stuck
        .filter(|worker| worker.turned_ago > TURN_TIME_MAX)
        .map(|worker| format!("{} has not turned for {} s", worker.name(), worker.turned_ago.as_secs()))
        .collect();
    Verdict { objections }
}

fn ready(workers: &[WorkerView]) -> Verdict {
    if workers.is_empty() {
        return Verdict { objections: vec!["the workers are not started yet".to_owned()] };
    }
    let mut objections = Vec::new();
    for worker in workers {
        let (name, status) = (worker.name(), &worker.status);
        let of = of_stage(status.stage);
        match status.state {
            WorkerState::Connecting => objections.push(format!("{name}: its producer is not ready")),
            WorkerState::Joining => {
                objections.push(format!("{name}: the group has not told it its partitions"));
            }
            WorkerState::Ended => objections.push(format!("{name} has ended")),
            WorkerState::Working => {}
        }
        for task in &status.tasks {
            let left = task.records_left;
            match task.state {
                TaskState::Created => {
                    objections.push(format!("{of}partition {} waits to be restored", task.partition));
                }
                TaskState::Restoring => objections
                    .push(format!("{of}partition {} is restored: {left} records left", task.partition)),
                TaskState::Rebuilding => objections.push(format!(
                    "{of}partition {} is made anew for a replay: {left} records left",
                    task.partition
                )),
                TaskState::Running => {}
            }
        }
    }
    Verdict { objections }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::{StoreSize, TaskStatus};

    fn worker(state: WorkerState, turned_s: u64, tasks: &[TaskState]) -> WorkerView {
        let tasks = tasks.iter().enumerate().map(|(index, state)| TaskStatus {
            partition: index as i32,
            state: *state,
            position: None,
            records_left: 7,
            ids_forgotten_before: None,
            store: StoreSize::default(),
        });
        let status = Status { state, tasks: tasks.collect(), ..Status::default() };
        WorkerView { slot: 3, status: Arc::new(status), turned_ago: Duration::from_secs(turned_s) }
    }

    #[test]
    fn a_loop_is_live_until_it_has_not_turned_for_long() {
        let turned = |seconds| live(&[worker(WorkerState::Working, seconds, &[])]).objections;
        assert_eq!(turned(0), [""; 0]);
        assert_eq!(turned(300), [""; 0]);
        assert_eq!(turned(301), ["worker 3 has not turned for 301 s"]);
        assert!(live(&[worker(WorkerState::Ended, 301, &[])]).is_sound(), "what has ended does not turn");
        assert!(live(&[]).is_sound(), "what has only begun is not stuck");
    }

    #[test]
    fn readiness_is_assigned_restored_and_initialised() {
        use TaskState::{Created, Rebuilding, Restoring, Running};
        for (worker, objections) in [
            (worker(WorkerState::Working, 0, &[]), &[][..]),
            (worker(WorkerState::Working, 0, &[Running, Running]), &[]),
            (worker(WorkerState::Connecting, 0, &[]), &["worker 3: its producer is not ready"]),
            (worker(WorkerState::Joining, 0, &[]), &["worker 3: the group has not told it its partitions"]),
            (worker(WorkerState::Ended, 0, &[]), &["worker 3 has ended"]),
            (
                worker(WorkerState::Working, 0, &[Running, Created, Restoring, Rebuilding]),
                &[
                    "partition 1 waits to be restored",
                    "partition 2 is restored: 7 records left",
                    "partition 3 is made anew for a replay: 7 records left",
                ],
            ),
        ] {
            assert_eq!(ready(&[worker]).objections, objections);
        }
        assert!(!ready(&[]).is_sound());
        let mut rekeying = worker(WorkerState::Joining, 0, &[Created]);
        rekeying.status = Arc::new(Status { stage: Stage::Rekey, ..(*rekeying.status).clone() });
        let objections = [
            "re-keying: worker 3: the group has not told it its partitions",
            "re-keying: partition 0 waits to be restored",
        ];
        assert_eq!(ready(&[rekeying]).objections, objections);
    }
}
