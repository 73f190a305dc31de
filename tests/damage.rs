//! A disk that is not what it was is noticed: what the changelog can mend is
//! wiped and restored, and told; all else is refused in plain words. What comes
//! out is right in any case.

use std::fs;
use std::path::{Path, PathBuf};

use crate::datasets::HISTORIES;
use crate::pipeline::{Pipeline, Settings};
use crate::story::{again, in_every_partition, moved, opened};
use crate::tasks::PARTITIONS;
use crate::wait;

/// Every history emitted, and tickets of whose past only the state knows. With one worker no
/// partition is handed on, which may be in the middle of its restore: each is restored once.
fn emitted(name: &str) -> (Pipeline, Vec<String>) {
    let pipeline = Pipeline::new(name, &Settings { workers: 1, ..Settings::default() });
    pipeline.feed(&HISTORIES);
    let uids = in_every_partition("T");
    pipeline.append(uids.iter().map(|uid| opened(uid)));
    pipeline.run_until_caught_up();
    (pipeline, uids)
}

fn assert_all_is_right(pipeline: &Pipeline, uids: &[String]) {
    let changes = pipeline.changes();
    for uid in uids {
        assert_eq!(changes[uid], ["status: open -> closed"]);
    }
    pipeline.assert_emitted_as_expected();
}

fn store(pipeline: &Pipeline, partition: i32) -> PathBuf {
    pipeline.state("a").join("stores").join(partition.to_string())
}

/// The files of a store with this ending.
fn files(store: &Path, ending: &str) -> Vec<PathBuf> {
    let all =
        fs::read_dir(store).expect("there is a store").map(|file| file.expect("it can be listed").path());
    let files: Vec<PathBuf> = all.filter(|file| file.to_string_lossy().ends_with(ending)).collect();
    assert!(!files.is_empty(), "there is no {ending} in {}", store.display());
    files
}

/// Turns a bit every so many bytes; the file stays the one that a process has open.
fn flip(file: &Path) {
    let mut bytes = fs::read(file).expect("it can be read");
    bytes.iter_mut().skip(100).step_by(500).for_each(|byte| *byte ^= 0x10);
    fs::write(file, bytes).expect("it can be written");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the folder of tests can be written to");
    for file in fs::read_dir(from).expect("it can be listed") {
        let file = file.expect("it can be listed").path();
        let target = to.join(file.file_name().expect("a file has a name"));
        if file.is_dir() {
            copy(&file, &target)
        } else {
            _ = fs::copy(&file, &target).expect("it can be copied")
        }
    }
}

#[test]
fn a_damaged_store_is_wiped_with_a_warning_and_restored_before_it_is_read() {
    let (pipeline, uids) = emitted("damaged");
    for file in files(&store(&pipeline, 0), ".sst") {
        let bytes = fs::metadata(&file).expect("it is there").len();
        fs::File::options().write(true).open(&file).and_then(|file| file.set_len(bytes / 2)).expect("cut");
    }
    fs::write(store(&pipeline, 1).join("CURRENT"), "").expect("it can be written");
    files(&store(&pipeline, 2), ".sst").iter().for_each(|file| fs::remove_file(file).expect("it is there"));
    let manifest = fs::read_to_string(store(&pipeline, 3).join("CURRENT")).expect("it is there");
    flip(&store(&pipeline, 3).join(manifest.trim()));

    pipeline.append(uids.iter().map(|uid| moved(uid, "closed")));
    let log = pipeline.run_until_caught_up();
    assert_eq!(log.lines("WIPING a damaged store").len(), 4, "{}", log.0);
    assert_eq!(log.numbers("restoring", "changelog_from"), [0, 0, 0, 0], "{}", log.0);
    assert_all_is_right(&pipeline, &uids);
}

#[test]
fn damage_that_comes_to_light_in_a_running_process_is_wiped_and_restored_in_it() {
    let (pipeline, uids) = emitted("damaged-running");
    let process = pipeline.start("a");
    wait::until("all are restored", || process.log().has_restored(4).then_some(()));
    // Nothing of it was read yet.
    for partition in 0..PARTITIONS {
        files(&store(&pipeline, partition), ".sst").iter().for_each(|file| flip(file));
    }
    pipeline.append(uids.iter().map(|uid| moved(uid, "closed")));
    // The window is in the store too.
    pipeline.append(uids.iter().map(|uid| again(&moved(uid, "open"))));
    pipeline.wait_until_caught_up();
    let log = process.end_well();
    assert!(!log.lines("WIPING a damaged store").is_empty(), "{}", log.0);
    let changes = pipeline.changes();
    for uid in &uids {
        assert_eq!(changes[uid], ["status: open -> closed", "status: closed -> open"]);
    }
    pipeline.assert_emitted_as_expected();
}

#[test]
fn an_older_copy_of_the_disk_is_brought_to_where_the_log_is() {
    let (pipeline, uids) = emitted("stale");
    let copied = pipeline.state("copy");
    copy(&pipeline.state("a"), &copied);
    let others = in_every_partition("O");
    pipeline.append(others.iter().map(|uid| opened(uid)));
    pipeline.append(others.iter().map(|uid| moved(uid, "waiting")));
    pipeline.run_until_caught_up();
    pipeline.lose_disk("a");
    copy(&copied, &pipeline.state("a"));

    pipeline.append(uids.iter().chain(&others).map(|uid| moved(uid, "closed")));
    let log = pipeline.run_until_caught_up();
    assert!(log.lines("WIPING").is_empty() && log.lines("wiping").is_empty(), "{}", log.0);
    let from = log.numbers("restoring", "changelog_from");
    assert!(from.len() == 4 && from.iter().all(|from| *from > 0), "{}", log.0);
    let changes = pipeline.changes();
    for uid in &others {
        assert_eq!(changes[uid], ["status: open -> waiting", "status: waiting -> closed"]);
    }
    assert_all_is_right(&pipeline, &uids);
}

#[test]
fn a_store_that_belongs_elsewhere_is_refused_and_named() {
    let (pipeline, uids) = emitted("swapped");
    let swap = || {
        let aside = pipeline.state("a").join("aside");
        fs::rename(store(&pipeline, 0), &aside).expect("it is there");
        fs::rename(store(&pipeline, 1), store(&pipeline, 0)).expect("it is there");
        fs::rename(&aside, store(&pipeline, 1)).expect("it is there");
    };
    swap();
    let refused = |what: &str| {
        let ended = pipeline.start("a").wait();
        assert_eq!(ended.status.code(), Some(1), "{what}: {}", ended.log.0);
        ended.log.0
    };
    let said = refused("another partition's");
    assert!(said.contains("belongs to") && said.contains("each partition its own store"), "{said}");
    swap();

    let other = Pipeline::new("swapped-other", &Settings::default());
    other.append(uids.iter().map(|uid| opened(uid)));
    other.run_until_caught_up();
    let mine = pipeline.state("mine");
    fs::rename(pipeline.state("a"), &mine).expect("it is there");
    copy(&other.state("a"), &pipeline.state("a"));
    let said = refused("another group's");
    assert!(said.contains("belongs to") && said.contains("swapped-other"), "{said}");
    pipeline.lose_disk("a");
    fs::rename(&mine, pipeline.state("a")).expect("it is there");

    pipeline.append(uids.iter().map(|uid| moved(uid, "closed")));
    pipeline.run_until_caught_up();
    assert_all_is_right(&pipeline, &uids);
}

#[test]
fn a_disk_that_takes_no_more_ends_the_run_in_plain_words_and_nothing_is_lost() {
    let pipeline = Pipeline::new("full", &Settings::default());
    pipeline.feed(&HISTORIES);
    // No file may grow beyond this: the stores' first ones are larger.
    let mut process = pipeline.start_on_small_disk("a", 16);
    wait::until("it has caught up, or given up", || {
        (pipeline.committed() >= pipeline.end() || !process.is_running()).then_some(())
    });
    // What it has in memory it writes at its end.
    let ended = if process.is_running() { process.end("TERM") } else { process.wait() };
    assert_eq!(ended.status.code(), Some(1), "{}", ended.log.0);
    assert!(ended.log.0.contains("File too large") && ended.log.0.contains("stores/"), "{}", ended.log.0);

    let uids = in_every_partition("T");
    pipeline.append(uids.iter().map(|uid| opened(uid)));
    pipeline.append(uids.iter().map(|uid| moved(uid, "closed")));
    pipeline.run_until_caught_up();
    assert_all_is_right(&pipeline, &uids);
}

#[test]
fn a_state_directory_that_cannot_be_written_is_refused_and_named() {
    let pipeline = Pipeline::new("unwritable", &Settings::default());
    // Where a file stands nobody, not even the superuser, can make a folder.
    fs::write(pipeline.state("a"), "in the way").expect("the folder of tests can be written to");
    let ended = pipeline.start("a").wait();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.log.0);
    let said = &ended.log.0;
    assert!(said.contains("state directory") && said.contains("state-a"), "{said}");
}
