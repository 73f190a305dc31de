//! A TCP proxy between the pipeline and the broker that knows just enough of
//! Kafka's protocol to tell which request a reply is for.
//!
//! A frame is a length and that many bytes. A request begins with its kind, its
//! version and a number by which the reply names it.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

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

/// No frame of ours is longer: the broker refuses those.
const FRAME_BYTES_MAX: usize = 104_857_600;

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
    dropped: AtomicU64,
    passed: AtomicU64,
    connections: Mutex<Vec<[TcpStream; 2]>>,
}

impl Controls {
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

    /// How many frames have passed so far.
    pub(crate) fn passed(&self) -> u64 {
        self.passed.load(Ordering::SeqCst)
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
        while self.is_frozen.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(self.delay_ms.load(Ordering::SeqCst)));
    }

    /// Whether the reply to a request of this kind is to be dropped.
    fn takes(&self, kind: i16) -> bool {
        if self.kind.load(Ordering::SeqCst) != i64::from(kind) {
            return false;
        }
        let takes =
            self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| (left > 0).then(|| left - 1));
        takes.is_ok()
    }
}

/// Listens on one port for as long as the process lives, and hands all to another.
pub(crate) fn listen(port: u16, broker: u16) -> Result<Arc<Controls>> {
    let listener =
        TcpListener::bind(("127.0.0.1", port)).with_context(|| format!("listen on port {port}"))?;
    let controls = Arc::new(Controls::default());
    let shared = Arc::clone(&controls);
    std::thread::Builder::new().name("proxy".into()).spawn(move || {
        for client in listener.incoming().flatten() {
            // A broker that is down refuses: so does the proxy, by closing.
            let Ok(broker) = TcpStream::connect(("127.0.0.1", broker)) else { continue };
            if let Err(error) = connect(client, broker, &shared) {
                eprintln!("proxy: {error:#}");
            }
        }
    })?;
    Ok(controls)
}

type Asked = Arc<Mutex<HashMap<i32, i16>>>;

fn connect(client: TcpStream, broker: TcpStream, controls: &Arc<Controls>) -> Result<()> {
    client.set_nodelay(true)?;
    broker.set_nodelay(true)?;
    let pair = [client.try_clone()?, broker.try_clone()?];
    controls.connections.lock().unwrap_or_else(PoisonError::into_inner).push(pair);
    let asked = Asked::default();
    let (requests, replies) = (Arc::clone(controls), Arc::clone(controls));
    let (to_broker, from_client) = (broker.try_clone()?, client.try_clone()?);
    let noted = Arc::clone(&asked);
    std::thread::spawn(move || {
        let passes = |frame: &[u8]| note(frame, &noted);
        forward(from_client, to_broker, &requests, passes);
    });
    std::thread::spawn(move || {
        let passes = |frame: &[u8]| answers(frame, &asked, &replies);
        forward(broker, client, &replies, passes);
    });
    Ok(())
}

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Passes,
    IsDropped,
    /// And the connection with it.
    Cuts,
}

/// Hands frames on until either side closes, and then closes the other.
fn forward(mut from: TcpStream, mut to: TcpStream, controls: &Controls, passes: impl Fn(&[u8]) -> Fate) {
    while let Some(frame) = read(&mut from) {
        controls.hold_up();
        match passes(&frame) {
            Fate::Passes => {
                controls.passed.fetch_add(1, Ordering::SeqCst);
                if to.write_all(&frame).is_err() {
                    break;
                }
            }
            Fate::IsDropped => {}
            Fate::Cuts => break,
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

fn note(frame: &[u8], asked: &Asked) -> Fate {
    if let (Some(kind), Some(id)) = (number(frame, 4), number(frame, 8)) {
        let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.insert(i32::from_be_bytes(id), i16::from_be_bytes(kind));
    }
    Fate::Passes
}

fn answers(frame: &[u8], asked: &Asked, controls: &Controls) -> Fate {
    let id = number(frame, 4).map(i32::from_be_bytes);
    let kind = id.and_then(|id| asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&id));
    if !kind.is_some_and(|kind| controls.takes(kind)) {
        return Fate::Passes;
    }
    controls.dropped.fetch_add(1, Ordering::SeqCst);
    if controls.stays_open.load(Ordering::SeqCst) { Fate::IsDropped } else { Fate::Cuts }
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
            assert_eq!(note(&request(kind, id), &asked), Fate::Passes);
        }
        let fates: Vec<Fate> = (1..=4).map(|id| answers(&reply(id), &asked, &controls)).collect();
        assert_eq!(fates, [Fate::IsDropped, Fate::Passes, Fate::IsDropped, Fate::Passes]);
        assert_eq!((controls.dropped(), controls.drop_no_more()), (2, 0));
    }
}
