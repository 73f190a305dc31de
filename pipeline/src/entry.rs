//! What is remembered of one ticket, and its encoding in store and changelog.

/// When an entry that holds no snapshot was last of use, as a Kafka timestamp
/// in milliseconds: the newest of its deletion mark and waiting announcements.
/// `None` where there is a snapshot, which is kept for ever.
#[must_use]
pub fn idle_since(_entry: &[u8]) -> Option<i64> {
    None
}

/// The raw offset that last wrote this entry; `None` where the bytes are no entry.
#[must_use]
pub fn written_at(_entry: &[u8]) -> Option<i64> {
    None
}
