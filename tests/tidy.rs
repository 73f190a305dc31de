//! The architecture is a test: which file may reach for what, how long files
//! are, and which words do not stand in them.
//!
//! It reads text, not Rust: what it looks for has to show in a line.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// A thing that only some files may reach for.
struct Rule {
    /// As the reader knows it.
    what: &'static str,
    /// How it shows in a line of code.
    signs: &'static [&'static str],
    /// The files of `pipeline/src` that it is at home in: `store` stands for `store.rs` and for all
    /// of the folder `store/`.
    homes: &'static [&'static str],
}

/// A new file that may touch one of these is added to its homes, on purpose.
///
/// What is at home nowhere in the pure centre (json, envelope, ticket, derive, entry, outgoing,
/// truncate, task) keeps it pure: no client, no disk, and above all no clock and no environment, for
/// nothing that leaves may depend on one.
const RULES: &[Rule] = &[
    Rule {
        what: "rdkafka",
        signs: &["rdkafka::", "use rdkafka", "rdkafka_sys::"],
        homes: &[
            "topology/kafka",
            "clients",
            "consumed",
            "restore",
            "rebuild",
            "transaction",
            "worker",
            "pipeline",
            "topics",
            "audit",
            "cli",
        ],
    },
    Rule {
        what: "OpenTelemetry",
        signs: &[
            "opentelemetry::",
            "opentelemetry_sdk::",
            "opentelemetry_otlp::",
            "opentelemetry_prometheus::",
        ],
        homes: &["telemetry"],
    },
    Rule { what: "prometheus", signs: &["prometheus::", "use prometheus"], homes: &["telemetry"] },
    Rule { what: "axum", signs: &["axum::", "use axum"], homes: &["http"] },
    Rule { what: "an HTTP client", signs: &["reqwest::", "use reqwest"], homes: &["cli/health"] },
    Rule { what: "sockets", signs: &["std::net", "TcpListener"], homes: &["topology", "http", "cli/health"] },
    Rule { what: "rocksdb", signs: &["rocksdb::", "use rocksdb"], homes: &["store"] },
    Rule { what: "serde_json", signs: &["serde_json::", "use serde_json"], homes: &["lines", "http", "cli"] },
    Rule { what: "serde", signs: &["serde::", "use serde;"], homes: &["lines", "cli"] },
    Rule { what: "a YAML parser", signs: &["saphyr::", "saphyr_parser::"], homes: &["topology"] },
    Rule { what: "clap", signs: &["clap::", "use clap"], homes: &["cli"] },
    Rule { what: "tokio", signs: &["tokio::", "use tokio"], homes: &["http", "pipeline", "topics", "cli"] },
    Rule { what: "uuid", signs: &["uuid::", "use uuid"], homes: &["outgoing"] },
    Rule {
        what: "a clock",
        signs: &["SystemTime", "Instant", "Timestamp::now", "Zoned::now"],
        homes: &[
            "clients",
            "store",
            "restore",
            "rebuild",
            "transaction",
            "worker",
            "health",
            "telemetry",
            "http",
            "pipeline",
            "topics",
            "audit",
            "cli",
        ],
    },
    Rule {
        what: "the environment",
        signs: &["env::var", "env::vars", "std::env"],
        homes: &["topology", "crash", "broken", "telemetry", "cli"],
    },
    Rule {
        what: "the disk",
        signs: &["std::fs", "fs::File", "File::open", "File::create"],
        homes: &["topology", "store", "worker", "audit", "cli"],
    },
    Rule {
        what: "threads",
        signs: &["std::thread", "thread::spawn", "thread::sleep", "thread::Builder"],
        homes: &["clients", "restore", "transaction", "worker", "http", "pipeline", "topics", "audit", "cli"],
    },
    Rule {
        what: "unsafe code",
        signs: &["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"],
        homes: &["transaction/native", "topics/native"],
    },
];

/// The lines of code in a file of the program: neither its tests nor what explains it are counted.
const CODE_LINES_MAX: usize = 450;
/// A module of tests holds one guarantee; it may be longer, for cases are.
const TEST_LINES_MAX: usize = 800;
const ARCHITECTURE_LINES_MAX: usize = 200;

/// Where tests wait for a condition with a deadline; all others call it.
const WAITING_HOMES: &[&str] = &["tests/wait.rs"];

/// Words of unfinished work, and paths of one person's machine. Each is split here, so that this
/// file does not hold what it looks for.
const FORBIDDEN: &[(&str, &str)] = &[
    (concat!("TO", "DO"), "is unfinished work: finish it, or file an issue"),
    (concat!("FIX", "ME"), "is unfinished work: finish it, or file an issue"),
    (concat!("XX", "X:"), "is unfinished work: finish it, or file an issue"),
    (concat!("to", "do!("), "is unfinished work: finish it"),
    (concat!("unimple", "mented!("), "is unfinished work: finish it"),
    (concat!("/ho", "me/"), "is a path of one machine: begin at the project or at $HOME"),
    (concat!("/ro", "ot/"), "is a path of one machine: begin at the project or at $HOME"),
    (concat!("/Us", "ers/"), "is a path of one machine: begin at the project or at $HOME"),
    (concat!("/wo", "rk/"), "is a path of one machine: begin at the project or at $HOME"),
];

#[test]
fn every_file_reaches_only_for_what_is_at_home_in_it() {
    let mut faults = Vec::new();
    for file in program_files() {
        faults.extend(strangers(&file.name, code(&file.text)));
    }
    assert_none(&faults);
}

#[test]
fn a_file_that_reaches_too_far_is_told_where_that_is_at_home() {
    let text = "//! serde_json::from_str is only spoken of here.\nuse serde::Deserialize;\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n";
    assert_eq!(
        strangers("derive.rs", code(text)),
        ["derive.rs:2: `derive.rs` reaches for serde; its homes are lines, cli"]
    );
    assert_eq!(strangers("cli/derive.rs", code(text)), [""; 0]);
    assert_eq!(strangers("lines.rs", code(text)), [""; 0]);
    // A name that merely holds another is another name.
    assert_eq!(strangers("derive.rs", code("use my_serde::X;\n")), [""; 0]);
    assert_eq!(strangers("derive.rs", code("let seen = Instantly;\n")), [""; 0]);
}

#[test]
fn every_home_is_a_file_that_exists() {
    let files = program_files();
    let mut faults = Vec::new();
    for rule in RULES {
        for home in rule.homes {
            if !files.iter().any(|file| is_at_home(&file.name, home)) {
                faults.push(format!("tests/tidy.rs: {} is at home in {home}, which is no file", rule.what));
            }
        }
    }
    assert_none(&faults);
}

#[test]
fn files_stay_short_enough_to_be_read_in_one_sitting() {
    let mut faults = Vec::new();
    for file in program_files() {
        let lines = code(&file.text).filter(|(_, line)| !without_comment(line).trim().is_empty()).count();
        if lines > CODE_LINES_MAX {
            faults.push(format!(
                "pipeline/src/{}: {lines} lines of code; split it, {CODE_LINES_MAX} are the most",
                file.name
            ));
        }
    }
    for file in files_below("tests", "rs") {
        let lines = file.text.lines().count();
        if lines > TEST_LINES_MAX {
            faults
                .push(format!("tests/{}: {lines} lines; split it, {TEST_LINES_MAX} are the most", file.name));
        }
    }
    assert_none(&faults);
}

#[test]
fn nothing_is_left_unfinished_or_bound_to_one_machine() {
    let mut faults = Vec::new();
    for file in all_files() {
        for (number, line) in file.text.lines().enumerate() {
            for (word, remedy) in FORBIDDEN {
                if line.contains(word) {
                    faults.push(format!("{}:{}: `{word}` {remedy}", file.name, number + 1));
                }
            }
        }
    }
    assert_none(&faults);
}

#[test]
fn no_test_is_ignored_and_none_sleeps() {
    let ignored = concat!("#[ign", "ore");
    let sleep = concat!("sle", "ep(");
    let mut faults = Vec::new();
    for (name, number, line) in test_lines() {
        if line.trim_start().starts_with(ignored) {
            faults.push(format!(
                "{name}:{number}: a test that is ignored proves nothing: mend it or delete it"
            ));
        }
        if line.contains(sleep) && !WAITING_HOMES.contains(&name.as_str()) {
            faults.push(format!("{name}:{number}: wait for a condition, with a deadline (tests/wait.rs)"));
        }
    }
    assert_none(&faults);
}

#[test]
fn the_architecture_names_every_file_and_fits_in_200_lines() {
    let text = read(&project().join("ARCHITECTURE.md"));
    let mut faults = Vec::new();
    for file in program_files() {
        let named = match file.name.rsplit_once('/') {
            // A folder is one row of the map: the row names the folder and its files.
            Some((folder, name)) => text.lines().any(|line| {
                line.contains(&format!("`{folder}/`"))
                    && (name == "mod.rs" || line.contains(&format!("`{name}`")))
            }),
            None => text.contains(&format!("`{}`", file.name)),
        };
        if !named {
            faults.push(format!("ARCHITECTURE.md: the map of files lacks pipeline/src/{}", file.name));
        }
    }
    let lines = text.lines().count();
    if lines >= ARCHITECTURE_LINES_MAX {
        faults.push(format!("ARCHITECTURE.md: {lines} lines; it stays below {ARCHITECTURE_LINES_MAX}"));
    }
    assert_none(&faults);
}

#[test]
fn the_library_lists_its_modules_in_reading_order() {
    let text = read(&project().join("pipeline/src/lib.rs"));
    let modules: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let listed: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("//!  "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|word| modules.contains(word))
        .collect();
    assert_eq!(listed, modules, "pipeline/src/lib.rs: the table at its top and its modules differ");
}

// --- Reading ---------------------------------------------------------------

struct File {
    /// Its path below the folder that was asked for.
    name: String,
    text: String,
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

/// The files of the program, those that hold only tests left out.
fn program_files() -> Vec<File> {
    let mut files = files_below("pipeline/src", "rs");
    files.retain(|file| !is_test_file(&file.name));
    files
}

fn is_test_file(name: &str) -> bool {
    name.ends_with("tests.rs") || name.contains("tests/")
}

fn files_below(folder: &str, extension: &str) -> Vec<File> {
    let mut files = Vec::new();
    collect(&project().join(folder), "", &mut files);
    files.retain(|file| file.name.ends_with(&format!(".{extension}")));
    files
}

/// Every text of the project that a person has written.
fn all_files() -> Vec<File> {
    let mut files = Vec::new();
    collect(&project(), "", &mut files);
    files
}

/// What is hidden (save the CI's folder), built or recorded is nobody's prose.
fn collect(folder: &Path, prefix: &str, files: &mut Vec<File>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("list {}: {error}", folder.display()));
    for entry in entries {
        let path = entry.expect("a folder that was listed can be read on").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let hidden = name.starts_with('.') && name != ".ci";
        if hidden || ["target", "state", "data", "Cargo.lock"].contains(&name.as_str()) {
            continue;
        }
        let name = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        if path.is_dir() {
            collect(&path, &name, files);
        } else if let Ok(text) = fs::read_to_string(&path) {
            files.push(File { name, text });
        }
    }
    files.sort_by(|one, other| one.name.cmp(&other.name));
}

/// A file's lines, numbered from 1, up to where its tests begin.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let tests_begin = text.find("\n#[cfg(test)]\nmod ").map_or(text.len(), |at| at + 1);
    let (code, _) = text.split_at(tests_begin);
    code.lines().enumerate().map(|(index, line)| (index + 1, line))
}

/// All lines of tests with their file and number: `tests/`, and what follows the code elsewhere.
fn test_lines() -> Vec<(String, usize, String)> {
    let mut lines = Vec::new();
    for file in files_below("tests", "rs") {
        for (index, line) in file.text.lines().enumerate() {
            lines.push((format!("tests/{}", file.name), index + 1, line.to_owned()));
        }
    }
    for file in files_below("pipeline/src", "rs") {
        let code_lines = if is_test_file(&file.name) { 0 } else { code(&file.text).count() };
        for (index, line) in file.text.lines().enumerate().skip(code_lines) {
            lines.push((format!("pipeline/src/{}", file.name), index + 1, line.to_owned()));
        }
    }
    lines
}

// --- Judging ---------------------------------------------------------------

/// What a file reaches for without being its home.
fn strangers<'a>(file: &str, code: impl Iterator<Item = (usize, &'a str)>) -> Vec<String> {
    let mut faults = Vec::new();
    let rules: Vec<&Rule> =
        RULES.iter().filter(|rule| !rule.homes.iter().any(|home| is_at_home(file, home))).collect();
    for (number, line) in code {
        let line = without_comment(line);
        for rule in &rules {
            if rule.signs.iter().any(|sign| holds(line, sign)) {
                let mut fault = format!("{file}:{number}: `{file}` reaches for {}", rule.what);
                write!(fault, "; its homes are {}", rule.homes.join(", ")).expect("a string takes all");
                faults.push(fault);
            }
        }
    }
    faults
}

fn is_at_home(file: &str, home: &str) -> bool {
    file.strip_prefix(home).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

/// A `//` within a string cuts the line too early, which only makes this test milder.
fn without_comment(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code)
}

/// Whether a sign stands in a line, not as a part of a longer name.
fn holds(line: &str, sign: &str) -> bool {
    let in_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(sign).any(|(at, _)| {
        let (before, rest) = line.split_at(at);
        let (_, after) = rest.split_at(sign.len());
        let goes_on = sign.ends_with(in_name) && after.starts_with(in_name);
        !before.ends_with(in_name) && !goes_on
    })
}

fn assert_none(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}
