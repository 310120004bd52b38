//! What stands at the offsets that a leader has given us: records, nothing, or what cannot be read. Pure.
//!
//! The answer holds whole batches, so also records that are not ours; and an offset that is ours may have no record: it was
//! a transaction's marker, or compaction has taken it away.

use std::collections::BTreeMap;

use super::session::Part;
use crate::broker::wire::records::{self, Fetched};

/// What stands at an offset.
#[derive(Debug, PartialEq, Eq)]
pub enum Content {
    /// A record.
    Record(Fetched),
    /// Nothing.
    Gap,
    /// More than is read in one go: somebody may have it another time.
    Unread,
    /// A batch that cannot be read, and why.
    Corrupt(String),
}

/// An offset that is ours: how often it was delivered, this time included, and what stands there.
#[derive(Debug, PartialEq, Eq)]
pub struct Given {
    /// Its offset.
    pub offset: i64,
    /// How often it was delivered.
    pub deliveries: u32,
    /// What stands there.
    pub content: Content,
}

/// Sorts out an answer.
pub fn sort_out(part: Part) -> Vec<Given> {
    let Some(from) = part.acquired.iter().map(|run| run.0).min() else { return Vec::new() };
    let batches = records::decode(part.records, from, &[]); // the leader leaves out what was aborted
    let mut records: BTreeMap<i64, Fetched> =
        batches.records.into_iter().map(|record| (record.offset, record)).collect();
    let offsets = part.acquired.iter().flat_map(|&(first, last, count)| (first..=last).map(move |at| (at, count)));
    let given = offsets.map(|(offset, count)| {
        let content = match (records.remove(&offset), &batches.corrupt) {
            (Some(record), _) => Content::Record(record),
            (None, Some(corrupt)) if offset >= corrupt.offset => Content::Corrupt(corrupt.why.clone()),
            (None, _) if offset < batches.next => Content::Gap,
            (None, _) => Content::Unread,
        };
        Given { offset, deliveries: count.max(1).cast_unsigned().into(), content }
    });
    given.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    /// A batch of version 2 with a record of an empty value at each of these offsets.
    fn batch(base: i64, deltas: &[u8], last: u8) -> Vec<u8> {
        let mut body = Vec::new();
        body.extend(0i16.to_be_bytes());
        body.extend(i32::from(last).to_be_bytes());
        body.extend([0; 16]); // time stamps
        body.extend((-1i64).to_be_bytes());
        body.extend((-1i16).to_be_bytes());
        body.extend((-1i32).to_be_bytes());
        body.extend((deltas.len() as i32).to_be_bytes());
        for delta in deltas {
            body.extend([12, 0, 0, 2 * delta, 1, 0, 0]); // length, attributes, time, offset, no key, no value, no headers
        }
        let mut batch = Vec::new();
        batch.extend(base.to_be_bytes());
        batch.extend((body.len() as i32 + 9).to_be_bytes());
        batch.extend((-1i32).to_be_bytes());
        batch.push(2);
        batch.extend(crc32c::crc32c(&body).to_be_bytes());
        batch.extend(body);
        batch
    }

    fn kinds(records: Vec<u8>, acquired: &[(i64, i64, i16)]) -> Vec<(i64, u32, char)> {
        let part = Part { records: Bytes::from(records), acquired: acquired.to_vec(), ..Part::default() };
        let kind = |content: &Content| match content {
            Content::Record(_) => 'r',
            Content::Gap => 'g',
            Content::Unread => 'u',
            Content::Corrupt(_) => 'c',
        };
        sort_out(part).iter().map(|given| (given.offset, given.deliveries, kind(&given.content))).collect()
    }

    #[test]
    fn what_is_ours_is_told_from_what_stands_beside_it() {
        let batch = batch(10, &[0, 1, 3, 4], 5);
        assert_eq!(
            kinds(batch, &[(11, 13, 1), (15, 16, 2)]),
            [(11, 1, 'r'), (12, 1, 'g'), (13, 1, 'r'), (15, 2, 'g'), (16, 2, 'u')]
        );
    }

    #[test]
    fn what_cannot_be_read_is_no_gap() {
        let mut damaged = batch(10, &[0, 1], 1);
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(kinds(damaged, &[(10, 11, 1)]), [(10, 1, 'c'), (11, 1, 'c')]);
        assert_eq!(kinds(Vec::new(), &[]), []);
    }
}
