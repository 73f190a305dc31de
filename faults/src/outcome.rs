//! What a case came to, and the table of all that were run.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// What a case came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) case: String,
    pub(crate) seed: u64,
    /// Of which commit the program is.
    pub(crate) commit: String,
    /// How often each fault was seen to have happened.
    pub(crate) fired: BTreeMap<String, u64>,
    /// Raw records that went in.
    pub(crate) raw_records: u64,
    /// Output records that were compared with the model.
    pub(crate) compared: u64,
    /// Records of aborted transactions, which no reader of committed ones may see.
    pub(crate) aborted: u64,
    /// The longest time to catch up once the faults had ended, in seconds.
    pub(crate) caught_up_s: f64,
    /// What was wrong.
    pub(crate) wrong: Vec<String>,
    began: Instant,
    seconds: f64,
}

impl Outcome {
    pub(crate) fn begin(case: &str, seed: u64, commit: &str) -> Outcome {
        Outcome {
            case: case.to_owned(),
            seed,
            commit: commit.to_owned(),
            fired: BTreeMap::new(),
            raw_records: 0,
            compared: 0,
            aborted: 0,
            caught_up_s: 0.0,
            wrong: Vec::new(),
            began: Instant::now(),
            seconds: 0.0,
        }
    }

    pub(crate) fn end(&mut self) {
        self.seconds = self.began.elapsed().as_secs_f64();
    }

    /// A fault was seen to have happened.
    pub(crate) fn fired(&mut self, fault: &str, times: u64) {
        if times > 0 {
            *self.fired.entry(fault.to_owned()).or_default() += times;
        }
    }

    /// Notes what is wrong where something does not hold.
    pub(crate) fn expect(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            let what = what();
            eprintln!("WRONG: {what}");
            self.wrong.push(what);
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fired: Vec<String> =
            self.fired.iter().map(|(fault, times)| format!("{fault}: {times}")).collect();
        writeln!(
            f,
            "{} (seed {}): {}; {} raw records, {} output records compared, {} aborted; caught up after {:.1} s; {:.0} s",
            self.case,
            self.seed,
            fired.join(", "),
            self.raw_records,
            self.compared,
            self.aborted,
            self.caught_up_s,
            self.seconds
        )?;
        match self.wrong.as_slice() {
            [] => write!(f, "nothing wrong"),
            wrong => write!(f, "WRONG:\n  {}", wrong.join("\n  ")),
        }
    }
}

/// Adds a line to the file of outcomes.
pub(crate) fn append(path: &Path, outcome: &Outcome) -> Result<()> {
    let line = json!({
        "case": outcome.case, "seed": outcome.seed, "commit": outcome.commit, "fired": outcome.fired, "raw_records": outcome.raw_records,
        "compared": outcome.compared, "aborted": outcome.aborted, "caught_up_s": outcome.caught_up_s,
        "seconds": outcome.seconds, "wrong": outcome.wrong,
    });
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    writeln!(file, "{line}").with_context(|| format!("write {path:?}"))
}

/// The lines of the file of outcomes.
pub(crate) fn read(path: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {path:?}"))?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// What stands around the table in a document.
const MARKS: [&str; 2] = ["<!-- scripts/faults table -->\n", "<!-- end -->\n"];

/// A document with its table exchanged.
pub(crate) fn put(text: &str, table: &str) -> Result<String> {
    let [begin, end] = MARKS;
    let (before, rest) = text.split_once(begin).with_context(|| format!("it lacks the line {begin:?}"))?;
    let (_, after) = rest.split_once(end).with_context(|| format!("it lacks the line {end:?}"))?;
    Ok([before, begin, "\n", table, "\n", end, after].concat())
}

#[derive(Default)]
struct Row {
    runs: u64,
    fired: BTreeMap<String, u64>,
    raw_records: u64,
    compared: u64,
    aborted: u64,
    caught_up_s: f64,
    wrong: u64,
}

/// A row for each case, in Markdown, and the commits that were attacked.
pub(crate) fn table(outcomes: &[Value]) -> String {
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    let mut commits: BTreeMap<String, u64> = BTreeMap::new();
    for outcome in outcomes {
        let number = |name: &str| outcome.get(name).and_then(Value::as_u64).unwrap_or(0);
        let word = |name: &str| outcome.get(name).and_then(Value::as_str).unwrap_or("?").to_owned();
        let row = rows.entry(word("case")).or_default();
        row.runs += 1;
        *commits.entry(word("commit")).or_default() += 1;
        for (fault, times) in outcome.get("fired").and_then(Value::as_object).into_iter().flatten() {
            *row.fired.entry(fault.clone()).or_default() += times.as_u64().unwrap_or(0);
        }
        row.raw_records += number("raw_records");
        row.compared += number("compared");
        row.aborted += number("aborted");
        let caught_up_s = outcome.get("caught_up_s").and_then(Value::as_f64).unwrap_or(0.0);
        row.caught_up_s = row.caught_up_s.max(caught_up_s);
        row.wrong += outcome.get("wrong").and_then(Value::as_array).map_or(0, |wrong| wrong.len() as u64);
    }
    let mut text = String::from(
        "| case | runs | faults seen to happen | raw records | output records compared | aborted ones, seen by no reader \
         | caught up within | wrong results |\n|---|---|---|---|---|---|---|---|\n",
    );
    for (case, row) in rows {
        let fired: Vec<String> = row.fired.iter().map(|(fault, times)| format!("{fault}: {times}")).collect();
        text += &format!(
            "| {case} | {} | {} | {} | {} | {} | {:.0} s | {} |\n",
            row.runs,
            fired.join("; "),
            row.raw_records,
            row.compared,
            row.aborted,
            row.caught_up_s.ceil(),
            row.wrong
        );
    }
    let commits: Vec<String> = commits.iter().map(|(commit, runs)| format!("{commit} ({runs})")).collect();
    text + &format!("\nCommits attacked (runs): {}.\n", commits.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_adds_up_what_was_run_and_takes_its_place() {
        let run = |wrong: Value| json!({"case": "kill", "commit": "ab", "fired": {"kill -9": 20}, "compared": 7, "wrong": wrong});
        let table = table(&[run(json!([])), run(json!(["lost"]))]);
        assert_eq!(table.lines().nth(2), Some("| kill | 2 | kill -9: 40 | 0 | 14 | 0 | 0 s | 1 |"));
        assert_eq!(table.lines().last(), Some("Commits attacked (runs): ab (2)."));
        let [begin, end] = MARKS;
        let text = format!("a\n{begin}old\n{end}b\n");
        assert_eq!(put(&text, &table).unwrap(), format!("a\n{begin}\n{table}\n{end}b\n"));
        assert!(put("no marks", &table).is_err());
    }
}
