//! The histories multiplied: any number of events over any number of tickets.
//!
//! Many histories are under way at a time, each in its own order. The same
//! shape gives the same events. It does not know where they are written.

use std::collections::BTreeMap;

use ticket_pipeline::partition;

use crate::histories::{EVENT_ID_AT, EVENT_ID_BYTES, Histories, TIMESTAMP_BYTES, Template, UID_BYTES};

/// Time between two events, by their timestamps: ten events a second, so that
/// the window of 48 hours holds the last 1,728,000 ids.
pub const STEP_MS: i64 = 100;

/// The first event's time: 2026-01-01.
const BEGIN_MS: i64 = 1_767_225_600_000;

/// Each of so many tickets has its derived events kept, to be compared.
const SAMPLE_EVERY: u64 = 997;

/// How many events over how many tickets.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Tickets, of which each is begun again when all have been.
    pub tickets: u64,
    /// How many histories are under way at a time, at most.
    pub under_way_max: u64,
    /// A history ends after so many events.
    pub history_events_max: usize,
    /// The number of the first event: ids and times go on from there.
    pub first_event: u64,
    /// The raw topic's.
    pub partitions: i32,
}

impl Shape {
    /// Whole histories, 2,000 of them under way at a time.
    #[must_use]
    pub fn of(tickets: u64, partitions: i32) -> Shape {
        Shape { tickets, under_way_max: 2_000, history_events_max: usize::MAX, first_event: 0, partitions }
    }
}

/// What must come of the events so far.
#[derive(Debug, Default, Clone)]
pub struct Expectation {
    /// Raw events.
    pub events: u64,
    /// Records by topic.
    pub by_topic: BTreeMap<String, u64>,
    /// For each sampled ticket its derived events: topic and change.
    pub sample: BTreeMap<[u8; UID_BYTES], Vec<(String, String)>>,
}

impl Expectation {
    /// What comes after this, of the same tickets.
    pub fn add(&mut self, next: Expectation) {
        self.events += next.events;
        for (topic, count) in next.by_topic {
            *self.by_topic.entry(topic).or_default() += count;
        }
        for (uid, derived) in next.sample {
            self.sample.entry(uid).or_default().extend(derived);
        }
    }

    /// How many derived events that is.
    pub fn derived(&self) -> u64 {
        self.by_topic.values().sum::<u64>() - self.events
    }
}

/// An event to be produced.
#[derive(Debug)]
pub struct Event<'a> {
    /// Its ticket.
    pub uid: [u8; UID_BYTES],
    /// Where Kafka's Java client would put it.
    pub partition: i32,
    /// Its Kafka timestamp.
    pub timestamp_ms: i64,
    /// Its value.
    pub value: &'a [u8],
}

/// An endless stream of events.
#[derive(Debug)]
pub struct Stream<'h> {
    histories: &'h Histories,
    shape: Shape,
    slots: Vec<Slot>,
    busy: Vec<bool>,
    next_ticket: u64,
    random: u64,
    value: Vec<u8>,
    /// What must come of the events so far.
    pub expectation: Expectation,
}

#[derive(Debug)]
struct Slot {
    ticket: u64,
    position: usize,
}

impl<'h> Stream<'h> {
    /// Begins with the shape's first event.
    pub fn new(histories: &'h Histories, shape: Shape) -> Stream<'h> {
        // A ticket that is under way is not begun again: some must be free.
        let slots = shape.under_way_max.min(shape.tickets.div_ceil(2)).max(1);
        let mut stream = Stream {
            histories,
            shape,
            slots: Vec::new(),
            busy: vec![false; usize::try_from(shape.tickets).unwrap_or(usize::MAX)],
            next_ticket: 0,
            random: 1,
            value: Vec::new(),
            expectation: Expectation::default(),
        };
        for _ in 0..slots {
            let ticket = stream.begin_ticket();
            stream.slots.push(Slot { ticket, position: 0 });
        }
        stream
    }

    /// The next event; its value is borrowed until the one after.
    pub fn next_event(&mut self) -> Event<'_> {
        self.random = mix(self.random);
        let index = usize::try_from(self.random % self.slots.len() as u64).unwrap_or(0);
        let histories = self.histories;
        let slot = self.slots.get_mut(index).expect("the index is below their number");
        let place = usize::try_from(slot.ticket % histories.all.len() as u64).unwrap_or(0);
        let history = histories.all.get(place).expect("the place is below their number");
        let template = history.get(slot.position).expect("a history that has ended left its slot");
        let ticket = slot.ticket;
        slot.position += 1;
        if slot.position == history.len().min(self.shape.history_events_max) {
            if let Some(busy) = usize::try_from(ticket).ok().and_then(|ticket| self.busy.get_mut(ticket)) {
                *busy = false;
            }
            let next = Slot { ticket: self.begin_ticket(), position: 0 };
            if let Some(slot) = self.slots.get_mut(index) {
                *slot = next;
            }
        }
        self.event(ticket, template)
    }

    fn begin_ticket(&mut self) -> u64 {
        loop {
            let ticket = self.next_ticket % self.shape.tickets;
            self.next_ticket += 1;
            let busy = usize::try_from(ticket).ok().and_then(|ticket| self.busy.get_mut(ticket));
            if let Some(busy) = busy
                && !*busy
            {
                *busy = true;
                return ticket;
            }
        }
    }

    fn event(&mut self, ticket: u64, template: &'h Template) -> Event<'_> {
        let number = self.shape.first_event + self.expectation.events;
        let uid = uid(ticket);
        let timestamp_ms = timestamp_ms(number);
        self.expect(ticket, uid, template);
        self.value.clone_from(&template.value);
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(place) = self.value.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        };
        put(EVENT_ID_AT, &event_id(number));
        put(template.timestamp_at, &timestamp(timestamp_ms));
        template.uids_at.iter().for_each(|at| put(*at, &uid));
        let partition = partition::of(&uid, self.shape.partitions);
        Event { uid, partition, timestamp_ms, value: &self.value }
    }

    fn expect(&mut self, ticket: u64, uid: [u8; UID_BYTES], template: &Template) {
        let expectation = &mut self.expectation;
        expectation.events += 1;
        let mut count = |topic: &str| match expectation.by_topic.get_mut(topic) {
            Some(count) => *count += 1,
            None => {
                expectation.by_topic.insert(topic.to_owned(), 1);
            }
        };
        count(&template.forwarded_to);
        template.derived.iter().for_each(|derived| count(&derived.topic));
        if ticket.is_multiple_of(SAMPLE_EVERY) {
            let derived =
                template.derived.iter().map(|derived| (derived.topic.clone(), derived.change.clone()));
            expectation.sample.entry(uid).or_default().extend(derived);
        }
    }
}

/// The Kafka timestamp of an event.
pub fn timestamp_ms(number: u64) -> i64 {
    BEGIN_MS + i64::try_from(number).unwrap_or(i64::MAX / STEP_MS) * STEP_MS
}

fn uid(ticket: u64) -> [u8; UID_BYTES] {
    let mut uid = *b"T000000000";
    if let Some((_, digits)) = uid.split_first_mut() {
        decimal(digits, ticket);
    }
    uid
}

/// Random to look at, and its number can be read from it: [`number_of`].
fn event_id(number: u64) -> [u8; EVENT_ID_BYTES] {
    let high = mix(number);
    let words = [high, (mix(high) << 48) | ((number ^ high) & NUMBER_MASK)];
    let mut digits =
        words.iter().flat_map(|word| (0..16).rev().map(move |at| (word >> (4 * at)) as u32 & 15));
    let mut id = [b'-'; EVENT_ID_BYTES];
    for (at, place) in id.iter_mut().enumerate() {
        if ![8, 13, 18, 23].contains(&at)
            && let Some(digit) = digits.next()
        {
            *place = char::from_digit(digit, 16).map_or(b'0', |digit| digit as u8);
        }
    }
    id
}

const NUMBER_MASK: u64 = (1 << 48) - 1;

/// The number of the event whose value this is.
pub fn number_of(value: &[u8]) -> Option<u64> {
    let id = value.get(EVENT_ID_AT..EVENT_ID_AT + EVENT_ID_BYTES)?;
    let mut digits = id.iter().filter_map(|byte| char::from(*byte).to_digit(16)).map(u64::from);
    let mut word = || (0..16).try_fold(0, |word: u64, _| Some((word << 4) | digits.next()?));
    let (high, low) = (word()?, word()?);
    let number = (low ^ high) & NUMBER_MASK;
    (mix(number) == high).then_some(number)
}

/// A step of SplitMix64: numbers that lie side by side become far apart.
#[must_use]
pub fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// `2026-01-01T00:00:00Z`.
fn timestamp(time_ms: i64) -> [u8; TIMESTAMP_BYTES] {
    let seconds = time_ms.div_euclid(1000);
    let (year, month, day) = civil(seconds.div_euclid(86_400));
    let second = seconds.rem_euclid(86_400);
    let mut text = *b"0000-00-00T00:00:00Z";
    let parts = [(0..4, year), (5..7, month), (8..10, day)];
    let clock = [(11..13, second / 3600), (14..16, second / 60 % 60), (17..19, second % 60)];
    for (place, number) in parts.into_iter().chain(clock) {
        if let Some(place) = text.get_mut(place) {
            decimal(place, number.unsigned_abs());
        }
    }
    text
}

/// Days since the epoch to a date (Howard Hinnant's `civil_from_days`).
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

fn decimal(place: &mut [u8], mut number: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_id_tells_its_number_and_no_other_text_does() {
        for number in [0, 1, 999, 1_000_000, NUMBER_MASK] {
            let value = [br#"{"eventId":""#.as_slice(), &event_id(number), br#"","#].concat();
            assert_eq!(number_of(&value), Some(number));
        }
        assert_eq!(number_of(br#"{"eventId":"c9a4a115-2196-592e-b5dd-eba757bcbce6","#), None);
        assert_eq!(number_of(b"{}"), None);
    }

    #[test]
    fn times_are_written_as_the_histories_write_them() {
        assert_eq!(&timestamp(0), b"1970-01-01T00:00:00Z");
        assert_eq!(&timestamp(1_456_708_980_000), b"2016-02-29T01:23:00Z");
        assert_eq!(&timestamp(BEGIN_MS), b"2026-01-01T00:00:00Z");
    }

    #[test]
    fn every_event_is_whole_and_each_ticket_begins_anew_only_when_its_history_has_ended() {
        let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data");
        let histories = Histories::read(&data).unwrap();
        let shape =
            Shape { tickets: 40, under_way_max: 500, history_events_max: 4, first_event: 7, partitions: 4 };
        let mut stream = Stream::new(&histories, shape);
        let mut types: BTreeMap<[u8; UID_BYTES], Vec<String>> = BTreeMap::new();
        for number in 7..2_000 {
            let event = stream.next_event();
            assert_eq!(number_of(event.value), Some(number));
            let value: serde_json::Value = serde_json::from_slice(event.value).unwrap();
            assert_eq!(value["payload"]["ticket"]["uid"].as_str().unwrap().as_bytes(), event.uid);
            types.entry(event.uid).or_default().push(value["eventType"].as_str().unwrap().to_owned());
        }
        assert_eq!(stream.expectation.events, 1_993);
        for (uid, types) in types {
            let ticket: usize = std::str::from_utf8(&uid[1..]).unwrap().parse().unwrap();
            let length = histories.all[ticket % histories.all.len()].len().min(4);
            for (at, event_type) in types.iter().enumerate() {
                assert_eq!(event_type == "ticket:created", at % length == 0, "event {at} of ticket {ticket}");
            }
        }
    }
}
