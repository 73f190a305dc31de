//! How far the run is, for a person to see.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::Every;
use crate::clients::{self, Logs};
use crate::topology::Topology;
use crate::worker::Status;

const ON_TERMINAL: Duration = Duration::from_secs(1);
const IN_LOG: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) struct Progress {
    observer: BaseConsumer<Logs>,
    on_terminal: bool,
    due: Every,
    /// What workers that have ended did.
    ended: Totals,
    last: (Instant, Totals),
    now: Totals,
}

#[derive(Debug, Clone, Default)]
struct Totals {
    records: u64,
    events: u64,
    duplicates: u64,
    dropped: u64,
    dead_letters: u64,
    late: u64,
    truncated: u64,
    rekeyed: u64,
    commits: u64,
    /// By topic and partition.
    positions: HashMap<(String, i32), i64>,
    restore_records_left: i64,
}

impl Totals {
    fn add(&mut self, status: &Status) {
        self.records += status.records;
        self.events += status.events;
        self.duplicates += status.duplicates;
        self.dropped += status.dropped;
        self.dead_letters += status.dead_letters;
        self.late += status.late;
        self.truncated += status.truncated;
        self.rekeyed += status.rekeyed;
        self.commits += status.commits;
        self.restore_records_left += status.restore_records_left;
        let place = |partition: i32| (status.topic.clone(), partition);
        self.positions
            .extend(status.positions.iter().filter_map(|(partition, at)| Some((place(*partition), (*at)?))));
    }
}

impl Progress {
    /// Nothing is done yet.
    ///
    /// # Errors
    /// Where a client cannot be made.
    pub(super) fn begin(topology: &Topology, on_terminal: bool) -> Result<Progress> {
        Ok(Progress {
            observer: clients::observer(topology).create_with_context(Logs).context("create a client")?,
            on_terminal,
            due: Every::new(if on_terminal { ON_TERMINAL } else { IN_LOG }),
            ended: Totals::default(),
            last: (Instant::now(), Totals::default()),
            now: Totals::default(),
        })
    }

    /// Keeps what a worker did that has ended.
    pub(super) fn keep(&mut self, status: &Status) {
        self.ended.add(status);
        self.ended.positions.clear();
        self.ended.restore_records_left = 0;
    }

    /// Tells, every so often.
    pub(super) fn tick(&mut self, statuses: &[Arc<Status>]) {
        let mut now = self.ended.clone();
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
        let records_per_second = rate(self.now.records, before.records).round();
        let commits_per_second = (rate(self.now.commits, before.commits) * 10.0).round() / 10.0;
        let Totals { records, events, rekeyed, duplicates, dropped, dead_letters, late, truncated, .. } =
            self.now;
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
                rekeyed,
                duplicates,
                dropped,
                dead_letters,
                late,
                truncated,
                restore_records_left,
                "progress"
            );
        }
        self.last = (Instant::now(), self.now.clone());
    }

    /// End position less position, over this process's running partitions.
    fn lag(&self) -> Option<i64> {
        let mut lag = 0;
        for ((topic, partition), position) in &self.now.positions {
            let (_, end) = self.observer.fetch_watermarks(topic, *partition, ANSWER_TIMEOUT).ok()?;
            lag += (end - position).max(0);
        }
        Some(lag)
    }
}
