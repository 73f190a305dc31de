"""Provokes on the running stack what its metrics and alerts must tell of.

    provoke.py records BROKERS   writes records to the raw topic of which something different becomes each
    provoke.py fence BROKERS WORKERS   fences every producer of the first process, by another with its transactional id
    provoke.py hold BROKERS      holds the group's committed offsets back, by a transaction of its own, until its input ends

What must become of each record stands beside it, by the event contract's words.
"""

import collections
import json
import sys

from confluent_kafka import Consumer, Producer, TopicPartition

RAW = "ticket.raw"
GROUP = "ticket-pipeline"
PARTITIONS = 4
# All keys and tickets of what is provoked begin so.
MARK = "provoked"
ANSWER_SECONDS = 30

# Each of another number than the three twins, so that no two can be taken for each other.
DUPLICATES, LATE, TRUNCATED = 2, 4, 5
LARGE = "x" * 300_000


def event(event_id, event_type, ticket, timestamp="2026-01-05T12:00:00Z"):
    return json.dumps({"eventId": event_id, "eventType": event_type, "timestamp": timestamp,
                       "payload": {"ticket": ticket}}).encode()


def story(partition):
    """Key, value and what becomes of it: (metric, label or empty) for each count of one."""
    uid = f"{MARK}-{partition}"

    def of_ticket(name, event_type, timestamp="2026-01-05T12:00:00Z", **ticket):
        return uid, event(f"{uid}-{name}", event_type, {"uid": uid, **ticket}, timestamp)

    def forwarded(topic):
        return [("outcome", "emitted"), ("origin", "forwarded"), ("sent", topic)]

    def derived(event_type, topic):
        return [("origin", "derived"), ("derived", event_type), ("sent", topic)]

    updated = forwarded("ticket.updated")
    yield *of_ticket("created", "ticket:created", status="open", priority="low", type="question"), forwarded("ticket.created")
    closed = of_ticket("closed", "ticket:updated", status="closed", priority="low", type="question")
    yield *closed, updated + derived("ticket:status:changed", "ticket.status.changed")
    for _ in range(DUPLICATES):
        yield *closed, [("outcome", "duplicate"), ("duplicates", "")]
    # The platform's own event of a change that was derived already, and two that come before theirs is derived.
    yield *of_ticket("native", "ticket:status:changed", status="closed"), [("outcome", "dropped"), ("twins", "native")]
    yield *of_ticket("high", "ticket:priority:changed", priority="high"), forwarded("ticket.priority.changed")
    yield *of_ticket("task", "ticket:type:changed", type="task"), forwarded("ticket.type.changed")
    both = of_ticket("both", "ticket:updated", status="closed", priority="high", type="task")
    yield *both, updated + 2 * [("twins", "derived")]
    for number in range(LATE):
        late = of_ticket(f"late-{number}", "ticket:updated", "2026-01-05T11:00:00Z", status="open")
        yield *late, updated + [("origin", "late"), ("late", "")]
    for number in range(TRUNCATED):
        large = of_ticket(f"large-{number}", "ticket:updated", description=LARGE)
        yield *large, updated + [("truncated", "")]


def dead_letters():
    """Key, value and code of raw records that cannot be used."""
    ticket = {"uid": f"{MARK}-dead"}
    # A name is never cut.
    yield ticket["uid"], event("too-large", "ticket:created", {**ticket, "name": LARGE}), "payload_too_large"
    yield MARK, None, "null_value"
    yield MARK, b"no JSON", "not_json"
    yield MARK, b"{}", "not_an_envelope"
    yield MARK, event("unknown", "ticket:unheard:of", ticket), "unknown_event_type"
    yield MARK, event("when", "ticket:created", ticket, "yesterday"), "bad_timestamp"
    # Its key would be its ticket.
    yield None, event("whose", "ticket:created", {}), "no_ticket_uid"
    yield MARK, event("other", "ticket:created", ticket), "key_mismatch"


def records():
    """All of it in order: partition, key, value and what becomes of it."""
    for partition in range(PARTITIONS):
        for key, value, effects in story(partition):
            yield partition, key, value, effects
    for times, (key, value, code) in enumerate(dead_letters(), start=1):
        for number in range(times):
            yield number % PARTITIONS, key, value, [("outcome", "dead_letter"), ("origin", "dead_letter"), ("dead_letters", code)]


def predicted(metric):
    """How often each label of a metric must be counted."""
    return collections.Counter(label for *_, effects in records() for name, label in effects if name == metric)


def write(brokers):
    producer = Producer({"bootstrap.servers": brokers, "enable.idempotence": True})
    for partition, key, value, _ in records():
        producer.produce(RAW, value, key, partition)
    if producer.flush(ANSWER_SECONDS):
        sys.exit("not all records were written")


def fence(brokers, workers):
    for slot in range(int(workers)):
        producer = Producer({"bootstrap.servers": brokers, "transactional.id": f"{GROUP}-instance-1-{slot}"})
        producer.init_transactions(ANSWER_SECONDS)


def hold(brokers):
    # It does not join, so it is in no member's way.
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": GROUP})
    committed = consumer.committed([TopicPartition(RAW, number) for number in range(PARTITIONS)], ANSWER_SECONDS)
    producer = Producer({"bootstrap.servers": brokers, "transactional.id": MARK, "transaction.timeout.ms": 600_000})
    producer.init_transactions(ANSWER_SECONDS)
    producer.begin_transaction()
    producer.send_offsets_to_transaction(committed, consumer.consumer_group_metadata(), ANSWER_SECONDS)
    print("held", flush=True)
    sys.stdin.read()
    producer.abort_transaction(ANSWER_SECONDS)


if __name__ == "__main__":
    {"records": write, "fence": fence, "hold": hold}[sys.argv[1]](*sys.argv[2:])
