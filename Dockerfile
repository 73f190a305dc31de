# Compiled in the first stage (15 to 25 minutes on two cores, nearly all of it
# RocksDB); the image itself holds the program, its libraries and the topology.

FROM rust:1.95-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        libclang-dev pkg-config zlib1g-dev libzstd-dev liblz4-dev libssl-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
RUN cargo build --release --locked --bin ticket-pipeline

# The program links OpenSSL, zlib and the C++ runtime dynamically. They are taken
# from here, so that the last stage downloads nothing; libc is its own.
RUN mkdir -p /image/lib /image/state \
    && ldd target/release/ticket-pipeline \
        | awk '$3 ~ /lib(ssl|crypto|z|zstd|lz4|stdc\+\+|gcc_s)\.so/ { print $3 }' \
        | xargs -I LIBRARY cp -L LIBRARY /image/lib/ \
    && cp target/release/ticket-pipeline /image/

FROM debian:bookworm-slim
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /image/lib/ /usr/local/lib/ticket-pipeline/
COPY --from=build /image/ticket-pipeline /usr/local/bin/ticket-pipeline
COPY topology.yaml /etc/ticket-pipeline/topology.yaml
# A named volume mounted here takes over this owner.
COPY --from=build --chown=10001:10001 /image/state /var/lib/ticket-pipeline
ENV LD_LIBRARY_PATH=/usr/local/lib/ticket-pipeline \
    STATE_DIR=/var/lib/ticket-pipeline
WORKDIR /etc/ticket-pipeline
USER 10001:10001
# SIGTERM lets the last transaction commit and the stores close.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/ticket-pipeline"]
CMD ["run"]
