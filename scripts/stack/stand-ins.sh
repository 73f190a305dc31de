# Images that stand in for those of the compose file where nothing can be pulled: made of
# Debian's packages as this machine has them, and of Kafka's jars. Sourced behind lib.sh.
# Each has what the compose file and our Dockerfile ask of the real one, at the same places.
# shellcheck shell=bash
# shellcheck disable=SC2154 # `jars`, `tools` and the programs' paths are the caller's.

# put ROOT PROGRAM…: programs of this machine at their places below ROOT.
put() {
    local root=$1 program
    shift
    for program in "$@"; do
        program=$(command -v "$program") || fail "find $program for a stand-in"
        copy_to "$root" "$program"
        put_libraries "$root" "$program"
    done
}

# put_libraries ROOT FILE…: what these are linked to.
put_libraries() {
    local root=$1 library
    shift
    { ldd "$@" 2>/dev/null || true; } | awk '$3 ~ /^\// { print $3 } $1 ~ /^\/.*ld-linux/ { print $1 }' | sort -u |
        while read -r library; do [[ $library == "$root"/* ]] || copy_to "$root" "$library"; done
}

# What links stand for is copied, so that no link points to nowhere.
copy_to() {
    mkdir -p "$1$(dirname "$2")"
    cp -Lf "$2" "$1$2"
}

new_root() {
    local root=$work/root folder
    rm -rf "$root"
    mkdir -p "$root"/{etc,tmp,usr/bin,usr/sbin,usr/lib,usr/lib64,var/lib/apt/lists}
    for folder in bin sbin lib lib64; do ln -s "usr/$folder" "$root/$folder"; done
    chmod 1777 "$root/tmp"
    cp /etc/nsswitch.conf "$root/etc/"
    printf '%s\n' 'root:x:0:0:root:/:/bin/sh' 'appuser:x:1000:1000::/:/bin/sh' >"$root/etc/passwd"
    printf '%s\n' "$root"
}

# import IMAGE ROOT [CHANGE…]
import() {
    local image=$1 root=$2 changes=() change
    shift 2
    for change in "$@"; do changes+=(--change "$change"); done
    tar -C "$root" -c . | docker import ${changes[@]+"${changes[@]}"} - "$image" >/dev/null
    rm -rf "$root"
}

write_program() {
    mkdir -p "$(dirname "$1")"
    cat >"$1"
    chmod 755 "$1"
}

# The Rust image: its cargo installs what was built outside, for nothing can be downloaded inside.
stand_in_rust() {
    local root
    root=$(new_root)
    put "$root" bash cat chmod chown cp dirname env ldd ls mkdir mawk rm sed sort xargs tr uname
    copy_to "$root" /etc/ssl/certs/ca-certificates.crt
    copy_to "$root" /bin/sh
    cp "$root/usr/bin/mawk" "$root/usr/bin/awk"
    mkdir -p "$root/prebuilt"
    cp "$CARGO_TARGET_DIR/release/ticket-pipeline" "$CARGO_TARGET_DIR/release/ticket-subscriber" "$root/prebuilt/"
    put_libraries "$root" "$root"/prebuilt/*
    write_program "$root/usr/bin/apt-get" <<'PROGRAM'
#!/bin/bash
echo "stand-in: not done: apt-get $*"
PROGRAM
    # As cargo would, it refuses a workspace of which a member is missing.
    write_program "$root/usr/bin/cargo" <<'PROGRAM'
#!/bin/bash
set -e
members=$(sed -n 's/^members = \[\(.*\)\]/\1/p' Cargo.toml | tr -d '",')
for member in $members; do cat "$member/Cargo.toml" >/dev/null; done
cat Cargo.lock pipeline/src/main.rs examples/rust/src/main.rs topology.yaml tests/main.rs >/dev/null
mkdir -p target/release
cp /prebuilt/* target/release/
PROGRAM
    import rust:1.95-bookworm "$root" 'ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin'
}

# Kafka's image: its jars, a Java runtime, and kafka.docker.KafkaDockerWrapper, which turns the
# environment into properties there as it does here.
stand_in_kafka() {
    local root name class
    root=$(new_root)
    put "$root" bash cat dirname env ls mkdir
    copy_to "$root" /bin/sh
    mkdir -p "$root/opt/java" "$root/opt/kafka"/{bin,config,libs} "$root/etc/kafka/docker" "$root/mnt/shared/config" "$root/var/lib/kafka/data"
    jlink --module-path "$(dirname "$(dirname "$(readlink -f "$(command -v jlink)")")")/jmods" --strip-debug \
        --no-header-files --no-man-pages --add-modules java.se,jdk.unsupported,jdk.management,jdk.crypto.ec \
        --output "$root/opt/java/openjdk"
    put_libraries "$root" "$root"/opt/java/openjdk/bin/java "$root"/opt/java/openjdk/lib/*.so "$root"/opt/java/openjdk/lib/server/*.so
    cp "$jars"/libs/*.jar "$root/opt/kafka/libs/"
    # Dead letters are compressed by zstd, whose library in Kafka's jars asks for it.
    copy_to "$root" "$(ldconfig -p | awk '/libpthread\.so\.0.*x86-64/ { print $NF; exit }')"
    : >"$root/etc/kafka/docker/server.properties"
    for name in log4j2.yaml tools-log4j2.yaml; do
        printf '%s\n' 'Configuration:' '  Appenders:' '    Console:' '      name: STDOUT' '      PatternLayout:' \
            '        pattern: "[%d] %p %m (%c)%n"' '  Loggers:' '    Root:' '      level: WARN' '      AppenderRef:' \
            '        - ref: STDOUT' >"$root/etc/kafka/docker/$name"
    done
    write_program "$root/etc/kafka/docker/run" <<'PROGRAM'
#!/bin/bash
set -e
java="/opt/java/openjdk/bin/java -cp /opt/kafka/libs/*"
set -f
$java kafka.docker.KafkaDockerWrapper setup --default-configs-dir /etc/kafka/docker \
    --mounted-configs-dir /mnt/shared/config --final-configs-dir /opt/kafka/config
exec ${java/ -cp/ $KAFKA_HEAP_OPTS -Dlog4j2.configurationFile=/opt/kafka/config/log4j2.yaml -cp} \
    kafka.Kafka /opt/kafka/config/server.properties
PROGRAM
    while read -r name class; do
        write_program "$root/opt/kafka/bin/$name" <<PROGRAM
#!/bin/bash
exec /opt/java/openjdk/bin/java -XX:TieredStopAtLevel=1 -Dlog4j2.configurationFile=/etc/kafka/docker/tools-log4j2.yaml \\
    -cp '/opt/kafka/libs/*' $class "\$@"
PROGRAM
    done <<'TOOLS'
kafka-topics.sh org.apache.kafka.tools.TopicCommand
kafka-consumer-groups.sh org.apache.kafka.tools.consumer.group.ConsumerGroupCommand
kafka-configs.sh kafka.admin.ConfigCommand
TOOLS
    chown -R 1000:1000 "$root/opt/kafka" "$root/var/lib/kafka"
    import apache/kafka:4.3.1 "$root" 'USER 1000' 'CMD ["/etc/kafka/docker/run"]' 'ENV PATH=/opt/java/openjdk/bin:/usr/bin:/bin' \
        'VOLUME ["/var/lib/kafka/data"]'
}

put_busybox() {
    cp "$tools/bin/busybox" "$1/bin/busybox"
    ln -sf busybox "$1/bin/sh"
    ln -sf busybox "$1/bin/wget"
}

# The console's image: something that answers its health check, no more.
stand_in_console() {
    local root
    root=$(new_root)
    put_busybox "$root"
    mkdir -p "$root/www/admin"
    echo ok >"$root/www/admin/health"
    import redpandadata/console:v3.7.2 "$root" 'CMD ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/www"]'
}

# Of Grafana's image, Prometheus alone: Debian's, with the compose file's configuration.
stand_in_lgtm() {
    local root
    root=$(new_root)
    put_busybox "$root"
    mkdir -p "$root/otel-lgtm" "$root/data"
    cp "$tools/usr/bin/prometheus" "$root/usr/bin/"
    put_libraries "$root" "$root/usr/bin/prometheus"
    import grafana/otel-lgtm:0.33.1 "$root" 'WORKDIR /otel-lgtm' \
        'CMD ["/usr/bin/prometheus", "--storage.tsdb.path=/data/prometheus", "--config.file=./prometheus.yaml"]' \
        'HEALTHCHECK --interval=2s --timeout=2s --retries=30 CMD ["/bin/wget", "-q", "-O", "/dev/null", "http://127.0.0.1:9090/-/ready"]'
}
