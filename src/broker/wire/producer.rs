//! The idempotent producer's bookkeeping: which records stand in which batch under which sequence, and what an answer of
//! the broker makes of it. Pure.
//!
//! A batch that was sent stays as it is, byte for byte, until it is answered: sent again, to whichever broker, the log
//! takes it once (KIP-98). One batch of a partition is under way at a time.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::{Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType};

use crate::broker::{At, Outgoing, Target};

/// Records in one batch, at the most.
const BATCH_RECORDS: usize = 500;
/// Bytes of keys, values and headers in all batches that are made at once: a broker takes batches of 1 MiB unless told
/// otherwise.
const BATCH_BYTES: usize = 512 << 10;

/// A partition of one of our topics.
pub type Place = (Target, i32);

/// Who a record is: its command's place and what of it this is.
type Identity = (Target, At);

/// The sequences and batches of one producer id.
#[derive(Debug)]
pub struct Producer {
    id: i64,
    epoch: i16,
    compression: Compression,
    sequences: HashMap<Place, i32>,
    batches: BTreeMap<Place, Batch>,
    /// Places whose next batch is to hold one record, to find the one that is too large.
    single: HashSet<Place>,
}

/// Records of one partition that are sent together.
#[derive(Clone, Debug)]
pub struct Batch {
    records: Vec<Identity>,
    first_sequence: i32,
    /// Sent before, without an answer that says where it is: it may be in the log.
    in_doubt: bool,
    /// As it is sent.
    pub bytes: Bytes,
}

/// What an answer means for a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// In the log.
    Written,
    /// Not in the log, or not known to be: to be sent again as it is.
    Again,
    /// A record in it is too large, or never taken; it was one of several.
    Split,
    /// The one record in it is too large, or never taken.
    TooLarge,
    /// The log has lost track of this producer, or never accepts it: a new one is needed.
    NewProducer,
    /// The partition takes no idempotent producer.
    NotIdempotent,
    /// Refused, and waiting will not mend it.
    Refused,
}

impl Producer {
    /// With the id and epoch that a broker gave; without them, not idempotent.
    pub fn new(id: Option<(i64, i16)>, compression: Compression) -> Producer {
        let (id, epoch) = id.unwrap_or((-1, -1));
        let (sequences, batches, single) = (HashMap::new(), BTreeMap::new(), HashSet::new());
        Producer { id, epoch, compression, sequences, batches, single }
    }

    /// The batches to send now: those that were not answered, and new ones of what is in none yet. `place` says where a
    /// record goes.
    pub fn batches(
        &mut self,
        unsent: &[Outgoing],
        place: impl Fn(&Outgoing) -> Place,
        now_ms: i64,
    ) -> &BTreeMap<Place, Batch> {
        self.batches.values_mut().for_each(|batch| batch.in_doubt = true);
        let taken: HashSet<Identity> = self.batches.values().flat_map(|batch| batch.records.iter().copied()).collect();
        let mut new: BTreeMap<Place, Vec<&Outgoing>> = BTreeMap::new();
        let (mut bytes, mut count) = (0, 0);
        for out in unsent {
            let place = place(out);
            // A record after one that was not answered waits, so that those of a partition keep their order.
            if taken.contains(&identity(out)) || self.batches.contains_key(&place) {
                continue;
            }
            let records = new.entry(place).or_default();
            bytes += size(out);
            count += 1;
            if count > 1 && (bytes > BATCH_BYTES || count > BATCH_RECORDS) {
                break;
            }
            if records.is_empty() || !self.single.contains(&place) {
                records.push(out);
            }
        }
        for (place, records) in new.into_iter().filter(|(_, records)| !records.is_empty()) {
            let batch = self.batch(place, &records, now_ms);
            self.batches.insert(place, batch);
        }
        &self.batches
    }

    fn batch(&mut self, place: Place, records: &[&Outgoing], now_ms: i64) -> Batch {
        let first_sequence = if self.id < 0 { -1 } else { *self.sequences.entry(place).or_default() };
        let encoded: Vec<Record> = records
            .iter()
            .zip(0i32..)
            .map(|(out, index)| Record {
                transactional: false,
                control: false,
                delete_horizon: false,
                partition_leader_epoch: -1,
                producer_id: self.id,
                producer_epoch: self.epoch,
                timestamp_type: TimestampType::Creation,
                // Offsets count within the batch; the codec puts into one batch what has the same distance to its sequence.
                offset: index.into(),
                sequence: first_sequence.wrapping_add(index),
                timestamp: now_ms,
                key: out.key.clone().map(Bytes::from),
                value: out.value.clone().map(Bytes::from),
                headers: out
                    .headers
                    .iter()
                    .map(|(name, value)| (StrBytes::from_static_str(name), Some(Bytes::from(value.clone()))))
                    .collect(),
            })
            .collect();
        let mut bytes = Vec::new();
        let options = RecordEncodeOptions { version: 2, compression: self.compression };
        RecordBatchEncoder::encode(&mut bytes, &encoded, &options).expect("records of this size can be encoded");
        if self.id >= 0 {
            // Sequences go round below zero never: after the largest comes 0.
            let next = (i64::from(first_sequence) + records.len() as i64) & i64::from(i32::MAX);
            self.sequences.insert(place, next as i32);
        }
        let records = records.iter().map(|out| identity(out)).collect();
        Batch { records, first_sequence, in_doubt: false, bytes: bytes.into() }
    }

    /// Which commands' records stand in the batch of a partition that is not answered, in its order.
    pub fn unanswered(&self, place: Place) -> impl Iterator<Item = At> {
        self.batches.get(&place).into_iter().flat_map(|batch| batch.records.iter().map(|(_, at)| *at))
    }

    /// Takes note of the answer to the batch of a partition. What was written is taken out of `unsent`.
    pub fn answered(&mut self, place: Place, error: Option<ResponseError>, unsent: &mut Vec<Outgoing>) -> Verdict {
        let Some(batch) = self.batches.get(&place) else { return Verdict::Again };
        let verdict = verdict(error, batch.records.len() == 1, self.id >= 0);
        match verdict {
            Verdict::Written => {
                let written: HashSet<Identity> = batch.records.iter().copied().collect();
                unsent.retain(|out| !written.contains(&identity(out)));
                self.single.remove(&place);
                self.batches.remove(&place);
            }
            Verdict::Again => {
                if self.id < 0 {
                    self.batches.remove(&place); // nothing hangs on its bytes
                }
            }
            Verdict::Split | Verdict::TooLarge | Verdict::Refused => {
                // It was turned down before it got a place in the log: its sequence is free again. One that was sent before
                // may have its place: were its sequence given to another batch, the log would take that for this one. If it
                // has none, the log will ask for a new producer.
                if self.id >= 0 && !batch.in_doubt {
                    self.sequences.insert(place, batch.first_sequence);
                }
                if verdict == Verdict::Split {
                    self.single.insert(place);
                }
                self.batches.remove(&place);
            }
            // The caller gets a new producer. Whether the old one's unanswered batches are in a log nobody can say any more:
            // they are sent anew, since it is worse to lose a result than to repeat it.
            Verdict::NewProducer | Verdict::NotIdempotent => {}
        }
        verdict
    }
}

/// What the answer to a batch means.
fn verdict(error: Option<ResponseError>, is_single: bool, idempotent: bool) -> Verdict {
    use ResponseError::*;
    match error {
        None | Some(DuplicateSequenceNumber) => Verdict::Written,
        // One record spoils its batch: a compacted topic takes none without a key.
        Some(MessageTooLarge | RecordListTooLarge | InvalidRecord) if is_single => Verdict::TooLarge,
        Some(MessageTooLarge | RecordListTooLarge | InvalidRecord) => Verdict::Split,
        Some(
            OutOfOrderSequenceNumber
            | UnknownProducerId
            | InvalidProducerEpoch
            | InvalidProducerIdMapping
            | ProducerFenced,
        ) => Verdict::NewProducer,
        Some(UnsupportedForMessageFormat) if idempotent => Verdict::NotIdempotent,
        // Some brokers deny idempotence when they check the write (KIP-679 has dropped the right of its own).
        Some(ClusterAuthorizationFailed) if idempotent => Verdict::NotIdempotent,
        Some(TopicAuthorizationFailed | ClusterAuthorizationFailed | InvalidTopicException) => Verdict::Refused,
        Some(_) => Verdict::Again,
    }
}

fn identity(out: &Outgoing) -> Identity {
    (out.target, (out.at.partition, out.at.offset))
}

fn size(out: &Outgoing) -> usize {
    let headers: usize = out.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    out.key.as_ref().map_or(0, Vec::len) + out.value.as_ref().map_or(0, Vec::len) + headers + 64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Position;

    fn outgoing(offset: i64, value: usize) -> Outgoing {
        let at = Position { topic: "t".into(), partition: 0, offset };
        let headers = vec![("h", b"v".to_vec())];
        Outgoing {
            target: Target::Results,
            at,
            key: Some(vec![1]),
            value: Some(vec![b'x'; value]),
            headers,
            unfit: false,
        }
    }

    fn place(out: &Outgoing) -> Place {
        (out.target, (out.at.offset % 2) as i32)
    }

    fn sequences(producer: &mut Producer, unsent: &[Outgoing]) -> Vec<(i32, usize, i32)> {
        let batches = producer.batches(unsent, place, 0);
        batches.iter().map(|((_, partition), batch)| (*partition, batch.records.len(), batch.first_sequence)).collect()
    }

    const ZERO: Place = (Target::Results, 0);
    const ONE: Place = (Target::Results, 1);

    #[test]
    fn an_unanswered_batch_stays_as_it_is_and_holds_up_what_comes_after_it() {
        let mut producer = Producer::new(Some((7, 0)), Compression::None);
        let mut unsent: Vec<Outgoing> = (0..4).map(|n| outgoing(n, 1)).collect();
        assert_eq!(sequences(&mut producer, &unsent), [(0, 2, 0), (1, 2, 0)]);
        let sent = producer.batches[&ZERO].bytes.clone();
        assert_eq!(producer.answered(ONE, None, &mut unsent), Verdict::Written);
        assert_eq!(producer.answered(ZERO, Some(ResponseError::NotLeaderOrFollower), &mut unsent), Verdict::Again);
        unsent.extend([outgoing(4, 1), outgoing(5, 1)]);
        assert_eq!(sequences(&mut producer, &unsent), [(0, 2, 0), (1, 1, 2)]);
        assert_eq!(producer.batches[&ZERO].bytes, sent);
        assert_eq!(
            producer.answered(ZERO, Some(ResponseError::DuplicateSequenceNumber), &mut unsent),
            Verdict::Written
        );
        assert_eq!(unsent.iter().map(|out| out.at.offset).collect::<Vec<_>>(), [4, 5]);
        assert_eq!(sequences(&mut producer, &unsent), [(0, 1, 2), (1, 1, 2)]);
    }

    #[test]
    fn the_record_that_is_too_large_is_found() {
        let mut producer = Producer::new(Some((7, 0)), Compression::None);
        let mut unsent: Vec<Outgoing> = [0, 2, 4].map(|n| outgoing(n, 1)).into();
        let too_large = Some(ResponseError::MessageTooLarge);
        assert_eq!(sequences(&mut producer, &unsent), [(0, 3, 0)]);
        assert_eq!(producer.answered(ZERO, too_large, &mut unsent), Verdict::Split);
        assert_eq!(sequences(&mut producer, &unsent), [(0, 1, 0)]);
        assert_eq!(producer.answered(ZERO, too_large, &mut unsent), Verdict::TooLarge);
        assert_eq!(unsent.len(), 3);
    }

    #[test]
    fn a_sequence_that_may_be_in_the_log_is_not_used_again() {
        for refusal in [ResponseError::MessageTooLarge, ResponseError::TopicAuthorizationFailed] {
            let mut producer = Producer::new(Some((7, 0)), Compression::None);
            let mut unsent: Vec<Outgoing> = [0, 2].map(|n| outgoing(n, 1)).into();
            assert_eq!(sequences(&mut producer, &unsent), [(0, 2, 0)]);
            // No answer comes; sent again, it is refused, as the topic has got another limit or other rights meanwhile.
            assert_eq!(sequences(&mut producer, &unsent), [(0, 2, 0)]);
            producer.answered(ZERO, Some(refusal), &mut unsent);
            assert_eq!(producer.batches(&unsent, place, 0)[&ZERO].first_sequence, 2);
        }
    }

    #[test]
    fn batches_are_bounded_and_a_large_record_goes_alone() {
        let mut producer = Producer::new(Some((7, 0)), Compression::None);
        let large: Vec<Outgoing> = [0, 2, 4].map(|n| outgoing(n, BATCH_BYTES)).into();
        assert_eq!(sequences(&mut producer, &large), [(0, 1, 0)]);
        let mut producer = Producer::new(Some((7, 0)), Compression::None);
        let many: Vec<Outgoing> = (0..2000).map(|n| outgoing(2 * n, 1)).collect();
        assert_eq!(sequences(&mut producer, &many), [(0, BATCH_RECORDS, 0)]);
    }

    #[test]
    fn sequences_go_round() {
        let mut producer = Producer::new(Some((7, 0)), Compression::None);
        producer.sequences.insert(ZERO, i32::MAX);
        let mut unsent: Vec<Outgoing> = [0, 2].map(|n| outgoing(n, 1)).into();
        assert_eq!(sequences(&mut producer, &unsent), [(0, 2, i32::MAX)]);
        producer.answered(ZERO, None, &mut unsent);
        assert_eq!(producer.sequences[&ZERO], 1);
    }
}
