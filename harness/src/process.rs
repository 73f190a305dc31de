//! What processes and the machine have used so far, as the kernel counts it.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// The kernel's unit of CPU time in /proc, fixed for programs: a hundredth of a second.
const TICK_S: f64 = 0.01;

const STOP_TIME_MAX: Duration = Duration::from_secs(120);

/// CPU seconds of a process and of its threads that have ended, user and system.
fn cpu_s_of(pid: u32) -> Result<f64> {
    let stat =
        fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("look at process {pid}"))?;
    // The name stands in brackets and may hold anything.
    let (_, fields) = stat.rsplit_once(')').context("read a process's stat")?;
    let ticks = fields.split_ascii_whitespace().skip(11).take(2).map(str::parse::<u64>);
    Ok(ticks.sum::<Result<u64, _>>()? as f64 * TICK_S)
}

/// The same of several processes, added up.
pub fn cpu_s(pids: &[u32]) -> Result<f64> {
    pids.iter().map(|pid| cpu_s_of(*pid)).sum()
}

/// Sends a process a signal by its name: `STOP`, `CONT`, `TERM`.
pub fn signal(pid: u32, signal: &str) -> Result<()> {
    let sent = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status()?;
    ensure!(sent.success(), "signal process {pid}");
    Ok(())
}

/// The most memory that a process has had resident, in MB.
fn rss_peak_mb(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("read a process's status")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024.0 / 1e6)
}

/// What all cores together have done since the machine started, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Whatever it was.
    pub busy_s: f64,
    /// What the host took for others.
    pub stolen_s: f64,
}

/// Asks the kernel.
///
/// # Errors
/// Where it does not say.
pub fn machine() -> Result<Machine> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("read /proc/stat")?;
    let ticks: Vec<f64> =
        line.split_ascii_whitespace().map(|ticks| ticks.parse::<f64>().unwrap_or(0.0) * TICK_S).collect();
    let at = |index: usize| ticks.get(index).copied().unwrap_or(0.0);
    // user, nice, system, (idle, iowait,) irq, softirq, steal
    Ok(Machine { busy_s: at(0) + at(1) + at(2) + at(5) + at(6), stolen_s: at(7) })
}

/// The same of several processes, added up.
pub fn rss_peaks_mb(pids: &[u32]) -> Result<f64> {
    pids.iter().map(|pid| rss_peak_mb(*pid)).sum()
}

/// What was used between two looks.
#[derive(Debug, Clone)]
pub struct Meter {
    pids: Vec<u32>,
    broker_pid: u32,
    began: Instant,
    cpu_s: f64,
    broker_cpu_s: f64,
    own_cpu_s: f64,
    machine: Machine,
}

/// What was used, in CPU seconds.
#[derive(Debug, Clone, Copy)]
pub struct Used {
    /// By the clock.
    pub seconds: f64,
    /// By the processes.
    pub cpu_s: f64,
    /// By the broker.
    pub broker_cpu_s: f64,
    /// The rest of the machine, this program left out; and what the host took.
    pub others_cpu_s: f64,
    /// By the host, for others.
    pub stolen_s: f64,
}

impl Meter {
    /// Begins to measure. A process that has just been started has used nothing.
    pub fn begin(pids: &[u32], broker_pid: u32) -> Result<Meter> {
        Ok(Meter {
            pids: pids.to_vec(),
            broker_pid,
            began: Instant::now(),
            cpu_s: cpu_s(pids)?,
            broker_cpu_s: cpu_s_of(broker_pid)?,
            own_cpu_s: cpu_s_of(std::process::id())?,
            machine: machine()?,
        })
    }

    /// What was used since.
    ///
    /// # Errors
    /// Where the kernel does not say.
    pub fn used(&self) -> Result<Used> {
        let now = machine()?;
        let cpu_s = cpu_s(&self.pids)? - self.cpu_s;
        let broker_cpu_s = cpu_s_of(self.broker_pid)? - self.broker_cpu_s;
        let own_cpu_s = cpu_s_of(std::process::id())? - self.own_cpu_s;
        Ok(Used {
            seconds: self.began.elapsed().as_secs_f64(),
            cpu_s,
            broker_cpu_s,
            others_cpu_s: (now.busy_s - self.machine.busy_s - cpu_s - broker_cpu_s - own_cpu_s).max(0.0),
            stolen_s: now.stolen_s - self.machine.stolen_s,
        })
    }
}

/// A child that is killed when it is forgotten.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts a program; what it says goes to the end of `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Process> {
        let mut log = fs::OpenOptions::new().create(true).append(true).open(log)?;
        writeln!(log, "--- {command:?}")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Process { child, name: name.to_owned() })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An error where it has ended by itself.
    pub fn must_run(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("{} has ended by itself: {status}", self.name),
        }
    }

    /// Sends it a signal by its name: `STOP`, `CONT`, `TERM`.
    pub fn signal(&mut self, signal: &str) -> Result<()> {
        self.must_run()?;
        self::signal(self.pid(), signal).with_context(|| format!("signal {}", self.name))
    }

    /// Its exit code, where it has ended by itself.
    pub fn ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// SIGTERM, and a clean end.
    pub fn stop(mut self) -> Result<()> {
        self.signal("TERM")?;
        let began = Instant::now();
        while began.elapsed() < STOP_TIME_MAX {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "{} did not end cleanly: {status}", self.name);
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        anyhow::bail!("{} does not end within {STOP_TIME_MAX:?} of SIGTERM", self.name)
    }

    /// SIGKILL.
    pub fn kill(mut self) -> Result<()> {
        self.must_run()?;
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already, and there is nobody to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
