"""The real histories, and what must come out of them: once, and again from a position on.

    histories.py FOLDER AGAIN_FROM   prints what the subscriber must say when it ends

FOLDER holds raw.ndjson and expected.ndjson (tests/data/README.md says how they are written);
AGAIN_FROM is the input position, the same in every partition, from which all is derived again.
"""

import json
import sys

import provoke

# Those of examples/rust.
SUBSCRIBED = ["ticket.status.changed", "ticket.priority.changed", "ticket.assigned"]


class Histories:
    """Raw lines, what comes out of them, and the part of both that is derived again."""

    def __init__(self, folder, again_from):
        self.raw = lines(f"{folder}/raw.ndjson")
        self.expected = lines(f"{folder}/expected.ndjson")
        self.raw_again = [record for record in self.raw if record["offset"] >= again_from]
        again = {json.loads(record["value"])["eventId"] for record in self.raw_again}
        self.expected_again = [record for record in self.expected if source_id(record) in again]


def lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def source_id(record):
    """The event id of the raw record that an output record comes from."""
    event = json.loads(record["value"])
    return event["metadata"]["source"]["eventId"] if record["origin"] == "derived" else event["eventId"]


def main():
    histories = Histories(sys.argv[1], int(sys.argv[2]))

    def subscribed(records):
        # What was provoked is derived twice too.
        of_histories = sum(record["topic"] in SUBSCRIBED for record in records)
        return of_histories + sum(provoke.predicted("sent")[topic] for topic in SUBSCRIBED)

    done, seen_before = subscribed(histories.expected), subscribed(histories.expected_again)
    print(f"{done} events done, {seen_before} seen before")


if __name__ == "__main__":
    main()
