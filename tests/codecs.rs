//! Reads what real brokers and the Java producer have written, in every message format and codec, with transactions: bytes
//! of their logs, which are those of a Fetch answer. `fixtures/batches/capture.sh` makes them.

use std::fs;
use std::path::Path;

use airkafka_worker::broker::wire::records::{Aborted, Batches, decode};

/// Message format and codecs of the files.
const FORMATS: [(&str, &[&str]); 3] = [
    ("v0", &["none", "gzip", "snappy", "lz4"]),
    ("v1", &["none", "gzip", "snappy", "lz4"]),
    ("v2", &["none", "gzip", "snappy", "lz4", "zstd"]),
];

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/batches").join(name);
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn logs() -> impl Iterator<Item = (&'static str, String)> {
    FORMATS
        .into_iter()
        .flat_map(|(format, codecs)| codecs.iter().map(move |codec| (format, format!("{format}-{codec}.log"))))
}

fn read(bytes: &[u8], from: i64) -> Batches {
    decode(bytes.to_vec().into(), from, &[])
}

#[test]
fn every_format_and_codec_is_read() {
    for (format, name) in logs() {
        let bytes = fixture(&name);
        for from in 0..3 {
            let got = read(&bytes, from);
            assert_eq!((got.next, &got.corrupt), (3, &None), "{name}");
            assert_eq!(got.records.len() as i64, 3 - from, "{name}");
            for (record, offset) in got.records.iter().zip(from..) {
                let number = offset + 1;
                let value = format!("[\"echo\",\"{} {number}\"]", "x".repeat(200));
                assert_eq!(record.offset, offset, "{name}");
                assert_eq!(record.key.as_deref(), Some(format!("key-{number}").as_bytes()), "{name}");
                assert_eq!(record.value.as_deref(), Some(value.as_bytes()), "{name}");
                // When they were captured, or later; format 0 has no time.
                let is_timed = record.timestamp_ms.is_some_and(|time| time > 1_700_000_000_000);
                assert_eq!(is_timed, format != "v0", "{name}");
            }
        }
    }
}

#[test]
fn every_flipped_bit_is_told() {
    for (format, name) in logs() {
        let bytes = fixture(&name);
        let whole = read(&bytes, 0).records;
        // Where batches or messages begin: their offset and length, and a batch's leader epoch, are outside the checksum.
        let outside = if format == "v2" { 16 } else { 12 };
        let mut starts = vec![0];
        while let Some(length) = bytes.get(starts[starts.len() - 1] + 8..).and_then(|rest| rest.first_chunk::<4>()) {
            starts.push(starts[starts.len() - 1] + 12 + u32::from_be_bytes(*length) as usize);
        }
        for at in 0..bytes.len() {
            let start = *starts.iter().rfind(|&&start| start <= at).unwrap();
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                let got = read(&flipped, 0);
                assert!(got.next > 0 || got.corrupt.is_some(), "{name}: byte {at}, bit {bit}");
                if at - start >= outside {
                    assert!(got.corrupt.is_some(), "{name}: byte {at}, bit {bit}");
                    assert!(whole.starts_with(&got.records), "{name}: byte {at}, bit {bit}");
                }
            }
        }
    }
}

#[test]
fn what_is_committed_is_what_kafkas_own_consumer_reads() {
    let log = fixture("transactions.log");
    // The broker's index: version, producer, first and last offset, last stable offset.
    let number = |bytes: &[u8]| i64::from_be_bytes(bytes.try_into().unwrap());
    let index = fixture("transactions.txnindex");
    let aborted: Vec<Aborted> = index
        .chunks_exact(34)
        .map(|entry| Aborted { producer_id: number(&entry[2..10]), first_offset: number(&entry[10..18]) })
        .collect();
    let committed = String::from_utf8(fixture("transactions.committed")).unwrap();
    let text = |bytes: &Option<bytes::Bytes>| String::from_utf8(bytes.as_deref().unwrap().to_vec()).unwrap();
    let lines = |got: &Batches| -> Vec<String> {
        got.records
            .iter()
            .map(|record| format!("{}\t{}\t{}", record.offset, text(&record.key), text(&record.value)))
            .collect()
    };
    let got = decode(log.clone().into(), 0, &aborted);
    assert_eq!(lines(&got), committed.lines().collect::<Vec<_>>());
    assert_eq!(got.corrupt, None);
    let all = read(&log, 0);
    assert!(aborted.len() >= 2 && all.records.len() > got.records.len(), "some were aborted");
    assert_eq!(got.next, all.next, "markers and aborted records are passed over");
}
