//! Where a record that is written goes: its topic, and the partition of its key by murmur2, as Java's and Python's
//! clients compute it, so that results of one key stay together whoever writes them.

use super::{Outgoing, Target};
use crate::config;

/// The topics that are written to.
#[derive(Clone, Debug)]
pub struct Topics {
    results: String,
    dead_letters: Option<String>,
}

impl Topics {
    /// Those of `config`.
    pub fn new(config: &config::Kafka) -> Topics {
        Topics { results: config.results_topic.clone(), dead_letters: config.dead_letter_topic.clone() }
    }

    /// The topic of that meaning.
    pub fn name(&self, target: Target) -> &str {
        match (target, &self.dead_letters) {
            (Target::DeadLetter, Some(topic)) => topic,
            _ => &self.results,
        }
    }

    /// All of them.
    pub fn all(&self) -> Vec<&str> {
        [Some(self.results.as_str()), self.dead_letters.as_deref()].into_iter().flatten().collect()
    }
}

/// The partition of a record in a topic that has `count`: by its key; without one by its command's partition.
pub fn partition(out: &Outgoing, count: usize) -> i32 {
    let chosen = match &out.key {
        Some(key) => for_key(key, count),
        None => out.at.partition.unsigned_abs() as usize % count,
    };
    i32::try_from(chosen).expect("a topic has fewer than 2^31 partitions")
}

/// The partition, of `count`, for `key`.
fn for_key(key: &[u8], count: usize) -> usize {
    (murmur2(key) & 0x7fff_ffff) as usize % count
}

/// MurmurHash2, 32 bits, with the seed Kafka uses.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;
    let mut hash = 0x9747_b28c ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k = (k ^ (k >> R)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (i, &byte) in rest.iter().enumerate() {
            hash ^= u32::from(byte) << (8 * i);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_java_client() {
        // The values of Apache Kafka's own UtilsTest.testMurmur2.
        for (key, hash) in [
            ("21", -973932308),
            ("foobar", -790332482),
            ("a-little-bit-long-string", -985981536),
            ("a-little-bit-longer-string", -1486304829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
            ("abc", 479470107),
        ] {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
        }
    }

    #[test]
    fn every_key_has_a_partition() {
        for count in 1..20 {
            assert!((0..100u8).all(|n| for_key(&[n, n, n], count) < count));
        }
        assert_eq!(for_key(b"", 1), 0);
    }
}
