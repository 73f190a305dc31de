//! Processes that run the pipeline: how they end, and what they have logged.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::broker;
use crate::wait;

/// A process that runs the pipeline; it is killed where it is still there at the end.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

/// A process that has ended.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) log: Log,
}

impl Process {
    /// Starts a command, which logs to a file.
    pub(crate) fn start(command: &mut Command, log: PathBuf) -> Process {
        let stderr = File::create(&log).expect("the folder of tests can be written to");
        let child = command.stdout(Stdio::null()).stderr(stderr).spawn().expect("the program can be started");
        broker::ends_with_us(&child);
        Process { child, log }
    }

    /// The lines so far; the last may be half written.
    pub(crate) fn log(&self) -> Log {
        let Log(mut text) = Log::read(&self.log);
        text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
        Log(text)
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the process is ours").is_none()
    }

    /// The most memory that it has had so far.
    pub(crate) fn peak_memory_mb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it lives");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        kib.expect("the kernel says so") / 1024
    }

    /// kill -9, of a process that lives.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("the process can be killed");
        let status = self.child.wait().expect("the process is ours");
        assert_eq!(status.signal(), Some(9), "it had ended before: {status}\n{}", self.log().0);
    }

    /// Stops it where it is: what comes now waits for it, however fast it is.
    pub(crate) fn freeze(&self) {
        self.signal("STOP");
    }

    /// Asks for a clean end (`TERM`, `INT`) and waits for it. One that is frozen hears of that first.
    pub(crate) fn end(self, signal: &str) -> Ended {
        self.signal(signal);
        self.signal("CONT");
        self.wait()
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").arg(format!("-{signal}")).arg(self.child.id().to_string()).status();
        assert!(sent.expect("kill can be started").success(), "it had ended before:\n{}", self.log().0);
    }

    pub(crate) fn end_well(self) -> Log {
        let ended = self.end("TERM");
        assert_eq!(ended.status.code(), Some(0), "{}", ended.log.0);
        ended.log
    }

    pub(crate) fn wait(mut self) -> Ended {
        let log = self.log.clone();
        let status = wait::until(&format!("the end of the run that writes {}", log.display()), || {
            self.child.try_wait().expect("the process is ours")
        });
        Ended { status, log: Log::read(&log) }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{} has logged:\n{}", self.log.display(), self.log().0);
        }
        // Where it has ended already there is nothing to kill.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What a run has logged.
pub(crate) struct Log(pub(crate) String);

impl Log {
    fn read(path: &Path) -> Log {
        Log(std::fs::read_to_string(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display())))
    }

    /// The lines with that text, before their fields.
    pub(crate) fn lines(&self, text: &str) -> Vec<&str> {
        self.0.lines().filter(|line| line.contains(&format!(": {text}"))).collect()
    }

    /// A field of each of those lines.
    pub(crate) fn numbers(&self, text: &str, field: &str) -> Vec<i64> {
        self.lines(text)
            .iter()
            .map(|line| {
                line.split_once(&format!(" {field}="))
                    .and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok())
                    .unwrap_or_else(|| panic!("no number {field} in: {line}"))
            })
            .collect()
    }

    /// A field of the first of those lines; `None` where there is no such line yet.
    pub(crate) fn word(&self, text: &str, field: &str) -> Option<String> {
        let line = self.lines(text).into_iter().next()?;
        let (_, rest) = line.split_once(&format!(" {field}="))?;
        Some(rest.split_whitespace().next()?.to_owned())
    }

    /// How many records each partition was restored from, in all; a rebalance may hand one on.
    pub(crate) fn restored(&self) -> BTreeMap<i64, i64> {
        let mut restored = BTreeMap::new();
        let [partitions, records] = ["partition", "records"].map(|field| self.numbers("restored", field));
        for (partition, records) in partitions.into_iter().zip(records) {
            *restored.entry(partition).or_default() += records;
        }
        restored
    }

    /// Whether so many partitions are restored.
    pub(crate) fn has_restored(&self, partitions: usize) -> bool {
        self.restored().len() == partitions
    }

    /// A count of the last progress line, which tells of the whole run.
    pub(crate) fn total(&self, field: &str) -> i64 {
        *self.numbers("progress", field).last().unwrap_or_else(|| panic!("no progress in:\n{}", self.0))
    }
}
