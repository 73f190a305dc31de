# Compiled in the first stage (15 to 25 minutes on two cores, nearly all of it
# RocksDB). The images hold a program, the libraries that it is linked to, the
# certificates and the topology: no shell, no package manager.

FROM rust:1.95-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        libclang-dev pkg-config zlib1g-dev libzstd-dev liblz4-dev libssl-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
RUN cargo build --release --locked --bin ticket-pipeline --bin ticket-subscriber

# Each library at its place, the loader too; libc finds hosts with nsswitch.conf.
RUN mkdir -p /image/etc/ssl/certs /state \
    && ldd target/release/ticket-pipeline target/release/ticket-subscriber \
        | awk '$3 ~ /^\// { print $3 } $1 ~ /^\/.*ld-linux/ { print $1 }' | sort -u \
        | xargs -I LIBRARY cp -L --parents LIBRARY /image \
    && cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ \
    && cp /etc/nsswitch.conf /image/etc/

# A subscriber of the derived topics: examples/rust.
FROM scratch AS subscriber
COPY --from=build /image/ /
COPY --from=build /build/target/release/ticket-subscriber /usr/local/bin/
COPY --from=build --chown=10001:10001 /state /var/lib/ticket-subscriber
ENV STATE_DIR=/var/lib/ticket-subscriber
WORKDIR /
USER 10001:10001
ENTRYPOINT ["/usr/local/bin/ticket-subscriber"]

FROM scratch AS pipeline
COPY --from=build /image/ /
COPY --from=build /build/target/release/ticket-pipeline /usr/local/bin/
COPY topology.yaml /etc/ticket-pipeline/topology.yaml
# A named volume mounted here takes over this owner.
COPY --from=build --chown=10001:10001 /state /var/lib/ticket-pipeline
# Replicas share the volume, each with a folder of its own.
ENV STATE_DIR=/var/lib/ticket-pipeline/instance-*
WORKDIR /etc/ticket-pipeline
USER 10001:10001
# SIGTERM lets the last transaction commit and the stores close.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/ticket-pipeline"]
CMD ["run"]
