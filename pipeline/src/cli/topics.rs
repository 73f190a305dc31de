//! `topics`: compare the topics with what the topology needs, or make them so.
//!
//! What is right is the library's to say; this prints it.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use ticket_pipeline::topics::{self, Difference, Done, Plan, Standing, Wanted};
use ticket_pipeline::topology::Topology;

/// The arguments of `topics`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ticket-pipeline topics plan
  ticket-pipeline --topology staging.yaml topics apply")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show what is there and what must be; alter nothing.
    #[command(after_help = "Each topic is one of:
  ok      as it must be
  create  missing; `topics apply` makes it
  alter   a setting differs; `topics apply` sets it
  refuse  no alteration can mend it
`run` refuses to start where a line is marked with !, for such a topic breaks the contract.
The raw topic is made where it does not exist, and never altered.

Exit code: 0 where nothing is to be done, 1 where something differs or the broker cannot be asked.

Example:
  ticket-pipeline topics plan || ticket-pipeline topics apply")]
    Plan,
    /// Create what is missing, and alter the settings that differ.
    #[command(after_help = "Does nothing where nothing is to be done, so it may be run before every start.
The raw topic is made where it does not exist, and never altered.

Exit code: 0 where all topics are then as they must be, else 1.

Example:
  ticket-pipeline topics apply && ticket-pipeline run")]
    Apply,
}

/// Runs `topics`.
pub(crate) fn run(topology: &Path, arguments: &Arguments) -> Result<ExitCode> {
    let topology = Topology::load(topology)?;
    match arguments.action {
        Action::Plan => plan(&topology),
        Action::Apply => apply(&topology),
    }
}

fn plan(topology: &Topology) -> Result<ExitCode> {
    let plan = topics::plan(topology)?;
    let warnings: String = plan.warnings.iter().map(|warning| format!("\nwarning: {warning}\n")).collect();
    let text = format!("{}{warnings}\n{}\n", table(&plan), what_next(&plan));
    // Whoever closed the pipe has seen enough; the exit code still says how things stand.
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
        _ => {}
    }
    Ok(ExitCode::from(u8::from(!plan.is_done())))
}

fn apply(topology: &Topology) -> Result<ExitCode> {
    let after = topics::apply(topology, report)?;
    for warning in &after.warnings {
        println!("warning: {warning}");
    }
    if after.is_done() {
        println!("{} topics are as they must be", after.topics.len());
        return Ok(ExitCode::SUCCESS);
    }
    print!("\n{}\n{}\n", table(&after), what_next(&after));
    Ok(ExitCode::from(1))
}

fn report(topic: &Wanted, done: &Done) {
    match done {
        Done::Created(partitions) => {
            println!("created {} ({}, partitions: {partitions})", topic.name, topic.role.name());
        }
        Done::Altered(differences) => {
            for Difference { setting, is, alter_to, .. } in differences {
                println!(
                    "altered {} {setting}: {is} -> {}",
                    topic.name,
                    alter_to.as_deref().unwrap_or_default()
                );
            }
        }
    }
}

/// What a person is to do about the plan.
fn what_next(plan: &Plan) -> String {
    if plan.is_done() {
        return "nothing to do".to_owned();
    }
    let missing = plan.missing().count();
    let (alterable, refused): (Vec<_>, Vec<_>) =
        plan.differences().partition(|(_, difference)| difference.alter_to.is_some());
    let mut lines = vec![format!(
        "to create: {missing}, settings to alter: {}, refused: {}",
        alterable.len(),
        refused.len()
    )];
    if missing + alterable.len() > 0 {
        lines.push("next: ticket-pipeline topics apply".to_owned());
    }
    if refused.iter().any(|(_, difference)| difference.setting == "partitions") {
        lines.push(
            "refused: a topic with other partitions than the raw topic has would keep tickets in other \
             places than theirs. Delete it, or name another in the topology; then ticket-pipeline topics apply"
                .to_owned(),
        );
    }
    if refused.iter().any(|(_, difference)| difference.setting != "partitions") {
        lines.push("refused: a setting that the broker does not know asks for Kafka 3.6 or newer".to_owned());
    }
    lines.join("\n")
}

/// One line for each topic, or for each setting of it that differs.
fn table(plan: &Plan) -> String {
    let mut rows = vec![["topic", "what", "", "setting", "is", "must be"].map(str::to_owned)];
    for planned in &plan.topics {
        let wanted = &planned.wanted;
        let row = |verdict: &str, setting: &str, is: &str, must_be: &str| {
            [&wanted.name, wanted.role.name(), verdict, setting, is, must_be].map(str::to_owned)
        };
        match &planned.standing {
            Standing::Missing => {
                rows.push(row("create", "partitions", "-", &wanted.partitions.to_string()));
            }
            Standing::There(differences) if differences.is_empty() => rows.push(row("ok", "", "", "")),
            Standing::There(differences) => rows.extend(differences.iter().map(|difference| {
                let verdict = if difference.alter_to.is_some() { "alter" } else { "refuse" };
                let mark = if difference.breaks_contract { " !" } else { "" };
                row(&format!("{verdict}{mark}"), &difference.setting, &difference.is, &difference.must_be)
            })),
        }
    }
    aligned(&rows)
}

fn aligned<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let mut widths = [0; COLUMNS];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use ticket_pipeline::topics::{Planned, Role};

    fn planned(name: &str, standing: Standing) -> Planned {
        let wanted =
            Wanted { name: name.to_owned(), role: Role::Events, partitions: 4, settings: Vec::new() };
        Planned { wanted, standing }
    }

    #[test]
    fn the_table_has_a_line_for_each_difference_and_says_what_to_do() {
        let difference = |setting: &str, alter_to: Option<&str>, breaks_contract| Difference {
            setting: setting.to_owned(),
            is: "1".to_owned(),
            must_be: "2".to_owned(),
            alter_to: alter_to.map(str::to_owned),
            breaks_contract,
        };
        let plan = Plan {
            topics: vec![
                planned("a", Standing::There(Vec::new())),
                planned("long.name", Standing::Missing),
                planned(
                    "c",
                    Standing::There(vec![
                        difference("partitions", None, true),
                        difference("retention.ms", Some("2"), false),
                    ]),
                ),
            ],
            warnings: Vec::new(),
        };
        assert_eq!(
            table(&plan).lines().collect::<Vec<_>>(),
            [
                "topic      what              setting       is  must be",
                "a          events  ok",
                "long.name  events  create    partitions    -   4",
                "c          events  refuse !  partitions    1   2",
                "c          events  alter     retention.ms  1   2",
            ]
        );
        let next = what_next(&plan);
        assert!(next.starts_with("to create: 1, settings to alter: 1, refused: 1\n"), "{next}");
        assert!(next.contains("topics apply"), "{next}");
        let done = Plan { topics: vec![planned("a", Standing::There(Vec::new()))], warnings: Vec::new() };
        assert_eq!(what_next(&done), "nothing to do");
    }
}
