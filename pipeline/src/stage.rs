//! The stages of a pipeline: each reads one topic with a group of its own.
//!
//! Mostly there is one. Where the raw topic is keyed by nothing, its records are
//! re-keyed first:
//!
//! ```text
//!  raw topic ─► Rekey ─► internal topic ─► Tickets ─► outputs
//!                  └─► dead letters            └─► dead letters
//! ```

use std::sync::Arc;

use anyhow::Result;

use crate::record::{Outbox, RawRecord};
use crate::rekey::Rekey;
use crate::store::Store;
use crate::task::{Outcome, Task};
use crate::topology::{KeyedBy, Topology};

/// A stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Raw records go to their tickets' partitions. It has no state.
    Rekey,
    /// Ticket events come in, what changed goes out.
    #[default]
    Tickets,
}

/// What a stage does with one partition of its topic.
#[derive(Debug)]
pub enum Work {
    /// Of [`Stage::Rekey`].
    Rekey(Rekey),
    /// Of [`Stage::Tickets`].
    Tickets(Box<Task>),
}

impl Stage {
    /// The stages of a topology, in the order in which records flow through them.
    #[must_use]
    pub fn all(topology: &Topology) -> &'static [Stage] {
        match topology.source.keyed_by {
            KeyedBy::TicketUid => &[Stage::Tickets],
            KeyedBy::Nothing => &[Stage::Rekey, Stage::Tickets],
        }
    }

    /// The topic that it reads.
    #[must_use]
    pub fn topic(self, topology: &Topology) -> &str {
        match self {
            Stage::Rekey => &topology.source.topic,
            Stage::Tickets => topology.input_topic(),
        }
    }

    /// Its consumer group.
    #[must_use]
    pub fn group(self, topology: &Topology) -> String {
        match self {
            Stage::Rekey => format!("{}-rekey", topology.group),
            Stage::Tickets => topology.group.clone(),
        }
    }

    /// The name of one of its workers, by which a restart is known as the same
    /// one: `<group>-<instance>-<slot>`. No other worker's can end like re-keying's.
    #[must_use]
    pub fn member_id(self, topology: &Topology, instance: &str, slot: usize) -> String {
        let id = format!("{}-{instance}-{slot}", topology.group);
        match self {
            Stage::Rekey => format!("{id}-rekey"),
            Stage::Tickets => id,
        }
    }
}

impl Work {
    /// The work of a stage; `store` and `stream_time_ms` are for tasks that have a state.
    #[must_use]
    pub fn new(
        stage: Stage,
        topology: &Arc<Topology>,
        partitions: i32,
        store: Store,
        stream_time_ms: i64,
    ) -> Work {
        let topology = Arc::clone(topology);
        match stage {
            Stage::Rekey => Work::Rekey(Rekey::new(topology, partitions)),
            Stage::Tickets => Work::Tickets(Box::new(Task::new(topology, partitions, store, stream_time_ms))),
        }
    }

    /// One record in; what is to be sent into `out` (cleared first), handed to `part`
    /// on the way where it is more than `part_bytes_max`.
    ///
    /// # Errors
    /// Only where the store cannot be read; bad input is an outcome.
    pub fn process_in_parts(
        &mut self,
        record: &RawRecord<'_>,
        out: &mut Outbox,
        part_bytes_max: usize,
        part: &mut dyn FnMut(&Outbox),
    ) -> Result<Outcome> {
        match self {
            Work::Rekey(rekey) => Ok(rekey.process(record, out)),
            Work::Tickets(task) => task.process_in_parts(record, out, part_bytes_max, part),
        }
    }

    /// The task, where it is one with a state.
    pub fn task(&mut self) -> Option<&mut Task> {
        match self {
            Work::Rekey(_) => None,
            Work::Tickets(task) => Some(task),
        }
    }
}
