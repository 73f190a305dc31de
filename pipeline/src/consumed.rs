//! A record as the Kafka client hands it over, borrowed and not copied.

use rdkafka::message::{BorrowedMessage, Message};

use crate::record::{Header, RawRecord};
use crate::transaction::read_headers;

/// A record of the raw topic or the internal one. `headers` is room for its
/// headers, whatever was in it before.
pub fn raw_record<'a, 'm: 'a>(
    record: &'m BorrowedMessage<'_>,
    headers: &'a mut Vec<Header<'m>>,
) -> RawRecord<'a> {
    read_headers(record, headers);
    RawRecord {
        partition: record.partition(),
        offset: record.offset(),
        timestamp_ms: timestamp_ms(record),
        key: record.key(),
        value: record.payload(),
        headers,
    }
}

/// The Kafka timestamp, in milliseconds since the epoch; -1 where there is none,
/// as on the wire.
pub fn timestamp_ms(record: &BorrowedMessage<'_>) -> i64 {
    record.timestamp().to_millis().unwrap_or(-1)
}
