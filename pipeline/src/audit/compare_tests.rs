//! Every kind of fault, each alone and in the middle of sound records.

use super::*;

/// An expected record `name` of ticket 1, the `offset`-th of its input partition.
fn expected(name: u8, offset: i64) -> Row {
    Row {
        topic: 0,
        partition: 0,
        ticket: [1; 16],
        input: 0,
        run: 0,
        offset,
        position: 0,
        identity: u64::from(name),
        digest: [name; 16],
        proof: Proof::Required,
    }
}

fn all(names: &[u8]) -> Vec<Row> {
    (0..).zip(names).map(|(offset, name)| expected(*name, offset)).collect()
}

fn run(expected: &[Row], found: &[Row], circumstances: &Circumstances) -> Comparison {
    let rows = |rows: &[Row]| {
        let mut rows = rows.to_vec();
        rows.sort();
        rows.into_iter().map(Ok)
    };
    compare(rows(expected), rows(found), circumstances).unwrap()
}

fn faults(expected: &[Row], found: &[Row]) -> Vec<(Fault, Option<i64>, Option<i64>)> {
    let comparison = run(expected, found, &Circumstances::default());
    let counted: u64 = comparison.counts.values().sum();
    assert_eq!(counted, comparison.findings.len() as u64);
    let offset = |row: &Option<Row>| row.as_ref().map(|row| row.offset);
    comparison.findings.iter().map(|one| (one.fault, offset(&one.expected), offset(&one.found))).collect()
}

#[test]
fn what_is_as_it_must_be_is_no_fault() {
    assert_eq!(faults(&all(b"abcd"), &all(b"abcd")), []);
    assert_eq!(faults(&[], &[]), []);
    // The same bytes twice, where both must be there.
    assert_eq!(faults(&all(b"abab"), &all(b"abab")), []);
    let comparison = run(&all(b"abcd"), &all(b"abcd"), &Circumstances::default());
    assert_eq!(comparison.matched, HashMap::from([(0, 4)]));
}

#[test]
fn a_missing_record_is_found_wherever_it_was() {
    assert_eq!(faults(&all(b"abcd"), &all(b"bcd")), [(Fault::Missing, Some(0), None)]);
    assert_eq!(faults(&all(b"abcd"), &all(b"abd")), [(Fault::Missing, Some(2), None)]);
    assert_eq!(faults(&all(b"abcd"), &all(b"abc")), [(Fault::Missing, Some(3), None)]);
    assert_eq!(faults(&all(b"a"), &[]), [(Fault::Missing, Some(0), None)]);
}

#[test]
fn a_doubled_record_is_found_wherever_it_is_repeated() {
    for (found, at) in [(b"aabcd", 1), (b"abcad", 3), (b"abcda", 4), (b"abccd", 3)] {
        assert_eq!(faults(&all(b"abcd"), &all(found)), [(Fault::Doubled, None, Some(at))], "{found:?}");
    }
    let first = run(&all(b"abcd"), &all(b"abccd"), &Circumstances::default());
    assert_eq!(first.findings.first().and_then(|finding| finding.first), Some(2));
}

#[test]
fn of_records_out_of_order_the_fewest_are_named() {
    assert_eq!(faults(&all(b"abcd"), &all(b"bcda")), [(Fault::OutOfOrder, Some(0), Some(3))]);
    assert_eq!(faults(&all(b"abcd"), &all(b"dabc")), [(Fault::OutOfOrder, Some(3), Some(0))]);
    let swapped = faults(&all(b"abcd"), &all(b"acbd"));
    assert!(matches!(swapped[..], [(Fault::OutOfOrder, ..)]), "{swapped:?}");
}

#[test]
fn a_record_in_another_form_is_different_and_not_missing() {
    let mut found = all(b"abcd");
    found[1].digest = [0xee; 16];
    assert_eq!(faults(&all(b"abcd"), &found), [(Fault::Different, Some(1), Some(1))]);
}

#[test]
fn a_record_under_another_key_partition_or_topic_is_one_fault() {
    let places: [fn(&mut Row); 3] =
        [|row| row.ticket = [2; 16], |row| row.partition = 3, |row| row.topic = 7];
    for place in places {
        let mut found = all(b"abcd");
        place(&mut found[2]);
        assert_eq!(faults(&all(b"abcd"), &found), [(Fault::Different, Some(2), Some(2))]);
    }
}

#[test]
fn a_record_that_nothing_explains_is_unexpected() {
    assert_eq!(faults(&all(b"abcd"), &all(b"abxcd")), [(Fault::Unexpected, None, Some(2))]);
    assert_eq!(faults(&[], &all(b"x")), [(Fault::Unexpected, None, Some(0))]);
}

#[test]
fn between_input_partitions_no_order_is_promised_and_within_one_it_is() {
    let mut both = all(b"abcd");
    for row in &mut both[2..] {
        row.input = 1;
    }
    for found in [b"abcd", b"cdab", b"acbd", b"cadb", b"acdb"] {
        assert_eq!(faults(&both, &all(found)), [], "{found:?}");
    }
    assert!(matches!(faults(&both, &all(b"dacb"))[..], [(Fault::OutOfOrder, ..)]));
}

#[test]
fn a_second_run_repeats_and_any_other_repetition_is_a_fault() {
    let mut twice = all(b"abcbc");
    for (row, offset) in twice[3..].iter_mut().zip(1..) {
        (row.run, row.offset) = (1, offset);
    }
    assert_eq!(faults(&twice, &all(b"abcbc")), []);
    assert_eq!(faults(&twice, &all(b"abcbcc")), [(Fault::Doubled, None, Some(5))]);
    assert!(matches!(faults(&twice, &all(b"abcb"))[..], [(Fault::Missing, ..)]));
}

#[test]
fn beyond_the_cut_records_may_be_there_but_not_with_holes() {
    let mut both = all(b"abcd");
    for row in &mut both[1..] {
        (row.run, row.proof) = (1, Proof::BeyondCut);
    }
    for found in [&b"a"[..], b"ab", b"abc", b"abcd"] {
        assert_eq!(faults(&both, &all(found)), [], "{found:?}");
    }
    assert_eq!(faults(&both, &all(b"acd")), [(Fault::Missing, Some(1), None)]);
    assert_eq!(faults(&both, &all(b"abb")), [(Fault::Doubled, None, Some(2))]);
}

#[test]
fn what_retention_took_from_the_head_of_an_output_is_not_missing() {
    let circumstances = Circumstances { expired: HashSet::from([(0, 0)]), ..Circumstances::default() };
    let comparison = run(&all(b"abcd"), &all(b"cd"), &circumstances);
    assert_eq!((comparison.findings.len(), comparison.expired), (0, 2));
    let comparison = run(&all(b"abcd"), &all(b"bd"), &circumstances);
    assert_eq!((comparison.findings.len(), comparison.expired), (1, 1));
}

#[test]
fn behind_a_raw_head_that_is_gone_only_what_can_be_known_is_judged() {
    let circumstances = Circumstances { cut_inputs: HashSet::from([0]), ..Circumstances::default() };
    let of = |expected: &[Row], found: &[u8]| {
        let comparison = run(expected, &all(found), &circumstances);
        (comparison.findings.len(), comparison.before_head, comparison.unprovable)
    };
    // Records of before, then all that is expected.
    assert_eq!(of(&all(b"cd"), b"abcd"), (0, 2, 0));
    assert_eq!(of(&[], b"ab"), (0, 2, 0));
    assert_eq!(of(&all(b"cd"), b"abcxd"), (1, 2, 0));
    assert_eq!(of(&all(b"cd"), b"abd"), (1, 2, 0));
    let mut unprovable = all(b"ab");
    for row in &mut unprovable {
        row.proof = Proof::Unprovable;
    }
    assert_eq!(of(&unprovable, b"xy"), (0, 2, 2));
}
