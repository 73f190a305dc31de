# The build, said aloud: it is long the first time. Sourced behind lib.sh.
# shellcheck shell=bash
# shellcheck disable=SC2154 # `cache` is lib.sh's.

# One target directory for everything, outside the clone: a second one would
# compile RocksDB and librdkafka again.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}
# shellcheck disable=SC2034 # Read by the scripts.
binary=$CARGO_TARGET_DIR/release/ticket-pipeline

announce_build() {
    say "target directory: $CARGO_TARGET_DIR"
    if ! compgen -G "$CARGO_TARGET_DIR/release/deps/liblibrocksdb_sys-*" >/dev/null; then
        say "RocksDB and librdkafka are compiled from source, once: 15 to 25 minutes on two cores"
    fi
}

# aloud COMMAND…: runs it, and says every minute that it is still at work. RocksDB
# alone is silent for many minutes.
aloud() {
    local pulse status=0
    (
        trap 'kill "$!" 2>/dev/null; exit 0' TERM
        minutes=0
        while true; do
            sleep 60 &
            wait "$!"
            say "… still at work: $((++minutes)) min"
        done
    ) &
    pulse=$!
    "$@" || status=$?
    kill "$pulse" 2>/dev/null || true
    wait "$pulse" 2>/dev/null || true
    return "$status"
}
