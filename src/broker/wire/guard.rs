//! Bytes of a response on their way into the codec, with the lengths in them checked.
//!
//! `kafka-protocol` 0.18 reserves memory for an array by the length it claims, before it reads an element: four bytes
//! could ask for 200 GB, and a failed allocation ends the process. This buffer refuses such lengths. It cannot know which
//! number is a length, so the rule is coarse: a varint is a length (or a small tag), hence never more than what is left;
//! a 32-bit number above `LARGEST` is refused unless it fits into what is left. What is reserved in vain then stays
//! within some hundred MB of address space, of which nothing is touched.

use std::ops::Range;

use bytes::{Buf, Bytes, TryGetError};
use kafka_protocol::protocol::buf::ByteBuf;

/// Larger than any 32-bit number that a response we ask for holds beside lengths: ports, node ids, epochs, generations
/// and throttle times in milliseconds.
const LARGEST: i32 = 4 << 20;

/// A response that is being decoded.
#[derive(Debug)]
pub struct Guarded {
    bytes: Bytes,
    /// The varint that the last single bytes may belong to: its value so far, and how many bits that are.
    varint: (u64, u32),
}

impl Guarded {
    /// Guards `bytes`.
    pub fn new(bytes: Bytes) -> Guarded {
        Guarded { bytes, varint: (0, 0) }
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
        self.varint = (0, 0);
        self.bytes.advance(count);
    }

    fn try_get_u8(&mut self) -> Result<u8, TryGetError> {
        let byte = self.bytes.try_get_u8()?;
        let (value, bits) = self.varint;
        let value = value | u64::from(byte & 0x7f) << bits;
        if byte < 0x80 {
            self.varint = (0, 0);
            // A lone byte may be a boolean or a small number; as a length it is checked by what is read next.
            if bits > 0 && value > self.bytes.len() as u64 + 1 {
                return Err(self.refused(value as usize));
            }
        } else {
            self.varint = if bits < 28 { (value, bits + 7) } else { (0, 0) };
        }
        Ok(byte)
    }

    fn try_get_i32(&mut self) -> Result<i32, TryGetError> {
        self.varint = (0, 0);
        let value = self.bytes.try_get_i32()?;
        if value > LARGEST && value as usize > self.bytes.len() {
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
        self.varint = (0, 0);
        self.bytes.split_to(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_protocol::messages::{ApiVersionsResponse, MetadataResponse};
    use kafka_protocol::protocol::{Decodable, Encodable};

    #[test]
    fn a_length_that_cannot_be_is_refused_without_reserving() {
        // throttle time, then 2^31 - 1 brokers
        let plain = Bytes::from_static(b"\0\0\0\0\x7f\xff\xff\xff");
        assert!(MetadataResponse::decode(&mut Guarded::new(plain), 4).is_err());
        // error code, then a compact array of 2^32 - 2 API keys
        let compact = Bytes::from_static(b"\0\0\xff\xff\xff\xff\x0f\0\0");
        assert!(ApiVersionsResponse::decode(&mut Guarded::new(compact), 3).is_err());
    }

    #[test]
    fn what_is_sound_passes() {
        let response = MetadataResponse::default().with_controller_id(2.into());
        for version in 1..=12 {
            let mut bytes = Vec::new();
            response.encode(&mut bytes, version).unwrap();
            let decoded = MetadataResponse::decode(&mut Guarded::new(bytes.into()), version).unwrap();
            assert_eq!(decoded.controller_id, response.controller_id);
        }
    }
}
