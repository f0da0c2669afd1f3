//! Checkpoints: a small file that makes the next start fast, and that nothing depends on.
//!
//! It holds what recovery would add up from the frames of sealed segments, and an outline of those segments, so that
//! only the newest segment of each log is read. It is written whole under a temporary name and renamed; one that is
//! damaged, of another channel, or does not fit the files is set aside, and recovery reads everything.
//!
//! ```text
//! 0       8         12      28     60       92          108       112        116            4096
//! | magic | version | channel | salt | key id | key check | length | checksum | zero … | body, tag |
//! ```

use std::io;

use wal::checksum::crc32c;
use wal::format::frame::{Mark as Place, TAG};
use wal::io::buffer::Buffer;
use wal::io::{Access, Dir, durable};
use wal::limits::{MEMBERS_MAX, PAGE};
use wal::recover::known::{Known, KnownSegment};
use wal::seal::{ChannelKey, Random};

use super::ranges::RangeSet;
use super::sections::{Snapshot, put_snapshot, take_snapshot};
use crate::event::{put_varint, take_varint};
use crate::settlement::SeqRange;

const MAGIC: [u8; 8] = *b"PNSTKCKP";
const VERSION: u32 = 1;
/// An index of 100 M events is far below a mebibyte; more than this is not a checkpoint.
const BODY_MAX: usize = 256 << 20;

/// What a checkpoint says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) snapshot: Snapshot,
    /// Events of the segments below that are not settled.
    pub(crate) unsettled: RangeSet,
    pub(crate) durable_seq: u64,
    pub(crate) logs: Vec<KnownLog>,
}

/// One log as the checkpoint has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KnownLog {
    pub(crate) log: [u8; 16],
    pub(crate) durable: Place,
    pub(crate) known: Known,
}

/// The file of a channel in its checkpoint directory: two channels may share one.
pub(crate) fn file_name(channel: &[u8; 16]) -> String {
    let hex: String = channel[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("checkpoint-{hex}")
}

impl Checkpoint {
    fn encode_body(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_snapshot(&mut out, &self.snapshot);
        put_varint(&mut out, self.durable_seq);
        put_varint(&mut out, self.unsettled.pieces() as u64);
        for range in self.unsettled.iter() {
            put_varint(&mut out, range.start);
            put_varint(&mut out, range.count());
        }
        put_varint(&mut out, self.logs.len() as u64);
        for KnownLog { log, durable, known } in &self.logs {
            out.extend_from_slice(log);
            put_varint(&mut out, durable.ordinal);
            put_varint(&mut out, durable.offset);
            put_varint(&mut out, known.oldest_ordinal);
            put_varint(&mut out, known.segments.len() as u64);
            known.segments.iter().for_each(|segment| segment.encode(&mut out));
        }
        out
    }

    pub(crate) fn decode_body(body: &[u8]) -> Result<Checkpoint, String> {
        let text = |error: crate::event::MalformedEvents| error.to_string();
        let mut at = 0;
        let snapshot = take_snapshot(body, &mut at).map_err(text)?;
        let durable_seq = take_varint(body, &mut at).map_err(text)?;
        let mut unsettled = RangeSet::default();
        for _ in 0..take_varint(body, &mut at).map_err(text)? {
            let (start, count) = (take_varint(body, &mut at).map_err(text)?, take_varint(body, &mut at).map_err(text)?);
            match start.checked_add(count) {
                Some(end) if count > 0 => unsettled.insert(SeqRange::new(start, end)),
                _ => return Err("an impossible run".to_owned()),
            }
        }
        let log_count = take_varint(body, &mut at).map_err(text)?;
        if log_count > MEMBERS_MAX as u64 {
            return Err("too many logs".to_owned());
        }
        let mut logs = Vec::new();
        for _ in 0..log_count {
            let log = body.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or("cut off")?;
            at += 16;
            let mut number = || take_varint(body, &mut at).map_err(text);
            let durable = Place { ordinal: number()?, offset: number()? };
            let (oldest_ordinal, count) = (number()?, number()?);
            let mut segments = Vec::new();
            for _ in 0..count {
                segments.push(KnownSegment::decode(body, &mut at).map_err(|damage| damage.to_string())?);
            }
            logs.push(KnownLog { log, durable, known: Known { oldest_ordinal, segments } });
        }
        if at == body.len() {
            Ok(Checkpoint { snapshot, unsettled, durable_seq, logs })
        } else {
            Err("bytes behind the end".to_owned())
        }
    }

    /// Writes the checkpoint of `channel`. Blocks.
    pub(crate) fn write(
        &self,
        dir: &dyn Dir,
        channel: &[u8; 16],
        key: Option<&ChannelKey>,
        random: &dyn Random,
    ) -> io::Result<()> {
        let mut body = self.encode_body();
        let body_len = body.len();
        if body_len > BODY_MAX {
            return Err(io::Error::other(format!("a checkpoint of {body_len} bytes")));
        }
        let mut page = [0; PAGE];
        page[0..8].copy_from_slice(&MAGIC);
        page[8..12].copy_from_slice(&VERSION.to_le_bytes());
        page[12..28].copy_from_slice(channel);
        page[108..112].copy_from_slice(&(body_len as u32).to_le_bytes());
        if let Some(key) = key {
            // A fresh salt makes a fresh key, so the one nonce is never used twice.
            let mut salt = [0; 32];
            random.fill(&mut salt);
            let (frame_key, check) = key.derive(&salt);
            page[28..60].copy_from_slice(&salt);
            page[60..60 + key.id().len()].copy_from_slice(key.id().as_bytes());
            page[92..108].copy_from_slice(&check);
            let tag = frame_key.seal(0, &page[..112], &mut body);
            body.extend_from_slice(&tag);
        }
        let mut bytes = page.to_vec();
        bytes.extend_from_slice(&body);
        let checksum = crc32c(&bytes);
        bytes[112..116].copy_from_slice(&checksum.to_le_bytes());
        durable::put(dir, &file_name(channel), &bytes)
    }

    /// Reads the checkpoint of `channel`: `None` when there is none, an error that says why it is of no use.
    pub(crate) fn read(dir: &dyn Dir, channel: &[u8; 16], keys: &[ChannelKey]) -> Result<Option<Checkpoint>, String> {
        let file = match dir.open(&file_name(channel), Access::Read) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let len = file.size().map_err(|error| error.to_string())? as usize;
        if !(PAGE..=PAGE + BODY_MAX + TAG + PAGE).contains(&len) {
            return Err(format!("{len} bytes are no checkpoint"));
        }
        let mut bytes = Buffer::zeroed(len).map_err(|error| error.to_string())?;
        if file.read_at(&mut bytes, 0).map_err(|error| error.to_string())? != len {
            return Err("cut off".to_owned());
        }
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if bytes[0..8] != MAGIC || number(8) != VERSION || bytes[12..28] != channel[..] {
            return Err("of another channel or version".to_owned());
        }
        let encrypted = bytes[60] != 0;
        let (stored, body_len) = (number(112), number(108) as usize);
        let end = PAGE + body_len + if encrypted { TAG } else { 0 };
        if end > len {
            return Err("cut off".to_owned());
        }
        bytes[112..116].fill(0);
        if crc32c(&bytes[..end]) != stored {
            return Err("checksum mismatch".to_owned());
        }
        if !encrypted {
            return Checkpoint::decode_body(&bytes[PAGE..end]).map(Some);
        }
        let id: Vec<u8> = bytes[60..92].iter().copied().take_while(|byte| *byte != 0).collect();
        let key = keys.iter().find(|key| key.id().as_bytes() == id).ok_or("its key is not given")?;
        let mut salt = [0; 32];
        salt.copy_from_slice(&bytes[28..60]);
        let (frame_key, check) = key.derive(&salt);
        if bytes[92..108] != check {
            return Err("its key is another one".to_owned());
        }
        let mut body = bytes[PAGE..end].to_vec();
        frame_key.open(0, &bytes[..112], &mut body).map_err(|_| "it does not authenticate".to_owned())?;
        Checkpoint::decode_body(&body[..body_len]).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wal::io::sim::{SimDisk, SimRandom};

    #[test]
    fn a_checkpoint_comes_back_and_every_flip_sets_it_aside() {
        for key in [None, Some(ChannelKey::new("k1", [7; 32]).unwrap())] {
            let (disk, channel) = (SimDisk::default(), [3; 16]);
            let dir = disk.dir("c");
            let checkpoint = Checkpoint {
                snapshot: Snapshot { version: 1, floor: 2, ..Snapshot::default() },
                unsettled: [SeqRange::new(2, 9), SeqRange::new(12, 13)].into_iter().collect(),
                durable_seq: 13,
                logs: vec![KnownLog {
                    log: [4; 16],
                    durable: Place { ordinal: 5, offset: 6 },
                    known: Known { oldest_ordinal: 4, segments: Vec::new() },
                }],
            };
            let keys: Vec<ChannelKey> = key.iter().cloned().collect();
            assert_eq!(Checkpoint::read(&*dir, &channel, &keys), Ok(None));
            checkpoint.write(&*dir, &channel, key.as_ref(), &SimRandom::new(1)).unwrap();
            assert_eq!(Checkpoint::read(&*dir, &channel, &keys), Ok(Some(checkpoint.clone())));
            for at in (0..120).chain(PAGE..PAGE + 28) {
                disk.corrupt("c", &file_name(&channel), |bytes| bytes[at] ^= 4);
                assert!(Checkpoint::read(&*dir, &channel, &keys).is_err(), "a flip at {at}");
                disk.corrupt("c", &file_name(&channel), |bytes| bytes[at] ^= 4);
            }
        }
    }
}
