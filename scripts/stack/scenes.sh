# What is provoked on the running stack, and what metrics and alerts must say of it. Sourced by compose-test.
# shellcheck shell=bash
# shellcheck disable=SC2154 # `work`, `workers` and `again_from` are the caller's.

failed_transactions='sum(ticket_transaction_duration_seconds_count{ticket_outcome!="committed"})'

# Each of its producers is fenced by another with the same transactional id.
fence_producers() {
    local round rounds=$((1 + (5 + workers) / workers))
    must 60 "the subscriber has printed some changes" printed 50
    answers "$failed_transactions > 0" && fail "transactions have failed already: $(ask "$failed_transactions")"
    inactive PipelineTransactionsFail || fail "PipelineTransactionsFail is told of without any"
    # The first ones of a process are not seen to grow; more than five others are too many.
    for ((round = 1; round <= rounds; round++)); do
        helper provoke fence 127.0.0.1:9092 "$workers"
        must 20 "producers fenced: round $round of $rounds" answers "$failed_transactions > $((workers * round - 1))"
    done
    must 30 "PipelineTransactionsFail fires" fires PipelineTransactionsFail
}

kill_pipeline() {
    local before
    before=$(docker inspect -f '{{.State.StartedAt}}' "$(container pipeline)")
    # From outside, as a crash; `docker kill` would count as somebody's wish.
    kill -KILL "$(docker inspect -f '{{.State.Pid}}' "$(container pipeline)")"
    must 30 "the killed pipeline was started again" restarted_since "$before"
    feed_ended && fail "it was not killed in the middle"
    must 60 "and is ready again" healthy pipeline
    must 30 "what it restored is counted" answers 'ticket_restore_records_total{ticket_restore_phase="restore"} > 0'
}

restarted_since() { [[ $(docker inspect -f '{{.RestartCount}} {{.State.StartedAt}}' "$(container pipeline)" 2>/dev/null) != "0 $1" && -n $(container pipeline) ]]; }

scale() {
    feed_ended && fail "it was not scaled in the middle"
    start_three
    must 120 "three processes are ready" all_healthy 3
    for number in 1 2 3; do
        logs pipeline "$number" | grep -o 'instance="\?instance-[0-9]*' | tail -n 1
    done | sort -u >"$work/instances"
    [[ $(wc -l <"$work/instances") == 3 ]] || fail "three processes have not three folders: $(cat "$work/instances")"
    must 30 "and run every partition" says 'sum(ticket_tasks{ticket_task_state="running"})' 4
}

start_three() {
    compose up -d --no-recreate --scale pipeline=3 pipeline >>"$work/scale.log" 2>&1 || fail "scale: $(tail -n 20 "$work/scale.log")"
    must 60 "three processes are looked at" says 'sum(up)' 3
}

derive_all() {
    must 120 "the histories are fed" feed_ended
    must 60 "everything is derived" caught_up
    compare
    must 30 "nothing is behind" nothing_is_behind
    must 120 "no alert is active" all_inactive
}

# quota NAME [BYTES_A_SECOND]: how much Kafka takes in from the pipeline or hands over to it; without a number all.
quota() {
    local change=(--delete-config "$1")
    (($# == 1)) || change=(--add-config "$1=$2")
    kafka_tool configs --alter --entity-type clients --entity-name ticket-pipeline "${change[@]}" >>"$work/quota.log"
}

# Of a transaction Kafka takes in a request, and not the next before the records' time is over.
refuse_outputs() {
    quota producer_byte_rate 1
    helper provoke records 127.0.0.1:9092
    must 150 "PipelineBehind fires of every partition" says 'count(ALERTS{alertname="PipelineBehind",alertstate="firing"})' 4
    must 60 "PipelineTransactionsFail fires of aborted ones" \
        answers 'ALERTS{alertname="PipelineTransactionsFail",alertstate="firing",ticket_outcome="aborted"}'
    inactive PipelineDeadLetters || fail "PipelineDeadLetters is told of what is not committed"
}

take_outputs() {
    quota producer_byte_rate
    must 60 "nothing is behind" nothing_is_behind
    must 30 "PipelineDeadLetters fires of every code" says 'count(ALERTS{alertname="PipelineDeadLetters",alertstate="firing"})' 8
    must 30 "PipelineBehind is inactive" inactive PipelineBehind
}

stop_all() {
    inactive PipelineDown || fail "PipelineDown is told of a pipeline that runs"
    compose stop pipeline >"$work/stop.log" 2>&1
    must 30 "PipelineDown fires" fires PipelineDown
    # Static members stay for as long as their session.
    must 90 "the group has no members" group_is_empty
}

# A replay begins without any disk, and another's transaction holds back where: nobody knows what there is to restore.
start_held() {
    kafka_tool consumer-groups --group ticket-pipeline --topic ticket.raw --reset-offsets --to-offset "$again_from" --execute >"$work/reset.log"
    docker run --rm -v ticket_pipeline-state:/state redpandadata/console:v3.7.2 /bin/busybox sh -c 'rm -r /state/*'
    coproc hold { helper provoke hold 127.0.0.1:9092; }
    read -r -t 60 -u "${hold[0]}" || fail "hold the offsets back"
    # For restore_slowly: it must be in force before that begins.
    quota consumer_byte_rate 10000
    start_three
    must 60 "PipelineNotReady fires" fires PipelineNotReady
    must 60 "PipelineRestoreStands fires" fires PipelineRestoreStands
    must 60 "every partition waits to be restored" says 'sum(ticket_tasks{ticket_task_state="restoring"})' 4
    # Whoever comes later takes partitions over, which would be rebuilt twice.
    must 60 "the group is settled" group_is_settled
    must 120 "no other alert is active" inactive PipelineDown PipelineBehind PipelineTransactionsFail PipelineDeadLetters
}

# Nothing is held back any more, and it takes minutes.
restore_slowly() {
    local pid=$hold_PID
    exec {hold[1]}>&-
    wait "$pid" || fail "let the offsets go"
    must 60 "what is left to restore is known" answers 'sum(ticket_restore_remaining) > 0'
}

replay() {
    quota consumer_byte_rate
    must 120 "three processes are ready again" all_healthy 3
    must 120 "the replay is done" caught_up
    must 60 "nothing is behind" nothing_is_behind
    must 60 "PipelineNotReady and PipelineRestoreStands are inactive" inactive PipelineNotReady PipelineRestoreStands
    compare replayed
}
