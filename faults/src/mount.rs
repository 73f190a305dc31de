//! A small disk of its own, in memory: it can be filled up, and made read-only.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// What fills it up.
const FILLER: &str = "filler";
static PIECE: [u8; 65_536] = [0; 65_536];

/// A disk, mounted until this is dropped. Only root may mount.
#[derive(Debug)]
pub(crate) struct Mount(PathBuf);

impl Mount {
    /// An empty disk at this folder.
    pub(crate) fn of(folder: &Path, mib: u64) -> Result<Mount> {
        fs::create_dir_all(folder)?;
        let options = format!("size={mib}m");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder))?;
        Ok(Mount(folder.to_owned()))
    }

    /// Leaves no byte free.
    pub(crate) fn fill(&self) -> Result<()> {
        let mut file = fs::File::create(self.0.join(FILLER))?;
        while file.write_all(&PIECE).is_ok() {}
        Ok(())
    }

    /// Takes away again what filled it.
    pub(crate) fn free(&self) -> Result<()> {
        fs::remove_file(self.0.join(FILLER)).context("free the disk")
    }

    /// From here on nothing can be written, or again; nobody may have a file open for writing.
    pub(crate) fn read_only(&self, is_read_only: bool) -> Result<()> {
        let options = if is_read_only { "remount,ro" } else { "remount,rw" };
        run(Command::new("mount").args(["-o", options]).arg(&self.0))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg("--lazy").arg(&self.0)) {
            eprintln!("{error:#}");
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} (root is needed): {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
