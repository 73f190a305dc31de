use std::path::Path;

use proptest::prelude::*;

use super::disk::ENTRIES_BYTES_MAX;
use super::*;
use crate::entry::{DeletionMark, Entry, RuleSet};

const WINDOW_MS: i64 = 64_000;

pub(super) fn directory(path: &Path, group: &str) -> Result<StateDirectory> {
    let settings = StoreSettings {
        group: group.into(),
        topic: "ticket.raw".into(),
        flush_records_max: 1_000,
        flush_interval_ms: 60_000,
        dedupe_window_ms: WINDOW_MS,
        memory_bytes: 16 * 1024 * 1024,
    };
    StateDirectory::lock(path, settings)
}

pub(super) fn positions(end: i64, stream_time_ms: i64) -> Positions {
    Positions { changelog: end, ids: end, input: end, stream_time_ms, rebuilding: None }
}

pub(super) fn commit(store: &mut Store, positions: &Positions) {
    store.seal();
    store.apply(positions).unwrap();
}

pub(super) fn seen(offset: i64) -> Seen {
    Seen { offset, timestamp_ms: offset }
}

#[test]
fn what_is_not_applied_is_read_but_does_not_outlive_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let state = directory(folder.path(), "g").unwrap();
    let mut store = state.open(0).unwrap().unwrap();
    store.put_entry(b"T-1", Some(b"one".to_vec()));
    commit(&mut store, &positions(1, 0));
    store.put_entry(b"T-2", Some(b"two".to_vec()));
    store.seal();
    store.put_entry(b"T-1", None);

    assert_eq!(store.entry(b"T-2").unwrap().as_deref(), Some(&b"two"[..]));
    assert_eq!(store.entry(b"T-1").unwrap(), None);

    store.close().unwrap();
    let store = state.open(0).unwrap().unwrap();
    assert_eq!(store.entry(b"T-1").unwrap().as_deref(), Some(&b"one"[..]));
    assert_eq!(store.entry(b"T-2").unwrap(), None);
    assert_eq!(store.positions(), Some(positions(1, 0)));
}

#[test]
fn discard_drops_both_layers() {
    let mut store = Store::in_memory();
    store.put_entry(b"T-1", Some(b"one".to_vec()));
    store.see([1; 16], seen(1));
    store.seal();
    store.put_entry(b"T-2", Some(b"two".to_vec()));
    store.discard();

    assert_eq!(store.entry(b"T-1").unwrap(), None);
    assert_eq!(store.entry(b"T-2").unwrap(), None);
    assert_eq!(store.seen(&[1; 16]).unwrap(), None);
}

#[test]
fn written_entries_keep_the_order_of_their_first_write() {
    let mut store = Store::in_memory();
    for uid in ["b", "a", "c", "b"] {
        store.put_entry(uid.as_bytes(), Some(vec![1]));
    }
    let order: Vec<_> = store.written_entries().map(|(uid, _)| uid.to_vec()).collect();
    assert_eq!(order, [b"b", b"a", b"c"]);
}

#[test]
fn an_unflushed_store_falls_back_to_a_state_that_it_once_had() {
    let folder = tempfile::tempdir().unwrap();
    let state = directory(folder.path(), "g").unwrap();
    let mut store = state.open(0).unwrap().unwrap();
    store.put_entry(b"T-1", Some(b"one".to_vec()));
    commit(&mut store, &positions(1, 0));
    drop(store); // As a crash does: without a flush, there being no write-ahead log.

    let store = state.open(0).unwrap().unwrap();
    match store.positions() {
        None => assert_eq!(store.entry(b"T-1").unwrap(), None),
        Some(_) => assert!(store.entry(b"T-1").unwrap().is_some()),
    }
}

#[test]
fn a_store_of_another_group_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let state = directory(folder.path(), "mine").unwrap();
    let mut store = state.open(0).unwrap().unwrap();
    commit(&mut store, &positions(1, 0));
    store.close().unwrap();
    drop(state);

    let state = directory(folder.path(), "yours").unwrap();
    let refusal = format!("{:#}", state.open(0).unwrap_err());
    assert!(refusal.contains("group mine") && refusal.contains("directory of its own"), "{refusal}");
}

#[test]
fn a_second_process_is_refused_and_the_first_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let _first = directory(folder.path(), "g").unwrap();
    let refusal = format!("{:#}", directory(folder.path(), "g").unwrap_err());
    assert!(refusal.contains(&std::process::id().to_string()), "{refusal}");
}

#[test]
fn a_store_is_open_once_in_a_process() {
    let folder = tempfile::tempdir().unwrap();
    let state = directory(folder.path(), "g").unwrap();
    let store = state.open(0).unwrap().unwrap();
    assert!(state.open(0).unwrap().is_none());
    drop(store);
    assert!(state.open(0).unwrap().is_some());
}

#[test]
fn the_instance_id_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let first = directory(folder.path(), "g").unwrap().instance(None).unwrap();
    let second = directory(folder.path(), "g").unwrap().instance(None).unwrap();
    assert_eq!(first, second);
    assert!(!first.is_empty());
    assert_eq!(directory(folder.path(), "g").unwrap().instance(Some("mine")).unwrap(), "mine");
}

#[test]
fn processes_that_are_started_alike_take_a_directory_each_and_find_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let any = folder.path().join("instance-*");
    let take = || directory(&any, "g").unwrap();
    let instance = |state: &StateDirectory| state.instance(None).unwrap();

    let (first, second, third) = (take(), take(), take());
    assert_eq!([&first, &second, &third].map(instance), ["instance-1", "instance-2", "instance-3"]);
    let mut store = second.open(0).unwrap().unwrap();
    commit(&mut store, &positions(7, 0));
    store.close().unwrap();
    drop(second);

    let again = take();
    assert_eq!(instance(&again), "instance-2");
    assert_eq!(again.open(0).unwrap().unwrap().positions(), Some(positions(7, 0)));
    assert!(!any.exists());
}

#[test]
fn processes_that_are_started_alike_may_not_all_have_the_same_name() {
    let folder = tempfile::tempdir().unwrap();
    let state = directory(&folder.path().join("instance-*"), "g").unwrap();
    let refusal = format!("{:#}", state.instance(Some("a")).unwrap_err());
    assert!(refusal.contains("INSTANCE_ID"), "{refusal}");
}

#[test]
fn a_wiped_store_is_empty_and_usable() {
    let folder = tempfile::tempdir().unwrap();
    let state = directory(folder.path(), "g").unwrap();
    let mut store = state.open(0).unwrap().unwrap();
    store.put_entry(b"T-1", Some(b"one".to_vec()));
    commit(&mut store, &positions(1, 0));

    let mut store = store.wipe().unwrap();
    assert_eq!(store.positions(), None);
    assert_eq!(store.entry(b"T-1").unwrap(), None);
    commit(&mut store, &positions(2, 0));
    assert_eq!(store.positions(), Some(positions(2, 0)));
}

#[test]
fn the_ids_log_is_cut_behind_the_window_and_before_its_last_record() {
    let folder = tempfile::tempdir().unwrap();
    let state = directory(folder.path(), "g").unwrap();
    let mut store = state.open(0).unwrap().unwrap();
    for second in 0..=100 {
        commit(&mut store, &positions(second + 1, second * 1_000));
        store.write_out().unwrap();
    }
    // 36 s is a window before 100 s, and within it; 35 s is forgotten, and its record, at 35, stays.
    assert_eq!(store.ids_forgotten_before(), Some(35));
    store.close().unwrap();
    let store = state.open(0).unwrap().unwrap();
    assert_eq!(store.ids_forgotten_before(), Some(35));
}

#[test]
fn forgotten_ids_leave_the_disk_when_it_is_rewritten() {
    let folder = tempfile::tempdir().unwrap();
    let state = directory(folder.path(), "g").unwrap();
    let mut store = state.open(0).unwrap().unwrap();
    store.see([1; 16], seen(0));
    store.see([2; 16], seen(WINDOW_MS));
    commit(&mut store, &positions(2, WINDOW_MS + 1));
    store.write_out().unwrap();
    // What was written last is still read from memory, until more is.
    commit(&mut store, &positions(3, WINDOW_MS + 1));
    store.write_out().unwrap();
    store.disk.as_mut().unwrap().rewrite().unwrap();
    assert_eq!(store.seen(&[1; 16]).unwrap(), None);
    assert_eq!(store.seen(&[2; 16]).unwrap(), Some(seen(WINDOW_MS)));
}

proptest! {
    // Each case opens a real store, some of them again and again.
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever is written, and wherever transactions, writes and runs end, all layers read as one map.
    #[test]
    fn reads_agree_with_a_map(steps in prop::collection::vec((0u8..6, prop::option::of(any::<u8>()), 0u8..4), 0..60)) {
        let folder = tempfile::tempdir().unwrap();
        let state = directory(folder.path(), "g").unwrap();
        let mut store = state.open(0).unwrap().unwrap();
        let mut model = std::collections::BTreeMap::new();
        let mut end = 0;
        for (uid, value, ending) in steps {
            store.put_entry(&[uid], value.map(|byte| vec![byte]));
            store.see([uid; 16], seen(i64::from(uid)));
            model.insert(uid, value.map(|byte| vec![byte]));
            if ending >= 1 {
                end += 1;
                commit(&mut store, &positions(end, 0));
            }
            if ending >= 2 {
                store.write_out().unwrap();
            }
            if ending == 3 {
                store.close().unwrap();
                store = state.open(0).unwrap().unwrap();
                prop_assert_eq!(store.positions(), Some(positions(end, 0)));
            }
            for (uid, value) in &model {
                prop_assert!(store.entry(&[*uid]).unwrap().as_deref() == value.as_deref());
                prop_assert_eq!(store.seen(&[*uid; 16]).unwrap(), Some(seen(i64::from(*uid))));
            }
        }
    }
}

#[test]
fn idle_entries_are_found_portion_by_portion_though_the_disk_is_not_written_in_between() {
    let folder = tempfile::tempdir().unwrap();
    let state = directory(folder.path(), "g").unwrap();
    let mut store = state.open(0).unwrap().unwrap();
    let mark = Some(DeletionMark { time_ms: 5, since_ms: 11 });
    let idle = Entry { mark, ..Entry::new(0) }.encode(&RuleSet::of(&[]));
    for number in 0..25 {
        store.put_entry(format!("T-{number}").as_bytes(), Some(idle.clone()));
    }
    commit(&mut store, &positions(1, 0));
    store.write_out().unwrap();

    let mut portions = Vec::new();
    loop {
        let uids = store.idle_before(100, 10).unwrap();
        if uids.is_empty() {
            break;
        }
        portions.push(uids.len());
        uids.iter().for_each(|uid| store.put_entry(uid, None));
        commit(&mut store, &positions(2, 100));
    }
    assert_eq!(portions, [10, 10, 5]);

    store.write_out().unwrap();
    assert!(store.idle_before(100, 10).unwrap().is_empty(), "only keys without an entry are left");
}

#[test]
fn large_entries_are_read_few_at_a_time_and_all_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let state = directory(folder.path(), "g").unwrap();
    let mut store = state.open(0).unwrap().unwrap();
    let uids: Vec<_> = (10..20).map(|number| format!("T-{number}").into_bytes()).collect();
    let entry = vec![b'x'; ENTRIES_BYTES_MAX / 4];
    uids.iter().for_each(|uid| store.put_entry(uid, Some(entry.clone())));
    commit(&mut store, &positions(1, 0));
    store.write_out().unwrap();

    let (mut found, mut portions) = (Vec::new(), Vec::new());
    loop {
        let portion = store.entries_after(found.last().map(Vec::as_slice), 1_000).unwrap();
        if portion.is_empty() {
            break;
        }
        portions.push(portion.len());
        found.extend(portion.into_iter().map(|(uid, _)| uid));
    }
    assert_eq!(portions, [4, 4, 2]);
    assert_eq!(found, uids);
}
