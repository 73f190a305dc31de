#!/usr/bin/env python3
"""A subscriber of three derived topics that does the work of each event once,
also where it is killed in the middle, and where events come again.

    subscriber.py          reads on from where its group has come to
    subscriber.py show     what it has counted: ticket, event type, changes, the last one
    subscriber.py reset    forgets all of it and begins at the beginning again

docs/subscribing.md says why each setting is as it is. Its work is to count
changes: work that shows when it is done twice.
"""

import json
import os
import signal
import sqlite3
import sys
import time
import urllib.request

from confluent_kafka import Consumer, KafkaException, TopicPartition

TOPICS = ["ticket.status.changed", "ticket.priority.changed", "ticket.assigned"]
# For so long an event is known again: as long as the pipeline itself knows one.
WINDOW_S = 48 * 60 * 60
FORGET_INTERVAL_S = 60 * 60
BATCH_RECORDS_MAX = 500
BATCH_TIME_MAX_S = 0.2
ANSWER_TIMEOUT_S = 10

TABLES = """
CREATE TABLE IF NOT EXISTS done (event_id TEXT PRIMARY KEY, at_s INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS changes (
    ticket TEXT, event_type TEXT, count INTEGER NOT NULL, last TEXT NOT NULL,
    PRIMARY KEY (ticket, event_type)
) WITHOUT ROWID;
"""


def consumer():
    return Consumer({
        "bootstrap.servers": os.environ.get("KAFKA_BROKERS", "localhost:9092"),
        "group.id": os.environ.get("GROUP", "subscriber-python"),
        # librdkafka's default; said because the promise rests on it.
        "isolation.level": "read_committed",
        # The default commits by a timer, done or not.
        "enable.auto.commit": False,
        # The default, latest, loses what a new group finds there.
        "auto.offset.reset": "earliest",
        # After a crash its partitions are free again so much later; the default is 45 s.
        "session.timeout.ms": 10000,
    })


def follow(db):
    counts = {"done": 0, "seen before": 0, "not ours": 0}
    kafka = consumer()
    kafka.subscribe(TOPICS)
    running = True

    def stop(*_):
        nonlocal running
        running = False

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    # Not at the start: after a crash, what was not committed comes again first, however long ago that was.
    forget_at = time.monotonic() + FORGET_INTERVAL_S
    while running:
        records = kafka.consume(BATCH_RECORDS_MAX, BATCH_TIME_MAX_S)
        if records:
            lines = []
            # The work and the marks that it is done are one transaction: a crash leaves both or neither.
            with db:
                for record in records:
                    if record.error():
                        raise KafkaException(record.error())
                    counts[handle(db, record, lines)] += 1
            print(*lines, sep="\n", end="\n" if lines else "", flush=True)
            try:
                kafka.commit(asynchronous=False)
            except KafkaException as error:
                # The group has moved on. Whatever comes again is known.
                print("commit:", error, file=sys.stderr)
        if time.monotonic() >= forget_at:
            with db:
                db.execute("DELETE FROM done WHERE at_s < ?", (int(time.time()) - WINDOW_S,))
            forget_at = time.monotonic() + FORGET_INTERVAL_S
    kafka.close()
    print(f"{counts['done']} events done, {counts['seen before']} seen before", file=sys.stderr)


def handle(db, record, lines):
    # Headers decide without the value being parsed.
    headers = {name: value.decode() for name, value in record.headers() if value is not None}
    if headers.get("context_user_type") == "BOT":
        return "not ours"
    new = db.execute("INSERT OR IGNORE INTO done VALUES (?, ?)", (headers["event_id"], int(time.time())))
    if new.rowcount == 0:
        return "seen before"
    uid, event_type = record.key().decode(), headers["event_name"]
    payload = json.loads(record.value())["payload"]
    change, ticket, note = describe(payload.get("change")), payload["ticket"], ""
    if "truncated_fields" in headers:
        ticket, note = fetch_ticket(uid, headers["truncated_fields"]), " (fetched whole)"
    db.execute(
        "INSERT INTO changes VALUES (?, ?, 1, ?)"
        " ON CONFLICT DO UPDATE SET count = count + 1, last = excluded.last",
        (uid, event_type, change),
    )
    lines.append(f"{headers['event_timestamp']}  {uid}  {event_type}  {change}  {ticket.get('title', '')}{note}")
    return "done"


def describe(change):
    if change is None:
        return "announced by the platform itself"

    def side(name):
        reference = change.get(name) or {}
        return reference.get("name") or reference.get("id") or "nothing"

    return f"{side('from')} -> {side('to')}"


def fetch_ticket(uid, fields):
    """The pipeline cuts texts that are too large for a record. The platform has them whole."""
    if "TICKET_API" not in os.environ:
        sys.exit(f"ticket {uid} is truncated ({fields}): set TICKET_API to where it can be fetched")
    with urllib.request.urlopen(f"{os.environ['TICKET_API']}/{uid}", timeout=ANSWER_TIMEOUT_S) as answer:
        return json.load(answer)


def show(db):
    for row in db.execute("SELECT * FROM changes ORDER BY ticket, event_type"):
        print(*row, sep="\t")


def reset(db):
    """Offsets first: a crash before the rest leaves marks by which nothing is done twice.
    The other way round it would leave nothing done and nothing to come."""
    kafka = consumer()
    beginning = []
    for topic in TOPICS:
        for partition in kafka.list_topics(topic, ANSWER_TIMEOUT_S).topics[topic].partitions:
            low, _ = kafka.get_watermark_offsets(TopicPartition(topic, partition), ANSWER_TIMEOUT_S)
            beginning.append(TopicPartition(topic, partition, low))
    # Kafka refuses this while the group has members, so nobody is working meanwhile.
    for partition in kafka.commit(offsets=beginning, asynchronous=False):
        if partition.error:
            raise KafkaException(partition.error)
    kafka.close()
    with db:
        db.execute("DELETE FROM changes")
        db.execute("DELETE FROM done")


def main():
    folder = os.environ.get("STATE_DIR", "subscriber-state")
    os.makedirs(folder, exist_ok=True)
    db = sqlite3.connect(os.path.join(folder, "subscriber.sqlite"))
    db.executescript(TABLES)
    commands = {"": follow, "show": show, "reset": reset}
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command not in commands:
        sys.exit(f'"{command}" is no command; there are show and reset')
    commands[command](db)
    db.close()


main()
