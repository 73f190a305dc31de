//! The cases, one file each.

use anyhow::Result;

use crate::outcome::Outcome;
use crate::scene::World;

mod broker;
mod crash;
mod disk;
mod input;
mod kill;
mod network;
mod rebalances;
mod topics;
mod zombies;

/// A case of the suite.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&World<'_>, u64, &mut Outcome) -> Result<()>,
}

/// All of them.
pub(crate) const CASES: [Case; 9] = [
    Case { name: "kill", run: kill::run },
    Case { name: "broker", run: broker::run },
    Case { name: "zombies", run: zombies::run },
    Case { name: "rebalances", run: rebalances::run },
    Case { name: "network", run: network::run },
    Case { name: "disk", run: disk::run },
    Case { name: "topics", run: topics::run },
    Case { name: "input", run: input::run },
    Case { name: "crash", run: crash::run },
];
