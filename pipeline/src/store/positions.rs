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
    /// A replay that has begun to make the state anew and has not ended.
    pub rebuilding: Option<Begun>,
}

/// A replay that has begun and not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// What it asks for.
    pub reset: Reset,
    /// Something of it is written: until its end the state belongs to no input
    /// position. Before that it is whole, and as it was at `reset.from`.
    pub has_written: bool,
}

impl Begun {
    /// A replay begins, perhaps where one before it did not end.
    #[must_use]
    pub fn after(before: Option<Begun>, reset: Reset) -> Begun {
        match before {
            None => Begun { reset, has_written: false },
            // What is written was judged by the lowest position that was asked for.
            Some(Begun { reset: Reset { from, to }, has_written }) => {
                let to = if has_written { to.min(reset.to) } else { reset.to };
                Begun { reset: Reset { from, to }, has_written }
            }
        }
    }
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
        let (from, to, has_written) = rebuilding.map_or((Self::NO_INPUT, Self::NO_INPUT, false), |begun| {
            (begun.reset.from, begun.reset.to, begun.has_written)
        });
        numbers([changelog, ids, input, stream_time_ms, applied_at_ms, from, to, i64::from(has_written)])
    }

    pub(super) fn of_bytes(bytes: &[u8]) -> Option<(Positions, i64)> {
        let [changelog, ids, input, stream_time_ms, applied_at_ms, from, to, has_written] =
            read_numbers(bytes)?;
        let begun = Begun { reset: Reset { from, to }, has_written: has_written != 0 };
        let rebuilding = (to != Self::NO_INPUT).then_some(begun);
        Some((Positions { changelog, ids, input, stream_time_ms, rebuilding }, applied_at_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_that_begins_again_has_the_lowest_position_once_something_is_written() {
        let after = |before, to| Begun::after(before, Reset { from: 20, to });
        let begun = |to, has_written| Begun { reset: Reset { from: 20, to }, has_written };
        assert_eq!(after(None, 5), begun(5, false));
        for to in [2, 5, 9] {
            assert_eq!(after(Some(begun(5, false)), to), begun(to, false));
            assert_eq!(after(Some(begun(5, true)), to), begun(to.min(5), true));
        }
    }

    #[test]
    fn positions_read_as_they_were_written() {
        let reset = Reset { from: 9, to: 0 };
        for rebuilding in [None, Some(false), Some(true)] {
            let rebuilding = rebuilding.map(|has_written| Begun { reset, has_written });
            let at = Positions { changelog: 1, ids: 2, input: 3, stream_time_ms: i64::MIN, rebuilding };
            assert_eq!(Positions::of_bytes(&at.to_bytes(7)), Some((at, 7)));
        }
    }
}
