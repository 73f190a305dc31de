//! What a restore decides, as pure functions: what is to be read, and where the
//! input goes on.

use crate::commit_record::Ends;
use crate::store::{Begun, Positions, Reset};

/// Where the input goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// There is no state, and nothing is committed.
    Beginning,
    /// State and committed offset agree.
    Level(i64),
    /// Kafka has forgotten the committed offset; the state has not.
    Forgotten(i64),
    /// The committed offset was moved ahead: what lies between is never read.
    Skip {
        /// The state's input position.
        state: i64,
        /// The committed one.
        committed: i64,
    },
    /// The committed offset was moved back: what lies between is to be emitted again.
    Replay(Reset),
    /// A replay began and did not end. It is begun again, at the lowest position
    /// that was ever asked for.
    BeginAgain {
        /// What is asked for now.
        reset: Reset,
        /// The position that the log holds as the last one asked for.
        logged_to: i64,
        /// Nothing of it is written: the state is not half of what it is to be.
        is_whole: bool,
    },
}

impl Start {
    /// Judged by the state's input position, which is the last commit record's,
    /// the replay that has not ended, and the committed position.
    pub(super) fn judge(state: Option<i64>, rebuilding: Option<Begun>, committed: Option<i64>) -> Start {
        if let Some(Begun { reset: Reset { from, to: logged_to }, has_written }) = rebuilding {
            let to = committed.map_or(logged_to, |committed| committed.min(logged_to));
            return Start::BeginAgain { reset: Reset { from, to }, logged_to, is_whole: !has_written };
        }
        match (state, committed) {
            (None, None) => Start::Beginning,
            (Some(state), None) => Start::Forgotten(state),
            (None, Some(0)) => Start::Beginning,
            (None, Some(committed)) => Start::Skip { state: 0, committed },
            (Some(state), Some(committed)) if committed == state => Start::Level(state),
            (Some(state), Some(committed)) if committed > state => Start::Skip { state, committed },
            (Some(state), Some(committed)) => Start::Replay(Reset { from: state, to: committed }),
        }
    }
}

/// What is to be read to bring a store to the targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// Why the store is of no use, if so.
    pub(super) wipe: Option<&'static str>,
    pub(super) from: Ends,
}

impl Plan {
    pub(super) fn make(
        positions: Option<Positions>,
        targets: Ends,
        lows: Ends,
        idle_ms: i64,
        idle_ms_max: i64,
    ) -> Plan {
        let Some(at) = positions else { return Plan { wipe: None, from: lows } };
        let behind = at.changelog < targets.changelog;
        let wipe = if at.changelog > targets.changelog || at.ids > targets.ids {
            Some("it is ahead of what was committed")
        } else if behind && at.changelog < lows.changelog {
            Some("the changelog no longer reaches back to it")
        } else if behind && idle_ms > idle_ms_max {
            Some(
                "it was last written before half of the changelog's delete.retention.ms, and may have missed deletions",
            )
        } else {
            None
        };
        // What is gone from the ids log was forgotten by the window: no harm.
        let from = if wipe.is_some() {
            lows
        } else {
            Ends { changelog: at.changelog, ids: at.ids.max(lows.ids.min(targets.ids)) }
        };
        Plan { wipe, from }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOWS: Ends = Ends { changelog: 0, ids: 5 };
    const TARGETS: Ends = Ends { changelog: 100, ids: 50 };

    fn at(changelog: i64, ids: i64) -> Option<Positions> {
        Some(Positions { changelog, ids, input: 7, stream_time_ms: 0, rebuilding: None })
    }

    #[test]
    fn an_empty_store_reads_everything_there_is() {
        assert_eq!(Plan::make(None, TARGETS, LOWS, 0, 10), Plan { wipe: None, from: LOWS });
    }

    #[test]
    fn a_store_that_is_behind_reads_the_difference() {
        let plan = Plan::make(at(90, 45), TARGETS, LOWS, 10, 10);
        assert_eq!(plan, Plan { wipe: None, from: Ends { changelog: 90, ids: 45 } });
    }

    #[test]
    fn ids_that_the_log_has_forgotten_are_not_missed() {
        let plan = Plan::make(at(90, 2), TARGETS, LOWS, 10, 10);
        assert_eq!(plan, Plan { wipe: None, from: Ends { changelog: 90, ids: 5 } });
    }

    #[test]
    fn a_store_is_wiped_only_when_the_changelog_cannot_mend_it() {
        let low = Ends { changelog: 95, ids: 5 };
        for (positions, lows, idle_ms, why) in [
            (at(101, 50), LOWS, 0, "ahead"),
            (at(100, 51), LOWS, 0, "ahead"),
            (at(90, 50), low, 0, "no longer reaches"),
            (at(90, 50), LOWS, 11, "missed deletions"),
        ] {
            let plan = Plan::make(positions, TARGETS, lows, idle_ms, 10);
            assert!(plan.wipe.is_some_and(|reason| reason.contains(why)), "{plan:?}");
            assert_eq!(plan.from, lows);
        }
    }

    #[test]
    fn a_store_that_missed_nothing_may_be_old() {
        assert_eq!(Plan::make(at(100, 45), TARGETS, LOWS, 1_000, 10).wipe, None);
    }

    #[test]
    fn the_committed_offset_is_judged_against_the_state() {
        assert_eq!(Start::judge(None, None, None), Start::Beginning);
        assert_eq!(Start::judge(Some(9), None, None), Start::Forgotten(9));
        assert_eq!(Start::judge(Some(9), None, Some(9)), Start::Level(9));
        assert_eq!(Start::judge(Some(9), None, Some(12)), Start::Skip { state: 9, committed: 12 });
        assert_eq!(Start::judge(Some(9), None, Some(3)), Start::Replay(Reset { from: 9, to: 3 }));
        assert_eq!(Start::judge(None, None, Some(3)), Start::Skip { state: 0, committed: 3 });
    }

    #[test]
    fn a_replay_that_did_not_end_begins_again_at_the_lowest_position() {
        for (committed, to) in [(None, 5), (Some(5), 5), (Some(7), 5), (Some(12), 5), (Some(2), 2)] {
            for has_written in [false, true] {
                let begun = Some(Begun { reset: Reset { from: 9, to: 5 }, has_written });
                let reset = Reset { from: 9, to };
                let again = Start::BeginAgain { reset, logged_to: 5, is_whole: !has_written };
                assert_eq!(Start::judge(Some(9), begun, committed), again, "{committed:?}");
            }
        }
    }
}
