//! `feed`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

/// The arguments of `feed`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {}

/// Runs `feed`.
pub(crate) fn run(_topology: &Path, _arguments: &Arguments) -> Result<ExitCode> {
    Ok(ExitCode::from(1))
}
