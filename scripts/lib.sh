# Shared by the scripts beside it: how they speak, treat processes, and find Java and Kafka.
# It knows nothing of the build or of the pipeline.
# shellcheck shell=bash

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cache=${HOME:?}/.cache/ticket-pipeline

say() { printf '%s\n' "$*" >&2; }

step() { printf '\n== %s\n' "$*" >&2; }

fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

usage_error() {
    printf '%s: %s (--help says how)\n' "${0##*/}" "$*" >&2
    exit 2
}

have() { command -v "$1" >/dev/null 2>&1; }

# The command line of a living process; nothing for one that has ended, also
# where nobody has collected it yet (a container whose first process is no init).
command_line() {
    if [[ -d /proc/self ]]; then
        { tr '\0' ' ' <"/proc/$1/cmdline"; } 2>/dev/null || true
    else
        ps -o args= -p "$1" 2>/dev/null || true
    fi
}

# pid_of FILE TEXT: the process that FILE names, if it lives and its command line
# holds TEXT. A pid is used again after a restart of the machine, so a number
# alone is no proof that a process is ours to end.
pid_of() {
    local pid
    [[ -f $1 ]] || return 1
    pid=$(<"$1")
    [[ $pid =~ ^[0-9]+$ && $(command_line "$pid") == *"$2"* ]] || return 1
    printf '%s\n' "$pid"
}

# wait_until SECONDS COMMAND…: until the command succeeds; fails when time is up.
wait_until() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

# end_process FILE TEXT SECONDS: SIGTERM, then SIGKILL to what is still there
# after SECONDS. Says how it ended; succeeds also where there was nothing to end.
end_process() {
    local file=$1 text=$2 seconds=$3 pid
    if pid=$(pid_of "$file" "$text"); then
        kill -TERM "$pid" 2>/dev/null || true
        if ! wait_until "$seconds" process_gone "$file" "$text"; then
            say "process $pid has not ended within $seconds s of SIGTERM: SIGKILL"
            kill -KILL "$pid" 2>/dev/null || true
            wait_until 10 process_gone "$file" "$text" || fail "process $pid does not end"
        fi
    fi
    rm -f "$file"
}

process_gone() { ! pid_of "$1" "$2" >/dev/null; }

# start_detached PID_FILE LOG COMMAND…: in a session of its own, so that neither
# Ctrl-C in this terminal nor its closing ends it.
start_detached() {
    local file=$1 log=$2 pid
    shift 2
    if have setsid; then
        setsid "$@" >>"$log" 2>&1 </dev/null &
    else
        nohup "$@" >>"$log" 2>&1 </dev/null &
    fi
    pid=$!
    # Until it has become the command, its command line is ours: it would be taken
    # for somebody else's process, or for one that has ended.
    wait_until 10 has_become_another "$pid" || fail "start $1: process $pid does not begin"
    printf '%s\n' "$pid" >"$file.$$"
    mv "$file.$$" "$file"
}

has_become_another() { [[ $(command_line "$1") != "$(command_line $$)" ]]; }

listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# kafka_answers PORT: asks for the cluster's metadata in Kafka's own protocol (Metadata, version 1, no
# topics): an open port is not yet a broker, and a Java tool would take a second.
# The answer is: size, correlation id, number of brokers, four bytes each.
kafka_answers() {
    local bytes
    bytes=$(
        # The subshell's errors are a refused or closed connection: no answer.
        exec 2>/dev/null 3<>"/dev/tcp/127.0.0.1/$1" || exit 0
        printf '\0\0\0\x10\0\x03\0\x01\0\0\0\x07\0\x02up\0\0\0\0' >&3
        timeout 5 head -c 12 <&3 | od -An -tu1 | tr -s ' \n' ' '
    ) || return 1
    [[ $bytes == *" 0 0 0 7 0 0 0 "[1-9]* ]]
}

java_major() { "$1" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1; }

# The first Java that Kafka can run on: $JAVA_HOME's, the path's, then whatever Debian has.
find_java() {
    local candidate major
    for candidate in ${JAVA_HOME:+"$JAVA_HOME/bin/java"} "$(command -v java || true)" /usr/lib/jvm/*/bin/java; do
        [[ -x $candidate ]] || continue
        major=$(java_major "$candidate") || true
        if ((${major:-0} >= 17)); then
            printf '%s\n' "$candidate"
            return
        fi
    done
    return 1
}
