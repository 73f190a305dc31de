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

/// Looks whether a client knows any broker, and tells it of its first ones again.
#[derive(Debug)]
pub struct Sight {
    brokers: String,
    none_since: Option<Instant>,
    knew_one: bool,
}

impl Sight {
    /// Of a client of this configuration.
    #[must_use]
    pub fn new(config: &ClientConfig) -> Sight {
        let brokers = config.get("bootstrap.servers").unwrap_or_default().to_owned();
        Sight { brokers, none_since: None, knew_one: false }
    }

    /// To be called now and then, every few seconds at least; `true`: the client had to be told.
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
            (self.none_since, self.knew_one) = (None, true);
            return false;
        }
        let is_lost = now.duration_since(*self.none_since.get_or_insert(now)) >= LOST_AFTER;
        if is_lost {
            self.none_since = Some(now);
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
        let looks = [(0, false), (9, false), (10, true), (11, false), (19, false), (20, true)];
        for (seconds, is_lost) in looks {
            assert_eq!(sight.is_lost(false, start + Duration::from_secs(seconds)), is_lost, "{seconds} s");
        }
        assert!(!sight.is_lost(true, start + Duration::from_secs(29)));
        assert!(!sight.is_lost(false, start + Duration::from_secs(31)), "it is counted anew");
    }
}
