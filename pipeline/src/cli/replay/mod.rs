//! `replay`: resets the pipeline's group on the raw topic, so that the next run
//! emits again what came from there on.
//!
//! It shows what that means and sets the offsets; the run does the rest.

mod plan;

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};
use ticket_pipeline::topology::Topology;

use plan::{Kafka, Planned, Target};

/// Guesses on the careful side, with no measurement behind them, of records of
/// about 1 kB: the rebuild before the position, and the run from there on.
const REBUILT_PER_S: f64 = 100_000.0;
const EMITTED_PER_S: f64 = 20_000.0;

/// The arguments of `replay`.
#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("target").required(true),
    after_help = "Shows the plan and alters nothing; with --execute it sets the group's offsets, and the next `run`
makes the state what it was at the new position and emits again what came from there on: the same
bytes with the same event ids. Refused while the group has members: stop the pipeline first.
kafka-consumer-groups.sh --reset-offsets does the same to the offsets.

Where the raw topic is keyed by nothing, offsets and partitions are those of the topic that it is re-keyed
into: <group>-rekeyed. Re-keying itself is never reset.

Positions before the raw topic's beginning become its beginning. A replay goes back, never ahead.
To give only one consumer of the derived topics its past again, reset that consumer's group instead.

Exit code: 0 where the plan was shown or carried out, 1 where it was refused or Kafka cannot be
asked, 2 for a usage error.

Examples:
  ticket-pipeline replay --to-earliest
  ticket-pipeline replay --to-datetime 2026-03-01T00:00:00Z --execute && ticket-pipeline run
  ticket-pipeline replay --by-duration PT6H --partition 0 --partition 3
  ticket-pipeline replay --shift-by -1000 --partition 2 --execute"
)]
pub(crate) struct Arguments {
    /// From the raw topic's beginning.
    #[arg(long, group = "target")]
    to_earliest: bool,
    /// From this offset.
    #[arg(long, group = "target", value_name = "OFFSET")]
    to_offset: Option<i64>,
    /// From the first record at or after this time: RFC 3339, without an offset UTC.
    #[arg(long, group = "target", value_name = "TIME", value_parser = datetime)]
    to_datetime: Option<i64>,
    /// From the first record at or after this long ago: `PT6H`, `P7D`.
    #[arg(long, group = "target", value_name = "DURATION", value_parser = ago)]
    by_duration: Option<i64>,
    /// So many records back (negative) from the committed offset.
    #[arg(long, group = "target", value_name = "RECORDS", allow_negative_numbers = true)]
    shift_by: Option<i64>,
    /// From the committed offset: to see how things stand.
    #[arg(long, group = "target")]
    to_current: bool,
    /// Only this partition of the raw topic; may be given again. Without it, all.
    #[arg(long = "partition", value_name = "PARTITION")]
    partitions: Vec<i32>,
    /// Set the group's offsets.
    #[arg(long)]
    execute: bool,
}

impl Arguments {
    fn target(&self) -> Target {
        let at = self.to_offset.map(Target::Offset);
        let at = at.or(self.to_datetime.or(self.by_duration).map(Target::TimeMs));
        let at = at.or(self.shift_by.map(Target::Shift));
        at.unwrap_or(if self.to_earliest { Target::Earliest } else { Target::Current })
    }
}

/// Runs `replay`.
pub(crate) fn run(topology: &Path, arguments: &Arguments) -> Result<ExitCode> {
    let topology = Topology::load(topology)?;
    let kafka = Kafka::connect(&topology)?;
    if let Some(members) = kafka.members()? {
        bail!(
            "group {} is active ({members} members): stop the pipeline. One that has stopped counts as a member until its \
             session ends (session.timeout.ms, 45 s by default)",
            topology.group
        );
    }
    let partitions = kafka.partitions(&arguments.partitions)?;
    let mut plan = Vec::new();
    for partition in partitions {
        let planned = kafka
            .plan(partition, arguments.target())
            .with_context(|| format!("replay {} [{partition}]", topology.input_topic()))?;
        plan.push(planned);
    }
    let mut text = show(&plan);
    let moved: Vec<&Planned> = plan.iter().filter(|planned| planned.is_moved()).collect();
    if moved.is_empty() {
        text.push_str("\nnothing to replay: no position lies behind what was read\n");
    } else {
        text.push_str(&meaning(&moved));
        if arguments.execute {
            kafka.reset(&moved)?;
            text.push_str("\nthe offsets are set; next: ticket-pipeline run\n");
        } else {
            text.push_str("\nnothing is altered; to carry it out, add --execute\n");
        }
    }
    // Whoever closed the pipe has seen enough.
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn show(plan: &[Planned]) -> String {
    let mut rows = vec![
        ["partition", "from", "to", "records", "tickets", "past gone", "time guessed"].map(str::to_owned),
    ];
    rows.extend(plan.iter().map(|planned| {
        [
            planned.partition.to_string(),
            planned.state.to_string(),
            planned.to.to_string(),
            planned.records.to_string(),
            planned.tickets.to_string(),
            planned.past_gone.to_string(),
            guess(planned),
        ]
    }));
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max();
    let widths: Vec<usize> = (0..7).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{cell:>width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    for planned in plan {
        for note in &planned.notes {
            let _ = writeln!(text, "partition {}: {note}", planned.partition);
        }
    }
    text
}

fn meaning(moved: &[&Planned]) -> String {
    let records: u64 = moved.iter().map(|planned| planned.records).sum();
    let past_gone: u64 = moved.iter().map(|planned| planned.past_gone).sum();
    let mut text = format!(
        "\nDownstream will see the events of {records} raw records again: the same bytes with the same event ids and\n\
         timestamps, behind what the topics hold now. Who keeps to event ids notices nothing; who counts, counts twice.\n"
    );
    if past_gone > 0 {
        let _ = writeln!(
            text,
            "The past of {past_gone} tickets is gone from the raw topic: their first update is a baseline then, and what \
             was\nderived from it the first time is not derived again."
        );
    }
    text
}

/// The partitions are replayed side by side as far as there are cores.
fn guess(planned: &Planned) -> String {
    if !planned.is_moved() {
        return "-".to_owned();
    }
    let rebuilt = (planned.to - planned.low).max(0) as f64 / REBUILT_PER_S;
    let emitted = planned.records as f64 / EMITTED_PER_S;
    let seconds = (rebuilt + emitted).ceil().max(1.0);
    format!("{:#}", SignedDuration::from_secs(seconds as i64))
}

/// Milliseconds since the epoch.
fn datetime(text: &str) -> Result<i64> {
    let with_offset = text.parse::<Timestamp>();
    let timestamp = with_offset.or_else(|_| {
        text.parse::<DateTime>().and_then(|time| time.to_zoned(TimeZone::UTC)).map(|zoned| zoned.timestamp())
    });
    Ok(timestamp.context("a time is written as 2026-03-01T00:00:00Z")?.as_millisecond())
}

/// The time so long ago, in milliseconds since the epoch.
fn ago(text: &str) -> Result<i64> {
    let duration = text
        .parse::<Span>()
        .and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()))
        .context("a duration is written as PT6H or P7D")?;
    ensure!(!duration.is_negative(), "a duration is how long ago: PT6H and not -PT6H");
    Ok(Timestamp::now()
        .checked_sub(duration)
        .context("a duration that reaches back before time")?
        .as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_and_without_an_offset() {
        assert_eq!(datetime("1970-01-01T00:00:01Z").unwrap(), 1_000);
        assert_eq!(datetime("1970-01-01T01:00:01+01:00").unwrap(), 1_000);
        assert_eq!(datetime("1970-01-01T00:00:01.5").unwrap(), 1_500);
        assert!(datetime("yesterday").is_err());
        let day_ms = 86_400_000;
        let now_ms = Timestamp::now().as_millisecond();
        assert!((now_ms - ago("P1D").unwrap() - day_ms).abs() < 60_000);
        assert!((now_ms - ago("PT24H").unwrap() - day_ms).abs() < 60_000);
        assert!(ago("-PT1H").is_err() && ago("soon").is_err());
    }
}
