//! A TCP proxy between the pipeline and each broker that knows just enough of
//! Kafka's protocol to tell which request a reply is for.
//!
//! A frame is a length and that many bytes. A request begins with its kind, its
//! version and a number by which the reply names it.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// The kinds of request whose replies are worth losing.
pub(crate) const KINDS: [(i16, &str); 7] = [
    (26, "EndTxn"),
    (28, "TxnOffsetCommit"),
    (25, "AddOffsetsToTxn"),
    (24, "AddPartitionsToTxn"),
    (0, "Produce"),
    (22, "InitProducerId"),
    (12, "Heartbeat"),
];

/// The request for what brokers and topics there are.
const METADATA: i16 = 3;

/// No frame of ours is longer: the broker refuses those.
const FRAME_BYTES_MAX: usize = 104_857_600;
/// A throttled frame passes in pieces.
const PIECE_BYTES: usize = 4_096;
/// Whoever set a trap lets go before, or is gone.
const HELD_AT_MOST: Duration = Duration::from_secs(60);

/// What is to be done to the connections.
#[derive(Debug, Default)]
pub(crate) struct Controls {
    /// The kind of request whose replies are dropped, and how many of them yet.
    kind: AtomicI64,
    left: AtomicI64,
    /// Whether the connection is left open when a reply is dropped.
    stays_open: AtomicBool,
    /// Nothing passes, and nobody is told.
    is_frozen: AtomicBool,
    /// Each frame is held up for so long.
    delay_ms: AtomicU64,
    /// So many bytes a second pass in each direction of a connection; 0 for all.
    bytes_per_s: AtomicU64,
    trap: Mutex<Trap>,
    trap_changed: Condvar,
    dropped: AtomicU64,
    /// How many answers yet are to name no broker.
    without_brokers: AtomicI64,
    emptied: AtomicU64,
    held_up: AtomicU64,
    connections: Mutex<Vec<[TcpStream; 2]>>,
}

/// Where a request is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// The broker has not seen it yet.
    Asked,
    /// The broker has done it, and the client does not know yet.
    Answered,
}

/// A frame that is waited for, and then held until the trap is opened.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Trap {
    #[default]
    Open,
    Set(i16, Moment),
    /// The node whose frame it is.
    Caught(usize),
}

impl Controls {
    /// Waits for the next request of a kind at this moment, and holds it there
    /// until [`Controls::let_go`]. The node that it concerns; `None`: there was none in time.
    pub(crate) fn catch(&self, kind: i16, moment: Moment, within: Duration) -> Option<usize> {
        *self.trap() = Trap::Set(kind, moment);
        let is_open = |trap: &mut Trap| !matches!(trap, Trap::Caught(_));
        let (trap, _) = self
            .trap_changed
            .wait_timeout_while(self.trap(), within, is_open)
            .unwrap_or_else(PoisonError::into_inner);
        let caught = *trap;
        drop(trap);
        match caught {
            Trap::Caught(node) => Some(node),
            Trap::Open | Trap::Set(..) => {
                self.let_go();
                None
            }
        }
    }

    /// What was caught passes.
    pub(crate) fn let_go(&self) {
        *self.trap() = Trap::Open;
        self.trap_changed.notify_all();
    }

    fn trap(&self) -> MutexGuard<'_, Trap> {
        self.trap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fall_into_trap(&self, node: usize, kind: i16, moment: Moment) {
        let mut trap = self.trap();
        if *trap != Trap::Set(kind, moment) {
            return;
        }
        *trap = Trap::Caught(node);
        self.trap_changed.notify_all();
        let is_caught = |trap: &mut Trap| matches!(trap, Trap::Caught(_));
        let released = self.trap_changed.wait_timeout_while(trap, HELD_AT_MOST, is_caught);
        drop(released.unwrap_or_else(PoisonError::into_inner));
    }

    /// So many bytes a second pass in each direction of a connection; 0 for all.
    pub(crate) fn throttle(&self, bytes_per_s: u64) {
        self.bytes_per_s.store(bytes_per_s, Ordering::SeqCst);
    }

    /// Hands a frame on, as fast as it may.
    fn write(&self, frame: &[u8], to: &mut TcpStream) -> std::io::Result<()> {
        let began = Instant::now();
        let mut written = 0;
        for piece in frame.chunks(PIECE_BYTES) {
            to.write_all(piece)?;
            written += piece.len() as u64;
            let bytes_per_s = self.bytes_per_s.load(Ordering::SeqCst);
            if let Some(due_ms) = (written * 1_000).checked_div(bytes_per_s) {
                self.held_up.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(due_ms).saturating_sub(began.elapsed()));
            }
        }
        Ok(())
    }

    /// Drops the next replies to requests of a kind. The broker has done what
    /// was asked; the client cannot know.
    pub(crate) fn drop_replies(&self, kind: i16, times: i64, stays_open: bool) {
        self.stays_open.store(stays_open, Ordering::SeqCst);
        self.kind.store(kind.into(), Ordering::SeqCst);
        self.left.store(times, Ordering::SeqCst);
    }

    /// No more replies are dropped; says how many were not.
    pub(crate) fn drop_no_more(&self) -> i64 {
        self.left.swap(0, Ordering::SeqCst).max(0)
    }

    /// How many replies were dropped so far.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::SeqCst)
    }

    /// From the next answers about the cluster so many name no broker, as one of a broker that has
    /// just started may.
    pub(crate) fn name_no_brokers(&self, times: i64) {
        self.without_brokers.store(times, Ordering::SeqCst);
    }

    /// How many answers named no broker so far.
    pub(crate) fn emptied(&self) -> u64 {
        self.emptied.load(Ordering::SeqCst)
    }

    /// How many frames, or pieces of throttled ones, had to wait so far.
    pub(crate) fn held_up(&self) -> u64 {
        self.held_up.load(Ordering::SeqCst)
    }

    /// Closes every connection; how many there were.
    pub(crate) fn cut(&self) -> u64 {
        let connections =
            std::mem::take(&mut *self.connections.lock().unwrap_or_else(PoisonError::into_inner));
        for stream in connections.iter().flatten() {
            // One that is closed already is cut.
            let _ = stream.shutdown(Shutdown::Both);
        }
        connections.len() as u64
    }

    /// From here on nothing passes, in no connection, or all does.
    pub(crate) fn freeze(&self, is_frozen: bool) {
        self.is_frozen.store(is_frozen, Ordering::SeqCst);
    }

    /// Holds each frame up.
    pub(crate) fn delay(&self, time: Duration) {
        self.delay_ms.store(u64::try_from(time.as_millis()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    fn hold_up(&self) {
        let delay_ms = self.delay_ms.load(Ordering::SeqCst);
        if delay_ms > 0 || self.is_frozen.load(Ordering::SeqCst) {
            self.held_up.fetch_add(1, Ordering::SeqCst);
        }
        while self.is_frozen.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(delay_ms));
    }

    /// What becomes of a reply to a request of this kind.
    fn fate(&self, kind: i16, frame: &[u8]) -> Fate {
        if kind == METADATA && take_one(&self.without_brokers) {
            let Some(changed) = without_brokers(frame) else { return Fate::Passes };
            self.emptied.fetch_add(1, Ordering::SeqCst);
            return Fate::Becomes(changed);
        }
        if !self.takes(kind) {
            return Fate::Passes;
        }
        self.dropped.fetch_add(1, Ordering::SeqCst);
        if self.stays_open.load(Ordering::SeqCst) { Fate::IsDropped } else { Fate::Cuts }
    }

    fn takes(&self, kind: i16) -> bool {
        if self.kind.load(Ordering::SeqCst) != i64::from(kind) {
            return false;
        }
        take_one(&self.left)
    }
}

fn take_one(left: &AtomicI64) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| (left > 0).then(|| left - 1)).is_ok()
}

/// Listens on one port for as long as the process lives, and hands all to a node's.
pub(crate) fn listen(node: usize, port: u16, broker: u16, controls: &Arc<Controls>) -> Result<()> {
    let listener =
        TcpListener::bind(("127.0.0.1", port)).with_context(|| format!("listen on port {port}"))?;
    let shared = Arc::clone(controls);
    std::thread::Builder::new().name("proxy".into()).spawn(move || {
        for client in listener.incoming().flatten() {
            // A broker that is down refuses: so does the proxy, by closing.
            let Ok(broker) = TcpStream::connect(("127.0.0.1", broker)) else { continue };
            if let Err(error) = connect(node, client, broker, &shared) {
                eprintln!("proxy: {error:#}");
            }
        }
    })?;
    Ok(())
}

type Asked = Arc<Mutex<HashMap<i32, i16>>>;

fn connect(node: usize, client: TcpStream, broker: TcpStream, controls: &Arc<Controls>) -> Result<()> {
    client.set_nodelay(true)?;
    broker.set_nodelay(true)?;
    let pair = [client.try_clone()?, broker.try_clone()?];
    controls.connections.lock().unwrap_or_else(PoisonError::into_inner).push(pair);
    let asked = Asked::default();
    let (requests, replies) = (Arc::clone(controls), Arc::clone(controls));
    let (to_broker, from_client) = (broker.try_clone()?, client.try_clone()?);
    let noted = Arc::clone(&asked);
    std::thread::spawn(move || {
        let passes = |frame: &[u8]| {
            let kind = note(frame, &noted);
            kind.into_iter().for_each(|kind| requests.fall_into_trap(node, kind, Moment::Asked));
            Fate::Passes
        };
        forward(from_client, to_broker, &requests, passes);
    });
    std::thread::spawn(move || {
        let passes = |frame: &[u8]| {
            let Some(kind) = answered(frame, &asked) else { return Fate::Passes };
            replies.fall_into_trap(node, kind, Moment::Answered);
            replies.fate(kind, frame)
        };
        forward(broker, client, &replies, passes);
    });
    Ok(())
}

/// What becomes of a frame.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Passes,
    Becomes(Vec<u8>),
    IsDropped,
    /// And the connection with it.
    Cuts,
}

/// Hands frames on until either side closes, and then closes the other.
fn forward(mut from: TcpStream, mut to: TcpStream, controls: &Controls, passes: impl Fn(&[u8]) -> Fate) {
    while let Some(frame) = read(&mut from) {
        controls.hold_up();
        let frame = match passes(&frame) {
            Fate::Passes => frame,
            Fate::Becomes(changed) => changed,
            Fate::IsDropped => continue,
            Fate::Cuts => break,
        };
        if controls.write(&frame, &mut to).is_err() {
            break;
        }
    }
    // The other thread ends with it.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// A whole frame, its length in front; `None` where the stream has ended.
fn read(from: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length).ok()?;
    let bytes = usize::try_from(i32::from_be_bytes(length)).ok().filter(|bytes| *bytes <= FRAME_BYTES_MAX)?;
    let mut frame = vec![0; 4 + bytes];
    let (head, body) = frame.split_at_mut(4);
    head.copy_from_slice(&length);
    from.read_exact(body).ok()?;
    Some(frame)
}

fn number<const N: usize>(frame: &[u8], at: usize) -> Option<[u8; N]> {
    frame.get(at..)?.first_chunk().copied()
}

/// The kind of a request, kept for its reply.
fn note(frame: &[u8], asked: &Asked) -> Option<i16> {
    let kind = number(frame, 4).map(i16::from_be_bytes)?;
    let id = number(frame, 8).map(i32::from_be_bytes)?;
    asked.lock().unwrap_or_else(PoisonError::into_inner).insert(id, kind);
    Some(kind)
}

/// The kind of request that a reply is for.
fn answered(frame: &[u8], asked: &Asked) -> Option<i16> {
    let id = number(frame, 4).map(i32::from_be_bytes)?;
    asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&id)
}

/// A `MetadataResponse` of version 9 or later whose list of brokers is empty; `None` where it is not one.
fn without_brokers(frame: &[u8]) -> Option<Vec<u8>> {
    // Its length, the reply's number and its tags; a throttle time.
    const BROKERS_AT: usize = 4 + 4 + 1 + 4;
    let (head, mut rest) = frame.split_at_checked(BROKERS_AT)?;
    // Of lists and texts the count comes first, one more than there are; 0 is null.
    for _ in 1..varint(&mut rest)? {
        skip(&mut rest, 4)?; // node
        let host = varint(&mut rest)?.saturating_sub(1);
        skip(&mut rest, host)?;
        skip(&mut rest, 4)?; // port
        let rack = varint(&mut rest)?.saturating_sub(1);
        skip(&mut rest, rack)?;
        skip(&mut rest, 1)?; // no tags
    }
    let mut changed = [head, &[1], rest].concat();
    let length = u32::try_from(changed.len() - 4).ok()?.to_be_bytes();
    changed.get_mut(..4)?.copy_from_slice(&length);
    Some(changed)
}

fn varint(rest: &mut &[u8]) -> Option<usize> {
    let mut number = 0;
    for shift in (0..28).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        number |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn skip(rest: &mut &[u8], bytes: usize) -> Option<()> {
    *rest = rest.split_at_checked(bytes)?.1;
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(kind: i16, id: i32) -> Vec<u8> {
        let body = [&kind.to_be_bytes()[..], &[0, 3], &id.to_be_bytes()].concat();
        [&(body.len() as i32).to_be_bytes()[..], &body].concat()
    }

    fn reply(id: i32) -> Vec<u8> {
        [&4i32.to_be_bytes()[..], &id.to_be_bytes()].concat()
    }

    #[test]
    fn only_the_replies_that_were_asked_for_are_dropped() {
        let (asked, controls) = (Asked::default(), Controls::default());
        controls.drop_replies(26, 2, true);
        for (id, kind) in [(1, 26), (2, 0), (3, 26), (4, 26)] {
            assert_eq!(note(&request(kind, id), &asked), Some(kind));
        }
        let fate = |id| controls.fate(answered(&reply(id), &asked).unwrap(), &reply(id));
        let fates: Vec<Fate> = (1..=4).map(fate).collect();
        assert_eq!(fates, [Fate::IsDropped, Fate::Passes, Fate::IsDropped, Fate::Passes]);
        assert_eq!((controls.dropped(), controls.drop_no_more()), (2, 0));
    }

    #[test]
    fn an_answer_about_the_cluster_names_no_broker_where_it_is_not_to() {
        let broker = |host: &[u8]| {
            let length = [host.len() as u8 + 1];
            [&[0, 0, 0, 1][..], &length, host, &[0, 0, 35, 132], &[2, b'r'], &[0]].concat()
        };
        let answer = |brokers: &[u8]| {
            let body = [&7i32.to_be_bytes()[..], &[0], &[0; 4], brokers, b"topics"].concat();
            [&(body.len() as i32).to_be_bytes()[..], &body].concat()
        };
        let whole = answer(&[&[3][..], &broker(b"one"), &broker(b"another")].concat());
        let controls = Controls::default();
        controls.name_no_brokers(1);
        assert_eq!(controls.fate(METADATA, &whole), Fate::Becomes(answer(&[1])));
        assert_eq!(controls.fate(METADATA, &whole), Fate::Passes);
        assert_eq!(controls.emptied(), 1);
        assert_eq!(without_brokers(&whole[..30]), None);
    }

    #[test]
    fn what_had_to_wait_is_counted() {
        let controls = Controls::default();
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let mut to = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut passes = || {
            controls.hold_up();
            controls.write(&[0; 2 * PIECE_BYTES], &mut to).unwrap();
            controls.held_up()
        };
        assert_eq!(passes(), 0);
        controls.throttle(100_000_000);
        assert_eq!(passes(), 2);
        controls.throttle(0);
        controls.delay(Duration::from_millis(1));
        assert_eq!(passes(), 3);
        controls.delay(Duration::ZERO);
        assert_eq!(passes(), 3);
    }

    #[test]
    fn a_request_is_held_where_it_is_waited_for() {
        let controls = Controls::default();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !matches!(*controls.trap(), Trap::Set(..)) {
                    std::thread::yield_now();
                }
                controls.fall_into_trap(1, 26, Moment::Asked);
                controls.fall_into_trap(2, 26, Moment::Answered);
            });
            assert_eq!(controls.catch(26, Moment::Answered, HELD_AT_MOST), Some(2));
            controls.let_go();
        });
        assert_eq!(controls.catch(26, Moment::Asked, Duration::from_millis(1)), None);
    }
}
