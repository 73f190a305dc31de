//! Keys and numbers as a store's bytes.
//!
//! ```text
//!  m <name>                         what the store belongs to, and its positions
//!  e <uid>                          a ticket's entry
//!  i <hash>                         an event id: offset, timestamp
//!  x <idle since, ordered> <uid>    an entry without a snapshot; nothing
//!  w <stream time, ordered>         a milestone: the ids log's end at that time
//! ```

pub(super) const IDENTITY: &[u8] = b"midentity";
pub(super) const POSITIONS: &[u8] = b"mpositions";
pub(super) const ENTRY: u8 = b'e';
pub(super) const ID: u8 = b'i';
pub(super) const IDLE: u8 = b'x';
pub(super) const MILESTONE: u8 = b'w';

pub(super) fn keyed(prefix: u8, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + rest.len());
    key.push(prefix);
    key.extend_from_slice(rest);
    key
}

pub(super) fn idle_key(since_ms: i64, uid: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(9 + uid.len());
    key.push(IDLE);
    key.extend_from_slice(&bytes_of_time(since_ms));
    key.extend_from_slice(uid);
    key
}

pub(super) fn read_idle_key(key: &[u8]) -> Option<(i64, &[u8])> {
    let (time, uid) = key.strip_prefix(&[IDLE])?.split_first_chunk::<8>()?;
    Some((time_of_bytes(*time), uid))
}

pub(super) fn milestone_key(stream_time_ms: i64) -> Vec<u8> {
    keyed(MILESTONE, &bytes_of_time(stream_time_ms))
}

/// Big-endian with the sign turned, so that bytes sort as times do.
pub(super) fn bytes_of_time(time_ms: i64) -> [u8; 8] {
    (time_ms ^ i64::MIN).to_be_bytes()
}

pub(super) fn time_of_bytes(bytes: [u8; 8]) -> i64 {
    i64::from_be_bytes(bytes) ^ i64::MIN
}

pub(super) fn numbers<const N: usize>(numbers: [i64; N]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

pub(super) fn read_numbers<const N: usize>(bytes: &[u8]) -> Option<[i64; N]> {
    let (chunks, rest) = bytes.as_chunks::<8>();
    let numbers: [[u8; 8]; N] = chunks.try_into().ok()?;
    rest.is_empty().then(|| numbers.map(i64::from_be_bytes))
}
