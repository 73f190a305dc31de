//! Waiting for a condition, with a deadline: the only place where a test sleeps.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// What takes longer has gone wrong on the slowest machine; it is waited out by no test that passes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);

/// Looks until `look` gives something; `what` says in a failure what was waited for.
///
/// # Panics
/// When the time is up.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(LOOK);
    }
}
