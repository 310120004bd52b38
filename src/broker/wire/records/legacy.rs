//! Message formats 0 and 1, which brokers up to 3.9 may still hold: single messages, or a compressed set in one message.

use bytes::{Buf, Bytes};

use super::{Batches, Fetched, MANY, Reading, Then, Why, codec};

/// The shortest message without its prefix: checksum, magic, attributes, two null fields.
pub const SHORTEST: usize = 14;

struct Message {
    magic: u8,
    attributes: u8,
    timestamp: Option<i64>,
    key: Option<Bytes>,
    value: Option<Bytes>,
}

/// Reads the message at `offset`; of a compressed one, what is in it.
pub fn read(offset: i64, bytes: Bytes, reading: &mut Reading<'_>, out: &mut Batches) -> Result<Then, Why> {
    let message = parse(bytes)?;
    let after = offset.saturating_add(1);
    reading.end = Some(after);
    let codec = i16::from(message.attributes & 7);
    if codec == 0 {
        deliver(offset, message.timestamp, message, out);
        return Ok(Then::GoOn);
    }
    let compressed = message.value.ok_or("a compressed message is empty")?;
    let compressed = if message.magic == 0 && codec == 3 { codec::mend_lz4(compressed) } else { compressed };
    let mut set = reading.decompress(codec, compressed)?;
    // Format 1 counts from 0 within the set; the outer message bears the offset of the last one.
    let last = last_offset(set.clone())?;
    let first = match message.magic {
        1 => offset.checked_sub(last).ok_or("an offset in it is out of range")?,
        _ => 0,
    };
    let appended = (message.attributes & 8 != 0).then_some(message.timestamp).flatten();
    let mut before = None;
    while set.has_remaining() {
        if out.records.len() >= MANY {
            return Ok(Then::Stop);
        }
        let (inner_offset, inner) = split_message(&mut set)?;
        let inner = parse(inner)?;
        if inner.attributes & 7 != 0 {
            return Err("a compressed message holds another one".into());
        }
        if before.is_some_and(|before| inner_offset <= before) {
            return Err("the offsets in it do not grow".into());
        }
        before = Some(inner_offset);
        let at = inner_offset.checked_add(first).filter(|&at| at <= offset).ok_or("an offset in it is out of range")?;
        deliver(at, appended.or(inner.timestamp), inner, out);
    }
    out.next = out.next.max(after);
    Ok(Then::GoOn)
}

/// The offset of the last message in a set.
fn last_offset(mut set: Bytes) -> Result<i64, Why> {
    let mut last = None;
    while set.has_remaining() {
        last = Some(split_message(&mut set)?.0);
    }
    last.ok_or_else(|| "a compressed message is empty".into())
}

/// Takes the first message, and its offset, from a set.
fn split_message(set: &mut Bytes) -> Result<(i64, Bytes), Why> {
    let cut_off = "the set in a compressed message is cut off";
    let offset = set.try_get_i64().map_err(|_| cut_off)?;
    let length = set.try_get_i32().ok().and_then(|length| usize::try_from(length).ok());
    let length = length.filter(|&length| length <= set.len()).ok_or(cut_off)?;
    Ok((offset, set.split_to(length)))
}

fn deliver(offset: i64, timestamp: Option<i64>, message: Message, out: &mut Batches) {
    if offset >= out.next {
        out.next = offset.saturating_add(1);
        let timestamp_ms = timestamp.filter(|&timestamp| timestamp >= 0);
        out.records.push(Fetched { offset, timestamp_ms, key: message.key, value: message.value, headers: vec![] });
    }
}

fn parse(mut bytes: Bytes) -> Result<Message, Why> {
    if bytes.len() < SHORTEST {
        return Err(format!("a message of {} bytes is too short", bytes.len()));
    }
    let claimed = bytes.get_u32();
    let computed = crc32fast::hash(&bytes);
    if claimed != computed {
        return Err(format!("its checksum is {computed:08x}, not {claimed:08x}"));
    }
    let (magic, attributes) = (bytes.get_u8(), bytes.get_u8());
    let cut_off = "a message is cut off";
    let timestamp = match magic {
        0 => None,
        1 => Some(bytes.try_get_i64().map_err(|_| cut_off)?),
        other => return Err(format!("message format {other} is not known")),
    };
    let mut field = || -> Result<Option<Bytes>, Why> {
        match bytes.try_get_i32().map_err(|_| cut_off)? {
            ..0 => Ok(None),
            length => {
                let length = usize::try_from(length).ok().filter(|&length| length <= bytes.len()).ok_or(cut_off)?;
                Ok(Some(bytes.split_to(length)))
            }
        }
    };
    let (key, value) = (field()?, field()?);
    Ok(Message { magic, attributes, timestamp, key, value })
}
