//! What the agent inside a lab and xtask outside say to each other over the second serial port:
//! frames, outwards; single bytes ([`INTERRUPT`], [`STANDSTILL`]), inwards.
//!
//! A frame is [`MAGIC`], its kind (1 byte), the length of its payload (4 bytes, little-endian), the
//! CRC-32 of kind, length and payload (4 bytes, little-endian), and the payload. Whatever else
//! comes along the line, and whatever is damaged, is passed over: a lab may die at any time.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

/// Begins each frame.
const MAGIC: [u8; 4] = [0xe5, b'L', b'A', b'B'];
/// Bytes before the payload.
const HEADER: usize = 13;
/// The longest payload. Longer data goes as several frames.
pub(crate) const LONGEST: usize = 16 << 10;

/// To the agent: interrupt the command, as Ctrl-C does.
pub(crate) const INTERRUPT: u8 = 3;
/// To the agent: tell the command that it has stood still for too long (SIGUSR1).
pub(crate) const STANDSTILL: u8 = 4;

/// What the agent says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// The lab is up; the kernel's release.
    Hello(String),
    /// The command wrote to stdout.
    Stdout(Vec<u8>),
    /// The command wrote to stderr.
    Stderr(Vec<u8>),
    /// The agent itself has something to say to people.
    Note(String),
    /// A file that the command wrote; so many bytes of [`Frame::Data`] follow.
    File(FileHead),
    /// Bytes of the last [`Frame::File`].
    Data(Vec<u8>),
    /// The command's exit status, as a shell gives it.
    Status(u8),
    /// Nothing follows.
    End,
}

/// A file that comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileHead {
    /// Its absolute path.
    pub(crate) path: std::path::PathBuf,
    /// Its permissions, as in `st_mode`.
    pub(crate) mode: u32,
    /// Its size, bytes.
    pub(crate) size: u64,
}

impl Frame {
    /// Writes it as one piece, so that frames of several threads do not mix if each locks.
    pub(crate) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let json;
        let (kind, payload): (u8, &[u8]) = match self {
            Frame::Hello(release) => (1, release.as_bytes()),
            Frame::Stdout(bytes) => (2, bytes),
            Frame::Stderr(bytes) => (3, bytes),
            Frame::Note(text) => (4, text.as_bytes()),
            Frame::File(head) => {
                json = serde_json::to_vec(head)?;
                (5, &json)
            }
            Frame::Data(bytes) => (6, bytes),
            Frame::Status(status) => (7, std::slice::from_ref(status)),
            Frame::End => (8, &[]),
        };
        let length = u32::try_from(payload.len())
            .ok()
            .filter(|_| payload.len() <= LONGEST)
            .ok_or_else(|| io::Error::other("a frame's payload is too long"))?;
        let mut frame = Vec::with_capacity(HEADER + payload.len());
        frame.extend_from_slice(&MAGIC);
        frame.push(kind);
        frame.extend_from_slice(&length.to_le_bytes());
        frame.extend_from_slice(&checksum(&frame[4..9], payload).to_le_bytes());
        frame.extend_from_slice(payload);
        to.write_all(&frame)
    }

    fn of(kind: u8, payload: &[u8]) -> Option<Self> {
        let text = || String::from_utf8_lossy(payload).into_owned();
        Some(match (kind, payload) {
            (1, _) => Frame::Hello(text()),
            (2, _) => Frame::Stdout(payload.to_vec()),
            (3, _) => Frame::Stderr(payload.to_vec()),
            (4, _) => Frame::Note(text()),
            (5, _) => Frame::File(serde_json::from_slice(payload).ok()?),
            (6, _) => Frame::Data(payload.to_vec()),
            (7, [status]) => Frame::Status(*status),
            (8, []) => Frame::End,
            _ => return None,
        })
    }
}

fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(payload);
    hasher.finalize()
}

/// Finds the frames in a stream that comes in pieces.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    pending: Vec<u8>,
    /// Bytes that belonged to no frame.
    pub(crate) passed_over: u64,
}

impl Reader {
    /// Takes what came; the frames that are now whole, in order.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Vec<Frame> {
        self.pending.extend_from_slice(bytes);
        let (mut frames, mut at) = (Vec::new(), 0);
        loop {
            let rest = &self.pending[at..];
            match head(rest) {
                Head::None => break,
                Head::Garbage => {
                    at += 1;
                    self.passed_over += 1;
                }
                Head::Frame(length) if rest.len() < HEADER + length => break,
                Head::Frame(length) => {
                    let (header, payload) = rest[..HEADER + length].split_at(HEADER);
                    let sum = u32::from_le_bytes([header[9], header[10], header[11], header[12]]);
                    let whole = sum == checksum(&header[4..9], payload);
                    match Frame::of(header[4], payload).filter(|_| whole) {
                        Some(frame) => {
                            frames.push(frame);
                            at += HEADER + length;
                        }
                        None => {
                            at += 1;
                            self.passed_over += 1;
                        }
                    }
                }
            }
        }
        self.pending.drain(..at);
        frames
    }
}

/// What a stream begins with.
enum Head {
    /// Too little to tell.
    None,
    /// No frame.
    Garbage,
    /// A frame with a payload of so many bytes.
    Frame(usize),
}

fn head(bytes: &[u8]) -> Head {
    let known = bytes.len().min(MAGIC.len());
    if bytes[..known] != MAGIC[..known] {
        return Head::Garbage;
    }
    let Some(length) = bytes.get(5..9) else {
        return Head::None;
    };
    let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
    if length > LONGEST {
        Head::Garbage
    } else if bytes.len() < HEADER {
        Head::None
    } else {
        Head::Frame(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn frame() -> impl Strategy<Value = Frame> {
        let bytes = || vec(any::<u8>(), 0..300);
        prop_oneof![
            ".{0,20}".prop_map(Frame::Hello),
            bytes().prop_map(Frame::Stdout),
            bytes().prop_map(Frame::Stderr),
            ".{0,20}".prop_map(Frame::Note),
            ("/[a-z/]{1,20}", any::<u32>(), any::<u64>()).prop_map(|(path, mode, size)| {
                Frame::File(FileHead {
                    path: path.into(),
                    mode,
                    size,
                })
            }),
            bytes().prop_map(Frame::Data),
            any::<u8>().prop_map(Frame::Status),
            Just(Frame::End),
        ]
    }

    fn written(frames: &[Frame]) -> Vec<u8> {
        let mut bytes = Vec::new();
        frames
            .iter()
            .for_each(|frame| frame.write(&mut bytes).unwrap());
        bytes
    }

    proptest! {
        #[test]
        fn frames_come_through_whatever_the_pieces(
            frames in vec(frame(), 0..8), piece in 1usize..50,
        ) {
            let mut reader = Reader::default();
            let pieces = written(&frames);
            let read: Vec<_> = pieces.chunks(piece).flat_map(|p| reader.take(p)).collect();
            prop_assert_eq!(read, frames);
            prop_assert_eq!(reader.passed_over, 0);
        }

        #[test]
        fn garbage_between_frames_is_passed_over(
            first in frame(), garbage in vec(0u8..0xe5, 0..200), second in frame(),
        ) {
            let mut bytes = written(std::slice::from_ref(&first));
            bytes.extend_from_slice(&garbage);
            bytes.extend(written(std::slice::from_ref(&second)));
            let mut reader = Reader::default();
            prop_assert_eq!(reader.take(&bytes), [first, second]);
            prop_assert_eq!(reader.passed_over, garbage.len() as u64);
        }

        #[test]
        fn a_cut_stream_gives_what_was_whole(frames in vec(frame(), 1..6), cut in any::<prop::sample::Index>()) {
            let bytes = written(&frames);
            let read = Reader::default().take(&bytes[..cut.index(bytes.len())]);
            prop_assert!(read.len() < frames.len());
            prop_assert_eq!(&read[..], &frames[..read.len()]);
        }

        #[test]
        fn a_damaged_frame_is_none(frames in vec(frame(), 1..4), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut bytes = written(&frames);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let read = Reader::default().take(&bytes);
            prop_assert!(read.len() < frames.len());
            prop_assert!(read.iter().all(|frame| frames.contains(frame)));
        }

        #[test]
        fn anything_can_be_read(bytes in vec(any::<u8>(), 0..2000)) {
            Reader::default().take(&bytes);
        }
    }

    #[test]
    fn a_payload_has_a_limit() {
        let mut bytes = Vec::new();
        assert!(Frame::Data(vec![0; LONGEST]).write(&mut bytes).is_ok());
        assert!(Frame::Data(vec![0; LONGEST + 1]).write(&mut bytes).is_err());
    }
}
