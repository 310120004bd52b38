//! Batches of every format and codec, whole, cut off, mutated; transactions; what compaction leaves.

use std::io::Write;

use kafka_protocol::records::{Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType};
use proptest::prelude::*;

use super::*;

/// A batch of `values` from `base` on, as `kafka-protocol` writes it.
pub(super) fn batch(
    base: i64,
    values: &[&str],
    compression: Compression,
    producer: i64,
    transactional: bool,
    control: bool,
) -> Vec<u8> {
    let records: Vec<Record> = values
        .iter()
        .enumerate()
        .map(|(index, value)| Record {
            transactional,
            control,
            delete_horizon: false,
            partition_leader_epoch: 0,
            producer_id: producer,
            producer_epoch: 0,
            timestamp_type: TimestampType::Creation,
            offset: base + index as i64,
            sequence: index as i32,
            timestamp: 1000 + index as i64,
            key: Some(Bytes::from(format!("k{index}"))),
            value: Some(Bytes::from(value.to_string())),
            headers: Default::default(),
        })
        .collect();
    let mut bytes = Vec::new();
    RecordBatchEncoder::encode(&mut bytes, &records, &RecordEncodeOptions { version: 2, compression }).unwrap();
    bytes
}

pub(super) fn plain(base: i64, values: &[&str]) -> Vec<u8> {
    batch(base, values, Compression::None, -1, false, false)
}

/// A marker that ends a producer's transaction at `offset`.
fn marker(offset: i64, producer: i64, commit: bool) -> Vec<u8> {
    let mut record = Record {
        transactional: true,
        control: true,
        delete_horizon: false,
        partition_leader_epoch: 0,
        producer_id: producer,
        producer_epoch: 0,
        timestamp_type: TimestampType::Creation,
        offset,
        sequence: -1,
        timestamp: 0,
        key: Some(Bytes::from_static(&[0, 0, 0, 0])),
        value: Some(Bytes::from_static(&[0; 6])),
        headers: Default::default(),
    };
    if commit {
        record.key = Some(Bytes::from_static(&[0, 0, 0, 1]));
    }
    let mut bytes = Vec::new();
    let options = RecordEncodeOptions { version: 2, compression: Compression::None };
    RecordBatchEncoder::encode(&mut bytes, [&record], &options).unwrap();
    bytes
}

pub(super) fn offsets(batches: &Batches) -> Vec<i64> {
    batches.records.iter().map(|record| record.offset).collect()
}

pub(super) fn read(bytes: Vec<u8>, from: i64) -> Batches {
    decode(bytes.into(), from, &[])
}

#[test]
fn every_codec_is_read() {
    use Compression::*;
    let long = "x".repeat(100_000);
    for compression in [None, Gzip, Snappy, Lz4, Zstd] {
        let got = read(batch(7, &["a", "", &long], compression, -1, false, false), 0);
        assert_eq!(got.corrupt, Option::None, "{compression:?}");
        assert_eq!((offsets(&got), got.next), (vec![7, 8, 9], 10), "{compression:?}");
        assert_eq!(got.records[2].value.as_deref(), Some(long.as_bytes()));
        assert_eq!(got.records[1].key.as_deref(), Some(&b"k1"[..]));
        assert_eq!(got.records[1].timestamp_ms, Some(1001));
    }
}

#[test]
fn a_batch_that_begins_before_the_offset_asked_for_is_read_from_there() {
    let got = read([plain(0, &["a", "b", "c"]), plain(3, &["d"])].concat(), 2);
    assert_eq!((offsets(&got), got.next), (vec![2, 3], 4));
}

#[test]
fn what_is_cut_off_at_the_end_is_for_the_next_fetch() {
    let whole = [plain(0, &["a"]), plain(1, &["b", "c"])].concat();
    let first = plain(0, &["a"]).len();
    for length in 0..whole.len() {
        let got = read(whole[..length].to_vec(), 0);
        // The first batch comes whole, however large.
        assert_eq!(got.corrupt.is_some(), (1..first).contains(&length), "{length}");
        assert_eq!(got.next, i64::from(length >= first), "{length}");
    }
    assert_eq!(read(whole, 0).next, 3);
}

#[test]
fn a_corrupt_batch_is_named_and_what_is_before_it_delivered() {
    let mut bytes = [plain(0, &["a"]), plain(1, &["b"])].concat();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let got = read(bytes, 0);
    assert_eq!((offsets(&got), got.next), (vec![0], 1));
    let corrupt = got.corrupt.expect("corrupt");
    assert_eq!(corrupt.offset, 1);
    assert!(corrupt.why.contains("checksum"), "{}", corrupt.why);
}

#[test]
fn an_unknown_format_codec_or_length_is_named() {
    let with = |at: usize, value: &[u8], mend: bool| {
        let mut bytes = plain(0, &["a"]);
        bytes[at..at + value.len()].copy_from_slice(value);
        if mend {
            let crc = crc32c::crc32c(&bytes[21..]);
            bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        }
        read(bytes, 0).corrupt.expect("corrupt").why
    };
    assert!(with(16, &[3], false).contains("format 3"));
    assert!(with(21, &[0, 5], true).contains("codec 5"));
    assert!(with(8, &[0xff; 4], false).contains("length of -1"));
    assert!(with(57, &[0x7f, 0xff, 0xff, 0xff], true).contains("cut off"), "a count that cannot be");
}

#[test]
fn aborted_transactions_and_markers_are_left_out() {
    let bytes = [
        batch(0, &["a", "b"], Compression::None, 1, true, false), // aborted
        batch(2, &["c"], Compression::None, 2, true, false),      // committed
        plain(3, &["d"]),
        marker(4, 1, false),
        batch(5, &["e"], Compression::None, 1, true, false), // the producer's next transaction, committed
        marker(6, 2, true),
        marker(7, 1, true),
    ]
    .concat();
    let got = decode(bytes.clone().into(), 0, &[Aborted { producer_id: 1, first_offset: 0 }]);
    assert_eq!((offsets(&got), got.next, got.corrupt), (vec![2, 3, 5], 8, None));
    let uncommitted = read(bytes, 0);
    assert_eq!((offsets(&uncommitted), uncommitted.next), (vec![0, 1, 2, 3, 5], 8));
}

#[test]
fn what_compaction_took_is_passed_over() {
    // A batch keeps its last offset when its last records are gone.
    let mut bytes = plain(0, &["a"]);
    bytes[23..27].copy_from_slice(&9i32.to_be_bytes());
    let crc = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    let got = read([bytes, plain(20, &["b"])].concat(), 0);
    assert_eq!((offsets(&got), got.next), (vec![0, 20], 21));
}

/// A message of format 0 or 1.
pub(super) fn message(offset: i64, magic: u8, attributes: u8, value: &[u8]) -> Vec<u8> {
    let mut body = vec![magic, attributes];
    if magic == 1 {
        body.extend(5000i64.to_be_bytes());
    }
    body.extend((-1i32).to_be_bytes());
    body.extend((value.len() as i32).to_be_bytes());
    body.extend(value);
    let mut bytes = offset.to_be_bytes().to_vec();
    bytes.extend((body.len() as i32 + 4).to_be_bytes());
    bytes.extend(crc32fast::hash(&body).to_be_bytes());
    bytes.extend(body);
    bytes
}

pub(super) fn compressed(codec: u8, bytes: &[u8]) -> Vec<u8> {
    match codec {
        1 => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        2 => {
            let block = snap::raw::Encoder::new().compress_vec(bytes).unwrap();
            [b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01", &(block.len() as u32).to_be_bytes()[..], &block].concat()
        }
        _ => {
            let mut encoder = lz4::EncoderBuilder::new().build(Vec::new()).unwrap();
            encoder.write_all(bytes).unwrap();
            encoder.finish().0
        }
    }
}

#[test]
fn old_message_sets_are_read() {
    for magic in [0, 1] {
        let plain = [message(3, magic, 0, b"a"), message(5, magic, 0, b"b")].concat();
        let got = read(plain, 4);
        assert_eq!((offsets(&got), got.next, got.corrupt), (vec![5], 6, None));
        assert_eq!(got.records[0].timestamp_ms, (magic == 1).then_some(5000));
        for codec in 1..=3 {
            let first = if magic == 1 { 0 } else { 10 };
            let inner = [message(first, magic, 0, b"a"), message(first + 1, magic, 0, b"b")].concat();
            let mut inner = compressed(codec, &inner);
            if magic == 0 && codec == 3 {
                inner[6] ^= 0x55; // as the clients of that time wrote it
            }
            let got = read(message(11, magic, codec, &inner), 11);
            assert_eq!((offsets(&got), got.next, &got.corrupt), (vec![11], 12, &None), "format {magic}, codec {codec}");
            assert_eq!(got.records[0].value.as_deref(), Some(&b"b"[..]));
        }
    }
    let mut bad = message(0, 1, 0, b"a");
    *bad.last_mut().unwrap() ^= 1;
    assert!(read(bad, 0).corrupt.unwrap().why.contains("checksum"));
}

#[test]
fn a_bomb_is_refused() {
    let zeros = vec![0; 64 << 20];
    let mut bomb = Vec::new();
    for _ in 0..5 {
        bomb.extend(zstd::encode_all(&zeros[..], 1).unwrap());
    }
    assert!(codec::decompress(4, bomb.into()).unwrap_err().contains("larger than 256 MiB"));
    let lie = [0xff, 0xff, 0xff, 0xff, 0x0f, 0];
    assert!(codec::decompress(2, Bytes::copy_from_slice(&lie)).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is changed: no panic, what is before it is delivered, and nothing is delivered that is not what was written.
    #[test]
    fn mutations_are_found(at in any::<prop::sample::Index>(), flip in 1u8.., codec in 0..5usize) {
        use Compression::*;
        let first = plain(0, &["a", "b"]);
        let compression = [None, Gzip, Snappy, Lz4, Zstd][codec];
        let second = batch(2, &["c", "d"], compression, -1, false, false);
        let mut bytes = [first.clone(), second].concat();
        let index = first.len() + at.index(bytes.len() - first.len());
        bytes[index] ^= flip;
        let got = read(bytes, 0);
        prop_assert_eq!(&offsets(&got)[..2], &[0, 1]);
        // The offset, length and leader epoch stand outside the checksum.
        let guarded = index - first.len() >= 17;
        if guarded {
            prop_assert!(got.corrupt.is_some());
            prop_assert_eq!(got.records.len(), 2);
        }
    }

    #[test]
    fn rubbish_does_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(bytes, 0);
    }
}
