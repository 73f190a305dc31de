//! What Kafka has lost of the logs: no restore can be right after that, so each
//! is an error with a remedy.

use anyhow::anyhow;

use super::{Course, Restore, Setup};
use crate::commit_record::Ends;
use crate::stage::Stage;
use crate::topology::Topology;
use crate::transaction::Trouble;

impl Restore {
    /// A log that ends before what the store has of it was emptied or made anew:
    /// the store is then the only place where its state still is.
    pub(super) fn look_for_loss(&self, setup: &Setup, course: &Course, lows: Ends) -> Result<(), Trouble> {
        let Some(at) = course.store.positions() else { return Ok(()) };
        let ends = course.targets;
        if lows.changelog > 0 {
            tracing::warn!(
                partition = self.partition,
                topic = setup.topology.changelog_topic,
                begins = lows.changelog,
                "records were deleted from the changelog: only the store on disk has their entries"
            );
        }
        // What the metadata names is less than what is there; only true ends tell of a loss.
        let is_true_end = course.committed.is_none_or(|committed| committed.ends.is_none());
        if !is_true_end || (at.changelog <= ends.changelog && at.ids <= ends.ids) {
            return Ok(());
        }
        // A group that was reset on logs that were made anew is to begin without state, as we say below.
        if course.committed.is_some() && ends == (Ends { changelog: 0, ids: 0 }) {
            return Ok(());
        }
        let what = format!("the store on disk is at {at:?}, and they end at {ends:?}");
        Err(self.lost_records(setup, &what))
    }

    /// Kafka has committed the offsets, and the records that were to be committed
    /// with them are not. Whatever this producer did next would decide them too.
    pub(super) fn hanging(&self, setup: &Setup, committed: Ends, stable: Ends) -> Trouble {
        let Topology { changelog_topic, ids_topic, .. } = &*setup.topology;
        let partition = self.partition;
        let (topic, stable, committed) = if stable.changelog < committed.changelog {
            (changelog_topic, stable.changelog, committed.changelog)
        } else {
            (ids_topic, stable.ids, committed.ids)
        };
        Trouble::Stop(anyhow!(
            "hanging transaction: {topic} [{partition}] is committed up to offset {committed}, and is not readable from \
             {stable} on: Kafka has lost the commit markers of a transaction, whose outputs hang with it. Aborting it \
             alone would lose them. To emit them again instead: {}",
            how_to_mend(&setup.topology, setup.stage),
        ))
    }

    /// The offset is committed with what the logs had then, and they do not have it: it was aborted since.
    pub(super) fn taken_back(&self, setup: &Setup, state: i64, committed: i64) -> Trouble {
        let topology = &setup.topology;
        Trouble::Stop(anyhow!(
            "{} [{}] is committed up to {committed}, and {} says {state}: what lies between was aborted after it had been \
             committed, as a transaction that hangs is by hand. To emit it again: {}",
            topology.input_topic(),
            self.partition,
            topology.ids_topic,
            how_to_mend(topology, setup.stage),
        ))
    }

    /// Nothing that goes on by itself would be right.
    pub(super) fn lost_records(&self, setup: &Setup, what: &str) -> Trouble {
        let Topology { changelog_topic, ids_topic, state, .. } = &*setup.topology;
        Trouble::Stop(anyhow!(
            "restore partition {}: {changelog_topic} or {ids_topic} has lost records: {what}. Restore the topics; or, to \
             begin without state, delete both and the state directory {:?}, run `ticket-pipeline topics apply` and reset \
             the group's offsets",
            self.partition,
            state.dir
        ))
    }
}

/// What to do where transactions hang, as a sentence without its stop: the ids log
/// says where the input goes on, and nothing else may.
pub(crate) fn how_to_mend(topology: &Topology, stage: Stage) -> String {
    format!(
        "Stop every process of the pipeline, abort what `kafka-transactions.sh find-hanging` lists of __consumer_offsets \
         and of its topics, delete every state directory ({:?}) and the group's offsets (`kafka-consumer-groups.sh --delete-offsets --group {} \
         --topic {}`), and start it again",
        topology.state.dir,
        stage.group(topology),
        stage.topic(topology),
    )
}
