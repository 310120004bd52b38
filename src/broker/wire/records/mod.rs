//! Stand-in.
use bytes::{Buf, Bytes};
use kafka_protocol::records::RecordBatchDecoder;
/// x
#[derive(Debug)]
pub struct Aborted {
    /// x
    pub producer_id: i64,
    /// x
    pub first_offset: i64,
}
/// x
#[derive(Debug)]
pub struct Fetched {
    /// x
    pub offset: i64,
    /// x
    pub timestamp_ms: Option<i64>,
    /// x
    pub key: Option<Bytes>,
    /// x
    pub value: Option<Bytes>,
}
/// x
#[derive(Debug)]
pub struct Corrupt {
    /// x
    pub offset: i64,
    /// x
    pub why: String,
}
/// x
#[derive(Debug)]
pub struct Batches {
    /// x
    pub records: Vec<Fetched>,
    /// x
    pub next: i64,
    /// x
    pub corrupt: Option<Corrupt>,
}
/// x
pub fn decode(mut bytes: Bytes, from: i64, _aborted: &[Aborted]) -> Batches {
    let mut out = Batches { records: vec![], next: from, corrupt: None };
    while bytes.has_remaining() {
        let Ok(set) = RecordBatchDecoder::decode(&mut bytes) else { break };
        for r in set.records {
            if r.offset >= from {
                out.next = r.offset + 1;
                out.records.push(Fetched {
                    offset: r.offset,
                    timestamp_ms: Some(r.timestamp),
                    key: r.key,
                    value: r.value,
                });
            }
        }
    }
    out
}
