//! Bytes of a response on their way into the codec, with the lengths in them checked.
//!
//! `kafka-protocol` 0.18 reserves memory for an array by the length it claims, before it reads an element: four bytes
//! could ask for 200 GB, and a failed allocation ends the process. This buffer refuses such lengths. It cannot know which
//! number is a length. In the flexible versions of a message lengths are varints, of which nothing else is large: none may be
//! more than what is left. In the older versions they are 32-bit numbers: none may be above `LARGEST`, unless it fits into
//! what is left. What is reserved in vain then is address space of which nothing is touched.

use std::ops::Range;

use bytes::{Buf, Bytes, TryGetError};
use kafka_protocol::protocol::buf::ByteBuf;

/// Larger than any 32-bit number beside lengths that a response in an old version holds: ports, node ids, epochs,
/// generations and throttle times in milliseconds.
const LARGEST: i32 = 16 << 20;

/// A response that is being decoded.
#[derive(Debug)]
pub struct Guarded {
    bytes: Bytes,
    flexible: bool,
    /// The last single bytes in a row that say there are more to come, up to four; one varint has at most five bytes.
    high: Vec<u8>,
}

impl Guarded {
    /// Guards the bytes of a message in a `flexible` version or an old one.
    pub fn new(bytes: Bytes, flexible: bool) -> Guarded {
        Guarded { bytes, flexible, high: Vec::with_capacity(4) }
    }

    fn refused(&self, claimed: usize) -> TryGetError {
        TryGetError { requested: claimed, available: self.bytes.len() }
    }
}

impl Buf for Guarded {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.high.clear();
        self.bytes.advance(count);
    }

    fn try_get_u8(&mut self) -> Result<u8, TryGetError> {
        let byte = self.bytes.try_get_u8()?;
        // Where the varint began is not known - a boolean may stand before it - so each possible one is looked at.
        for start in 0..self.high.len() {
            let varint = self.high[start..].iter().chain([&byte]).zip((0..).step_by(7));
            let value = varint.fold(0u64, |value, (byte, shift)| value | u64::from(byte & 0x7f) << shift);
            let is_whole = byte < 0x80 || self.high.len() - start == 4;
            if is_whole && value > self.bytes.len() as u64 + 1 {
                return Err(self.refused(usize::try_from(value).unwrap_or(usize::MAX)));
            }
        }
        if byte < 0x80 {
            self.high.clear();
        } else {
            if self.high.len() == 4 {
                self.high.remove(0);
            }
            self.high.push(byte);
        }
        Ok(byte)
    }

    fn try_get_i32(&mut self) -> Result<i32, TryGetError> {
        self.high.clear();
        let value = self.bytes.try_get_i32()?;
        if !self.flexible && value > LARGEST && value as usize > self.bytes.len() {
            return Err(self.refused(value as usize));
        }
        Ok(value)
    }
}

impl ByteBuf for Guarded {
    fn peek_bytes(&mut self, range: Range<usize>) -> Bytes {
        self.bytes.slice(range)
    }

    fn get_bytes(&mut self, size: usize) -> Bytes {
        self.high.clear();
        self.bytes.split_to(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_protocol::messages::*;
    use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Message};
    use proptest::prelude::*;

    fn is_flexible<M: HeaderVersion>(version: i16) -> bool {
        M::header_version(version) > 0
    }

    #[test]
    fn a_length_that_cannot_be_is_refused_without_reserving() {
        // throttle time, then 2^31 - 1 brokers
        let plain = Bytes::from_static(b"\0\0\0\0\x7f\xff\xff\xff");
        assert!(MetadataResponse::decode(&mut Guarded::new(plain, false), 4).is_err());
        // error code, then a compact array of 2^32 - 2 API keys
        let compact = Bytes::from_static(b"\0\0\xff\xff\xff\xff\x0f\0\0");
        assert!(ApiVersionsResponse::decode(&mut Guarded::new(compact, true), 3).is_err());
    }

    #[test]
    fn what_is_sound_passes() {
        let response = MetadataResponse::default().with_controller_id(2.into());
        for version in 1..=12 {
            let mut bytes = Vec::new();
            response.encode(&mut bytes, version).unwrap();
            let flexible = is_flexible::<MetadataResponse>(version);
            let decoded = MetadataResponse::decode(&mut Guarded::new(bytes.into(), flexible), version).unwrap();
            assert_eq!(decoded.controller_id, response.controller_id);
        }
        let response = JoinGroupResponse::default().with_generation_id(i32::MAX);
        let mut bytes = Vec::new();
        response.encode(&mut bytes, 9).unwrap();
        assert_eq!(JoinGroupResponse::decode(&mut Guarded::new(bytes.into(), true), 9).unwrap(), response);
    }

    /// Decodes bytes as every version of a response that we might ask for.
    fn decode_all<M: Message + Decodable + HeaderVersion>(bytes: &Bytes) {
        for version in M::VERSIONS.min..=M::VERSIONS.max {
            let _ = M::decode(&mut Guarded::new(bytes.clone(), is_flexible::<M>(version)), version);
        }
    }

    fn decode_as_everything(bytes: &Bytes) {
        decode_all::<ApiVersionsResponse>(bytes);
        decode_all::<MetadataResponse>(bytes);
        decode_all::<FindCoordinatorResponse>(bytes);
        decode_all::<JoinGroupResponse>(bytes);
        decode_all::<SyncGroupResponse>(bytes);
        decode_all::<HeartbeatResponse>(bytes);
        decode_all::<LeaveGroupResponse>(bytes);
        decode_all::<OffsetCommitResponse>(bytes);
        decode_all::<OffsetFetchResponse>(bytes);
        decode_all::<ListOffsetsResponse>(bytes);
        decode_all::<FetchResponse>(bytes);
        decode_all::<ProduceResponse>(bytes);
        decode_all::<InitProducerIdResponse>(bytes);
        decode_all::<SaslHandshakeResponse>(bytes);
        decode_all::<SaslAuthenticateResponse>(bytes);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_response_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            decode_as_everything(&bytes.into());
        }

        /// Near the truth the decoders get further: a sound response with some bytes changed, large numbers among them.
        #[test]
        fn no_spoilt_response_makes_it_panic(
            version in 0..13i16,
            changes in proptest::collection::vec((any::<prop::sample::Index>(), prop::sample::select(vec![0u8, 1, 0x7f, 0x80, 0xff])), 1..6),
        ) {
            let topic = metadata_response::MetadataResponseTopic::default()
                .with_name(Some(TopicName("t".to_string().into())))
                .with_partitions(vec![metadata_response::MetadataResponsePartition::default(); 3]);
            let metadata = MetadataResponse::default().with_topics(vec![topic; 2]);
            let fetched = fetch_response::PartitionData::default().with_records(Some(Bytes::from_static(&[0; 40])));
            let fetched = fetch_response::FetchableTopicResponse::default().with_partitions(vec![fetched; 2]);
            let fetched = FetchResponse::default().with_responses(vec![fetched]);
            for encoded in [encode(&metadata, version), encode(&fetched, version.max(4))] {
                let mut encoded = encoded;
                for (index, byte) in &changes {
                    if !encoded.is_empty() {
                        let at = index.index(encoded.len());
                        encoded[at] = *byte;
                    }
                }
                decode_as_everything(&encoded.into());
            }
        }
    }

    fn encode(message: &impl Encodable, version: i16) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = message.encode(&mut bytes, version); // some versions lack a field: what came so far does as well
        bytes
    }
}
