//! The `ticket-pipeline` program: arguments to exit code.

use std::process::ExitCode;

mod cli;

fn main() -> ExitCode {
    cli::main()
}
