//! A build that is broken on purpose, so that what must notice can be seen to.
//!
//! Without the feature `broken` it sends every record once, as it is.

use crate::record::OutgoingRecord;

/// Sends a record; `BROKEN` says what is done to one instead: `drop`, `double` or
/// `alter`, with `<what>:<n>` to the n-th that this process sends.
///
/// # Errors
/// Those of `send`.
#[cfg(feature = "broken")]
pub fn spoil<E>(
    record: &OutgoingRecord<'_>,
    mut send: impl FnMut(&OutgoingRecord<'_>) -> Result<(), E>,
) -> Result<(), E> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static SENT: AtomicU64 = AtomicU64::new(0);
    let Ok(wanted) = std::env::var("BROKEN") else { return send(record) };
    let (what, number) = wanted.split_once(':').unwrap_or((wanted.as_str(), "1"));
    if SENT.fetch_add(1, Ordering::SeqCst) + 1 != number.parse().unwrap_or(1) {
        return send(record);
    }
    match what {
        "drop" => Ok(()),
        "double" => send(record).and_then(|()| send(record)),
        _ => {
            let mut value = record.value.unwrap_or_default().to_vec();
            // Still JSON: a space behind the value.
            value.push(b' ');
            let mut altered = *record;
            altered.value = Some(&value);
            send(&altered)
        }
    }
}

/// Sends a record: this program is not broken.
///
/// # Errors
/// Those of `send`.
#[cfg(not(feature = "broken"))]
#[inline]
pub fn spoil<E>(
    record: &OutgoingRecord<'_>,
    mut send: impl FnMut(&OutgoingRecord<'_>) -> Result<(), E>,
) -> Result<(), E> {
    send(record)
}
