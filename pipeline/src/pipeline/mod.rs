//! The process: one state directory, its workers, and what ends them.
//!
//! A worker works alone and publishes what it has done; here is what is done
//! once for all of them. It does not touch tasks or transactions.

mod caught_up;
mod hanging;
mod housekeeping;
mod observing;
mod owners;
mod progress;
mod signals;
mod tail;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::clients::Member;
use crate::health::Health;
use crate::http::Listener;
use crate::restore::Setup;
use crate::stage::Stage;
use crate::store::{StateDirectory, StoreSettings};
use crate::telemetry::Telemetry;
use crate::topics;
use crate::topology::Topology;
use crate::worker::{Orders, Published, Worker, WorkerState};
use caught_up::CaughtUp;
use hanging::Hanging;
use housekeeping::Housekeeping;
use observing::Observing;
use owners::Owners;
use progress::Progress;

/// How often the workers are looked after.
const TICK: Duration = Duration::from_millis(50);

/// When all is done, a client that leaves its group in the middle of a rebalance is waited for so long.
const LEAVE_TIME_MAX: Duration = Duration::from_secs(10);

/// How a run goes.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Stop when everything that is in the raw topic now is committed.
    pub until_caught_up: bool,
    /// Progress is one line that is written over; else a log line every so often.
    pub on_terminal: bool,
}

struct Running {
    slot: usize,
    thread: JoinHandle<Result<()>>,
}

/// Runs until a signal, until caught up where that is asked for, or until
/// something happens that no retry can help.
///
/// # Errors
/// What that was, and what to do about it.
pub fn run(topology: Topology, options: Options) -> Result<()> {
    let orders = Arc::new(Orders::default());
    signals::stop_on_signal(Arc::clone(&orders))?;
    let topology = Arc::new(topology);
    let state = StateDirectory::lock(&topology.state.dir, StoreSettings::of(&topology))?;
    let instance = state.instance(topology.runtime.instance.as_deref())?;
    let health = Arc::new(Health::new(Arc::clone(&topology)));
    health.name(&instance);
    // Before anything connects, so that what is set up wrongly is said at once.
    let listener = topology.http.listen.map(Listener::bind).transpose()?;
    let telemetry = Telemetry::start(&health, listener.is_some())?;
    if let Some(listener) = listener {
        listener.serve(Arc::clone(&health), telemetry.page())?;
    }
    let watched = (&health, &telemetry);
    let outcome = work(&topology, options, Arc::new(state), &instance, watched, &orders);
    telemetry.end();
    outcome
}

/// Who is told what the workers do.
type Watched<'a> = (&'a Arc<Health>, &'a Telemetry);

/// From the first connection to the last worker's end.
fn work(
    topology: &Arc<Topology>,
    options: Options,
    state: Arc<StateDirectory>,
    instance: &str,
    watched: Watched<'_>,
    orders: &Arc<Orders>,
) -> Result<()> {
    let (health, _) = watched;
    let checked = topics::check(topology)?;
    for warning in &checked.warnings {
        tracing::warn!(warning, "the topics differ from what they should be");
    }
    let mut housekeeping = Housekeeping::connect(topology, checked.partitions)?;
    let delete_retention_ms = housekeeping.delete_retention_ms()?;
    let setups = Stage::all(topology).iter().map(|stage| {
        Arc::new(Setup {
            topology: Arc::clone(topology),
            stage: *stage,
            state: Arc::clone(&state),
            partitions: checked.partitions,
            delete_retention_ms,
        })
    });
    let setups: Vec<Arc<Setup>> = setups.collect();
    let owners = setups.iter().map(|setup| Owners::connect(setup));
    let mut owners: Vec<Owners> = owners.collect::<Result<_>>()?;
    let mut hanging = Hanging::connect(topology, checked.partitions)?;
    let mut caught_up =
        if options.until_caught_up { Some(CaughtUp::begin(topology, checked.partitions)?) } else { None };
    let mut observing = Observing::connect(topology, &state, health)?;
    let mut progress = Progress::begin(health, options.on_terminal);

    let mut workers = spawn_workers(&setups, instance, watched, orders)?;
    let mut outcome = Ok(());
    let mut stopping_since = None;
    while !workers.is_empty() {
        std::thread::sleep(TICK);
        for finished in workers.extract_if(.., |worker| worker.thread.is_finished()) {
            let ended =
                finished.thread.join().unwrap_or_else(|_| Err(anyhow!("worker {} panicked", finished.slot)));
            // The first error is the cause.
            outcome = outcome.and(ended);
            orders.stop.store(true, Ordering::Relaxed);
        }
        observing.tick();
        let statuses = health.statuses();
        progress.tick(&statuses);
        if orders.stop.load(Ordering::Relaxed) {
            let since = *stopping_since.get_or_insert_with(Instant::now);
            let have_ended = statuses.iter().all(|status| status.state == WorkerState::Ended);
            if have_ended && since.elapsed() > LEAVE_TIME_MAX {
                tracing::warn!(
                    "all is committed and closed, and a client does not leave its group: ending without it"
                );
                break;
            }
            continue;
        }
        let looked = housekeeping.tick(&statuses);
        let looked = looked.and_then(|()| hanging.tick(&statuses));
        if let Err(error) = looked {
            outcome = outcome.and(Err(error));
            orders.stop.store(true, Ordering::Relaxed);
        }
        for stage in owners.iter_mut().filter_map(Owners::tick) {
            orders.rejoin(stage).store(true, Ordering::Relaxed);
        }
        if caught_up.as_mut().is_some_and(CaughtUp::tick) {
            tracing::info!("caught up");
            orders.stop.store(true, Ordering::Relaxed);
        }
    }
    progress.end();
    // What is not allowed any more, librdkafka tells without the topic.
    outcome.map_err(|error| match topics::lacking(topology) {
        Some(lacking) => anyhow!("{error:#}\n{lacking}"),
        None => error,
    })
}

/// The workers of all stages: as many in each.
fn spawn_workers(
    setups: &[Arc<Setup>],
    instance: &str,
    watched: Watched<'_>,
    orders: &Arc<Orders>,
) -> Result<Vec<Running>> {
    let mut all = Vec::new();
    for setup in setups {
        all.extend(spawn_stage(setup, setups.len(), instance, watched, orders)?);
    }
    Ok(all)
}

fn spawn_stage(
    setup: &Arc<Setup>,
    stages: usize,
    instance: &str,
    (health, telemetry): Watched<'_>,
    orders: &Arc<Orders>,
) -> Result<Vec<Running>> {
    let topology = &setup.topology;
    let partitions = usize::try_from(setup.partitions).unwrap_or(1);
    let group = setup.stage.group(topology);
    let wanted = topology
        .runtime
        .workers
        .or_else(|| std::thread::available_parallelism().ok().map(std::num::NonZero::get))
        .unwrap_or(1);
    let workers = wanted.clamp(1, partitions.max(1));
    tracing::info!(group, instance, workers, partitions, "starting");
    (0..workers)
        .map(|slot| {
            let member = Member::new(topology, setup.stage, instance, slot, stages * workers);
            let published = Arc::new(Published::default());
            health.add_worker(slot, Arc::clone(&published));
            let watchers = (telemetry.instruments(), telemetry.traces());
            let worker = Worker::new(Arc::clone(setup), member, published, watchers, Arc::clone(orders));
            let thread = std::thread::Builder::new()
                .name(match setup.stage {
                    Stage::Rekey => format!("rekey-{slot}"),
                    Stage::Tickets => format!("worker-{slot}"),
                })
                .spawn(move || worker.run())
                .context("start a worker")?;
            Ok(Running { slot, thread })
        })
        .collect()
}

/// Says when something that is done every so often is due.
#[derive(Debug)]
struct Every {
    interval: Duration,
    next: Instant,
}

impl Every {
    fn new(interval: Duration) -> Every {
        Every { interval, next: Instant::now() + interval }
    }

    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let due = now >= self.next;
        if due {
            self.next = now + self.interval;
        }
        due
    }
}
