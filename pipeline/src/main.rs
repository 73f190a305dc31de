//! The `ticket-pipeline` program: arguments to exit code.

use std::process::ExitCode;

mod cli;

/// Rust's, RocksDB's and librdkafka's memory alike: records are allocated by
/// one thread and freed by another, which glibc's arenas do badly.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Memory that was freed goes back after a second and not after ten: what a
/// transaction takes comes and goes several times a second.
#[unsafe(export_name = "malloc_conf")]
static ALLOCATOR_SETTINGS: &[u8; 37] = b"dirty_decay_ms:1000,muzzy_decay_ms:0\0";

fn main() -> ExitCode {
    cli::main()
}
