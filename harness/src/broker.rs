//! Asks the broker: topics made and deleted, what a group has committed, where
//! partitions end.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use ticket_pipeline::clients::{self, Asker};
use ticket_pipeline::topology::Topology;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// The broker of this benchmark.
#[derive(Debug, Clone)]
pub struct Broker {
    /// `host:port`.
    pub address: String,
    /// Its process.
    pub pid: u32,
    /// Where it keeps its partitions.
    pub logs: PathBuf,
}

impl Broker {
    /// The broker that `scripts/kafka` has started with this data folder.
    pub fn in_folder(address: &str, data: &Path) -> Result<Broker> {
        let pid = std::fs::read_to_string(data.join("pid")).context("read the broker's process id")?;
        Ok(Broker { address: address.to_owned(), pid: pid.trim().parse()?, logs: data.join("log") })
    }

    /// The bytes of a topic's segments, compressed as they are.
    pub fn disk_bytes(&self, topic: &str) -> Result<u64> {
        let mut bytes = 0;
        for folder in std::fs::read_dir(&self.logs)? {
            let folder = folder?;
            let name = folder.file_name().to_string_lossy().into_owned();
            if name
                .rsplit_once('-')
                .is_none_or(|(of, partition)| of != topic || partition.parse::<i32>().is_err())
            {
                continue;
            }
            for file in std::fs::read_dir(folder.path())? {
                let file = file?;
                if file.path().extension().is_some_and(|extension| extension == "log") {
                    bytes += file.metadata()?.len();
                }
            }
        }
        Ok(bytes)
    }
}

/// Makes and deletes topics.
pub struct Topics {
    admin: AdminClient<DefaultClientContext>,
    runtime: tokio::runtime::Runtime,
}

impl Topics {
    /// Connects.
    ///
    /// # Errors
    /// Where a client cannot be made.
    pub fn connect(topology: &Topology) -> Result<Topics> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Topics { admin: clients::admin(&topology.kafka)?, runtime })
    }

    /// Makes those that do not exist; they keep their records for ever, whatever their timestamps.
    ///
    /// # Errors
    /// Where the broker refuses.
    pub fn create_missing(&self, names: &[String], partitions: i32) -> Result<()> {
        let topics: Vec<NewTopic<'_>> = names
            .iter()
            .map(|name| {
                NewTopic::new(name, partitions, TopicReplication::Fixed(-1))
                    .set("retention.ms", "-1")
                    .set("message.timestamp.after.max.ms", "9223372036854775807")
            })
            .collect();
        let done = self.runtime.block_on(self.admin.create_topics(&topics, &AdminOptions::new()));
        for outcome in done.context("create topics")? {
            match outcome {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => bail!("create topic {topic}: {code}"),
            }
        }
        Ok(())
    }

    /// Deletes them.
    ///
    /// # Errors
    /// Where the broker refuses.
    pub fn delete(&self, names: &[String]) -> Result<()> {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let done = self.runtime.block_on(self.admin.delete_topics(&names, &AdminOptions::new()));
        for outcome in done.context("delete topics")? {
            outcome.map_err(|(topic, code)| anyhow::anyhow!("delete topic {topic}: {code}"))?;
        }
        Ok(())
    }
}

/// Looks at what a group has committed.
pub struct Watch {
    observer: Asker,
    topic: String,
    partitions: i32,
}

impl Watch {
    /// Of the topology's group on the raw topic.
    ///
    /// # Errors
    /// Where a client cannot be made.
    pub fn of(topology: &Topology, partitions: i32) -> Result<Watch> {
        let observer = Asker::new(&clients::observer(topology))?;
        Ok(Watch { observer, topic: topology.source.topic.clone(), partitions })
    }

    /// The committed positions added up; 0 where nothing is committed.
    pub fn committed(&self) -> Result<u64> {
        Ok(self.positions()?.into_iter().sum())
    }

    /// The committed position of each partition; 0 where nothing is committed.
    pub fn positions(&self) -> Result<Vec<u64>> {
        let mut list = TopicPartitionList::new();
        for partition in 0..self.partitions {
            list.add_partition(&self.topic, partition);
        }
        let began = Instant::now();
        let committed = loop {
            match self.observer.client().committed_offsets(list.clone(), ANSWER_TIMEOUT) {
                Ok(committed) => break committed,
                // A fresh broker makes the topic of all groups' offsets when it is first asked for.
                Err(_) if began.elapsed() < ANSWER_TIMEOUT => std::thread::sleep(Duration::from_millis(20)),
                Err(error) => return Err(error).context("ask for offsets"),
            }
        };
        Ok(committed
            .elements()
            .iter()
            .map(|place| match place.offset() {
                Offset::Offset(position) => u64::try_from(position).unwrap_or(0),
                _ => 0,
            })
            .collect())
    }

    /// The ends of the source's partitions added up.
    pub fn end(&self) -> Result<u64> {
        Ok(self.ends()?.into_iter().sum())
    }

    /// Where each of the source's partitions ends.
    pub fn ends(&self) -> Result<Vec<u64>> {
        let began = Instant::now();
        let end = |partition| loop {
            match self.observer.client().fetch_watermarks(&self.topic, partition, ANSWER_TIMEOUT) {
                Ok((_, end)) => return Ok(u64::try_from(end).unwrap_or(0)),
                // A partition that was just given to another broker is asked for at the former one first.
                Err(_) if began.elapsed() < ANSWER_TIMEOUT => std::thread::sleep(Duration::from_millis(20)),
                Err(error) => return Err(error).context("ask where the source ends"),
            }
        };
        (0..self.partitions).map(end).collect()
    }

    /// Waits until so much is committed; says what was then.
    pub fn reach(
        &self,
        position: u64,
        look_every: Duration,
        time_max: Duration,
        mut still: impl FnMut() -> Result<()>,
    ) -> Result<u64> {
        let began = Instant::now();
        loop {
            let committed = self.committed()?;
            if committed >= position {
                return Ok(committed);
            }
            ensure!(began.elapsed() < time_max, "{committed} of {position} are committed after {time_max:?}");
            still()?;
            std::thread::sleep(look_every);
        }
    }
}

/// Reads all committed records of topics, one after the other.
pub fn read_all(
    topology: &Topology,
    topics: &[String],
    partitions: i32,
    mut seen: impl FnMut(&rdkafka::message::BorrowedMessage<'_>) -> Result<()>,
) -> Result<()> {
    let mut config = clients::log_reader(topology);
    config.set("auto.offset.reset", "earliest");
    config.set("group.id", "ticket-bench-audit");
    let reader: BaseConsumer = config.create().context("make a reader")?;
    let mut list = TopicPartitionList::new();
    for topic in topics {
        for partition in 0..partitions {
            list.add_partition_offset(topic, partition, Offset::Beginning)?;
        }
    }
    let mut left = list.count();
    reader.assign(&list)?;
    drop(list);
    let mut heard = Instant::now();
    while left > 0 {
        match reader.poll(Duration::from_millis(500)) {
            Some(Ok(record)) => seen(&record)?,
            Some(Err(KafkaError::PartitionEOF(_))) => left -= 1,
            Some(Err(error)) => bail!("read the outputs: {error}"),
            None => {
                ensure!(heard.elapsed() < Duration::from_secs(60), "{left} partitions do not end");
                continue;
            }
        }
        heard = Instant::now();
    }
    Ok(())
}
