//! Where the input goes on once the store is level, or why it cannot.

use anyhow::anyhow;
use rdkafka::consumer::BaseConsumer;

use super::plan::Start;
use super::reader::{create, watermarks};
use super::{Replay, Restore, Setup};
use crate::clients::{self, Logs};
use crate::transaction::Trouble;

impl Restore {
    /// Where the input goes on, and what has to be made anew before it does.
    pub(super) fn position(
        &self,
        setup: &Setup,
        asker: &BaseConsumer<Logs>,
        start: Start,
    ) -> Result<(i64, Option<Replay>), Trouble> {
        let partition = self.partition;
        let topic = setup.topology.input_topic();
        let (low, end) = watermarks(asker, topic, partition)?;
        let (position, reset) = match start {
            Start::Beginning => return Ok((low, None)),
            Start::Level(position) => (position, None),
            Start::Forgotten(position) => {
                tracing::warn!(
                    partition,
                    position,
                    "no committed offset: going on from the state's input position"
                );
                (position, None)
            }
            Start::Skip { state, committed } => {
                tracing::warn!(
                    partition,
                    state,
                    committed,
                    "SKIPPING: the committed offset is ahead of the state; what lies between is never read"
                );
                (committed, None)
            }
            Start::Replay(reset) => (reset.from, Some((reset, None, true))),
            Start::BeginAgain { reset, logged_to, is_whole } => {
                tracing::warn!(
                    partition,
                    position = reset.to,
                    is_whole,
                    "a replay did not come to its end: beginning it again"
                );
                (reset.from, Some((reset, Some(logged_to), is_whole)))
            }
        };
        // Of a replay this is the position behind what was ever read.
        if position < low {
            return Err(Trouble::Stop(anyhow!(
                "the records of {topic} [{partition}] from {position} to {low} are gone before they were read: to skip \
                 them, reset the group's offset of this partition to {low}"
            )));
        }
        // A transaction that is open in the raw topic holds the end back that committed readers see.
        if position > end
            && position > watermarks(&create(&clients::observer(&setup.topology))?, topic, partition)?.1
        {
            return Err(Trouble::Stop(anyhow!(
                "{topic} [{partition}] ends at {end}, before the position {position} up to which it was read: was it \
                 deleted and made anew? Its state belongs to records that are gone. To begin anew, name another group \
                 in the topology, or delete {} and {} too, run `ticket-pipeline topics apply` and reset the group's \
                 offsets to the beginning",
                setup.topology.changelog_topic,
                setup.topology.ids_topic
            )));
        }
        let Some((mut reset, logged_to, is_whole)) = reset else { return Ok((position, None)) };
        if reset.to < low {
            tracing::warn!(
                partition,
                asked_for = reset.to,
                beginning = low,
                "the raw topic begins behind the position to replay from: replaying from its beginning"
            );
            // What an attempt before this one has removed was judged by the
            // position that it was asked for.
            reset.to = if is_whole { low } else { reset.to };
        }
        let is_logged = logged_to == Some(reset.to);
        Ok((reset.to.max(low), Some(Replay { reset, is_logged, is_whole, low })))
    }
}
