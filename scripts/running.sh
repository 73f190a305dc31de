# What scripts/up leaves running and scripts/down finds again. Sourced behind lib.sh.
# It knows where things are, not how they are started.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # The scripts share these names.

kafka_image=apache/kafka:4.3.1

# use_port PORT: one set of processes and files for each port.
use_port() {
    running=$project/.local/up-$1
    kafka_port=$1
    running_mode=$running/kafka-mode
    fed=$running/fed
    pipeline_pid_file=$running/pipeline.pid
    pipeline_log=$running/pipeline.log
}

local_kafka() { "$project/scripts/kafka" "$1" --port "$kafka_port" "${@:2}"; }

pipeline_command="--topology $project/topology.yaml run"

pipeline_pid() { pid_of "$pipeline_pid_file" "$pipeline_command"; }

# Both generations of compose: the plugin of the docker command, and the program of its own.
find_compose() {
    if docker compose version >/dev/null 2>&1; then
        compose_command=(docker compose)
    elif have docker-compose; then
        compose_command=(docker-compose)
    else
        return 1
    fi
}

compose() {
    find_compose || fail "docker compose is missing: https://docs.docker.com/compose/install"
    "${compose_command[@]}" -f "$project/docker-compose.yml" "$@"
}
