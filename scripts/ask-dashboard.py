"""Asks a Prometheus each of the dashboard's queries, over the time that has passed.

    ask-dashboard.py URL DASHBOARD SECONDS

Prints what each has answered with; exit code 1 where one has answered with nothing.
"""

import json
import sys
import time
import urllib.parse
import urllib.request

# A restore of this test is over between two looks of Prometheus; what it has read stays counted.
MAY_BE_MISSED = "ticket_restore_remaining"


def ask(url, query, seconds):
    now = time.time()
    parameters = {"query": query, "start": now - seconds, "end": now, "step": 5}
    with urllib.request.urlopen(f"{url}/api/v1/query_range?{urllib.parse.urlencode(parameters)}", timeout=10) as answer:
        return json.load(answer)["data"]["result"]


def main():
    url, path, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with open(path, encoding="utf-8") as dashboard:
        panels = json.load(dashboard)["panels"]
    queries = [(panel["title"], target["expr"].replace("$__rate_interval", "20s"))
               for panel in panels for target in panel.get("targets", [])]
    silent = []
    for title, query in queries:
        series = ask(url, query, seconds)
        values = [float(value) for one in series for _, value in one["values"] if value != "NaN"]
        if values:
            print(f"{title}: {len(series)} series, {min(values):.3g} to {max(values):.3g}")
        elif MAY_BE_MISSED not in query:
            silent.append(f"{title}: no answer to {query}")
    print(f"{len(queries)} queries, {len(silent)} without an answer", *silent, sep="\n")
    sys.exit(1 if silent or not queries else 0)


main()
