//! `config check`: every mistake of a topology, or a summary of what it says.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use ticket_pipeline::stage::Stage;
use ticket_pipeline::topology::{
    KeyedBy, NativeSpecifics, Ordering, Rule, RuleEvents, Topology, written_duration, written_size,
};

/// The arguments of `config`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say everything that is wrong with the topology, or sum up what it says.
    ///
    /// Nothing is connected to. Exit code 0 means that it is sound, 1 that it is not.
    #[command(after_help = "Example:\n  ticket-pipeline config check --topology topology.yaml")]
    Check,
}

/// Runs `config`.
pub(crate) fn run(topology: &Path, arguments: &Arguments) -> Result<ExitCode> {
    match arguments.command {
        Command::Check => match Topology::load(topology) {
            Ok(sound) => {
                let text = format!("{}: ok\n\n{}", topology.display(), summary(&sound)?);
                std::io::stdout().write_all(text.as_bytes()).context("write the summary")?;
                Ok(ExitCode::SUCCESS)
            }
            Err(mistakes) => {
                eprintln!("{mistakes}");
                Ok(ExitCode::from(1))
            }
        },
    }
}

/// A topology on one screen; secrets are masked.
fn summary(topology: &Topology) -> Result<String> {
    let mut text = String::new();
    let Topology { group, source, .. } = topology;
    let keyed_by = match source.keyed_by {
        KeyedBy::TicketUid => "ticket_uid",
        KeyedBy::Nothing => "nothing",
    };
    writeln!(text, "group     {group}")?;
    if source.keyed_by == KeyedBy::Nothing {
        writeln!(text, "          {} re-keys {}", Stage::Rekey.group(topology), source.topic)?;
    }
    writeln!(text, "source    {}, keyed by {keyed_by}", source.topic)?;
    writeln!(text, "          {} partitions where it does not exist yet", source.partitions)?;
    let (late, dead_letter) = (&topology.late_topic, &topology.dead_letter_topic);
    let event_topics = topology.output_topics().filter(|topic| topic != late && topic != dead_letter).count();
    writeln!(text, "outputs   {event_topics} event topics, {late}, {dead_letter}")?;
    let (changelog, ids) = (&topology.changelog_topic, &topology.ids_topic);
    write!(text, "internal  {changelog}, {ids}")?;
    match source.keyed_by {
        KeyedBy::TicketUid => writeln!(text)?,
        KeyedBy::Nothing => writeln!(text, ", {}", topology.rekeyed_topic)?,
    }
    writeln!(text, "topics    retention {}, replication {}", retention(topology), replication(topology))?;
    write_rules(&mut text, topology)?;
    write_settings(&mut text, topology)?;
    Ok(text)
}

fn retention(topology: &Topology) -> String {
    u64::try_from(topology.topic_settings.retention_ms).map_or("forever".to_owned(), written_duration)
}

fn replication(topology: &Topology) -> String {
    match topology.topic_settings.replication_factor {
        -1 => "as the broker's default".to_owned(),
        factor => factor.to_string(),
    }
}

fn write_rules(text: &mut String, topology: &Topology) -> Result<()> {
    if topology.rules.is_empty() {
        writeln!(text, "rules     none: nothing is derived")?;
    }
    let lines: Vec<(&str, String, String)> =
        topology.rules.iter().flat_map(|rule| rule_lines(topology, rule)).collect();
    let width = lines.iter().map(|(event_type, ..)| event_type.len()).max().unwrap_or(0);
    for (index, (event_type, kind, paths)) in lines.iter().enumerate() {
        let head = if index == 0 { "rules" } else { "" };
        writeln!(text, "{head:<8}  {event_type:<width$}  {kind:<11}  {paths}")?;
    }
    Ok(())
}

/// An event type, the kind and direction of change that it says, the paths: a
/// line for each event type of a rule.
fn rule_lines<'a>(topology: &'a Topology, rule: &Rule) -> Vec<(&'a str, String, String)> {
    let events = match rule.events {
        RuleEvents::One(index) => vec![("", Some(index))],
        RuleEvents::OnOff { on, off } => vec![(" on", on), (" off", off)],
        RuleEvents::AddedRemovedChanged { added, removed, changed } => {
            vec![(" added", added), (" removed", removed), (" changed", changed)]
        }
    };
    let paths: Vec<String> = rule.paths.iter().map(|path| format!("ticket.{}", path.join("."))).collect();
    events
        .into_iter()
        .filter_map(|(direction, index)| {
            let event_type = topology.event_types.get(index?)?;
            let kind = format!("{}{direction}", rule.kind.word());
            Some((event_type.name.as_str(), kind, paths.join(", ")))
        })
        .collect()
}

fn write_settings(text: &mut String, topology: &Topology) -> Result<()> {
    let policies = &topology.policies;
    let ordering = match policies.ordering {
        Ordering::Timestamp => "timestamp",
        Ordering::Offset => "offset",
    };
    let native_specifics = match policies.native_specifics {
        NativeSpecifics::Once => "once",
        NativeSpecifics::Both => "both",
        NativeSpecifics::Drop => "drop",
    };
    writeln!(text, "policies  ordering {ordering}, native_specifics {native_specifics}")?;
    let window = written_duration(policies.dedupe_window_ms.unsigned_abs());
    writeln!(text, "          dedupe_window {window}, cloudevents {}", policies.cloudevents)?;

    let state = &topology.state;
    let interval = written_duration(state.flush_interval_ms);
    let records = state.flush_records_max;
    writeln!(text, "state     {}, flushed every {records} records or {interval}", state.dir.display())?;

    let runtime = &topology.runtime;
    let workers = runtime.workers.map_or("one for each core".to_owned(), |count| count.to_string());
    let instance = runtime.instance.as_deref().unwrap_or("kept in the state directory");
    let interval = written_duration(runtime.commit_interval_ms);
    writeln!(text, "runtime   workers {workers}, commits every {interval}, instance {instance}")?;

    let limits = &topology.limits;
    let size = |bytes: usize| written_size(bytes as u64);
    writeln!(text, "limits    records of {}", size(limits.record_bytes_max))?;
    let (emitted, entry) = (size(limits.emitted_bytes_max), size(limits.entry_bytes_max));
    writeln!(text, "          {emitted} emitted of one raw record, {entry} remembered of one ticket")?;
    let (records, bytes) = (limits.batch_records_max, size(limits.batch_bytes_max));
    writeln!(text, "          transactions of {records} raw records or {bytes} at most")?;
    writeln!(text, "          memory of {}", written_size(limits.memory_mb as u64 * 1024 * 1024))?;

    let listen = topology.http.listen.map_or("off".to_owned(), |address| address.to_string());
    writeln!(text, "http      {listen}")?;

    writeln!(text, "kafka     {}", topology.kafka.brokers)?;
    for (section, name, value) in topology.kafka.masked_properties() {
        writeln!(text, "          {section:<10}  {name} = {value}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_tells_the_rules_and_keeps_the_secrets() {
        let text = "rules:\n- {event_type: {on: 'ticket:vip:set'}, kind: flag, path: ticket.isVip}\n\
                    kafka:\n  properties: {sasl.password: hunter2, client.id: me}\n";
        let topology = Topology::parse("t.yaml", text, &|_| None).unwrap();
        let summary = summary(&topology).unwrap();
        for line in [
            "rules     ticket:vip:set  flag on      ticket.isVip",
            "          dedupe_window 48h, cloudevents false",
            "kafka     localhost:9092",
            "          properties  sasl.password = ********",
            "          properties  client.id = me",
        ] {
            assert!(summary.lines().any(|told| told == line), "{line}\nis not in\n{summary}");
        }
        assert!(!summary.contains("hunter2"));
    }
}
