//! A client that only asks, and is made anew where it has lost sight of its cluster.
//!
//! A broker, most likely one that has just started, may name none at all, itself included,
//! in an answer about topics that it knows. librdkafka then forgets all that it knew, those
//! that it was given to begin with too, and may never connect to one again (its issue
//! 5301). No error tells of it; only a new client helps.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rdkafka::ClientConfig;
use rdkafka::consumer::BaseConsumer;

use super::{Logs, hear};
use crate::transaction::knows_a_broker;

/// A client that connects knows a broker long before; brokers that are merely away stay known.
const LOST_AFTER: Duration = Duration::from_secs(30);

/// Whether a client knows of any broker.
#[derive(Debug, Default)]
pub struct Sight {
    none_since: Option<Instant>,
}

impl Sight {
    /// Notes whether it does now; `true`: it has not for so long that it never will.
    pub fn is_lost(&mut self, knows_a_broker: bool, now: Instant) -> bool {
        if knows_a_broker {
            self.none_since = None;
            return false;
        }
        now.duration_since(*self.none_since.get_or_insert(now)) >= LOST_AFTER
    }
}

/// See the module.
pub struct Asker {
    config: ClientConfig,
    current: Mutex<(Arc<BaseConsumer<Logs>>, Sight)>,
}

impl std::fmt::Debug for Asker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asker").finish_non_exhaustive()
    }
}

impl Asker {
    /// A first client.
    ///
    /// # Errors
    /// Where one cannot be made.
    pub fn new(config: ClientConfig) -> Result<Asker> {
        let current = Mutex::new((connect(&config)?, Sight::default()));
        Ok(Asker { config, current })
    }

    /// The client to ask with now. What librdkafka had to say until now is heard.
    pub fn client(&self) -> Arc<BaseConsumer<Logs>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let (client, sight) = &mut *current;
        hear(client);
        if sight.is_lost(knows_a_broker(client), Instant::now()) {
            tracing::warn!("a client that asks knows no broker: making a new one");
            // Where none can be made, the next time may be better.
            if let Ok(new) = connect(&self.config) {
                *current = (new, Sight::default());
            }
        }
        Arc::clone(&current.0)
    }
}

fn connect(config: &ClientConfig) -> Result<Arc<BaseConsumer<Logs>>> {
    config.create_with_context(Logs).map(Arc::new).context("create a client")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sight_is_lost_where_no_broker_is_known_for_long() {
        let (mut sight, start) = (Sight::default(), Instant::now());
        let looks = [(0, false), (29, false), (30, true), (31, true)];
        for (seconds, is_lost) in looks {
            assert_eq!(sight.is_lost(false, start + Duration::from_secs(seconds)), is_lost, "{seconds} s");
        }
        assert!(!sight.is_lost(true, start + Duration::from_secs(32)));
        assert!(!sight.is_lost(false, start + Duration::from_secs(33)), "it is counted anew");
    }
}
