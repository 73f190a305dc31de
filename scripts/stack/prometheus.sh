# What the stack's Prometheus says: numbers, alerts that come and go, and when what was provoked. Sourced by compose-test.
# shellcheck shell=bash
# shellcheck disable=SC2154 # `work`, `project` and `tools` are the callers'.

prometheus=http://127.0.0.1:9090

# The alert rules of this run: minutes made seconds, so that it sees them come and go. What is compared stays as it is.
shorten_rules() {
    sed -E 's/^( *for:) [0-9]+m$/\1 5s/; s/\[10m\]/[1m]/; s/\[2m\]/[30s]/' "$project/observability/alerts.yaml" >"$work/alerts.yaml"
    printf '%s\n' 'services:' '  lgtm:' '    volumes:' "      - $work/alerts.yaml:/otel-lgtm/alerts.yaml:ro" >"$work/otherwise.yml"
    say "of the alert rules, shortened for this run:"
    diff "$project/observability/alerts.yaml" "$work/alerts.yaml" >&2 || true
    if grep -E 'for: .*m$|\[([2-9]|[0-9]{2,})m\]' "$work/alerts.yaml" >&2; then fail "these of the alert rules are not shortened"; fi
}

# ask QUERY: the values of now.
ask() { "$tools/bin/busybox" wget -q -O - --post-data "query=$1" "$prometheus/api/v1/query" | grep -o '"value":\[[^]]*"' | sed 's/.*,"//; s/"$//'; }

# says QUERY VALUE
says() { [[ $(ask "$1") == "$2" ]]; }

# One series at least.
answers() { [[ -n $(ask "$1") ]]; }

fires() { answers "ALERTS{alertname=\"$1\",alertstate=\"firing\"}"; }

# inactive ALERT…: none of them, not even about to fire.
inactive() {
    local alert
    for alert in "$@"; do ! answers "ALERTS{alertname=\"$alert\"}" || return 1; done
}

all_inactive() { ! answers ALERTS; }

# In every partition.
nothing_is_behind() { says 'count(ticket_lag == 0)' 4; }

# scene NAME COMMAND…: notes when it was, for ask_dashboard.py. It ends when all that runs was looked at once more.
scene() {
    local name=$1 began
    shift
    began=$(date +%s.%N)
    "$@"
    wait_until 30 looked_at_since "$(date +%s)" || fail "Prometheus does not look at the pipeline any more"
    printf '%s %s %s\n' "$name" "$began" "$(date +%s.%N)" >>"$work/scenes"
}

looked_at_since() { ! answers up || answers "min(timestamp(up)) > $1"; }

ask_dashboard() {
    helper ask_dashboard "$prometheus" "$project/observability/dashboard.json" "$work/scenes" "$work" "$again_from" >&2 ||
        fail "the dashboard shows something else than predicted (above)"
}
