//! The `ticket-pipeline` program: arguments to exit code.

use std::process::ExitCode;

mod cli;

/// Rust's, RocksDB's and librdkafka's memory alike: records are allocated by
/// one thread and freed by another, which glibc's arenas do badly.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    cli::main()
}
