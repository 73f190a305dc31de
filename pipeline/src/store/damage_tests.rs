//! A store whose files are not what was written is never read as if they were:
//! damage is noticed, wiped where the store is opened, and what is refused is
//! refused in plain words. And what is loaded into an empty store is what was read.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::tests::{commit, directory, positions, seen};
use super::*;

const TICKETS: u32 = 120;
const STAGES: i64 = 3;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn uid(number: u32) -> Vec<u8> {
    format!("ticket-{number:04}").into_bytes()
}

/// What a ticket's entry is after a stage; every fourth is large enough for a file of its own kind.
fn entry(number: u32, stage: i64) -> Vec<u8> {
    let length = if number.is_multiple_of(4) { 6_000 } else { 300 };
    let mut state = u64::from(number) << 32 | stage as u64;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(|_| byte()).collect()
}

/// A store with the writes of three stages, each flushed, and what it held after each.
fn filled(folder: &Path) -> BTreeMap<i64, Model> {
    let mut models = BTreeMap::new();
    let mut model = Model::new();
    for stage in 1..=STAGES {
        let state = directory(folder, "g").unwrap();
        let mut store = state.open(0).unwrap().unwrap();
        for number in (0..TICKETS).filter(|number| (i64::from(*number) + stage) % 2 == 0) {
            store.put_entry(&uid(number), Some(entry(number, stage)));
            store.see([number as u8; 16], seen(stage));
            model.insert(uid(number), entry(number, stage));
        }
        commit(&mut store, &positions(stage, 0));
        store.close().unwrap();
        models.insert(stage, model.clone());
    }
    models
}

/// All that a store holds, by both ways of reading it.
fn contents(store: &Store) -> Result<Model> {
    let mut found = Model::new();
    for number in 0..TICKETS {
        if let Some(entry) = store.entry(&uid(number))? {
            found.insert(uid(number), entry.into_owned());
        }
        store.seen(&[number as u8; 16])?;
    }
    let all: Model = store.entries_after(None, usize::MAX)?.into_iter().collect();
    assert_eq!(found, all, "the two ways of reading differ");
    Ok(found)
}

#[derive(Debug, Clone, Copy)]
enum Damage {
    Flip(u64),
    Truncate(u64),
    Delete,
}

impl Damage {
    fn all() -> Vec<Damage> {
        let flips = (0..12).map(|part| Damage::Flip(part * 1_000 / 12 + 7));
        flips.chain([0, 500, 990].map(Damage::Truncate)).chain([Damage::Delete]).collect()
    }

    /// Does it at so many thousandths of the file.
    fn apply(self, file: &Path) {
        let mut bytes = fs::read(file).unwrap();
        let at = |thousandth: u64| (bytes.len() as u64 * thousandth / 1_000) as usize;
        match self {
            Damage::Delete => return fs::remove_file(file).unwrap(),
            Damage::Truncate(thousandth) => {
                let at = at(thousandth);
                bytes.truncate(at);
            }
            Damage::Flip(thousandth) => {
                let at = at(thousandth);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 0x40;
                }
            }
        }
        fs::write(file, bytes).unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap().path();
        let target = to.join(file.file_name().unwrap());
        if file.is_dir() { copy(&file, &target) } else { _ = fs::copy(&file, &target).unwrap() }
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder.join("stores/0")).unwrap().map(|file| file.unwrap().path()).collect();
    // RocksDB's log and its lock tell nothing.
    files.retain(|file| !file.file_name().unwrap().to_string_lossy().starts_with("LO"));
    files.sort();
    files
}

#[test]
fn whatever_byte_of_whatever_file_is_lost_the_store_is_right_or_wiped() {
    let original = tempfile::tempdir().unwrap();
    let models = filled(original.path());
    let (mut whole, mut behind, mut wiped, mut noticed_reading) = (0, 0, 0, 0);
    for file in files(original.path()) {
        for damage in Damage::all() {
            let what = format!("{damage:?} of {:?}", file.file_name().unwrap());
            let folder = tempfile::tempdir().unwrap();
            copy(original.path(), folder.path());
            damage.apply(&folder.path().join("stores/0").join(file.file_name().unwrap()));

            let state = directory(folder.path(), "g").unwrap();
            let store = state.open(0).unwrap_or_else(|error| panic!("{what}: {error:#}")).unwrap();
            let Some(at) = store.positions() else {
                assert_eq!(contents(&store).unwrap(), Model::new(), "{what}");
                wiped += 1;
                continue;
            };
            match contents(&store) {
                Ok(found) => {
                    assert_eq!(found, models[&at.changelog], "{what}");
                    if at.changelog == STAGES { whole += 1 } else { behind += 1 }
                }
                Err(error) => {
                    assert!(error.downcast_ref::<Damaged>().is_some(), "{what}: {error:#}");
                    noticed_reading += 1;
                    store.close().unwrap();
                    let store = state.open(0).unwrap().unwrap();
                    assert_eq!(store.positions(), None, "{what}");
                    assert_eq!(contents(&store).unwrap(), Model::new(), "{what}");
                }
            }
        }
    }
    println!("right {whole}, a prefix {behind}, wiped at once {wiped}, wiped when read {noticed_reading}");
    assert!(wiped > 20 && noticed_reading > 10, "{wiped} and {noticed_reading}");
}

#[test]
fn damage_that_is_found_while_writing_is_told_and_wiped() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path());
    for file in files(folder.path()) {
        if file.to_string_lossy().ends_with(".sst") {
            Damage::Flip(100).apply(&file);
        }
    }
    let state = directory(folder.path(), "g").unwrap();
    let mut store = state.open(0).unwrap().unwrap();
    assert!(store.positions().is_some(), "the damage is deeper than what opening reads");
    // What a compaction comes upon, the next write tells.
    let disk = store.disk.as_mut().unwrap();
    disk.rewrite().unwrap();
    store.put_entry(&uid(1), Some(b"new".to_vec()));
    commit(&mut store, &positions(STAGES + 1, 0));
    let told = store.write_out().and_then(|()| store.disk.as_mut().unwrap().rewrite());
    let told = told.expect_err("a compaction over damaged rows");
    assert!(told.downcast_ref::<Damaged>().is_some(), "{told:#}");
    store.close().unwrap();
    assert_eq!(state.open(0).unwrap().unwrap().positions(), None);
}

#[test]
fn a_stale_copy_is_what_it_was_and_says_where() {
    let (folder, stale) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let models = filled(stale.path());
    copy(stale.path(), folder.path());
    let state = directory(folder.path(), "g").unwrap();
    let store = state.open(0).unwrap().unwrap();
    assert_eq!(store.positions(), Some(positions(STAGES, 0)));
    assert_eq!(contents(&store).unwrap(), models[&STAGES]);
}

#[test]
fn another_partitions_store_is_refused_and_nothing_of_it_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let models = filled(folder.path());
    fs::rename(folder.path().join("stores/0"), folder.path().join("stores/1")).unwrap();
    {
        let state = directory(folder.path(), "g").unwrap();
        let refusal = format!("{:#}", state.open(1).unwrap_err());
        assert!(refusal.contains("partition 0") && refusal.contains("partition 1"), "{refusal}");
    }
    fs::rename(folder.path().join("stores/1"), folder.path().join("stores/0")).unwrap();
    let state = directory(folder.path(), "g").unwrap();
    assert_eq!(contents(&state.open(0).unwrap().unwrap()).unwrap(), models[&STAGES]);
}

#[test]
fn who_only_looks_at_a_damaged_store_leaves_it_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path());
    fs::write(folder.path().join("stores/0/CURRENT"), "nonsense").unwrap();
    let before = files(folder.path());
    let state = directory(folder.path(), "g").unwrap();
    let told = state.open_to_look(0).unwrap_err();
    assert!(told.downcast_ref::<Damaged>().is_some(), "{told:#}");
    assert_eq!(files(folder.path()), before);
}

#[test]
fn a_load_that_is_cut_short_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    {
        let state = directory(folder.path(), "g").unwrap();
        let mut store = state.open(0).unwrap().unwrap();
        let mut writes = Writes::default();
        writes.entry(b"T-1", Some(b"one"));
        store.load(writes, &positions(1, 0)).unwrap();
        assert_eq!(store.entry(b"T-1").unwrap().as_deref(), Some(&b"one"[..]));
    }
    let state = directory(folder.path(), "g").unwrap();
    let store = state.open(0).unwrap().unwrap();
    assert_eq!((store.positions(), store.entry(b"T-1").unwrap()), (None, None));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is loaded, in whatever portions, and written behind it, reads as one map.
    #[test]
    fn what_is_loaded_reads_as_it_was_written(
        portions in prop::collection::vec(prop::collection::vec((0u8..9, prop::option::of(any::<u8>())), 0..20), 0..6),
        behind in prop::collection::vec((0u8..9, prop::option::of(any::<u8>())), 0..9),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let state = directory(folder.path(), "g").unwrap();
        let mut store = state.open(0).unwrap().unwrap();
        let mut model = Model::new();
        let mut write = |writes: &mut Writes, uid: u8, value: Option<u8>| {
            let value = value.map(|byte| vec![byte; 200]);
            writes.entry(&[uid], value.as_deref());
            match value {
                Some(value) => _ = model.insert(vec![uid], value),
                None => _ = model.remove(&vec![uid]),
            }
        };
        let mut end = 0;
        for portion in portions {
            let mut writes = Writes::default();
            for (uid, value) in portion {
                write(&mut writes, uid, value);
                end += 1;
                writes.id(&[uid; 16], seen(end));
            }
            store.load(writes, &positions(end, 0)).unwrap();
        }
        let mut writes = Writes::default();
        for (uid, value) in behind {
            write(&mut writes, uid, value);
        }
        store.write(writes, &positions(end + 1, 0), true).unwrap();
        store.close().unwrap();
        let store = state.open(0).unwrap().unwrap();
        prop_assert_eq!(store.positions(), Some(positions(end + 1, 0)));
        let found: Model = store.entries_after(None, usize::MAX).unwrap().into_iter().collect();
        for (uid, value) in &model {
            let entry = store.entry(uid).unwrap();
            prop_assert_eq!(entry.as_deref(), Some(value.as_slice()));
        }
        prop_assert_eq!(found, model);
    }
}
