//! Keeps a client in sight of its cluster.
//!
//! A broker, most likely one that has just started, may name none at all, itself included,
//! in an answer about topics that it knows. librdkafka then forgets all that it knew, those
//! that it was given to begin with too, and may never connect to one again (its issue
//! 5301). No error tells of it, and `metadata.recovery.strategy` does not help, for it waits
//! for an answer with an error or for a connection that ends.

use std::time::{Duration, Instant};

use rdkafka::client::Client;
use rdkafka::{ClientConfig, ClientContext};

use crate::transaction::{add_brokers, knows_a_broker};

/// A client that connects knows a broker before; brokers that are merely away stay known.
const LOST_AFTER: Duration = Duration::from_secs(10);
/// Each time in a row it is waited for twice as long, up to this: librdkafka remembers all that it is told.
const LOST_AFTER_MAX: Duration = Duration::from_secs(300);

/// Looks whether a client knows any broker, and tells it of its first ones again.
#[derive(Debug)]
pub struct Sight {
    brokers: String,
    none_since: Option<Instant>,
    lost_after: Duration,
    knew_one: bool,
}

impl Sight {
    /// Of a client of this configuration.
    #[must_use]
    pub fn new(config: &ClientConfig) -> Sight {
        let brokers = config.get("bootstrap.servers").unwrap_or_default().to_owned();
        Sight { brokers, none_since: None, lost_after: LOST_AFTER, knew_one: false }
    }

    /// To be called at least every few seconds; where it is called less often, the second call
    /// is what helps. `true`: the client had to be told.
    pub fn keep<C: ClientContext>(&mut self, client: &Client<C>) -> bool {
        let is_lost = self.is_lost(knows_a_broker(client), Instant::now());
        if is_lost {
            // Where none was there yet, it changes nothing.
            if self.knew_one {
                tracing::warn!(
                    brokers = self.brokers,
                    "a client knows no broker any more: telling it of the first ones"
                );
            }
            add_brokers(client, &self.brokers);
        }
        is_lost
    }

    /// Notes whether it knows one now; `true`: for long it has not.
    fn is_lost(&mut self, knows_a_broker: bool, now: Instant) -> bool {
        if knows_a_broker {
            (self.none_since, self.lost_after, self.knew_one) = (None, LOST_AFTER, true);
            return false;
        }
        let is_lost = now.duration_since(*self.none_since.get_or_insert(now)) >= self.lost_after;
        if is_lost {
            self.none_since = Some(now);
            self.lost_after = (self.lost_after * 2).min(LOST_AFTER_MAX);
        }
        is_lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_told_again_each_time_that_it_has_known_no_broker_for_long() {
        let (mut sight, start) = (Sight::new(&ClientConfig::new()), Instant::now());
        let looks = [(0, false), (9, false), (10, true), (11, false), (29, false), (30, true)];
        for (seconds, is_lost) in looks {
            assert_eq!(sight.is_lost(false, start + Duration::from_secs(seconds)), is_lost, "{seconds} s");
        }
        assert!(!sight.is_lost(true, start + Duration::from_secs(31)));
        for (seconds, is_lost) in [(32, false), (41, false), (42, true)] {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(sight.is_lost(false, now), is_lost, "{seconds} s: it is counted anew");
        }
    }
}
