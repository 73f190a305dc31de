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
mod short;
mod topics;
mod zombies;

/// A case of the suite.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&World<'_>, u64, &mut Outcome) -> Result<()>,
    /// So many brokers.
    pub(crate) nodes: u16,
    /// The last of them has its log on a disk of its own.
    pub(crate) own_disk: bool,
}

/// The case for the tests of every day.
pub(crate) const SHORT: &str = "short";

const fn case(name: &'static str, run: fn(&World<'_>, u64, &mut Outcome) -> Result<()>) -> Case {
    Case { name, run, nodes: 1, own_disk: false }
}

/// All of them; [`SHORT`] runs only where it is asked for.
pub(crate) const CASES: [Case; 11] = [
    case("kill", kill::run),
    Case { own_disk: true, ..case("broker", broker::run) },
    Case { nodes: 3, own_disk: true, ..case("brokers", broker::run) },
    case("zombies", zombies::run),
    case("rebalances", rebalances::run),
    case("network", network::run),
    case("disk", disk::run),
    case("topics", topics::run),
    case("input", input::run),
    case("crash", crash::run),
    case(SHORT, short::run),
];
