//! A share session with one leader: ShareFetch and ShareAcknowledge, one at a time, over one connection.
//!
//! The session is the connection's: when that closes, the leader closes the session and gives the records that are locked
//! to others. Each request carries the session's next epoch, so there is never a second one under way.
//!
//! Version 2 (KIP-1206, KIP-1222) is what brokers from 4.2 on serve and what is used here; `kafka-protocol` 0.18 knows
//! version 1. It differs by two fields in ShareFetch and one in each ShareAcknowledge message, which are put in, and taken
//! out, here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::share_acknowledge_request::{
    AcknowledgePartition, AcknowledgeTopic, AcknowledgementBatch as AcknowledgeBatch,
};
use kafka_protocol::messages::share_fetch_request::{
    AcknowledgementBatch as FetchBatch, FetchPartition, FetchTopic, ForgottenTopic,
};
use kafka_protocol::messages::{
    GroupId, ShareAcknowledgeRequest, ShareAcknowledgeResponse, ShareFetchRequest, ShareFetchResponse,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};
use uuid::Uuid;

use super::locks::{Answer, Answers};
use crate::broker::wire::conn::{Connection, api_name, varint, wait_readable};
use crate::broker::wire::guard::Guarded;
use crate::broker::wire::millis;
use crate::error::Result;

/// The version that is spoken, and the one the codec knows.
pub const VERSION: i16 = 2;
const CODEC_VERSION: i16 = 1;
/// Acquire mode record_limit: exactly as many records as were asked for, not whole batches.
const RECORD_LIMIT: i8 = 1;
/// The epoch that closes a session.
const FINAL_EPOCH: i32 = -1;
/// Longer than any deadline for it.
const PATIENCE_TO_CLOSE: Duration = Duration::from_secs(3600);

/// Who asks, and for what topic.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The group's name.
    pub group: String,
    /// Our member id, a UUID in base64, as the leader wants it.
    pub member: String,
    /// The topic's id.
    pub topic: Uuid,
}

/// What a fetch may bring.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Records.
    pub records: usize,
    /// How long the leader may wait for the first of them.
    pub wait: Duration,
    /// Bytes; one record comes whole, however large.
    pub bytes: i32,
}

/// An open session, or one that its first fetch will open.
pub struct Session {
    conn: Connection,
    epoch: i32,
    /// The partitions that the leader fetches from.
    included: BTreeSet<i32>,
    asked: Option<Asked>,
}

/// The request that is under way.
struct Asked {
    /// What was acknowledged with it.
    answers: Answers,
    /// How many records were asked for; 0: none.
    records: usize,
    since: Instant,
    /// How long the leader may wait before it answers.
    wait: Duration,
}

/// What a leader has answered.
pub struct Reply {
    /// The request's own error.
    pub error: Option<ResponseError>,
    /// What was acknowledged with it.
    pub answers: Answers,
    /// How many records were asked for; 0: none.
    pub asked_for: usize,
    /// When the request was sent.
    pub sent: Instant,
    /// How long locks last.
    pub lock_time: Option<Duration>,
    /// By partition.
    pub partitions: BTreeMap<i32, Part>,
}

/// What a leader has answered of one partition.
#[derive(Debug, Default)]
pub struct Part {
    /// Why nothing could be fetched.
    pub fetch_error: Option<ResponseError>,
    /// Why nothing of what was acknowledged counts.
    pub answer_error: Option<ResponseError>,
    /// Batches that hold the acquired records, and others.
    pub records: Bytes,
    /// First and last offset of what is ours now, and how often it was delivered.
    pub acquired: Vec<(i64, i64, i16)>,
}

impl Session {
    /// A session over a new connection; the first fetch opens it.
    pub fn new(conn: Connection) -> Session {
        Session { conn, epoch: 0, included: BTreeSet::new(), asked: None }
    }

    /// Its connection.
    pub fn conn(&self) -> &Connection {
        &self.conn
    }

    /// Its connection, for authenticating anew; `None` while an answer is awaited.
    pub fn idle_conn(&mut self) -> Option<&mut Connection> {
        self.asked.is_none().then_some(&mut self.conn)
    }

    /// Whether an answer is awaited.
    pub fn is_busy(&self) -> bool {
        self.asked.is_some()
    }

    /// How many records the request under way asks for.
    pub fn asked_for(&self) -> usize {
        self.asked.as_ref().map_or(0, |asked| asked.records)
    }

    /// Whether the leader knows of it.
    pub fn is_open(&self) -> bool {
        self.epoch != 0
    }

    /// Fetches from `partitions`, acknowledging `answers` with it.
    pub fn fetch(
        &mut self,
        who: &Identity,
        partitions: &BTreeSet<i32>,
        limits: Limits,
        answers: Answers,
        deadline: Instant,
    ) -> Result<()> {
        let new = partitions.difference(&self.included).copied();
        let named: BTreeSet<i32> = new.chain(answers.keys().copied()).collect();
        let parts = named.iter().map(|&partition| {
            let batches = answers.get(&partition).into_iter().flat_map(batches);
            FetchPartition::default().with_partition_index(partition).with_acknowledgement_batches(
                batches
                    .map(|(first, last, kinds)| {
                        FetchBatch::default()
                            .with_first_offset(first)
                            .with_last_offset(last)
                            .with_acknowledge_types(kinds)
                    })
                    .collect(),
            )
        });
        let topic = FetchTopic::default().with_topic_id(who.topic).with_partitions(parts.collect());
        let gone: Vec<i32> = self.included.difference(partitions).copied().collect();
        let gone = ForgottenTopic::default().with_topic_id(who.topic).with_partitions(gone);
        let records = i32::try_from(limits.records).unwrap_or(i32::MAX);
        let request = ShareFetchRequest::default()
            .with_group_id(Some(GroupId(StrBytes::from_string(who.group.clone()))))
            .with_member_id(Some(StrBytes::from_string(who.member.clone())))
            .with_share_session_epoch(self.epoch)
            .with_max_wait_ms(millis(limits.wait))
            .with_min_bytes(1)
            .with_max_bytes(limits.bytes)
            .with_max_records(records)
            .with_batch_size(records);
        let bare = encoded(&self.conn, &request)?;
        let request = request
            .with_topics(if topic.partitions.is_empty() { vec![] } else { vec![topic] })
            .with_forgotten_topics_data(if gone.partitions.is_empty() { vec![] } else { vec![gone] });
        // Without topics three bytes follow the place of the new fields: two empty arrays and no tags.
        let body = with_inserted(&encoded(&self.conn, &request)?, bare.len() - 3, &[RECORD_LIMIT.cast_unsigned(), 0]);
        self.send::<ShareFetchRequest>(&body, deadline, answers, limits.records, limits.wait)?;
        self.included.clone_from(partitions);
        Ok(())
    }

    /// Acknowledges, and fetches nothing. `close`: as the last request of the session.
    pub fn acknowledge(&mut self, who: &Identity, answers: Answers, close: bool, deadline: Instant) -> Result<()> {
        let parts = answers.iter().map(|(&partition, of_partition)| {
            let batches = batches(of_partition).map(|(first, last, kinds)| {
                AcknowledgeBatch::default()
                    .with_first_offset(first)
                    .with_last_offset(last)
                    .with_acknowledge_types(kinds)
            });
            AcknowledgePartition::default()
                .with_partition_index(partition)
                .with_acknowledgement_batches(batches.collect())
        });
        let topic = AcknowledgeTopic::default().with_topic_id(who.topic).with_partitions(parts.collect());
        let request = ShareAcknowledgeRequest::default()
            .with_group_id(Some(GroupId(StrBytes::from_string(who.group.clone()))))
            .with_member_id(Some(StrBytes::from_string(who.member.clone())))
            .with_share_session_epoch(if close { FINAL_EPOCH } else { self.epoch });
        let bare = encoded(&self.conn, &request)?;
        let request = request.with_topics(if topic.partitions.is_empty() { vec![] } else { vec![topic] });
        let renews = answers.values().flatten().any(|(_, answer)| *answer == Answer::Renew);
        let body = with_inserted(&encoded(&self.conn, &request)?, bare.len() - 2, &[renews.into()]);
        self.send::<ShareAcknowledgeRequest>(&body, deadline, answers, 0, Duration::ZERO)
    }

    /// Closes the session, so that others get what is locked in it at once. Waits for the answer.
    pub fn close(&mut self, who: &Identity, deadline: Instant) -> Result<()> {
        self.acknowledge(who, Answers::new(), true, deadline)?;
        while Instant::now() < deadline && self.receive(PATIENCE_TO_CLOSE)?.is_none() {
            wait_readable(&[&self.conn], deadline);
        }
        Ok(())
    }

    fn send<R: Request>(
        &mut self,
        body: &[u8],
        deadline: Instant,
        answers: Answers,
        records: usize,
        wait: Duration,
    ) -> Result<()> {
        let (request, response) = (R::header_version(CODEC_VERSION), R::Response::header_version(CODEC_VERSION));
        self.conn.send_raw(R::KEY, VERSION, request, response, body, deadline)?;
        self.epoch = if self.epoch == i32::MAX { 1 } else { self.epoch + 1 };
        self.asked = Some(Asked { answers, records, since: Instant::now(), wait });
        Ok(())
    }

    /// The answer, if it is there. An error: none within `patience`, or the connection is lost; that is noticed also while
    /// nothing is awaited.
    pub fn receive(&mut self, patience: Duration) -> Result<Option<Reply>> {
        let Some(asked) = &self.asked else { return self.conn.receive_raw().map(|_| None) };
        let Some(((api, _), body)) = self.conn.receive_raw()? else {
            let silent = asked.since.max(self.conn.heard()).elapsed();
            if silent > asked.wait + patience {
                return Err(self.conn.failed(format!("no answer from the share session within {silent:?}")));
            }
            return Ok(None);
        };
        let mut reply = match api {
            key if key == ShareFetchRequest::KEY => self.fetched(body)?,
            key if key == ShareAcknowledgeRequest::KEY => self.acknowledged(body)?,
            other => return Err(self.conn.failed(format!("an answer to {} nobody asked for", api_name(other)))),
        };
        if let Some(asked) = self.asked.take() {
            (reply.answers, reply.asked_for, reply.sent) = (asked.answers, asked.records, asked.since);
        }
        Ok(Some(reply))
    }

    fn fetched(&self, body: Bytes) -> Result<Reply> {
        let response: ShareFetchResponse = self.decoded("ShareFetch", body)?;
        let parts = response.responses.into_iter().flat_map(|topic| topic.partitions).map(|part| {
            let acquired = part.acquired_records.iter();
            let acquired = acquired.map(|run| (run.first_offset, run.last_offset, run.delivery_count));
            let read = Part {
                fetch_error: ResponseError::try_from_code(part.error_code),
                answer_error: ResponseError::try_from_code(part.acknowledge_error_code),
                acquired: acquired.collect(),
                records: part.records.unwrap_or_default(),
            };
            (part.partition_index, read)
        });
        Ok(reply(response.error_code, response.acquisition_lock_timeout_ms, parts.collect()))
    }

    fn acknowledged(&self, mut body: Bytes) -> Result<Reply> {
        let (at, lock_time) = lock_time_of_acknowledge(&body)
            .ok_or_else(|| self.conn.failed("ShareAcknowledge: its answer is cut off".into()))?;
        let rest = body.split_off(at + 4);
        body.truncate(at);
        let response: ShareAcknowledgeResponse =
            self.decoded("ShareAcknowledge", [&body[..], &rest[..]].concat().into())?;
        let parts = response.responses.into_iter().flat_map(|topic| topic.partitions).map(|part| {
            let answer_error = ResponseError::try_from_code(part.error_code);
            (part.partition_index, Part { answer_error, ..Part::default() })
        });
        Ok(reply(response.error_code, lock_time, parts.collect()))
    }

    fn decoded<D: Decodable>(&self, what: &str, body: Bytes) -> Result<D> {
        D::decode(&mut Guarded::new(body, true), CODEC_VERSION)
            .map_err(|e| self.conn.failed(format!("{what}: its answer cannot be decoded: {e}")))
    }
}

fn reply(code: i16, lock_ms: i32, partitions: BTreeMap<i32, Part>) -> Reply {
    let lock_time = u64::try_from(lock_ms).ok().filter(|&ms| ms > 0).map(Duration::from_millis);
    let (answers, asked_for, sent) = (Answers::new(), 0, Instant::now());
    Reply { error: ResponseError::try_from_code(code), answers, asked_for, sent, lock_time, partitions }
}

fn encoded(conn: &Connection, request: &impl Encodable) -> Result<BytesMut> {
    let mut body = BytesMut::new();
    request.encode(&mut body, CODEC_VERSION).map_err(|e| conn.failed(format!("a request cannot be encoded: {e}")))?;
    Ok(body)
}

fn with_inserted(body: &[u8], at: usize, inserted: &[u8]) -> BytesMut {
    let mut whole = BytesMut::with_capacity(body.len() + inserted.len());
    whole.put_slice(&body[..at]);
    whole.put_slice(inserted);
    whole.put_slice(&body[at..]);
    whole
}

/// Where the acquisition lock timeout stands in an answer to ShareAcknowledge version 2, and what it is.
fn lock_time_of_acknowledge(body: &Bytes) -> Option<(usize, i32)> {
    let mut rest = body.clone();
    rest.try_get_i32().ok()?; // throttle time
    rest.try_get_i16().ok()?; // error code
    let length = usize::try_from(varint(&mut rest)?.saturating_sub(1)).ok()?; // error message
    rest = (length <= rest.len()).then(|| rest.split_off(length))?;
    let at = body.len() - rest.len();
    Some((at, rest.try_get_i32().ok()?))
}

/// Runs of offsets that follow each other, with the answer to each.
fn batches(answers: &BTreeMap<i64, Answer>) -> impl Iterator<Item = (i64, i64, Vec<i8>)> {
    let mut runs: Vec<(i64, i64, Vec<i8>)> = Vec::new();
    for (&offset, &answer) in answers {
        match runs.last_mut() {
            Some((_, last, kinds)) if *last + 1 == offset => {
                *last = offset;
                kinds.push(answer as i8);
            }
            _ => runs.push((offset, offset, vec![answer as i8])),
        }
    }
    runs.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_to_neighbours_go_as_one_batch() {
        let answers = [(3, Answer::Accept), (4, Answer::Release), (7, Answer::Renew)].into();
        let runs: Vec<_> = batches(&answers).collect();
        assert_eq!(runs, [(3, 4, vec![1, 2]), (7, 7, vec![4])]);
    }

    #[test]
    fn the_lock_time_is_found_behind_a_message_of_any_length() {
        for message in [None, Some(""), Some("no"), Some(&"x".repeat(300)[..])] {
            let mut body = BytesMut::new();
            body.put_i32(0);
            body.put_i16(121);
            let response =
                ShareAcknowledgeResponse::default().with_error_message(message.map(|m| StrBytes::from(m.to_string())));
            let mut plain = BytesMut::new();
            response.encode(&mut plain, CODEC_VERSION).unwrap();
            let at = plain.len() - 3; // responses, endpoints, tags
            let body = with_inserted(&plain, at, &15_000i32.to_be_bytes()).freeze();
            assert_eq!(lock_time_of_acknowledge(&body), Some((at, 15_000)));
            assert_eq!(lock_time_of_acknowledge(&body.slice(..at + 3)), None, "cut off");
        }
    }
}
