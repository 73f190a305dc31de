"""Compares what the topics hold with what must come out of the histories, record for record:
topic, partition, key, value, headers and timestamp, in order for each ticket.

    compare_topics.py BROKERS FOLDER AGAIN_FROM [replayed]

FOLDER and AGAIN_FROM are those of histories.py. Replayed: what comes from AGAIN_FROM on stands there again.
What provoke.py makes is passed over.
"""

import collections
import sys
import time

from confluent_kafka import Consumer, TopicPartition

import provoke
from histories import Histories

SECONDS_MAX = 120


def by_place(records):
    expected = collections.defaultdict(list)
    for record in records:
        value = record["value"].encode()
        headers = [(name, content.encode()) for name, content in record["headers"]]
        place = record["topic"], record["partition"], record["key"].encode()
        expected[place].append((value, headers, record["timestamp"]))
    return expected


def is_provoked(key):
    return key is None or key.startswith(provoke.MARK.encode())


def found_records(brokers, topics, count):
    """Reads until so many records are there, and on to the end."""
    kafka = Consumer({
        "bootstrap.servers": brokers, "group.id": "compare", "isolation.level": "read_committed",
        "enable.auto.commit": False, "auto.offset.reset": "earliest", "enable.partition.eof": True,
    })
    every = kafka.list_topics(timeout=10).topics
    partitions = [TopicPartition(topic, number, 0) for topic in topics for number in every[topic].partitions]
    kafka.assign(partitions)
    found, ended, total, deadline = collections.defaultdict(list), set(), 0, time.monotonic() + SECONDS_MAX
    while (len(ended) < len(partitions) or total < count) and time.monotonic() < deadline:
        for record in kafka.consume(1000, 1):
            if record.error():
                ended.add((record.topic(), record.partition()))
                continue
            ended.discard((record.topic(), record.partition()))
            if is_provoked(record.key()):
                continue
            total += 1
            place = record.topic(), record.partition(), record.key()
            found[place].append((record.value(), record.headers() or [], record.timestamp()[1]))
    kafka.close()
    return found, total


def main():
    brokers, histories, replayed = sys.argv[1], Histories(sys.argv[2], int(sys.argv[3])), sys.argv[4:] == ["replayed"]
    expected = by_place(histories.expected + (histories.expected_again if replayed else []))
    count = sum(map(len, expected.values()))
    # Topics of which nothing is expected must be empty; the raw topic and those of the state are others.
    kafka = Consumer({"bootstrap.servers": brokers, "group.id": "compare"})
    topics = [topic for topic in kafka.list_topics(timeout=10).topics
              if topic.startswith("ticket.") and topic != "ticket.raw"]
    kafka.close()
    found, total = found_records(brokers, topics, count)
    wrong = [place for place in {*expected, *found} if expected.get(place) != found.get(place)]
    for place in wrong[:10]:
        print(*place, f"{len(found.get(place, []))} records instead of {len(expected.get(place, []))}"
              if len(found.get(place, [])) != len(expected.get(place, [])) else "others than expected")
    print(f"{total} records in {len(topics)} topics, {count} expected, {len(wrong)} of {len(expected)} places wrong")
    sys.exit(1 if wrong else 0)


main()
