//! The brokers: real ones, started, killed and ended by `scripts/kafka`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::mount::Mount;
use crate::proxy::{self, Controls};

/// Of one broker, which is also its own controller.
const HEAP: &str = "-Xms128m -Xmx400m";
/// The ports of a node: its own, the listener behind the proxy, the proxy, the controller.
const PORTS: u16 = 4;
const IN_SYNC_WITHIN: Duration = Duration::from_secs(120);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(200);

/// Brokers of our own; they are gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Cluster {
    script: PathBuf,
    nodes: Vec<Node>,
    /// Their data and their logs stay where they are.
    keeps_data: bool,
}

#[derive(Debug)]
struct Node {
    port: u16,
    data: PathBuf,
    properties: Vec<String>,
    /// The disk of its log, where it has one of its own.
    disk: Option<Mount>,
}

impl Cluster {
    /// So many nodes, the first at this port; nothing is started yet. Three hold
    /// every partition three times and acknowledge what two of them have.
    pub(crate) fn new(
        project: &Path,
        folder: &Path,
        port: u16,
        nodes: u16,
        keeps_data: bool,
    ) -> Result<Cluster> {
        let script = project.join("scripts/kafka").canonicalize().context("find scripts/kafka")?;
        let port_of = |node: u16| port + PORTS * node;
        let voters: Vec<String> =
            (0..nodes).map(|node| format!("{}@127.0.0.1:{}", node + 1, port_of(node) + 3)).collect();
        let voters = voters.join(",");
        let nodes = (0..nodes).map(|node| {
            let port = port_of(node);
            // A second listener that is only known by the proxy's address.
            let (proxied, proxy, controller) = (port + 1, port + 2, port + 3);
            let mut properties = vec![
                format!("node.id={}", node + 1),
                format!(
                    "listeners=PLAINTEXT://127.0.0.1:{port},PROXIED://127.0.0.1:{proxied},CONTROLLER://127.0.0.1:{controller}"
                ),
                format!("advertised.listeners=PLAINTEXT://127.0.0.1:{port},PROXIED://127.0.0.1:{proxy}"),
                "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT"
                    .to_owned(),
                format!("controller.quorum.voters={voters}"),
            ];
            if nodes > 1 {
                let internal = ["offsets.topic", "transaction.state.log", "share.coordinator.state.topic"];
                properties.extend(internal.map(|topic| format!("{topic}.replication.factor={nodes}")));
                properties.extend(
                    ["transaction.state.log", "share.coordinator.state.topic"]
                        .map(|topic| format!("{topic}.min.isr=2")),
                );
                properties.push(format!("default.replication.factor={nodes}"));
                properties.push("min.insync.replicas=2".to_owned());
            }
            Node { port, data: folder.join(format!("kafka-{port}")), properties, disk: None }
        });
        let nodes = nodes.collect();
        Ok(Cluster { script, nodes, keeps_data })
    }

    /// Deletes the data of nodes that are down, such as an earlier run has kept.
    pub(crate) fn purge(&self) -> Result<()> {
        for node in &self.nodes {
            let output = self.command(node, "down").arg("--purge").output().context("start scripts/kafka")?;
            ensure!(output.status.success(), "delete {:?}: {}", node.data, said(&output));
        }
        Ok(())
    }

    /// Puts the log of one node on a disk of its own; it is not to be up.
    pub(crate) fn give_disk(&mut self, node: usize, mib: u64) -> Result<()> {
        let node = self.nodes.get_mut(node).context("no such node")?;
        node.disk = Some(Mount::of(&node.data.join("log"), mib)?);
        Ok(())
    }

    /// The disk of one node, if it has one of its own.
    pub(crate) fn disk(&self, node: usize) -> Result<&Mount> {
        self.node(node)?.disk.as_ref().context("the node has no disk of its own")
    }

    /// The proxies, one before each node, and where they are found.
    pub(crate) fn proxies(&self) -> Result<(String, Arc<Controls>)> {
        let controls = Arc::new(Controls::default());
        for (index, node) in self.nodes.iter().enumerate() {
            proxy::listen(index, node.port + 2, node.port + 1, &controls)?;
        }
        Ok((self.addresses(2), controls))
    }

    /// `host:port` of all, for clients.
    pub(crate) fn address(&self) -> String {
        self.addresses(0)
    }

    fn addresses(&self, above: u16) -> String {
        let addresses: Vec<String> =
            self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port + above)).collect();
        addresses.join(",")
    }

    /// How many nodes there are.
    pub(crate) fn size(&self) -> usize {
        self.nodes.len()
    }

    fn node(&self, node: usize) -> Result<&Node> {
        self.nodes.get(node).context("no such node")
    }

    /// Starts those that do not run, and waits until all answer.
    pub(crate) fn up(&self) -> Result<f64> {
        let began = Instant::now();
        // Side by side, for one of three does not answer before a second is there.
        let starting: Vec<Child> = self.nodes.iter().map(|node| self.start(node)).collect::<Result<_>>()?;
        for child in starting {
            let output = child.wait_with_output()?;
            ensure!(output.status.success(), "start the brokers: {}", said(&output));
        }
        Ok(began.elapsed().as_secs_f64())
    }

    fn start(&self, node: &Node) -> Result<Child> {
        let mut command = self.command(node, "up");
        for property in &node.properties {
            command.args(["--property", property]);
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("start scripts/kafka")
    }

    /// kill -9, at once.
    pub(crate) fn kill(&self, node: usize) -> Result<()> {
        let node = self.node(node)?;
        let pid = std::fs::read_to_string(node.data.join("pid")).context("read the broker's process id")?;
        let killed = Command::new("kill").args(["-KILL", pid.trim()]).status()?;
        ensure!(killed.success(), "kill broker process {pid}");
        // What is left to do is to wait for its end, and to forget its process id.
        self.script(node, "down")
    }

    /// A clean end, with its data kept.
    pub(crate) fn down(&self, node: usize) -> Result<()> {
        self.script(self.node(node)?, "down")
    }

    /// Waits until a node has ended by itself.
    pub(crate) fn ends_by_itself(&self, node: usize, within: Duration) -> Result<bool> {
        let node = self.node(node)?;
        let began = Instant::now();
        // It says so by its exit code, and there is no process any more.
        while began.elapsed() < within {
            let status = self.command(node, "status").output().context("start scripts/kafka")?;
            if said(&status).contains("is down") {
                return Ok(true);
            }
            std::thread::sleep(LOOK);
        }
        Ok(false)
    }

    /// Waits until every replica of every partition is in sync: another node may fall then.
    pub(crate) fn wait_in_sync(&self) -> Result<()> {
        let client: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", self.address()).create().context("make a client")?;
        let began = Instant::now();
        loop {
            let behind = client.fetch_metadata(None, ANSWER_TIMEOUT).map(|metadata| {
                let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
                partitions.filter(|one| one.isr().len() < one.replicas().len() || one.leader() < 0).count()
            });
            match behind {
                Ok(0) => return Ok(()),
                _ if began.elapsed() < IN_SYNC_WITHIN => std::thread::sleep(LOOK),
                behind => return Err(anyhow!("partitions that are not in sync: {behind:?}")),
            }
        }
    }

    /// The broker that leads a name's partition of one of Kafka's own topics, which
    /// that many partitions share by the name's `String.hashCode`.
    pub(crate) fn leader(&self, topic: &str, name: &str) -> Result<i32> {
        let client: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", self.address()).create().context("make a client")?;
        let began = Instant::now();
        loop {
            let metadata = client.fetch_metadata(Some(topic), ANSWER_TIMEOUT);
            let leader = metadata.ok().and_then(|metadata| {
                let partitions = metadata.topics().first()?.partitions();
                let count = i32::try_from(partitions.len()).ok().filter(|count| *count > 0)?;
                let partition = (hash_code(name) & i32::MAX) % count;
                let leader = partitions.iter().find(|one| one.id() == partition)?.leader();
                (leader >= 0).then_some(leader)
            });
            match leader {
                Some(leader) => return Ok(leader),
                None if began.elapsed() < IN_SYNC_WITHIN => std::thread::sleep(LOOK),
                None => return Err(anyhow!("nobody leads the partition of {name} of {topic}")),
            }
        }
    }

    /// Deletes what a node that is down has of a topic.
    pub(crate) fn forget(&self, node: usize, topic: &str) -> Result<()> {
        for folder in std::fs::read_dir(self.node(node)?.data.join("log"))? {
            let folder = folder?;
            let name = folder.file_name().to_string_lossy().into_owned();
            if name.rsplit_once('-').is_some_and(|(of, _)| of == topic) {
                std::fs::remove_dir_all(folder.path())?;
            }
        }
        Ok(())
    }

    /// How often brokers have skipped the markers of a transaction that they had
    /// acknowledged, as they say themselves: their own defect after a kill -9 of a
    /// single node. What was committed is then not readable.
    pub(crate) fn markers_skipped(&self) -> u64 {
        self.lines(&["Couldn't find leader endpoint", "skipped"])
    }

    /// How many lines of the nodes' logs hold all these words.
    pub(crate) fn lines(&self, words: &[&str]) -> u64 {
        let lines = |node: &Node| {
            let log = std::fs::read_to_string(node.data.join("kafka.log")).unwrap_or_default();
            log.lines().filter(|line| words.iter().all(|word| line.contains(word))).count() as u64
        };
        self.nodes.iter().map(lines).sum()
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

    fn command(&self, node: &Node, verb: &str) -> Command {
        let mut command = Command::new(&self.script);
        command
            .args([verb, "--port", &node.port.to_string(), "--data"])
            .arg(&node.data)
            .env("KAFKA_HEAP_OPTS", HEAP)
            .stdin(Stdio::null());
        if verb == "up" && self.nodes.len() > 1 {
            // One cluster, though each formats its own disk.
            command.args(["--cluster-id", "ticketFaults00000000AA"]);
        }
        command
    }

    fn script(&self, node: &Node, verb: &str) -> Result<()> {
        let output = self.command(node, verb).output().context("start scripts/kafka")?;
        ensure!(output.status.success(), "scripts/kafka {verb}: {}", said(&output));
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for index in 0..self.nodes.len() {
            if let Err(error) = self.down(index) {
                eprintln!("{error:#}");
            }
        }
        // Only what is no disk of its own can be deleted.
        self.nodes.iter_mut().for_each(|node| node.disk = None);
        if !self.keeps_data
            && let Err(error) = self.purge()
        {
            eprintln!("{error:#}");
        }
    }
}

/// Java's, of a text in ASCII.
fn hash_code(text: &str) -> i32 {
    text.bytes().fold(0i32, |hash, byte| hash.wrapping_mul(31).wrapping_add(i32::from(byte)))
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_names_partition_is_found_as_java_finds_it() {
        assert_eq!((hash_code("hello"), hash_code("ticket-pipeline-a-0")), (99_162_322, 423_198_010));
    }
}
