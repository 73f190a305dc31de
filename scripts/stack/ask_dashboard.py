"""Holds each of the dashboard's queries against what is predicted of it.

    ask_dashboard.py URL DASHBOARD SCENES FOLDER AGAIN_FROM

SCENES holds what was provoked and when: name, begin and end in seconds, a line each. FOLDER and AGAIN_FROM are those of
histories.py. Exit code 1 where a query answers otherwise, or is predicted nothing of.
"""

import collections
import json
import pathlib
import re
import sys
import time
import urllib.parse
import urllib.request

import provoke
from histories import Histories

# What Grafana makes of $__rate_interval at our scrape interval.
RATE_INTERVAL = "20s"
PROCESSES = 3
# A quarter of what the shipped topology has as limits.memory_mb.
TOPOLOGY = pathlib.Path(__file__).parents[2] / "topology.yaml"
CACHE_LIMIT = int(re.search(r"^ +memory_mb: (\d+)", TOPOLOGY.read_text(encoding="utf-8"), re.M)[1]) * 1024 * 1024 // 4
# A worker that has committed publishes it; that takes no longer.
PUBLISHED_SECONDS_MAX = 60


class Stack:
    """The Prometheus that has watched it, and what has happened there."""

    def __init__(self, url, scenes, histories):
        self.url, self.scenes, self.histories = url, scenes, histories

    def ask(self, path, **parameters):
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as answer:
            return json.load(answer)["data"]["result"]

    def now(self, query):
        """Of each series its labels and its number."""
        return [(series["metric"], float(series["value"][1])) for series in self.ask("query", query=query)]

    def numbers(self, query, scene, labels):
        """All numbers of the series with these labels during a scene, in the order of time."""
        begin, end = self.scenes[scene]
        found = self.ask("query_range", query=query, start=begin, end=end, step=1)
        return [float(number) for series in found if labels.items() <= series["metric"].items()
                for _, number in series["values"] if number != "NaN"]

    def last(self, query, scene, labels):
        """Their sum at its end; None where there is none."""
        found = self.ask("query", query=query, time=self.scenes[scene][1])
        numbers = [float(series["value"][1]) for series in found if labels.items() <= series["metric"].items()]
        return sum(numbers) if numbers else None


# --- What can be predicted of a query ------------------------------------------
#
# Each returns a function of stack and query: what was seen, and whether it is what was predicted.


def exceeds(scene, bound, **labels):
    """At some moment of the scene."""
    def look(stack, query):
        greatest = max(stack.numbers(query, scene, labels), default=None)
        return f"{scene}: up to {greatest}", greatest is not None and greatest > bound
    return look


def reaches(scene, number, **labels):
    """At some moment of the scene, exactly."""
    def look(stack, query):
        numbers = stack.numbers(query, scene, labels)
        return f"{scene}: {sorted(set(numbers))}, and so {number}", number in numbers
    return look


def lies(scene, above, up_to, **labels):
    """Throughout the scene."""
    def look(stack, query):
        numbers = stack.numbers(query, scene, labels)
        is_so = bool(numbers) and all(above < number <= up_to for number in numbers)
        return f"{scene}: {sorted(set(numbers))}, within {above} and {up_to}", is_so
    return look


def ends(scene, number, **labels):
    """At the end of the scene, exactly; None: there is no such series."""
    def look(stack, query):
        last = stack.last(query, scene, labels)
        return f"{scene}: {last} at its end, and so {number}", last == number
    return look


def counts(label, expected, times=None, but=()):
    """By now, exactly, without the query's rate or increase: what each label's value has counted, those at zero left out,
    and those that nobody can know. Where another query is named, its number times this one's."""
    def look(stack, query):
        predicted = {name: count for name, count in expected(stack.histories).items() if count}
        deadline = time.monotonic() + PUBLISHED_SECONDS_MAX
        while True:
            found = {labels.get(label, ""): number for labels, number in stack.now(without_rate(query))
                     if number and labels.get(label) not in but}
            if times:
                (_, factor), = stack.now(times)
                found = {name: round(number * factor, 3) for name, number in found.items()}
            if found == predicted or time.monotonic() > deadline:
                return f"{sum(found.values()):.0f} counted {found}, and so {predicted}", found == predicted
            time.sleep(1)
    return look


def without_rate(query):
    return re.sub(r"(?:rate|increase)\((\w+(?:\{[^}]*\})?)\[[^]]*\]\)", r"\1", query)


# --- What has come of the histories' second part and of what was provoked ------
#
# All processes were started anew to derive the former again, and have derived the latter again behind it.


def replayed(metric, of_histories=lambda histories: {}):
    return lambda histories: provoke.predicted(metric) + collections.Counter(of_histories(histories))


def origins(histories):
    return collections.Counter(record["origin"] for record in histories.expected_again)


def derived_types(histories):
    derived = [json.loads(record["value"]) for record in histories.expected_again if record["origin"] == "derived"]
    return collections.Counter(event["eventType"] for event in derived)


def late(histories):
    return {"": origins(histories)["late"]}


def raw_records(histories):
    return {"": len(histories.raw_again) + len(list(provoke.records()))}


def raw_bytes(histories):
    of_histories = sum(len(record["key"].encode()) + len(record["value"].encode()) for record in histories.raw_again)
    return {"": of_histories + sum(len((key or "").encode()) + len(value or b"") for _, key, value, _ in provoke.records())}


def rebuilt(histories):
    return {"rebuild": len(histories.raw) - len(histories.raw_again)}


def lag_of(partition):
    return sum(number == partition for number, *_ in provoke.records())


BY_PARTITION = [{"messaging_destination_partition_id": str(number)} for number in range(provoke.PARTITIONS)]
CODES = [{"error_type": code} for code in provoke.predicted("dead_letters")]

# By the query as it stands in the dashboard.
PREDICTIONS = {
    "min(ticket_ready)": [ends("fed", 1), ends("held", 0), ends("slowed", 0), ends("replayed", 1)],
    'sum(up{job="ticket-pipeline"})': [ends("fenced", 1), ends("scaled", PROCESSES), ends("stopped", 0), ends("replayed", PROCESSES)],
    "max(ticket_lag_time_seconds)": [ends("fed", 0), exceeds("refused", 60), ends("taken", 0)],
    "sum(increase(ticket_dead_letters_total[1h]))": [
        ends("refused", 0), exceeds("taken", 0), counts("", lambda _: {"": sum(provoke.predicted("dead_letters").values())})],
    "sum by (messaging_destination_partition_id) (ticket_lag)": [
        ends("fed", 0), *(reaches("refused", lag_of(number), **labels) for number, labels in enumerate(BY_PARTITION)), ends("taken", 0)],
    "max by (messaging_destination_partition_id) (ticket_lag_time_seconds)": [
        ends("fed", 0), *(exceeds("refused", 60, **labels) for labels in BY_PARTITION), ends("taken", 0)],
    # The histories are of 2016, which is beyond the last bucket. What was refused has waited for longer than the alert.
    "histogram_quantile(0.5, sum by (le) (rate(ticket_latency_seconds_bucket[$__rate_interval])))": [
        reaches("fed", 3600), lies("taken", 60, 3600)],
    "histogram_quantile(0.99, sum by (le) (rate(ticket_latency_seconds_bucket[$__rate_interval])))": [
        reaches("fed", 3600), lies("taken", 60, 3600)],
    "sum by (ticket_outcome) (rate(messaging_client_consumed_messages_total[$__rate_interval]))": [
        exceeds("fed", 0, ticket_outcome="emitted"), ends("refused", 0), exceeds("taken", 0, ticket_outcome="dead_letter"),
        counts("ticket_outcome", replayed("outcome", lambda histories: {"emitted": len(histories.raw_again)}))],
    "sum by (ticket_origin) (rate(messaging_client_sent_messages_total[$__rate_interval]))": [
        exceeds("fed", 0, ticket_origin="forwarded"), exceeds("fed", 0, ticket_origin="derived"), ends("refused", 0),
        exceeds("taken", 0, ticket_origin="late"), exceeds("taken", 0, ticket_origin="dead_letter"),
        counts("ticket_origin", replayed("origin", origins))],
    'sum by (ticket_event_type) (rate(messaging_client_sent_messages_total{ticket_origin="derived"}[$__rate_interval]))': [
        exceeds("fed", 0, ticket_event_type="ticket:status:changed"), counts("ticket_event_type", replayed("derived", derived_types))],
    "sum(rate(ticket_duplicates_total[$__rate_interval]))": [
        ends("refused", 0), exceeds("taken", 0), counts("", replayed("duplicates"))],
    "sum(rate(ticket_twins_dropped_total[$__rate_interval]))": [
        ends("refused", 0), exceeds("taken", 0), counts("", lambda _: {"": sum(provoke.predicted("twins").values())})],
    "sum(rate(ticket_late_total[$__rate_interval]))": [ends("refused", 0), exceeds("taken", 0), counts("", replayed("late", late))],
    "sum(rate(ticket_truncated_total[$__rate_interval]))": [
        ends("refused", 0), exceeds("taken", 0), counts("", replayed("truncated"))],
    "sum by (error_type) (increase(ticket_dead_letters_total[5m]))": [
        *(ends("refused", 0, **labels) for labels in CODES), *(exceeds("taken", 0, **labels) for labels in CODES),
        counts("error_type", replayed("dead_letters"))],
    "sum by (ticket_outcome) (rate(ticket_transaction_duration_seconds_count[$__rate_interval]))": [
        exceeds("fed", 0, ticket_outcome="committed"), exceeds("fenced", 0, ticket_outcome="unknown"),
        exceeds("refused", 0, ticket_outcome="aborted"), ends("refused", 0, ticket_outcome="committed")],
    # An aborted transaction has waited for its records for as long as they may take.
    "histogram_quantile(0.5, sum by (le) (rate(ticket_transaction_duration_seconds_bucket[$__rate_interval])))": [
        exceeds("fed", 0), exceeds("refused", 10)],
    "histogram_quantile(0.99, sum by (le) (rate(ticket_transaction_duration_seconds_bucket[$__rate_interval])))": [
        exceeds("fed", 0), exceeds("refused", 10)],
    "sum(rate(ticket_transaction_records_sum[$__rate_interval])) / sum(rate(ticket_transaction_records_count[$__rate_interval]))": [
        exceeds("fed", 0), counts("", raw_records, times="sum(ticket_transaction_records_count)")],
    "sum(rate(ticket_transaction_size_bytes_sum[$__rate_interval])) / sum(rate(ticket_transaction_size_bytes_count[$__rate_interval]))": [
        exceeds("fed", 0), counts("", raw_bytes, times="sum(ticket_transaction_size_bytes_count)")],
    "sum by (ticket_task_state) (ticket_tasks)": [
        ends("scaled", provoke.PARTITIONS, ticket_task_state="running"), ends("held", provoke.PARTITIONS, ticket_task_state="restoring"),
        exceeds("slowed", 0, ticket_task_state="restoring"),
        ends("replayed", provoke.PARTITIONS, ticket_task_state="running"), ends("replayed", 0, ticket_task_state="restoring")],
    # Nobody knows how much is left before the group's offsets are known.
    "sum by (ticket_restore_phase) (ticket_restore_remaining)": [
        ends("held", 0, ticket_restore_phase="restore"), exceeds("slowed", 0, ticket_restore_phase="restore"), ends("replayed", None)],
    "sum by (ticket_restore_phase) (rate(ticket_restore_records_total[$__rate_interval]))": [
        ends("held", 0), exceeds("replayed", 0, ticket_restore_phase="restore"),
        exceeds("replayed", 0, ticket_restore_phase="rebuild"), counts("ticket_restore_phase", rebuilt, but=["restore"])],
    "sum(increase(ticket_rebalances_total[5m]))": [exceeds("scaled", 0)],
    "sum(ticket_store_size_bytes)": [exceeds("fed", 0), ends("held", None), exceeds("replayed", 0)],
    "sum by (ticket_store_part) (ticket_store_memory_bytes)": [
        exceeds("fed", 0, ticket_store_part="recent"), exceeds("fed", 0, ticket_store_part="cache")],
    "sum(ticket_store_write_buffers_bytes)": [exceeds("fed", 0)],
    "sum(ticket_store_cache_limit_bytes)": [ends("fenced", CACHE_LIMIT), ends("fed", PROCESSES * CACHE_LIMIT)],
    "sum by (service_version, librdkafka_version) (ticket_build_info)": [ends("fenced", 1), ends("fed", PROCESSES)],
}


def queries_of(dashboard):
    with open(dashboard, encoding="utf-8") as file:
        panels = json.load(file)["panels"]
    # A row that is collapsed holds its panels.
    panels = [inner for panel in panels for inner in [panel, *panel.get("panels", [])]]
    return [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", [])]


def main():
    url, dashboard, scenes, folder, again_from = sys.argv[1:]
    with open(scenes, encoding="utf-8") as file:
        times = {name: (float(begin), float(end)) for name, begin, end in map(str.split, file)}
    stack = Stack(url, times, Histories(folder, int(again_from)))
    queries, wrong = queries_of(dashboard), []
    for title, query in queries:
        for look in PREDICTIONS.get(query, []):
            seen, is_so = look(stack, query.replace("$__rate_interval", RATE_INTERVAL))
            print(f"{title}: {seen}")
            if not is_so:
                wrong.append(f"{title}: {seen}: not as predicted of {query}")
        if query not in PREDICTIONS:
            wrong.append(f"{title}: nothing is predicted of {query}")
    wrong += [f"no panel asks {query}" for query in PREDICTIONS.keys() - {query for _, query in queries}]
    print(f"{len(queries)} queries, {sum(map(len, PREDICTIONS.values()))} predictions, {len(wrong)} not so", *wrong, sep="\n")
    sys.exit(1 if wrong or not queries else 0)


main()
