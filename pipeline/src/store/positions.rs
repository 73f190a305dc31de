//! Which part of the log a store holds, and as which bytes it says so.

use super::keys::{numbers, read_numbers};

/// Which part of the log a store holds. All are positions: the next to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Positions {
    /// In the changelog.
    pub changelog: i64,
    /// In the ids log.
    pub ids: i64,
    /// In the input partition; it and the stream time follow the ids log, whose
    /// commit records hold them. [`Positions::NO_INPUT`] before the first of them.
    pub input: i64,
    /// The greatest Kafka timestamp of the input records before that position.
    pub stream_time_ms: i64,
    /// A replay that has begun to make the state anew and has not ended: until
    /// then the state belongs to no input position.
    pub rebuilding: Option<Reset>,
}

/// What a replay asks for. Both are input positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reset {
    /// The state's, before.
    pub from: i64,
    /// The one that the state is to belong to.
    pub to: i64,
}

impl Positions {
    /// No commit record was read yet, so the input position is not known.
    pub const NO_INPUT: i64 = -1;

    pub(super) fn to_bytes(self, applied_at_ms: i64) -> Vec<u8> {
        let Positions { changelog, ids, input, stream_time_ms, rebuilding } = self;
        let Reset { from, to } = rebuilding.unwrap_or(Reset { from: Self::NO_INPUT, to: Self::NO_INPUT });
        numbers([changelog, ids, input, stream_time_ms, applied_at_ms, from, to])
    }

    pub(super) fn of_bytes(bytes: &[u8]) -> Option<(Positions, i64)> {
        let [changelog, ids, input, stream_time_ms, applied_at_ms, from, to] = read_numbers(bytes)?;
        let rebuilding = (to != Self::NO_INPUT).then_some(Reset { from, to });
        Some((Positions { changelog, ids, input, stream_time_ms, rebuilding }, applied_at_ms))
    }
}
