//! Message formats 0 and 1, which brokers up to 3.9 may still hold: single messages, or a compressed set in one message.

use bytes::{Buf, Bytes};

use super::{Batches, Fetched, Why, codec};

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
pub fn read(offset: i64, bytes: Bytes, out: &mut Batches) -> Result<(), Why> {
    let message = parse(bytes)?;
    let codec = i16::from(message.attributes & 7);
    if codec == 0 {
        deliver(offset, message.timestamp, message, out);
        return Ok(());
    }
    let compressed = message.value.ok_or("a compressed message is empty")?;
    let compressed = if message.magic == 0 && codec == 3 { codec::mend_lz4(compressed) } else { compressed };
    let mut set = codec::decompress(codec, compressed)?;
    let mut inner = Vec::new();
    while set.has_remaining() {
        let cut_off = "the set in a compressed message is cut off";
        let inner_offset = set.try_get_i64().map_err(|_| cut_off)?;
        let length = set.try_get_i32().ok().and_then(|length| usize::try_from(length).ok());
        let length = length.filter(|&length| length <= set.len()).ok_or(cut_off)?;
        let parsed = parse(set.split_to(length))?;
        if parsed.attributes & 7 != 0 {
            return Err("a compressed message holds another one".into());
        }
        inner.push((inner_offset, parsed));
    }
    // Format 1 counts from 0 within the set; the outer message bears the offset of the last one.
    let first = match inner.last() {
        Some((last, _)) if message.magic == 1 => offset.checked_sub(*last).ok_or("an offset in it is out of range")?,
        _ => 0,
    };
    let appended = (message.attributes & 8 != 0).then_some(message.timestamp).flatten();
    for (inner_offset, parsed) in inner {
        let at = inner_offset.checked_add(first).filter(|&at| at <= offset).ok_or("an offset in it is out of range")?;
        let timestamp = appended.or(parsed.timestamp);
        deliver(at, timestamp, parsed, out);
    }
    out.next = out.next.max(offset.saturating_add(1));
    Ok(())
}

fn deliver(offset: i64, timestamp: Option<i64>, message: Message, out: &mut Batches) {
    if offset >= out.next {
        out.next = offset.saturating_add(1);
        let timestamp_ms = timestamp.filter(|&timestamp| timestamp >= 0);
        out.records.push(Fetched { offset, timestamp_ms, key: message.key, value: message.value });
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
