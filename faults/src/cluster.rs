//! The brokers: real ones, started, killed and ended by `scripts/kafka`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::proxy::{self, Controls};

/// A broker of our own; it is gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Cluster {
    script: PathBuf,
    data: PathBuf,
    port: u16,
    properties: Vec<String>,
    /// Its data and its log stay where they are.
    keeps_data: bool,
}

impl Cluster {
    /// Nothing is started yet.
    pub(crate) fn new(project: &Path, folder: &Path, port: u16, keeps_data: bool) -> Result<Cluster> {
        let script = project.join("scripts/kafka").canonicalize().context("find scripts/kafka")?;
        // A second listener that is only known by the proxy's address.
        let (proxied, proxy, controller) = (port + 1, port + 2, port + 3);
        let properties = [
            format!(
                "listeners=PLAINTEXT://127.0.0.1:{port},PROXIED://127.0.0.1:{proxied},CONTROLLER://127.0.0.1:{controller}"
            ),
            format!("advertised.listeners=PLAINTEXT://127.0.0.1:{port},PROXIED://127.0.0.1:{proxy}"),
            "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT"
                .to_owned(),
            format!("controller.quorum.voters=1@127.0.0.1:{controller}"),
        ];
        let data = folder.join(format!("kafka-{port}"));
        Ok(Cluster { script, data, port, properties: properties.into(), keeps_data })
    }

    /// The proxy, between its port and the broker's listener for it.
    pub(crate) fn proxy(&self) -> Result<(String, Arc<Controls>)> {
        let (proxied, proxy) = (self.port + 1, self.port + 2);
        Ok((format!("127.0.0.1:{proxy}"), proxy::listen(proxy, proxied)?))
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Starts the broker where it does not run, and waits until it answers.
    pub(crate) fn up(&self) -> Result<f64> {
        let began = Instant::now();
        let mut arguments = vec!["up".to_owned()];
        for property in &self.properties {
            arguments.extend(["--property".to_owned(), property.clone()]);
        }
        self.script(&arguments)?;
        Ok(began.elapsed().as_secs_f64())
    }

    /// kill -9.
    pub(crate) fn kill(&self) -> Result<()> {
        self.script(&["kill".to_owned()])
    }

    /// A clean end, with its data kept.
    pub(crate) fn down(&self) -> Result<()> {
        self.script(&["down".to_owned()])
    }

    /// How often the broker has skipped the markers of a transaction that it had
    /// acknowledged, as it says itself: its own defect after a kill -9 of a single
    /// node. What was committed is then not readable, or reads as aborted.
    pub(crate) fn markers_skipped(&self) -> u64 {
        let log = std::fs::read_to_string(self.data.join("kafka.log")).unwrap_or_default();
        let is_skip =
            |line: &&str| line.contains("Couldn't find leader endpoint") && line.contains("skipped");
        log.lines().filter(is_skip).count() as u64
    }

    /// One of Kafka's own tools; what it says.
    pub(crate) fn tool(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.script)
            .arg("tool")
            .args(arguments)
            .env("KAFKA_BROKERS", self.address())
            .output()
            .context("start scripts/kafka")?;
        let said = said(&output);
        ensure!(output.status.success(), "{arguments:?}: {said}");
        Ok(said)
    }

    fn script(&self, arguments: &[String]) -> Result<()> {
        let output = Command::new(&self.script)
            .args(arguments)
            .args(["--port", &self.port.to_string(), "--data"])
            .arg(&self.data)
            .env("KAFKA_HEAP_OPTS", "-Xms256m -Xmx1g")
            .output()
            .context("start scripts/kafka")?;
        ensure!(output.status.success(), "scripts/kafka {arguments:?}: {}", said(&output));
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut arguments = vec!["down".to_owned()];
        arguments.extend((!self.keeps_data).then(|| "--purge".to_owned()));
        if let Err(error) = self.script(&arguments) {
            eprintln!("{error:#}");
        }
    }
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}
