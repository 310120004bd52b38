//! Tests of the ledger against a naive model, through crashes, against hostile metadata, and of the golden texts.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

fn restored(offset: i64, metadata: &str) -> PartitionLedger {
    let (ledger, bad) = PartitionLedger::restore(offset, metadata);
    assert_eq!(bad, None, "{metadata}");
    ledger
}

/// Whether the bound holds for the runs alone: a short offset in the header must not make up for runs that are too
/// long.
fn bound_holds(ledger: &PartitionLedger) -> bool {
    let metadata = ledger.metadata();
    let runs = metadata.rsplit(':').next().unwrap_or("");
    codec::HEADER_MAX + runs.len() <= ledger.metadata_bound()
}

fn admit_all(ledger: &mut PartitionLedger, offsets: impl IntoIterator<Item = i64>) {
    for offset in offsets {
        assert_eq!(ledger.admit(offset), Admission::New, "{offset}");
    }
}

#[test]
fn position_waits_for_the_lowest_open() {
    let mut ledger = restored(10, "");
    assert_eq!((ledger.position(), ledger.open(), ledger.oldest_open()), (10, 0, None));
    admit_all(&mut ledger, 10..14);
    assert!(ledger.settle(11) && ledger.settle(13));
    assert_eq!((ledger.position(), ledger.open(), ledger.oldest_open()), (10, 2, Some(10)));
    assert_eq!(ledger.metadata(), "1:10:AaAa");
    assert!(ledger.settle(10));
    assert_eq!((ledger.position(), ledger.metadata().as_str()), (12, "1:12:Aa"));
    assert!(ledger.settle(12));
    assert_eq!((ledger.position(), ledger.metadata().as_str()), (14, ""));
}

#[test]
fn settling_what_is_not_open_changes_nothing() {
    let mut ledger = restored(10, "");
    admit_all(&mut ledger, 10..12);
    assert!(ledger.settle(10));
    for offset in [i64::MIN, -1, 9, 10, 12, i64::MAX] {
        assert!(!ledger.settle(offset), "{offset}");
    }
    assert_eq!((ledger.position(), ledger.open()), (11, 1));
}

#[test]
fn offsets_that_never_came_are_settled() {
    let mut ledger = restored(10, "");
    admit_all(&mut ledger, [20, 25]);
    assert_eq!((ledger.position(), ledger.metadata().as_str()), (20, "1:20:Ad"));
    assert_eq!(ledger.admit(22), Admission::Settled);
    assert!(ledger.settle(20));
    assert_eq!((ledger.position(), ledger.metadata().as_str()), (25, ""));
}

#[test]
fn a_second_reading_is_not_new() {
    let mut ledger = restored(10, "");
    admit_all(&mut ledger, 10..13);
    ledger.settle(11);
    let again: Vec<_> = (9..14).map(|offset| ledger.admit(offset)).collect();
    assert_eq!(again, {
        use Admission::*;
        [Settled, Open, Settled, Open, New]
    });
}

#[test]
fn a_run_list_is_passed_over_as_reading_reaches_it() {
    let mut ledger = restored(40, "1:40:AcBa");
    assert_eq!((ledger.position(), ledger.metadata().as_str()), (40, "1:40:AcBa"));
    assert_eq!(ledger.admit(40), Admission::New);
    assert_eq!(ledger.metadata(), "1:40:AcBa");
    assert!(ledger.settle(40));
    assert_eq!((ledger.position(), ledger.metadata().as_str()), (44, "1:44:Ba"));
    assert_eq!(ledger.admit(41), Admission::Settled);
    assert_eq!(ledger.admit(45), Admission::New, "44 is gone from the log");
    assert_eq!(ledger.admit(46), Admission::Settled);
    assert!(ledger.settle(45));
    assert_eq!((ledger.position(), ledger.metadata().as_str()), (47, ""));
}

#[test]
fn what_is_settled_elsewhere_counts_read_or_not() {
    let mut ledger = restored(10, "");
    admit_all(&mut ledger, [10, 11]);
    assert!(ledger.settle_elsewhere(11..12), "open here");
    assert!(!ledger.settle_elsewhere(11..12) && !ledger.settle_elsewhere(0..10), "settled before");
    assert!(ledger.settle_elsewhere(15..16) && ledger.settle_elsewhere(13..15));
    assert!(!ledger.settle_elsewhere(14..15));
    assert_eq!(ledger.metadata(), "1:10:AaAc");
    assert!(bound_holds(&ledger));
    assert_eq!(ledger.settled_from(10).iter().cloned().collect::<Vec<_>>(), [11..12, 13..16]);
    assert!(ledger.settle_elsewhere(12..13), "the very next one");
    assert_eq!((ledger.position(), ledger.metadata().as_str()), (10, "1:10:Ae"));
    assert_eq!((ledger.admit(13), ledger.admit(16)), (Admission::Settled, Admission::New));
    assert!(ledger.settle(10) && ledger.settle(16));
    assert_eq!((ledger.position(), ledger.metadata().as_str()), (17, ""));
    assert!(ledger.settled_from(12).iter().eq(std::iter::once(&(12..17))));
    assert!(committed_runs(40, "1:40:AcBa").covers(&(42..43)) && !committed_runs(40, "1:40:AcBa").covers(&(45..46)));
}

#[test]
fn the_ends_of_the_range_of_offsets_do_no_harm() {
    let mut ledger = restored(i64::MIN, "");
    assert_eq!((ledger.position(), ledger.admit(-1)), (0, Admission::Settled));
    admit_all(&mut ledger, [0, i64::MAX - 1, i64::MAX]);
    assert!(!ledger.metadata().is_empty() && bound_holds(&ledger));
    assert!(ledger.settle(0) && ledger.settle(i64::MAX - 1) && ledger.settle(i64::MAX));
    assert_eq!((ledger.position(), ledger.metadata().as_str()), (i64::MAX, ""));
    let (mut ledger, _) = PartitionLedger::restore(i64::MAX, "");
    admit_all(&mut ledger, [i64::MAX]);
    assert_eq!((ledger.position(), ledger.metadata().as_str()), (i64::MAX, ""));
}

#[test]
fn a_million_finished_behind_a_slow_one_are_one_run() {
    let mut ledger = restored(0, "");
    admit_all(&mut ledger, [0]);
    for pair in 0..500_000 {
        let (first, second) = (2 * pair + 1, 2 * pair + 2);
        admit_all(&mut ledger, [first, second]);
        assert!(ledger.settle(second) && ledger.settle(first) && !ledger.is_full(64));
    }
    assert_eq!((ledger.position(), ledger.open.len(), ledger.ahead.is_empty()), (0, 1, true));
    assert_eq!(ledger.metadata(), "1:0:Abdwgn");
}

#[test]
fn the_default_limit_takes_762_lone_open_offsets() {
    let mut ledger = restored(0, "");
    let mut offset = 0;
    while !ledger.is_full(4096) {
        admit_all(&mut ledger, [offset]);
        offset += 1 + 18_278;
    }
    assert_eq!(ledger.open(), 764, "762, one that nothing has come after yet, and the one that reached the mark");
    assert!(ledger.metadata().len() <= 3072);
    let (position, metadata) = (ledger.position(), ledger.metadata());
    let mut again = restored(position, &metadata);
    admit_all(&mut again, (0..763).map(|n| n * 18_279));
    assert!(!ledger.is_full(0));
}

#[test]
fn a_restored_list_over_the_mark_still_lets_its_lone_offsets_in() {
    let runs: Vec<_> = (0..15).map(|n| 100 * n + 1..100 * (n + 1)).collect();
    let metadata = codec::encode(0, runs);
    let limit = metadata.len() + 40; // the bound is then between 75 % and the limit
    let mut ledger = restored(0, &metadata);
    for n in 0..15 {
        assert!(!ledger.is_full(limit), "{n}");
        admit_all(&mut ledger, [100 * n]);
    }
    assert!(ledger.is_full(limit), "the next one is not in the list");
    assert_eq!(ledger.metadata(), metadata);
    (0..15).for_each(|n| assert!(ledger.settle(100 * n)));
    assert!(!ledger.is_full(limit) && !ledger.is_full(1), "nothing open: nothing to wait for");
}

#[test]
fn unusable_metadata_falls_back_to_the_offset() {
    for metadata in ["2:40:AcBa", "1:40:AcBa;c=w", "1:41:AcBa", "{}", "1:40:AcB", "1:40:Azzzzzzzzzzzzzzz"] {
        let (mut ledger, bad) = PartitionLedger::restore(40, metadata);
        assert!(bad.is_some(), "{metadata}");
        assert_eq!((ledger.position(), ledger.metadata().as_str()), (40, ""));
        admit_all(&mut ledger, 40..50);
    }
}

/// Texts that were written once have to be read for ever.
#[test]
fn golden_texts_stay_readable() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/ledger");
    let mut seen = 0;
    for entry in fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let field = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(|value| value.trim_start())
        };
        let offset: i64 = field("offset").unwrap().parse().unwrap();
        let metadata = field("metadata").unwrap();
        let read = codec::decode(offset, metadata);
        if let Some(reason) = field("refused") {
            assert_eq!(read.unwrap_err().to_string(), reason, "{}", path.display());
        } else {
            let shown: Vec<_> = read.unwrap().iter().map(|run| format!("{}-{}", run.start, run.end - 1)).collect();
            assert_eq!(shown.join(" "), field("settled").unwrap(), "{}", path.display());
            assert_eq!(restored(offset, metadata).metadata(), metadata, "{}", path.display());
        }
        seen += 1;
    }
    assert!(seen >= 12, "{seen} files in {}", directory.display());
}

/// What can happen to a partition.
#[derive(Clone, Debug)]
enum Step {
    /// Read the next so many records.
    Read(usize),
    /// One of the open ends.
    Settle(Index),
    /// The lowest open one ends.
    SettleOldest,
    Commit,
    /// Go on from the last commit.
    Crash,
    /// Read again from an earlier record on.
    SeekBack(Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1..6usize).prop_map(Step::Read),
        12 => any::<Index>().prop_map(Step::Settle),
        2 => Just(Step::SettleOldest),
        3 => Just(Step::Commit),
        1 => Just(Step::Crash),
        1 => any::<Index>().prop_map(Step::SeekBack),
    ];
    prop::collection::vec(step, 0..150)
}

/// The offsets of a log, from 0 on: holes are mostly absent, sometimes small, seldom large.
fn log(large: i64) -> impl Strategy<Value = Vec<i64>> {
    let hole = prop_oneof![8 => Just(0..1i64), 2 => Just(1..40i64), 1 => Just(0..large)].prop_flat_map(|holes| holes);
    prop::collection::vec(hole, 300).prop_map(|holes| {
        holes
            .into_iter()
            .scan(0, |end, hole| {
                *end += hole + 1;
                Some(*end - 1)
            })
            .collect()
    })
}

/// The same as a ledger, one offset at a time.
#[derive(Clone, Debug, Default)]
struct Model {
    open: BTreeSet<i64>,
    settled: BTreeSet<i64>,
}

impl Model {
    fn admit(&mut self, offset: i64) -> Admission {
        if self.open.contains(&offset) {
            return Admission::Open;
        }
        // All below it was read, or will never come.
        self.settled.extend((0..offset).rev().take_while(|o| !self.open.contains(o)));
        if self.settled.contains(&offset) {
            return Admission::Settled;
        }
        self.open.insert(offset);
        Admission::New
    }

    fn position(&self) -> i64 {
        (0..).find(|offset| !self.settled.contains(offset)).unwrap()
    }
}

fn check(ledger: &PartitionLedger, model: &Model) {
    let position = ledger.position();
    assert_eq!(position, model.position());
    assert_eq!(ledger.oldest_open(), model.open.first().copied());
    assert_eq!(ledger.open(), model.open.len());
    let metadata = ledger.metadata();
    let beyond: Vec<i64> = codec::decode(position, &metadata).unwrap().into_iter().flatten().collect();
    assert!(beyond.iter().eq(model.settled.range(position..)), "{metadata}");
    assert!(bound_holds(ledger), "{metadata}");
    // A crash right here: what is restored says the same, down to the bound of its length.
    let again = restored(position, &metadata);
    assert_eq!((again.position(), again.metadata()), (position, metadata));
    assert!(again.metadata_bound() <= ledger.metadata_bound());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_model_through_crashes(log in log(60), steps in steps()) {
        let (mut ledger, mut model, mut read) = (restored(0, ""), Model::default(), 0);
        let mut committed = (0, String::new(), Model::default());
        for step in steps {
            let before = ledger.position();
            let mut crashed = false;
            match step {
                Step::Read(count) => {
                    for &offset in log.iter().skip(read).take(count) {
                        prop_assert_eq!(ledger.admit(offset), model.admit(offset));
                        read += 1;
                    }
                }
                Step::Settle(_) | Step::SettleOldest if model.open.is_empty() => {}
                Step::Settle(index) => {
                    let offset = *index.get(&Vec::from_iter(model.open.iter().copied()));
                    model.open.remove(&offset);
                    model.settled.insert(offset);
                    prop_assert!(ledger.settle(offset));
                    prop_assert!(!ledger.settle(offset));
                }
                Step::SettleOldest => {
                    let offset = model.open.pop_first().unwrap();
                    model.settled.insert(offset);
                    prop_assert!(ledger.settle(offset));
                }
                Step::Commit => {
                    let settled_only = Model { open: BTreeSet::new(), settled: model.settled.clone() };
                    committed = (ledger.position(), ledger.metadata(), settled_only);
                }
                Step::Crash => {
                    ledger = restored(committed.0, &committed.1);
                    model = committed.2.clone();
                    read = log.partition_point(|&offset| offset < committed.0);
                    crashed = true;
                }
                Step::SeekBack(index) => read = index.index(read + 1),
            }
            prop_assert!(crashed || ledger.position() >= before);
            check(&ledger, &model);
        }
    }

    #[test]
    fn after_a_crash_exactly_the_unsettled_are_new(
        count in 1..120usize,
        log in log(60),
        done in prop::collection::vec(any::<bool>(), 120),
    ) {
        let mut ledger = restored(0, "");
        admit_all(&mut ledger, log[..count].iter().copied());
        for (&offset, _) in log[..count].iter().zip(&done).filter(|&(_, &done)| done) {
            prop_assert!(ledger.settle(offset));
        }
        let mut again = restored(ledger.position(), &ledger.metadata());
        for (index, &offset) in log.iter().enumerate() {
            let settled = index < count && done[index];
            prop_assert_eq!(again.admit(offset), if settled { Admission::Settled } else { Admission::New });
        }
    }

    #[test]
    fn admitting_only_when_not_full_keeps_the_limit(
        limit in 1..220usize,
        log in log(i64::MAX / 400),
        steps in steps(),
    ) {
        let (mut ledger, mut read) = (restored(0, ""), 0);
        for step in steps {
            match step {
                Step::Read(count) => {
                    for &offset in log.iter().skip(read).take(count) {
                        if ledger.is_full(limit) {
                            prop_assert!(ledger.open() > 0, "nothing could make room");
                            break;
                        }
                        ledger.admit(offset);
                        read += 1;
                        prop_assert!(ledger.metadata_bound() <= limit || ledger.metadata().is_empty());
                    }
                }
                Step::Settle(index) if ledger.open() > 0 => {
                    let bound = ledger.metadata_bound();
                    ledger.settle(*index.get(&Vec::from_iter(ledger.open.iter().copied())));
                    prop_assert!(ledger.metadata_bound() <= bound);
                }
                Step::SettleOldest if ledger.open() > 0 => {
                    ledger.settle(ledger.position());
                }
                Step::Crash => {
                    ledger = restored(ledger.position(), &ledger.metadata());
                    read = log.partition_point(|&offset| offset < ledger.position());
                }
                _ => {}
            }
            prop_assert!(bound_holds(&ledger), "{:?}", ledger);
            let length = ledger.metadata().len();
            prop_assert!(length <= limit, "{} of {}", length, limit);
        }
    }

    #[test]
    fn hostile_metadata_does_no_harm(
        offset in prop_oneof![any::<i64>(), Just(40)],
        text in prop_oneof![any::<String>(), "1:40:([A-Z]{1,15}[a-z]{1,15}){0,5}", "[12]:4?0:([A-Z][a-z]){0,5}[;:]?"],
        change in any::<(Index, char)>(),
        calls in prop::collection::vec((any::<bool>(), prop_oneof![any::<i64>(), 35..60i64]), 0..20),
    ) {
        let mut changed: Vec<char> = text.chars().chain("1:40:AcBaAbHz".chars().skip(text.len())).collect();
        let at = change.0.index(changed.len());
        changed[at] = change.1;
        for metadata in [text, String::from_iter(changed)] {
            let (mut ledger, bad) = PartitionLedger::restore(offset, &metadata);
            prop_assert_eq!(ledger.position(), offset.max(0));
            match bad {
                Some(bad) => prop_assert!(ledger.ahead.is_empty() && bad.to_string().len() < 100),
                None => prop_assert_eq!(ledger.metadata(), metadata),
            }
            for &(admit, offset) in &calls {
                let before = ledger.position();
                if admit {
                    ledger.admit(offset);
                } else {
                    ledger.settle(offset);
                }
                prop_assert!(ledger.position() >= before);
                prop_assert!(bound_holds(&ledger), "{:?}", ledger);
                ledger.is_full(100);
            }
        }
    }
}
