//! One input partition: a record in; outgoing records and overlay out.
//!
//! Everything pure meets here. What one record does is decided before anything
//! is remembered of it, so a record that must go to the dead-letter topic after
//! all leaves no trace. The task knows no clock and no Kafka client.

use std::borrow::Cow;
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::derive::PreviousFrom;
use crate::entry::{Entry, RuleSet};
use crate::envelope::{Code, Decoder, Envelope, Unusable};
use crate::json::Tape;
use crate::outgoing::{self, Derived, Headers};
use crate::partition;
use crate::record::{Destination, Draft, Origin, Outbox, RawRecord};
use crate::rekey;
use crate::store::{EventHash, Seen, Store};
use crate::topology::{EventTypeIndex, KeyedBy, NativeSpecifics, Topology};
use crate::transition::{self, DerivedEvent, Role, Transition};
use crate::truncate::{self, Spare};

/// One input partition with its store.
#[derive(Debug)]
pub struct Task {
    topology: Arc<Topology>,
    roles: Vec<Role>,
    rule_set: RuleSet,
    partitions: i32,
    stream_time_ms: i64,
    decoder: Decoder,
    tape: Tape,
    value: Vec<u8>,
    /// The partition's state. The worker seals, applies and discards its overlay.
    pub store: Store,
}

/// What became of a raw record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// The fate.
    pub fate: Fate,
    /// The event type, an index into the topology's; `None` of a dead letter.
    pub event_type: Option<EventTypeIndex>,
    /// How many derived events were emitted.
    pub derived: u32,
    /// How many derived events met their twin and were dropped.
    pub twins_dropped: u32,
    /// Whether the event was late.
    pub late: bool,
    /// How many outgoing records were cut to the size limit.
    pub truncated: u32,
}

/// Every record ends in exactly one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Forwarded, perhaps with derived events behind it.
    Emitted,
    /// Seen before, within the window.
    Duplicate,
    /// A native specific that met its twin, or that the policy drops.
    Dropped,
    /// In the dead-letter topic.
    DeadLetter(Code),
    /// On its way to its ticket's partition.
    Rekeyed,
}

/// Whose event a record holds, and which.
#[derive(Debug)]
pub struct Identity<'a> {
    /// The ticket.
    pub uid: Cow<'a, str>,
    /// The event.
    pub id: EventHash,
    /// What is forwarded of it, if anything is, can be made to fit.
    pub fits: bool,
}

impl Outcome {
    pub(crate) fn of(fate: Fate, event_type: Option<EventTypeIndex>) -> Outcome {
        Outcome { fate, event_type, derived: 0, twins_dropped: 0, late: false, truncated: 0 }
    }
}

impl Task {
    /// A task over a store; `partitions` is how many every output topic has,
    /// `stream_time_ms` the greatest Kafka timestamp read so far (`i64::MIN` at first).
    #[must_use]
    pub fn new(topology: Arc<Topology>, partitions: i32, store: Store, stream_time_ms: i64) -> Task {
        let roles = transition::roles(&topology);
        let rule_set = RuleSet::of(&topology.rules);
        let (decoder, tape, value) = (Decoder::default(), Tape::default(), Vec::new());
        Task { topology, roles, rule_set, partitions, stream_time_ms, decoder, tape, value, store }
    }

    /// Processes one record: what is to be emitted goes to `out` (cleared
    /// first), what is to be remembered to the store's overlay.
    ///
    /// # Errors
    /// Only where the store cannot be read; bad input is an outcome.
    pub fn process(&mut self, record: &RawRecord<'_>, out: &mut Outbox) -> Result<Outcome> {
        self.process_in_parts(record, out, usize::MAX, &mut |_| {})
    }

    /// The same in bounded memory: one record may make gigabytes, for each of its
    /// derived events repeats the ticket. Whenever `out` holds `part_bytes_max` it
    /// is handed to `part` and cleared; at the end it holds the last part. Nothing
    /// is handed over before it is certain that everything fits.
    ///
    /// # Errors
    /// Only where the store cannot be read; what befalls a part is for `part` to remember.
    pub fn process_in_parts(
        &mut self,
        record: &RawRecord<'_>,
        out: &mut Outbox,
        part_bytes_max: usize,
        part: &mut dyn FnMut(&Outbox),
    ) -> Result<Outcome> {
        out.clear();
        self.pass(record.timestamp_ms);
        let forgotten_before_ms = self.forgotten_before_ms();
        let topology = &*self.topology;
        // What goes out names the raw topic's place; what is remembered goes by the input's.
        let raw = match topology.source.keyed_by {
            KeyedBy::TicketUid => *record,
            KeyedBy::Nothing => rekey::raw(record)?,
        };
        let dead_letter = |out: &mut Outbox, unusable: &Unusable| {
            out.clear();
            outgoing::push_dead_letter(out, &topology.source.topic, &raw, unusable);
            Ok(Outcome::of(Fate::DeadLetter(unusable.code), None))
        };

        let envelope = match self.decoder.decode(record, topology) {
            Ok(envelope) => envelope,
            Err(unusable) => return dead_letter(out, &unusable),
        };
        let id = event_hash(&envelope.event_id);
        // What lies ahead was noted by a run before a replay, and is void.
        let duplicate = |seen: Seen| seen.offset < record.offset && seen.timestamp_ms >= forgotten_before_ms;
        if self.store.seen(&id)?.is_some_and(duplicate) {
            return Ok(Outcome::of(Fate::Duplicate, Some(envelope.event_type)));
        }

        let role = self.roles.get(envelope.event_type).copied().unwrap_or(Role::Other);
        let is_ours = !matches!(role, Role::Other);
        let bytes = if is_ours { self.store.entry(envelope.uid.as_bytes())? } else { None };
        let damaged = || format!("decode the entry of ticket \"{}\"", envelope.uid);
        let mut entry = decode(bytes.as_deref(), record.offset, forgotten_before_ms, &self.rule_set)
            .with_context(damaged)?;
        let transition = transition::happen(
            topology,
            &self.rule_set.reader,
            role,
            &envelope,
            record.timestamp_ms,
            &mut entry,
            &mut self.tape,
        )
        .with_context(damaged)?;

        entry.written_at = record.offset;
        let encode = || encode(&entry, &envelope.uid, &self.rule_set, topology.limits.entry_bytes_max);
        let remembered = match transition.entry_changed.then(encode).transpose() {
            Ok(remembered) => remembered,
            Err(unusable) => return dead_letter(out, &unusable),
        };
        let mut emission = Emission {
            topology,
            envelope: &envelope,
            record: &raw,
            partitions: self.partitions,
            part_bytes_max,
            is_measuring: false,
            truncated: 0,
        };
        if let Err(unusable) = emission.emit(&transition, &mut self.value, out, part) {
            return dead_letter(out, &unusable);
        }
        let outcome = Outcome {
            fate: if transition.dropped { Fate::Dropped } else { Fate::Emitted },
            event_type: Some(envelope.event_type),
            derived: u32::try_from(transition.derived.len()).unwrap_or(u32::MAX),
            twins_dropped: transition.twins_dropped,
            late: transition.late,
            truncated: emission.truncated,
        };

        if let Some(bytes) = remembered {
            self.store.put_entry(envelope.uid.as_bytes(), bytes);
        }
        self.store.see(id, Seen { offset: record.offset, timestamp_ms: record.timestamp_ms });
        Ok(outcome)
    }

    /// Lets stream time go on past a record that is not processed.
    pub fn pass(&mut self, timestamp_ms: i64) {
        self.stream_time_ms = self.stream_time_ms.max(timestamp_ms);
    }

    /// Whose event a record holds, and which; `None` where it is none.
    pub fn identify<'a>(&'a mut self, record: &RawRecord<'a>) -> Option<Identity<'a>> {
        let envelope = self.decoder.decode(record, &self.topology).ok()?;
        let text = envelope.text.as_bytes();
        let limit = self.topology.limits.record_bytes_max;
        let is_dropped = self.topology.policies.native_specifics == NativeSpecifics::Drop
            && matches!(self.roles.get(envelope.event_type), Some(Role::Specific { .. }));
        let fits = is_dropped || text.len() <= limit || truncate::cut(text, limit, Spare::Nothing).is_some();
        Some(Identity { id: event_hash(&envelope.event_id), uid: envelope.uid, fits })
    }

    /// Forgets at most `limit` entries that the window has forgotten; called
    /// once for each transaction, before its changelog records are sent. Says
    /// how many it looked at.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn sweep(&mut self, limit: usize) -> Result<usize> {
        let forgotten_before_ms = self.forgotten_before_ms();
        let idle = self.store.idle_before(forgotten_before_ms, limit)?;
        for uid in &idle {
            let Some(bytes) = self.store.entry(uid)? else { continue };
            let mut entry = Entry::decode(&bytes, &self.rule_set)
                .with_context(|| format!("decode the entry of ticket \"{}\"", uid.escape_ascii()))?;
            if entry.forget(forgotten_before_ms) {
                let bytes = (!entry.is_empty()).then(|| entry.encode(&self.rule_set));
                self.store.put_entry(uid, bytes);
            }
        }
        Ok(idle.len())
    }

    /// The greatest Kafka timestamp read so far.
    #[must_use]
    pub fn stream_time_ms(&self) -> i64 {
        self.stream_time_ms
    }

    /// What was made before this Kafka timestamp is older than the window.
    #[must_use]
    pub fn forgotten_before_ms(&self) -> i64 {
        self.stream_time_ms.saturating_sub(self.topology.policies.dedupe_window_ms)
    }
}

/// The digest by which the window knows an event id. Ids come from outside, so
/// it must be one for which nobody can make two ids meet.
fn event_hash(event_id: &str) -> EventHash {
    *blake3::hash(event_id.as_bytes()).as_bytes().first_chunk().expect("a BLAKE3 hash has 32 bytes")
}

/// A ticket's entry as of now, from what is in the store; `None` where that is damaged.
fn decode<'a>(
    bytes: Option<&'a [u8]>,
    offset: i64,
    forgotten_before_ms: i64,
    rule_set: &RuleSet,
) -> Option<Entry<'a>> {
    let Some(bytes) = bytes else { return Some(Entry::new(offset)) };
    let mut entry = Entry::decode(bytes, rule_set)?;
    if entry.forget(forgotten_before_ms) && entry.is_empty() {
        // As if the sweep had been there already: what is remembered must not depend on when it runs.
        entry = Entry::new(offset);
    }
    Some(entry)
}

/// An entry as the changelog gets it; `None` is a tombstone. It must fit there, which
/// hangs on its bytes alone and not on how they compress: then it is decided alike
/// wherever the record is read.
fn encode(
    entry: &Entry<'_>,
    uid: &str,
    rule_set: &RuleSet,
    limit: usize,
) -> Result<Option<Vec<u8>>, Unusable> {
    let encoded = (!entry.is_empty()).then(|| entry.encode(rule_set));
    let bytes = uid.len() + encoded.as_ref().map_or(0, Vec::len);
    if bytes <= limit {
        return Ok(encoded);
    }
    let waiting = entry.waiting.len();
    let why = format!(
        "what would be remembered of the ticket, {waiting} announcements that wait for their twin among it, has {bytes} \
         bytes; limits.entry_size_max is {limit}"
    );
    Err(Unusable { code: Code::PayloadTooLarge, why })
}

/// What a record takes beside its key, its value and its headers at most, and what each header does.
const FRAME_BYTES_MAX: usize = 256;
const HEADER_FRAME_BYTES_MAX: usize = 10;
/// So many headers are ours at most; the others are the source's.
const OWN_HEADERS_MAX: usize = 32;

/// A derived event whose value is written.
struct Written<'t> {
    name: &'t str,
    id: String,
}

/// Puts what one ticket event emits into the outbox.
struct Emission<'a> {
    topology: &'a Topology,
    envelope: &'a Envelope<'a>,
    record: &'a RawRecord<'a>,
    partitions: i32,
    part_bytes_max: usize,
    /// What is made is only looked at, and made again later.
    is_measuring: bool,
    truncated: u32,
}

impl<'a> Emission<'a> {
    fn emit(
        &mut self,
        transition: &Transition<'_>,
        value: &mut Vec<u8>,
        out: &mut Outbox,
        part: &mut dyn FnMut(&Outbox),
    ) -> Result<(), Unusable> {
        if !transition.dropped {
            self.forward(transition.late, out)?;
            self.check_emitted(out.size_bytes())?;
        }
        let snapshot = transition.previous_snapshot;
        let total = transition.derived.len();
        let mut events = (1..).zip(&transition.derived);
        // What fits into the first part.
        for (position, event) in events.by_ref() {
            self.derive(event, (position, total), snapshot, value, out)?;
            self.check_emitted(out.size_bytes())?;
            if out.size_bytes() >= self.part_bytes_max {
                break;
            }
        }
        let rest = events.clone();
        let (mut emitted_bytes, mut measured) = (out.size_bytes(), Outbox::default());
        self.is_measuring = true;
        for (position, event) in events {
            measured.clear();
            self.derive(event, (position, total), snapshot, value, &mut measured)?;
            emitted_bytes += measured.size_bytes();
            self.check_emitted(emitted_bytes)?;
        }
        self.is_measuring = false;
        for (position, event) in rest {
            if out.size_bytes() >= self.part_bytes_max {
                part(out);
                out.clear();
            }
            self.derive(event, (position, total), snapshot, value, out)?;
        }
        Ok(())
    }

    fn forward(&mut self, late: bool, out: &mut Outbox) -> Result<(), Unusable> {
        let (envelope, record) = (self.envelope, self.record);
        let text = envelope.text.as_bytes();
        let cut = self.cut(text, &envelope.event_id, &envelope.event_name, Spare::Nothing)?;
        let value = cut.as_ref().map_or(text, |cut| &cut.value);
        let pointers = cut.as_ref().map(|cut| cut.pointers.as_slice());
        let headers = Headers { envelope, record, cloudevents: self.topology.policies.cloudevents };
        let copies =
            [(Destination::Event(envelope.event_type), Origin::Forwarded), (Destination::Late, Origin::Late)];
        for (destination, origin) in copies.into_iter().take(1 + usize::from(late)) {
            let before = out.size_bytes();
            out.push(&self.draft(destination, origin, value));
            headers.of_forwarded(out, pointers);
            self.check_record(out.size_bytes() - before, &envelope.event_name)?;
        }
        Ok(())
    }

    fn derive(
        &mut self,
        event: &DerivedEvent<'_>,
        place: (usize, usize),
        previous_snapshot: Option<&str>,
        value: &mut Vec<u8>,
        out: &mut Outbox,
    ) -> Result<(), Unusable> {
        let (envelope, record) = (self.envelope, self.record);
        let Some(Written { name, id }) = self.write(event, place, previous_snapshot, value) else {
            return Ok(());
        };
        let cut = self.cut(value, &id, name, Spare::Change)?;
        let value = cut.as_ref().map_or(&*value, |cut| &cut.value);
        let pointers = cut.as_ref().map(|cut| cut.pointers.as_slice());
        let before = out.size_bytes();
        out.push(&self.draft(Destination::Event(event.event_type), Origin::Derived, value));
        let headers = Headers { envelope, record, cloudevents: self.topology.policies.cloudevents };
        headers.of_derived(out, name, &id, pointers);
        self.check_record(out.size_bytes() - before, name)
    }

    /// Key and headers are not cut, and the topic measures them too.
    fn check_record(&self, bytes: usize, name: &str) -> Result<(), Unusable> {
        let headers = self.record.headers.len() + OWN_HEADERS_MAX;
        let bytes_max = bytes + HEADER_FRAME_BYTES_MAX * headers + FRAME_BYTES_MAX;
        let limit = self.topology.limits.event_bytes_max();
        if bytes_max <= limit {
            return Ok(());
        }
        let why = format!(
            "a record of type {name} takes up to {bytes_max} bytes with its key and headers; no more than {limit} fit"
        );
        Err(Unusable { code: Code::PayloadTooLarge, why })
    }

    /// All of it goes into one transaction, which has to end within its time.
    fn check_emitted(&self, bytes: usize) -> Result<(), Unusable> {
        let limit = self.topology.limits.emitted_bytes_max;
        if bytes <= limit {
            return Ok(());
        }
        let why = format!("what it would emit has more than {limit} bytes, which limits.emitted_size_max is");
        Err(Unusable { code: Code::PayloadTooLarge, why })
    }

    /// A derived event's value, before it is cut; `None` for an event that the topology lacks.
    fn write(
        &self,
        event: &DerivedEvent<'_>,
        (position, total): (usize, usize),
        previous_snapshot: Option<&str>,
        value: &mut Vec<u8>,
    ) -> Option<Written<'a>> {
        let Emission { topology, envelope, record, .. } = *self;
        let rule = topology.rules.get(event.rule)?;
        let event_type = topology.event_types.get(event.event_type)?;
        let previous_ticket = match event.previous_from {
            PreviousFrom::Event => envelope.previous_ticket.map(|ticket| ticket.raw()),
            PreviousFrom::Store => previous_snapshot,
        };
        let id = outgoing::derived_id(envelope, &event_type.name, &event.change.subject());
        value.clear();
        let derived = Derived {
            name: &event_type.name,
            id: &id,
            field: &rule.field,
            change: &event.change,
            previous_from: event.previous_from,
            previous_ticket: previous_ticket.unwrap_or("null"),
            position,
            total,
        };
        outgoing::write_derived(value, envelope, &topology.source.topic, record, &derived);
        Some(Written { name: &event_type.name, id })
    }

    /// `None` where the record fits as it is.
    fn cut(
        &mut self,
        text: &[u8],
        id: &str,
        name: &str,
        spare: Spare,
    ) -> Result<Option<truncate::Cut>, Unusable> {
        let cut = self.fit(text, name, spare)?;
        if cut.is_some() && !self.is_measuring {
            let ticket = &*self.envelope.uid;
            tracing::warn!(
                event_id = id,
                event_type = name,
                ticket,
                bytes = text.len(),
                "record cut to the size limit"
            );
            self.truncated += 1;
        }
        Ok(cut)
    }

    fn fit(&self, text: &[u8], name: &str, spare: Spare) -> Result<Option<truncate::Cut>, Unusable> {
        let limit = self.topology.limits.record_bytes_max;
        if text.len() <= limit {
            return Ok(None);
        }
        let cut = truncate::cut(text, limit, spare).ok_or_else(|| Unusable {
            code: Code::PayloadTooLarge,
            why: format!("a record of type {name} with {} bytes cannot be cut to {limit}", text.len()),
        })?;
        Ok(Some(cut))
    }

    fn draft<'b>(&'b self, destination: Destination, origin: Origin, value: &'b [u8]) -> Draft<'b> {
        let uid = self.envelope.uid.as_bytes();
        Draft {
            destination,
            partition: partition::of(uid, self.partitions),
            key: Some(uid),
            value: Some(value),
            timestamp_ms: self.record.timestamp_ms,
            origin,
        }
    }
}
