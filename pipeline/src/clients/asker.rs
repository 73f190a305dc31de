//! A client that only asks.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::{Logs, Sight};

/// So many lines are heard at a time.
const LINES_MAX: usize = 32;

/// See the module.
pub struct Asker {
    client: BaseConsumer<Logs>,
    sight: Mutex<Sight>,
}

impl std::fmt::Debug for Asker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asker").finish_non_exhaustive()
    }
}

impl Asker {
    /// By a reader's configuration.
    ///
    /// # Errors
    /// Where a client cannot be made.
    pub fn new(config: &ClientConfig) -> Result<Asker> {
        let client = config.create_with_context(Logs).context("create a client")?;
        Ok(Asker { client, sight: Mutex::new(Sight::new(config)) })
    }

    /// The client to ask with. What librdkafka had to say until now is heard, and it is
    /// kept in sight of its cluster.
    pub fn client(&self) -> &BaseConsumer<Logs> {
        // A line of the log ends a poll as well; it is a member of no group, so there is nothing else.
        (0..LINES_MAX).for_each(|_| drop(self.client.poll(Duration::ZERO)));
        self.sight.lock().unwrap_or_else(PoisonError::into_inner).keep(self.client.client());
        &self.client
    }
}
