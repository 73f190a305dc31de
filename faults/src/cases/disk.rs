//! What can become of a state directory: gone, old, mixed up, damaged, full,
//! read-only, taken by another process. It is noticed, rebuilt or refused; never wrong.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ticket_harness::random::Random;

use crate::mount::Mount;
use crate::outcome::Outcome;
use crate::scene::{Scene, Settings, World};

const TIMES: u64 = 24;
const PROGRESS_WITHIN: Duration = Duration::from_secs(120);
/// Of a disk of its own: what the state takes, some times over.
const DISK_MIB: u64 = 256;
const LOOK: Duration = Duration::from_millis(500);

/// What is done to the directory of a process that has ended.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Deleted,
    Stale,
    OfAnotherPartition,
    FlippedByte(&'static str),
    Truncated(&'static str),
    FileGone(&'static str),
    WritesFail,
    DiskFull,
    ReadOnly,
    TwoProcesses,
}

const ALL: [Damage; 12] = [
    Damage::Deleted,
    Damage::Stale,
    Damage::OfAnotherPartition,
    Damage::FlippedByte(".sst"),
    Damage::Truncated(".sst"),
    Damage::FileGone(".sst"),
    Damage::FlippedByte("MANIFEST"),
    Damage::Truncated("MANIFEST"),
    Damage::WritesFail,
    Damage::DiskFull,
    Damage::ReadOnly,
    Damage::TwoProcesses,
];

pub(crate) fn run(world: &World<'_>, seed: u64, outcome: &mut Outcome) -> Result<()> {
    let mut random = Random::new(seed);
    let scene = Scene::new(world, "disk", &Settings { commit_interval_ms: 20, ..Settings::default() })?;
    let times = world.times.unwrap_or(TIMES);
    scene.under_attack(outcome, |scene, outcome| {
        scene.start("a")?;
        go_on(scene, outcome, 200)?;
        for time in 0..times {
            let damage = usize::try_from(time).ok().and_then(|time| ALL.get(time % ALL.len()));
            let damage = *damage.context("there is damage to do")?;
            eprintln!("{damage:?}");
            go_on(scene, outcome, 1 + random.below(500))?;
            attack(scene, outcome, &mut random, damage).with_context(|| format!("{damage:?}"))?;
        }
        Ok(())
    })
}

fn attack(scene: &mut Scene<'_>, outcome: &mut Outcome, random: &mut Random, damage: Damage) -> Result<()> {
    let state = scene.state("a");
    match damage {
        Damage::TwoProcesses => return two_processes(scene, outcome),
        Damage::WritesFail => return writes_fail(scene, outcome),
        Damage::DiskFull | Damage::ReadOnly => return disk_of_its_own(scene, outcome, damage),
        Damage::Stale => {
            // An older copy, with its manifest and its positions.
            let copy = state.with_extension("old");
            scene.stop("a")?;
            copy_folder(&state, &copy)?;
            scene.start("a")?;
            go_on(scene, outcome, 400)?;
            scene.kill("a")?;
            fs::remove_dir_all(&state)?;
            fs::rename(&copy, &state)?;
        }
        _ if random.once_in(2) => scene.kill("a")?,
        // Everything is flushed then, so that there is something to damage.
        _ => scene.stop("a")?,
    }
    let name = match damage {
        Damage::Deleted => fs::remove_dir_all(&state).map(|()| "deleted".to_owned())?,
        Damage::OfAnotherPartition => {
            let [one, other, aside] = ["0", "1", "aside"].map(|name| state.join("stores").join(name));
            fs::rename(&one, &aside)?;
            fs::rename(&other, &one)?;
            fs::rename(&aside, &other)?;
            "another partition's".to_owned()
        }
        Damage::FlippedByte(kind) => {
            let Some(file) = some_file(&state, kind, random)? else { return back(scene, outcome) };
            flip(&file, random)?;
            format!("flipped byte in {kind}")
        }
        Damage::Truncated(kind) => {
            let Some(file) = some_file(&state, kind, random)? else { return back(scene, outcome) };
            let length = file.metadata()?.len();
            fs::OpenOptions::new().write(true).open(&file)?.set_len(random.below(length.max(1)))?;
            format!("truncated {kind}")
        }
        Damage::FileGone(kind) => {
            let Some(file) = some_file(&state, kind, random)? else { return back(scene, outcome) };
            fs::remove_file(&file)?;
            format!("{kind} gone")
        }
        Damage::Stale | Damage::WritesFail | Damage::DiskFull | Damage::ReadOnly | Damage::TwoProcesses => {
            "stale copy".to_owned()
        }
    };
    outcome.fired(&name, 1);
    back(scene, outcome)
}

/// Starts it again.
fn back(scene: &mut Scene<'_>, outcome: &mut Outcome) -> Result<()> {
    scene.start("a")?;
    go_on(scene, outcome, 200)
}

/// Waits until more is committed. Damage may be met at the start or much later;
/// where the pipeline refuses its directory, a person deletes that.
fn go_on(scene: &mut Scene<'_>, outcome: &mut Outcome, more: u64) -> Result<()> {
    let position = scene.watch.committed()? + more;
    let began = std::time::Instant::now();
    while !scene.wait_until_committed(position, LOOK)? {
        ensure!(began.elapsed() < PROGRESS_WITHIN, "nothing is committed any more");
        let Some(status) = scene.has_ended("a")? else { continue };
        let log = scene.logged("a");
        let words = log.lines().last().unwrap_or_default();
        outcome.expect(status.code() == Some(1), || format!("it ended with {status}: {words}"));
        outcome.expect(words.contains("state") || words.contains("store"), || {
            format!("it refuses in words that do not name the state: {words}")
        });
        outcome.fired("refused in words", 1);
        fs::remove_dir_all(scene.state("a"))?;
        scene.start("a")?;
    }
    Ok(())
}

/// A second process on the same directory is refused, and the first goes on.
fn two_processes(scene: &mut Scene<'_>, outcome: &mut Outcome) -> Result<()> {
    let output = scene.command_to_end(&["run", "--until-caught-up"])?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    outcome.expect(output.status.code() == Some(1) && words.contains("is in use by process"), || {
        format!("a second process on one directory: {words}")
    });
    outcome.fired("two processes on one directory", 1);
    go_on(scene, outcome, 1)
}

/// A disk that takes no more: every file ends at a limit.
fn writes_fail(scene: &mut Scene<'_>, outcome: &mut Outcome) -> Result<()> {
    scene.stop("a")?;
    scene.start_limited("a", 64)?;
    match scene.ends_by_itself("a", PROGRESS_WITHIN) {
        Ok(code) => refused(scene, outcome, code, "files that end at a limit"),
        // It had nothing to write yet.
        Err(_) => scene.kill("a")?,
    }
    scene.start("a")
}

/// A disk that is full while it runs, or read-only when it starts.
fn disk_of_its_own(scene: &mut Scene<'_>, outcome: &mut Outcome, damage: Damage) -> Result<()> {
    let state = scene.state("a");
    scene.stop("a")?;
    fs::remove_dir_all(&state)?;
    let disk = match Mount::of(&state, DISK_MIB) {
        Ok(disk) => disk,
        Err(error) => {
            eprintln!("{damage:?} does not happen: {error:#}");
            return back(scene, outcome);
        }
    };
    back(scene, outcome)?;
    if matches!(damage, Damage::DiskFull) {
        disk.fill()?;
        let code = scene.ends_by_itself("a", PROGRESS_WITHIN)?;
        refused(scene, outcome, code, "disk full");
        disk.free()?;
    } else {
        scene.stop("a")?;
        disk.read_only(true)?;
        scene.start("a")?;
        let code = scene.ends_by_itself("a", PROGRESS_WITHIN)?;
        refused(scene, outcome, code, "disk read-only");
        disk.read_only(false)?;
    }
    // What it left there is what it goes on with.
    back(scene, outcome)?;
    scene.stop("a")?;
    drop(disk);
    back(scene, outcome)
}

/// It has ended, and says in words that it was its disk.
fn refused(scene: &Scene<'_>, outcome: &mut Outcome, code: Option<i32>, what: &str) {
    let log = scene.logged("a");
    let words = log.lines().last().unwrap_or_default();
    let names_it = words.contains("state") || words.contains("store");
    outcome.expect(code == Some(1) && names_it, || format!("{what}: it ended with {code:?}: {words}"));
    outcome.fired(what, 1);
}

/// A file of the stores whose name holds this; `None` where there is none yet.
fn some_file(state: &Path, kind: &str, random: &mut Random) -> Result<Option<PathBuf>> {
    let mut files = Vec::new();
    for store in fs::read_dir(state.join("stores"))? {
        for file in fs::read_dir(store?.path())? {
            let path = file?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.contains(kind) && path.metadata()?.len() > 0 {
                files.push(path);
            }
        }
    }
    files.sort();
    let Some(count) = u64::try_from(files.len()).ok().filter(|count| *count > 0) else { return Ok(None) };
    Ok(usize::try_from(random.below(count)).ok().and_then(|at| files.into_iter().nth(at)))
}

fn flip(path: &Path, random: &mut Random) -> Result<()> {
    let mut file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    let at = random.below(file.metadata()?.len());
    let mut byte = [0];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut byte)?;
    file.seek(SeekFrom::Start(at))?;
    file.write_all(&byte.map(|byte| byte ^ (1 << random.below(8))))?;
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
