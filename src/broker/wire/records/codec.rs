//! Decompression of batches, with a limit: a few bytes must not become all memory.

use std::hash::Hasher;
use std::io::Read;

use bytes::{Buf, Bytes};

use super::Why;

/// The most that a batch may become. Brokers take batches of 1 MiB unless told otherwise, and compress well below a
/// hundredfold; what is larger than this would be no batch of commands.
const LARGEST: u64 = 256 << 20;

/// What xerial's snappy streams begin with, the format Java writes: then version, compatible version, and blocks.
const XERIAL: &[u8] = b"\x82SNAPPY\0";

/// Decompresses by the codec number of a batch's or message's attributes.
pub fn decompress(codec: i16, bytes: Bytes) -> Result<Bytes, Why> {
    match codec {
        0 => Ok(bytes),
        1 => read_all("gzip", flate2::read::MultiGzDecoder::new(bytes.reader())),
        2 => snappy(bytes),
        3 => {
            let decoder = lz4::Decoder::new(bytes.reader()).map_err(|e| failed("lz4", &e))?;
            read_all("lz4", decoder)
        }
        4 => {
            let decoder = zstd::stream::read::Decoder::new(bytes.reader()).map_err(|e| failed("zstd", &e))?;
            read_all("zstd", decoder)
        }
        other => Err(format!("codec {other} is not known")),
    }
}

/// Lz4 as it was in message format 0: the header's checksum was taken over the frame's magic number too (KAFKA-3160). The
/// right one is put in its place.
pub fn mend_lz4(bytes: Bytes) -> Bytes {
    let mut frame = bytes.to_vec();
    let has_content_size = frame.get(4).is_some_and(|flags| flags & 8 != 0);
    let end = if has_content_size { 14 } else { 6 };
    if frame.len() > end {
        let mut hasher = twox_hash::XxHash32::with_seed(0);
        hasher.write(&frame[4..end]);
        frame[end] = (hasher.finish() >> 8) as u8;
    }
    frame.into()
}

fn read_all(name: &str, decoder: impl Read) -> Result<Bytes, Why> {
    let mut out = Vec::new();
    decoder.take(LARGEST + 1).read_to_end(&mut out).map_err(|e| failed(name, &e))?;
    if out.len() as u64 > LARGEST {
        return Err(too_large());
    }
    Ok(out.into())
}

fn snappy(mut bytes: Bytes) -> Result<Bytes, Why> {
    if !bytes.starts_with(XERIAL) {
        return snappy_block(&bytes).map(Into::into);
    }
    let cut_off = || "its snappy stream is cut off".to_string();
    if bytes.len() < 16 {
        return Err(cut_off());
    }
    bytes.advance(16);
    let mut out = Vec::new();
    while bytes.has_remaining() {
        let length = bytes.try_get_u32().map_err(|_| cut_off())? as usize;
        if length > bytes.len() {
            return Err(cut_off());
        }
        out.extend(snappy_block(&bytes.split_to(length))?);
        if out.len() as u64 > LARGEST {
            return Err(too_large());
        }
    }
    Ok(out.into())
}

fn snappy_block(block: &[u8]) -> Result<Vec<u8>, Why> {
    let length = snap::raw::decompress_len(block).map_err(|e| failed("snappy", &e))?;
    // Snappy cannot shrink further than about to a twentieth: more is a lie.
    if length as u64 > LARGEST || length > block.len().saturating_mul(64).saturating_add(64) {
        return Err(too_large());
    }
    snap::raw::Decoder::new().decompress_vec(block).map_err(|e| failed("snappy", &e))
}

fn failed(name: &str, e: &dyn std::fmt::Display) -> Why {
    format!("{name} cannot decompress it: {}", e.to_string().to_lowercase())
}

fn too_large() -> Why {
    format!("decompressed it is larger than {} MiB", LARGEST >> 20)
}
