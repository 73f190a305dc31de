//! How far the run is, for a person to see.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Every;
use crate::health::Health;
use crate::worker::{Counts, Place, Status};

const ON_TERMINAL: Duration = Duration::from_secs(1);
const IN_LOG: Duration = Duration::from_secs(10);

pub(super) struct Progress {
    health: Arc<Health>,
    on_terminal: bool,
    due: Every,
    last: (Instant, Totals),
    now: Totals,
}

#[derive(Debug, Clone, Default)]
struct Totals {
    counts: Counts,
    commits: u64,
    /// Of the partitions that run here.
    positions: Vec<(Place, i64)>,
    restore_records_left: i64,
}

impl Totals {
    fn add(&mut self, status: &Status) {
        self.counts.add(&status.counts);
        self.commits += status.commits;
        self.restore_records_left += status.tasks.iter().map(|task| task.records_left).sum::<i64>();
        let running = status.tasks.iter().filter_map(|task| Some((status.place(task), task.position?)));
        self.positions.extend(running);
    }
}

impl Progress {
    /// Nothing is done yet.
    pub(super) fn begin(health: &Arc<Health>, on_terminal: bool) -> Progress {
        Progress {
            health: Arc::clone(health),
            on_terminal,
            due: Every::new(if on_terminal { ON_TERMINAL } else { IN_LOG }),
            last: (Instant::now(), Totals::default()),
            now: Totals::default(),
        }
    }

    /// Tells, every so often. `statuses` are those of all workers, also of those that have ended.
    pub(super) fn tick(&mut self, statuses: &[Arc<Status>]) {
        let mut now = Totals::default();
        statuses.iter().for_each(|status| now.add(status));
        self.now = now;
        if self.due.is_due() {
            self.tell();
        }
    }

    /// Tells for the last time.
    pub(super) fn end(mut self) {
        self.now.positions.clear();
        self.tell();
        if self.on_terminal {
            eprintln!();
        }
    }

    fn tell(&mut self) {
        let lag = self.lag();
        let (since, before) = &self.last;
        let seconds = since.elapsed().as_secs_f64().max(0.001);
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let counts = &self.now.counts;
        let (records, events) = (counts.records(), counts.events());
        let records_per_second = rate(records, before.counts.records()).round();
        let commits_per_second = (rate(self.now.commits, before.commits) * 10.0).round() / 10.0;
        let restore_records_left = self.now.restore_records_left;
        if self.on_terminal {
            let restoring = match restore_records_left {
                0 => String::new(),
                left => format!(" · restoring, {left} records left"),
            };
            let lag = lag.map_or_else(|| "?".to_owned(), |lag| lag.to_string());
            let mut terminal = std::io::stderr().lock();
            let line = format!(
                "\r\x1b[2K{records} records · {events} events · lag {lag} · {records_per_second} records/s · \
                 {commits_per_second} commits/s{restoring}"
            );
            // A terminal that is gone is no reason to stop.
            let _ = terminal.write_all(line.as_bytes()).and_then(|()| terminal.flush());
        } else {
            tracing::info!(
                records,
                events,
                lag,
                records_per_second,
                commits_per_second,
                rekeyed = counts.rekeyed,
                duplicates = counts.duplicates(),
                dropped = counts.dropped(),
                dead_letters = counts.dead_letters(),
                late = counts.late,
                truncated = counts.truncated,
                restore_records_left,
                "progress"
            );
        }
        self.last = (Instant::now(), self.now.clone());
    }

    /// Over this process's running partitions.
    fn lag(&self) -> Option<i64> {
        let lags = self.now.positions.iter();
        lags.map(|(place, position)| Some(self.health.lag(*place, *position)?.records)).sum()
    }
}
