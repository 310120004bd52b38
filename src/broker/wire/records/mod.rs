//! The records in a Fetch answer: every message format and codec, what is to be left out, and what is corrupt.
//!
//! Pure, and written for bytes from outside: nothing panics, nothing is allocated by a length that is only claimed, and
//! what cannot be read is said with its offset, never passed over. `kafka-protocol` decodes version 2 alone, reserves
//! memory by the claimed count and decompresses without a limit, hence our own reading of this format:
//! <https://kafka.apache.org/documentation/#messageformat>.

mod codec;
mod legacy;

use std::collections::BTreeSet;

use bytes::{Buf, Bytes};

/// A transaction that was aborted, as the broker names it beside the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aborted {
    /// Its producer.
    pub producer_id: i64,
    /// Where its records begin; they end at the producer's next ABORT marker.
    pub first_offset: i64,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Its offset.
    pub offset: i64,
    /// When it was made or appended, in milliseconds since the epoch.
    pub timestamp_ms: Option<i64>,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value.
    pub value: Option<Bytes>,
    /// Its headers, in order.
    pub headers: Vec<(Bytes, Option<Bytes>)>,
}

/// Where the records stop being readable, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corrupt {
    /// The offset of the batch, or the one asked for if it is in the middle of it.
    pub offset: i64,
    /// What is wrong with it.
    pub why: String,
}

/// What an answer holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batches {
    /// The records to deliver; offsets grow.
    pub records: Vec<Fetched>,
    /// The offset to ask for next. It passes what is not delivered: markers, aborted records, what compaction took away.
    pub next: i64,
    /// What follows `next` cannot be read.
    pub corrupt: Option<Corrupt>,
}

/// Why a batch cannot be read.
type Why = String;

/// Records that are read in one go; what is behind them is for the next fetch. How many bytes have come says little about
/// how many records: of a compressed batch there may be millions.
const MANY: usize = 100_000;
/// Bytes that decompressed batches may hold in one go before another one is begun.
const MUCH: usize = 64 << 20;

/// Bytes of offset and length in front of every batch and message.
const PREFIX: usize = 12;
/// Bytes of a batch of version 2 in front of its records, without the prefix.
const HEADER: usize = 49;

/// How far reading has come in an answer.
struct Reading<'a> {
    /// The offset that was asked for.
    from: i64,
    filter: Filter<'a>,
    /// The offset behind the last batch, delivered or not.
    end: Option<i64>,
    /// Bytes that compressed batches have become.
    decompressed: usize,
}

/// What is to be done after a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// Read the next one.
    GoOn,
    /// Leave the rest to the next fetch.
    Stop,
}

/// Reads `bytes`, delivering from offset `from` on.
///
/// If there are bytes, then either `next` is beyond `from` or `corrupt` says why not: an answer begins with the batch that
/// holds `from` or what follows it, and with the whole of that batch, however large (since Fetch 3, KIP-74). Otherwise the
/// same fetch would be sent again and again, and nobody would know.
pub fn decode(mut bytes: Bytes, from: i64, aborted: &[Aborted]) -> Batches {
    let mut out = Batches { records: Vec::new(), next: from, corrupt: None };
    let mut reading = Reading { from, filter: Filter::new(aborted), end: None, decompressed: 0 };
    let come = bytes.len();
    // What is cut off at the end is normal: the answer's size is limited.
    while let Some(prefix) = bytes.get(..PREFIX) {
        let base = i64::from_be_bytes(prefix[..8].try_into().expect("eight bytes"));
        let length = i32::from_be_bytes(prefix[8..].try_into().expect("four bytes"));
        let whole = match usize::try_from(length) {
            Ok(length) if length >= legacy::SHORTEST => PREFIX + length,
            _ => {
                out.corrupt =
                    Some(Corrupt { offset: base.max(out.next), why: format!("a batch claims a length of {length}") });
                return out;
            }
        };
        if bytes.len() < whole {
            break;
        }
        let mut batch = bytes.split_to(whole);
        let magic = batch[16];
        batch.advance(PREFIX);
        let read = match magic {
            0 | 1 => legacy::read(base, batch, &mut reading, &mut out),
            2 => read_batch(base, batch, &mut reading, &mut out),
            other => Err(format!("message format {other} is not known")),
        };
        match read {
            Ok(Then::GoOn) if out.records.len() < MANY && reading.decompressed <= MUCH => {}
            Ok(_) => break,
            Err(why) => {
                out.corrupt = Some(Corrupt { offset: base.max(out.next), why });
                return out;
            }
        }
    }
    if out.next == from && come > 0 {
        let why = format!("in the {come} bytes that the broker sends there is no whole batch that reaches it");
        out.corrupt = Some(Corrupt { offset: from, why });
    }
    out
}

/// The fixed part of a batch of version 2.
struct Header {
    attributes: i16,
    last_offset: i64,
    base_timestamp: i64,
    max_timestamp: i64,
    producer_id: i64,
    count: i32,
}

fn read_batch(base: i64, mut batch: Bytes, reading: &mut Reading<'_>, out: &mut Batches) -> Result<Then, Why> {
    if batch.len() < HEADER {
        return Err(format!("a batch of {} bytes is too short", batch.len()));
    }
    batch.advance(5); // leader epoch, magic
    let claimed = batch.get_u32();
    let computed = crc32c::crc32c(&batch);
    if claimed != computed {
        return Err(format!("its checksum is {computed:08x}, not {claimed:08x}"));
    }
    let attributes = batch.get_i16();
    let last_offset = base.checked_add(batch.get_i32().into()).filter(|&last| last >= base);
    let header = Header {
        attributes,
        last_offset: last_offset.ok_or("its last offset is out of range")?,
        base_timestamp: batch.get_i64(),
        max_timestamp: batch.get_i64(),
        producer_id: batch.get_i64(),
        count: {
            batch.advance(6); // producer epoch, base sequence
            batch.get_i32()
        },
    };
    reading.follows(base, out.next)?;
    let after = header.last_offset.saturating_add(1);
    reading.end = Some(after);
    let is_control = attributes & 0x20 != 0;
    let left_out = reading.filter.leaves_out(&header, is_control.then_some(&batch));
    let is_empty = header.count == 0 && batch.is_empty(); // what compaction leaves of a producer's last batch
    if left_out || after <= out.next || is_empty {
        out.next = out.next.max(after);
        return Ok(Then::GoOn);
    }
    let then = read_records(base, batch, &header, reading, out)?;
    if then == Then::GoOn {
        out.next = out.next.max(after);
    }
    Ok(then)
}

fn read_records(
    base: i64,
    batch: Bytes,
    header: &Header,
    reading: &mut Reading<'_>,
    out: &mut Batches,
) -> Result<Then, Why> {
    let count = u32::try_from(header.count).map_err(|_| format!("it claims {} records", header.count))?;
    let mut records = reading.decompress(header.attributes & 7, batch)?;
    let mut last = None;
    for _ in 0..count {
        if out.records.len() >= MANY {
            return Ok(Then::Stop);
        }
        let record = read_record(&mut records, base, header).ok_or("a record in it is cut off or malformed")?;
        if last.is_some_and(|last| record.offset <= last) {
            return Err("the offsets in it do not grow".into());
        }
        last = Some(record.offset);
        if record.offset >= out.next {
            out.next = record.offset.saturating_add(1);
            out.records.push(record);
        }
    }
    match records.is_empty() {
        true => Ok(Then::GoOn),
        false => Err(format!("it holds more than the {count} records it claims")),
    }
}

impl Reading<'_> {
    /// Decompresses, and counts what that makes.
    fn decompress(&mut self, codec: i16, bytes: Bytes) -> Result<Bytes, Why> {
        let decompressed = codec::decompress(codec, bytes)?;
        self.decompressed += if codec == 0 { 0 } else { decompressed.len() };
        Ok(decompressed)
    }

    /// Whether a batch from `base` on may follow what was read. The checksum does not cover its offset: if that were believed
    /// and wrong, its records would be taken for others, which are done, and never run.
    fn follows(&self, base: i64, next: i64) -> Result<(), Why> {
        match self.end {
            Some(end) if base < end => Err(format!("it begins at {base}, and the batch before it ends at {}", end - 1)),
            Some(_) if next == self.from && base > next => {
                Err(format!("the answer leaves out {next}: what is before it is there, and then {base}"))
            }
            _ => Ok(()),
        }
    }
}

fn read_record(bytes: &mut Bytes, base: i64, header: &Header) -> Option<Fetched> {
    let length = usize::try_from(varint(bytes)?).ok().filter(|&length| length <= bytes.len())?;
    let mut record = bytes.split_to(length);
    record.try_get_i8().ok()?; // attributes: none are defined
    let timestamp = header.base_timestamp.wrapping_add(varint(&mut record)?);
    let offset =
        base.checked_add(varint(&mut record)?).filter(|offset| (base..=header.last_offset).contains(offset))?;
    let key = nullable(&mut record)?;
    let value = nullable(&mut record)?;
    let mut headers = Vec::new(); // grows as they come, whatever number is claimed
    for _ in 0..u32::try_from(varint(&mut record)?).ok()? {
        headers.push((nullable(&mut record)??, nullable(&mut record)?));
    }
    if !record.is_empty() {
        return None;
    }
    let appended = header.attributes & 8 != 0;
    let timestamp = if appended { header.max_timestamp } else { timestamp };
    Some(Fetched { offset, timestamp_ms: (timestamp >= 0).then_some(timestamp), key, value, headers })
}

/// Bytes after their length; a negative length is null.
fn nullable(bytes: &mut Bytes) -> Option<Option<Bytes>> {
    match varint(bytes)? {
        ..0 => Some(None),
        length => {
            let length = usize::try_from(length).ok().filter(|&length| length <= bytes.len())?;
            Some(Some(bytes.split_to(length)))
        }
    }
}

/// A number in zigzag varint form.
fn varint(bytes: &mut Bytes) -> Option<i64> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let byte = bytes.try_get_u8().ok()?;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte < 0x80 {
            return Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
        }
    }
    None
}

/// Tells which batches are not to be delivered: control batches, and those of aborted transactions.
struct Filter<'a> {
    /// By first offset; those that are not reached yet.
    aborted: Vec<&'a Aborted>,
    /// Producers whose records are aborted from here on.
    producers: BTreeSet<i64>,
}

impl<'a> Filter<'a> {
    fn new(aborted: &'a [Aborted]) -> Self {
        let mut aborted: Vec<&Aborted> = aborted.iter().collect();
        aborted.sort_by_key(|aborted| std::cmp::Reverse(aborted.first_offset));
        Filter { aborted, producers: BTreeSet::new() }
    }

    fn leaves_out(&mut self, header: &Header, control: Option<&Bytes>) -> bool {
        while let Some(aborted) = self.aborted.pop_if(|aborted| aborted.first_offset <= header.last_offset) {
            self.producers.insert(aborted.producer_id);
        }
        if let Some(records) = control {
            if is_abort_marker(records.clone()) {
                self.producers.remove(&header.producer_id);
            }
            return true;
        }
        let transactional = header.attributes & 0x10 != 0;
        transactional && self.producers.contains(&header.producer_id)
    }
}

/// Whether a control batch's record ends a transaction by ABORT: its key is a version and a type, and that is 0.
fn is_abort_marker(mut records: Bytes) -> bool {
    let key = (|| {
        varint(&mut records)?; // length
        records.try_get_i8().ok()?;
        varint(&mut records)?; // timestamp
        varint(&mut records)?; // offset
        nullable(&mut records)?
    })();
    key.is_some_and(|key| key.len() >= 4 && key[2..4] == [0, 0])
}

#[cfg(test)]
mod damaged;
#[cfg(test)]
mod tests;
