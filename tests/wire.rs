//! Just enough of Kafka's protocol to leave records behind in a transaction that
//! no coordinator knows of, as one does that has skipped its markers: librdkafka
//! cannot be made to.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use ticket_pipeline::codec::put_signed;

use crate::{broker, wait};

const PRODUCE: i16 = 0;
const INIT_PRODUCER_ID: i16 = 22;
/// `CONCURRENT_TRANSACTIONS`, `COORDINATOR_LOAD_IN_PROGRESS` and `NOT_COORDINATOR` pass.
const PASSING: [i16; 3] = [51, 14, 16];
const IS_TRANSACTIONAL: i16 = 0x10;
/// `INVALID_TXN_STATE`: the broker has asked the coordinator.
const IS_VERIFIED: i16 = 48;
/// From here on a batch is covered by its checksum.
const CHECKED_FROM: usize = 21;
const TIMEOUT_MS: i32 = 30_000;

/// A transactional producer, which begins no transaction, and so never ends one.
pub(crate) struct Producer {
    stream: TcpStream,
    transactional_id: String,
    id: i64,
    epoch: i16,
}

impl Producer {
    /// Of a transactional id, whose last producer it fences.
    pub(crate) fn of(transactional_id: &str) -> Producer {
        let stream = TcpStream::connect(broker::address()).expect("the broker listens");
        let transactional_id = transactional_id.to_owned();
        let mut producer = Producer { stream, transactional_id, id: -1, epoch: -1 };
        let body = [&text(&producer.transactional_id)[..], &TIMEOUT_MS.to_be_bytes()].concat();
        (producer.id, producer.epoch) = wait::until("the coordinator gives a producer id", || {
            let reply = producer.ask(INIT_PRODUCER_ID, 1, &body);
            // Behind a throttle time: the error, the id, its epoch.
            let error = i16::from_be_bytes(part(&reply, 4));
            assert!(error == 0 || PASSING.contains(&error), "InitProducerId: error {error}");
            (error == 0).then(|| (i64::from_be_bytes(part(&reply, 6)), i16::from_be_bytes(part(&reply, 14))))
        });
        producer
    }

    /// Writes the first record of a partition, once the broker does not verify transactions.
    pub(crate) fn write(&mut self, topic: &str, partition: i32, key: Option<&[u8]>, value: Option<&[u8]>) {
        let batch = self.batch(&record(key, value));
        let body = [
            &text(&self.transactional_id)[..],
            &(-1i16).to_be_bytes(),
            &TIMEOUT_MS.to_be_bytes(),
            &1i32.to_be_bytes(),
            &text(topic),
            &1i32.to_be_bytes(),
            &partition.to_be_bytes(),
            &length(batch.len()).to_be_bytes(),
            &batch,
        ];
        wait::until("the broker does not ask whether the transaction was begun", || {
            let reply = self.ask(PRODUCE, 3, &body.concat());
            // One topic by its name, one partition by its number, its error.
            let error = i16::from_be_bytes(part(&reply, 4 + 2 + topic.len() + 4 + 4));
            assert!(error == 0 || error == IS_VERIFIED, "Produce to {topic} [{partition}]: error {error}");
            (error == 0).then_some(())
        });
    }

    /// `DefaultRecordBatch` of Kafka, with one record.
    fn batch(&self, record: &[u8]) -> Vec<u8> {
        let checked = [
            &IS_TRANSACTIONAL.to_be_bytes()[..],
            &0i32.to_be_bytes(), // the last record's number
            &1i64.to_be_bytes(), // the first timestamp
            &1i64.to_be_bytes(), // the last
            &self.id.to_be_bytes(),
            &self.epoch.to_be_bytes(),
            &0i32.to_be_bytes(), // the first sequence number
            &1i32.to_be_bytes(), // records
            record,
        ]
        .concat();
        let batch = [
            &0i64.to_be_bytes()[..], // the first offset
            &length(CHECKED_FROM - 12 + checked.len()).to_be_bytes(),
            &(-1i32).to_be_bytes(), // the leader's epoch
            &[2],                   // of this form
            &crc32c(&checked).to_be_bytes(),
            &checked,
        ];
        batch.concat()
    }

    fn ask(&mut self, kind: i16, version: i16, body: &[u8]) -> Vec<u8> {
        let request = [
            &kind.to_be_bytes()[..],
            &version.to_be_bytes(),
            &7i32.to_be_bytes(), // the reply's number
            &text("guarantees"),
            body,
        ]
        .concat();
        let frame = [&length(request.len()).to_be_bytes()[..], &request].concat();
        self.stream.write_all(&frame).expect("the broker is asked");
        let mut bytes = [0; 4];
        self.stream.read_exact(&mut bytes).expect("the broker answers");
        let mut reply = vec![0; usize::try_from(i32::from_be_bytes(bytes)).expect("a length")];
        self.stream.read_exact(&mut reply).expect("the broker answers");
        reply.split_off(4)
    }
}

fn record(key: Option<&[u8]>, value: Option<&[u8]>) -> Vec<u8> {
    let mut record = vec![0, 0, 0]; // no attributes, the first timestamp, the first offset
    for part in [key, value] {
        match part {
            None => put_signed(&mut record, -1),
            Some(bytes) => {
                put_signed(&mut record, i64::from(length(bytes.len())));
                record.extend_from_slice(bytes);
            }
        }
    }
    record.push(0); // no headers
    let mut whole = Vec::new();
    put_signed(&mut whole, i64::from(length(record.len())));
    [whole, record].concat()
}

fn text(text: &str) -> Vec<u8> {
    let bytes = i16::try_from(text.len()).expect("a short text").to_be_bytes();
    [&bytes[..], text.as_bytes()].concat()
}

fn length(bytes: usize) -> i32 {
    i32::try_from(bytes).expect("a short record")
}

fn part<const N: usize>(reply: &[u8], at: usize) -> [u8; N] {
    *reply[at..].first_chunk().expect("a reply of this form")
}

/// Castagnoli's, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}
