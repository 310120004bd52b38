//! What no broker should send: lengths, offsets and counts that cannot be, and batches that grow beyond all measure. None
//! of it may be passed over in silence, and none may fill the memory.

use kafka_protocol::records::Compression;
use proptest::prelude::*;

use super::tests::{batch, compressed, message, offsets, plain, read};
use super::*;

/// Puts `value` at `at`, and mends the checksum of the batch, which `bytes` begins with.
fn with(mut bytes: Vec<u8>, at: usize, value: &[u8]) -> Vec<u8> {
    bytes[at..at + value.len()].copy_from_slice(value);
    mended(bytes)
}

fn mended(mut bytes: Vec<u8>) -> Vec<u8> {
    let length = bytes.len() as i32 - PREFIX as i32;
    bytes[8..12].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes
}

fn why(got: &Batches) -> &str {
    &got.corrupt.as_ref().expect("it is told").why
}

// Offset, length and leader epoch of a batch stand outside its checksum.

#[test]
fn a_first_batch_that_claims_more_than_has_come_is_not_taken_for_cut_off() {
    let mut bytes = [plain(0, &["a"]), plain(1, &["b"])].concat();
    bytes[9] ^= 0x40;
    let got = read(bytes, 0);
    assert_eq!((offsets(&got), got.next), (vec![], 0));
    assert!(why(&got).contains("no whole batch"), "{}", why(&got));
}

#[test]
fn an_answer_that_does_not_reach_the_offset_asked_for_is_told() {
    let got = read(plain(0, &["a", "b"]), 7);
    assert_eq!((got.next, got.corrupt.as_ref().map(|corrupt| corrupt.offset)), (7, Some(7)));
}

#[test]
fn a_batch_before_the_offset_asked_for_is_passed_over_only_if_that_offset_follows() {
    let got = read([plain(0, &["a", "b"]), plain(2, &["c"])].concat(), 2);
    assert_eq!((offsets(&got), got.next, got.corrupt), (vec![2], 3, None));
    // The first one is that of offset 5 in truth: its record would be lost.
    let got = read([plain(1, &["a"]), plain(6, &["b"])].concat(), 5);
    assert_eq!((offsets(&got), got.next), (vec![], 5));
    assert!(why(&got).contains("leaves out"), "{}", why(&got));
}

#[test]
fn offsets_that_go_back_are_told() {
    let got = read([plain(0, &["a", "b"]), plain(0, &["c"]), plain(3, &["d"])].concat(), 0);
    assert_eq!((offsets(&got), got.next), (vec![0, 1], 2));
    assert!(why(&got).contains("begins at 0"), "{}", why(&got));
}

// What the checksum covers can be wrong as well: a producer computes it over what it has.

#[test]
fn a_count_that_is_too_small_or_negative_is_told() {
    let got = read(with(plain(0, &["a", "b", "c"]), 57, &2i32.to_be_bytes()), 0);
    assert_eq!((offsets(&got), got.next), (vec![0, 1], 2));
    assert!(why(&got).contains("more than"), "{}", why(&got));
    let got = read(with(plain(0, &["a"]), 57, &(-1i32).to_be_bytes()), 0);
    assert_eq!((got.next, why(&got)), (0, "it claims -1 records"));
}

#[test]
fn a_record_with_something_behind_its_headers_is_told() {
    // length, attributes, time, offset, key "k0", value "a", headers: none
    let record = [&[22u8, 0, 0, 0, 4][..], b"k0", &[2], b"a", &[0, 9, 9]].concat();
    let got = read(mended([&plain(0, &["a"])[..61], &record].concat()), 0);
    assert_eq!((offsets(&got), got.next), (vec![], 0));
    assert!(why(&got).contains("malformed"), "{}", why(&got));
}

#[test]
fn records_with_one_offset_are_told() {
    let mut bytes = plain(0, &["a", "b"]);
    let first = bytes[61] as usize / 2;
    bytes[61 + 1 + first + 3] = 0; // the second one's offset
    let got = read(mended(bytes), 0);
    assert_eq!((offsets(&got), got.next), (vec![0], 1));
    assert!(why(&got).contains("do not grow"), "{}", why(&got));
}

#[test]
fn an_empty_batch_is_passed_whatever_its_codec() {
    // Compaction keeps the head of a producer's last batch.
    for codec in 0..5 {
        let bytes = with(plain(0, &["a"])[..61].to_vec(), 57, &[0; 4]);
        let got = read([with(bytes, 21, &[0, codec]), plain(1, &["b"])].concat(), 0);
        assert_eq!((offsets(&got), got.next, got.corrupt), (vec![1], 2, None), "codec {codec}");
    }
}

#[test]
fn a_compressed_message_with_nothing_in_it_or_with_one_offset_twice_is_told() {
    let got = read(message(5, 1, 1, &compressed(1, b"")), 0);
    assert_eq!(got.next, 0);
    assert!(why(&got).contains("empty"), "{}", why(&got));
    let twice = [message(0, 1, 0, b"a"), message(0, 1, 0, b"b")].concat();
    let got = read(message(5, 1, 1, &compressed(1, &twice)), 0);
    assert_eq!((offsets(&got), got.next), (vec![5], 6));
    assert!(why(&got).contains("do not grow"), "{}", why(&got));
}

/// A batch of `count` records without key and value, compressed.
fn small(base: i64, count: i32) -> Vec<u8> {
    let mut records = Vec::new();
    for offset in 0..count {
        let mut record = vec![0, 0]; // attributes, time
        let mut zigzag = (offset as u32) << 1;
        while zigzag >= 0x80 {
            record.push(zigzag as u8 | 0x80);
            zigzag >>= 7;
        }
        record.extend([zigzag as u8, 1, 1, 0]); // key, value, headers
        records.push(record.len() as u8 * 2);
        records.extend(record);
    }
    let mut bytes = plain(base, &["a"])[..61].to_vec();
    bytes[57..61].copy_from_slice(&count.to_be_bytes());
    bytes[23..27].copy_from_slice(&(count - 1).to_be_bytes());
    bytes[22] = 4;
    bytes.extend(zstd::encode_all(&records[..], 1).unwrap());
    mended(bytes)
}

#[test]
fn more_records_than_fit_in_one_go_come_in_several() {
    let count = 2 * MANY as i32 + 7;
    let bytes = [small(0, count), plain(count.into(), &["a"])].concat();
    let (mut next, mut seen, mut goes) = (0, 0, 0);
    while next <= i64::from(count) {
        let got = read(bytes.clone(), next);
        assert!(got.corrupt.is_none() && got.records.len() <= MANY, "{:?}", got.corrupt);
        assert!(got.records.iter().map(|record| record.offset).eq(next..got.next), "none twice, none left out");
        (next, seen, goes) = (got.next, seen + got.records.len(), goes + 1);
    }
    assert_eq!((seen, goes), (count as usize + 1, 3));
}

#[test]
fn batches_that_grow_when_decompressed_are_not_all_held_at_once() {
    let value = "x".repeat(MUCH / 2 + 1);
    let one = |base| batch(base, &[&value], Compression::Zstd, -1, false, false);
    let bytes = (0..6).flat_map(one).collect::<Vec<u8>>();
    let (mut next, mut goes) = (0, 0);
    while next < 6 {
        let got = read(bytes.clone(), next);
        assert_eq!((got.records.len(), got.corrupt), (2, None));
        (next, goes) = (got.next, goes + 1);
    }
    assert_eq!(goes, 3);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever of an answer is changed: there is progress, or it is told why not; and offsets grow.
    #[test]
    fn nothing_stands_still_in_silence(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        old in any::<bool>(),
        from in 0i64..9,
    ) {
        let mut bytes = match old {
            true => [message(3, 0, 0, b"a"), message(9, 1, 1, &compressed(1, &message(0, 1, 0, b"b")))].concat(),
            false => [plain(0, &["a", "b"]), batch(2, &["c", "d"], Compression::Lz4, 3, true, false), plain(8, &["e", "f"])].concat(),
        };
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let got = decode(bytes.into(), from, &[Aborted { producer_id: 3, first_offset: 2 }]);
        prop_assert!(got.next > from || got.corrupt.is_some());
        prop_assert!(got.records.iter().all(|record| (from..got.next).contains(&record.offset)));
        prop_assert!(got.records.is_sorted_by(|a, b| a.offset < b.offset));
    }

    /// The same, with the checksum made good: the fields of the head and the records are wrong in themselves.
    #[test]
    fn a_sound_checksum_is_no_licence(
        changes in proptest::collection::vec((21usize..200, any::<u8>()), 1..6),
        codec in 0..5usize,
    ) {
        use Compression::*;
        let values = ["a", "bb", "", "dddd"];
        let mut bytes = batch(0, &values, [None, Gzip, Snappy, Lz4, Zstd][codec], -1, false, false);
        for (at, value) in changes {
            let at = if at < bytes.len() { at } else { 21 + at % (bytes.len() - 21) };
            bytes[at] = value;
        }
        let got = read(mended(bytes), 0);
        prop_assert!(got.next > 0 || got.corrupt.is_some());
        prop_assert!(got.records.len() <= values.len());
    }
}
