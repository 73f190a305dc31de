# A Docker engine of our own, unpacked from Debian's packages and installed nowhere, in
# namespaces of its own: what it starts ends with it, what it mounts is seen by nobody
# else, and its network is no network but its own. Sourced behind lib.sh.
# shellcheck shell=bash
# shellcheck disable=SC2154 # `cache` and `work` are the callers'.

tools=$cache/engine

# What Debian would install here, unpacked instead.
fetch_engine() {
    [[ ! -d $tools ]] || return 0
    local fresh packages
    mkdir -p "$cache"
    fresh=$(mktemp -d "$tools.XXXXXX")
    apt-get update -q >/dev/null || true
    packages=$(apt-get install -s --no-install-recommends docker.io docker-compose | awk '/^Inst/ { print $2 }') ||
        fail "find docker.io and docker-compose: this takes Debian's packages"
    say "fetching a Docker engine, Prometheus and busybox, once, into $tools"
    # shellcheck disable=SC2086 # A list of words.
    (cd "$fresh" && apt-get download -q $packages docker.io docker-compose containerd runc iptables prometheus busybox-static >/dev/null 2>&1) ||
        fail "download Debian's packages"
    for package in "$fresh"/*.deb; do dpkg -x "$package" "$fresh"; done
    rm -f "$fresh"/*.deb
    ln -sf xtables-nft-multi "$fresh/usr/sbin/iptables"
    ln -sf xtables-nft-multi "$fresh/usr/sbin/ip6tables"
    mv "$fresh" "$tools"
}

use_engine() {
    export PATH=$tools/usr/sbin:$tools/usr/bin:$tools/sbin:$tools/bin:$PATH
    export LD_LIBRARY_PATH=$tools/usr/lib/x86_64-linux-gnu:$tools/lib/x86_64-linux-gnu
    export XTABLES_LIBDIR=$tools/usr/lib/x86_64-linux-gnu/xtables
    export DOCKER_HOST=unix://$work/docker.sock DOCKER_CONFIG=$work/docker-config
}

start_engine() {
    "$tools/bin/busybox" ip link set lo up
    # No proxy of the machine's reaches from here to there.
    unset HTTP_PROXY HTTPS_PROXY http_proxy https_proxy
    dockerd --host "$DOCKER_HOST" --data-root "$work/docker" --exec-root "$work/run" --pidfile "$work/docker.pid" \
        --cgroup-parent "/$engine_cgroup" >"$work/docker.log" 2>&1 &
    wait_until 60 docker version >/dev/null 2>&1 || fail "start the Docker engine: $(tail -n 20 "$work/docker.log")"
    say "the Docker engine is up: $(docker version --format '{{.Server.Version}}'), $(docker info --format '{{.Driver}}')"
}

# The engine's own compose, which is Debian's Python program. What a test wants otherwise stands in a file of its own.
compose() {
    env -u LD_LIBRARY_PATH PYTHONPATH="$tools/usr/lib/python3/dist-packages" /usr/bin/python3 "$tools/usr/bin/docker-compose" \
        --project-directory "$project" -f "$project/docker-compose.yml" -f "$work/otherwise.yml" -p ticket "$@"
}
