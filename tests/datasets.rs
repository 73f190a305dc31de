//! The data beside the tests, and the settings that each of its sets is for.

use std::collections::BTreeMap;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use ticket_pipeline::lines::RawLine;

use crate::lines::Line;

/// Raw lines, and every record that must come out of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DataSet {
    /// Its path below `tests/data`, without the endings.
    pub(crate) name: &'static str,
    policies: &'static str,
    rules: Rules,
}

#[derive(Debug, Clone, Copy)]
enum Rules {
    Shipped,
    WithArchived,
    /// The shipped ones, and behind them those of a file.
    And(&'static str),
}

pub(crate) const HISTORIES: DataSet = DataSet { name: "histories", policies: "", rules: Rules::Shipped };
pub(crate) const NASTY: DataSet = DataSet { name: "nasty", policies: "", rules: Rules::Shipped };
pub(crate) const VARIANTS: [DataSet; 4] = [
    DataSet {
        name: "variants/cloudevents-and-archived",
        policies: "cloudevents: true",
        rules: Rules::WithArchived,
    },
    DataSet {
        name: "variants/offset-order-and-both",
        policies: "ordering: offset, native_specifics: both",
        rules: Rules::Shipped,
    },
    DataSet {
        name: "variants/natives-dropped-24h",
        policies: "native_specifics: drop, dedupe_window: 24h",
        rules: Rules::Shipped,
    },
    DataSet { name: "variants/user-rules", policies: "", rules: Rules::And("variants/user-rules.json") },
];

/// Every set that there is.
pub(crate) fn all() -> impl Iterator<Item = DataSet> {
    [HISTORIES, NASTY].into_iter().chain(VARIANTS)
}

impl DataSet {
    /// The file of its raw lines.
    pub(crate) fn raw_file(&self) -> PathBuf {
        data().join(format!("{}.raw.ndjson.zst", self.name))
    }

    /// The raw lines as text.
    pub(crate) fn raw_text(&self) -> String {
        unpacked(&self.raw_file())
    }

    /// The raw lines.
    pub(crate) fn raw(&self) -> Vec<RawLine> {
        let parse = |line| RawLine::parse(line).unwrap_or_else(|error| panic!("{}: {error:#}", self.name));
        self.raw_text().lines().map(parse).collect()
    }

    /// Of each partition's records as many in each part, in their order.
    pub(crate) fn parts<const PARTS: usize>(&self) -> [Vec<RawLine>; PARTS] {
        let raw = self.raw();
        let ends: BTreeMap<i32, usize> =
            raw.iter().map(|raw| (raw.partition, raw.offset as usize + 1)).collect();
        let mut parts = [(); PARTS].map(|()| Vec::new());
        for raw in raw {
            let part = raw.offset as usize * PARTS / ends[&raw.partition];
            parts[part].push(raw);
        }
        parts
    }

    /// What must come out of them.
    pub(crate) fn expected(&self) -> Vec<Line> {
        let file = data().join(format!("{}.expected.ndjson.zst", self.name));
        unpacked(&file).lines().map(Line::parse).collect()
    }

    /// Its settings, as they stand in a topology.
    pub(crate) fn settings(&self) -> String {
        let rules = match self.rules {
            Rules::Shipped => String::new(),
            Rules::WithArchived => shipped_rules().replace("enabled: false", "enabled: true"),
            Rules::And(file) => {
                let rules = read(&data().join(file));
                let rules: Vec<serde_json::Value> =
                    serde_json::from_str(&rules).unwrap_or_else(|error| panic!("{file}: {error}"));
                // A rule in JSON is a rule in YAML.
                let rules: Vec<String> = rules.iter().map(|rule| format!("  - {rule}\n")).collect();
                format!("{}{}", shipped_rules(), rules.concat())
            }
        };
        format!("policies: {{ {} }}\n{rules}", self.policies)
    }
}

/// The section of the shipped topology.
fn shipped_rules() -> String {
    let shipped = read(&data().join("../../topology.yaml"));
    let (_, from_rules) = shipped.split_once("\nrules:").expect("the shipped topology has rules");
    let (rules, _) = from_rules.split_once("\npolicies:").expect("policies stand behind the rules");
    format!("rules:{rules}\n")
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

fn unpacked(path: &Path) -> String {
    let open = || {
        let mut decoder = zstd::Decoder::with_buffer(BufReader::new(std::fs::File::open(path)?))?;
        decoder.window_log_max(27)?;
        std::io::read_to_string(decoder)
    };
    open().unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}
