//! Frames: `u32` little-endian length of what follows, `u16` little-endian version, one postcard-encoded [`Message`].
//!
//! Nothing here allocates more than [`MAX_FRAME_BYTES`] for a peer, whatever its prefix claims, nor before the bytes arrive. What is
//! decoded from a frame takes at most eight bytes for each of its bytes: every list has a bound (`bounded`).

use std::io::{ErrorKind, Read, Write};

use crate::body;
use crate::error::{Result, WireError};
use crate::message::Message;
use crate::version::ProtoVersion;

/// The largest value that a frame's length prefix may carry, in bytes.
pub const MAX_FRAME_BYTES: u32 = 1 << 20;

const PREFIX_BYTES: usize = 4;
const VERSION_BYTES: usize = 2;
/// A buffer begins with this, then grows as the bytes arrive, so that a prefix alone costs a peer's victim nothing. It is
/// also what an accumulator keeps between frames.
const CHUNK_BYTES: usize = 16 * 1024;

/// Appends one frame to `out`; on an error `out` is as it was. A buffer that is kept saves all but the first allocation.
///
/// # Errors
/// [`WireError::FrameTooLarge`] when the message does not fit one frame: send its revisions ahead of it (version 2) or
/// refuse it (version 1).
pub fn encode_into(out: &mut Vec<u8>, version: ProtoVersion, message: &Message) -> Result<()> {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX_BYTES]);
    out.extend_from_slice(&version.to_le_bytes());
    if let Err(error) = body::append(out, message) {
        out.truncate(start);
        return Err(WireError::Encode(error));
    }
    let frame_bytes = out.len() - start - PREFIX_BYTES;
    if frame_bytes > MAX_FRAME_BYTES as usize {
        out.truncate(start);
        return Err(WireError::FrameTooLarge { bytes: frame_bytes as u64 });
    }
    out[start..start + PREFIX_BYTES].copy_from_slice(&(frame_bytes as u32).to_le_bytes());
    Ok(())
}

/// One frame as bytes of its own.
///
/// # Errors
/// As [`encode_into`].
pub fn encode(version: ProtoVersion, message: &Message) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(64);
    encode_into(&mut out, version, message)?;
    Ok(out)
}

/// Writes one frame with a single `write_all` and flushes.
///
/// # Errors
/// As [`encode_into`], or [`WireError::Io`]. A socket raises SIGPIPE when its peer is gone unless the process ignores that
/// signal; the runtime's sockets send with MSG_NOSIGNAL instead.
pub fn write_message<W: Write>(writer: &mut W, version: ProtoVersion, message: &Message) -> Result<()> {
    writer.write_all(&encode(version, message)?)?;
    writer.flush()?;
    Ok(())
}

/// Reads one frame, waiting for all of it. Use a [`FrameAccumulator`] where reads can time out.
///
/// # Errors
/// [`WireError::Io`] with `UnexpectedEof` at the end of the stream; else who sent what is wrong. The stream is then unusable.
pub fn read_message<R: Read>(reader: &mut R) -> Result<(ProtoVersion, Message)> {
    let mut accumulator = FrameAccumulator::new();
    match accumulator.poll_read(reader)? {
        Some(read) => Ok(read),
        None => Err(WireError::Io(ErrorKind::WouldBlock.into())),
    }
}

/// Collects a frame over any number of partial reads.
///
/// A read that times out or would block is a pause, not a loss: what arrived is kept. After an error it is empty.
#[derive(Debug, Default)]
pub struct FrameAccumulator {
    buffer: Vec<u8>,
}

impl FrameAccumulator {
    /// An empty one.
    pub const fn new() -> Self {
        Self { buffer: Vec::new() }
    }

    /// Whether a part of a frame has arrived: the peer is alive, only slow.
    pub fn has_partial(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Reads until a frame is whole, and never a byte beyond it. `None`: the read timed out or would block.
    ///
    /// # Errors
    /// As [`read_message`].
    pub fn poll_read(&mut self, reader: &mut impl Read) -> Result<Option<(ProtoVersion, Message)>> {
        let outcome = self.read_frame(reader);
        if !matches!(outcome, Ok(None)) {
            self.buffer.clear();
            self.buffer.shrink_to(CHUNK_BYTES);
        }
        outcome
    }

    fn read_frame(&mut self, reader: &mut impl Read) -> Result<Option<(ProtoVersion, Message)>> {
        if !self.fill(reader, PREFIX_BYTES)? {
            return Ok(None);
        }
        let prefix = u32::from_le_bytes([self.buffer[0], self.buffer[1], self.buffer[2], self.buffer[3]]);
        if prefix > MAX_FRAME_BYTES {
            return Err(WireError::FrameTooLarge { bytes: u64::from(prefix) });
        }
        if (prefix as usize) < VERSION_BYTES {
            return Err(WireError::FrameTooShort { bytes: prefix });
        }
        if !self.fill(reader, PREFIX_BYTES + prefix as usize)? {
            return Ok(None);
        }
        decode(&self.buffer[PREFIX_BYTES..]).map(Some)
    }

    /// Reads until the buffer holds `want_bytes`; `false`: the read timed out or would block.
    fn fill(&mut self, reader: &mut impl Read, want_bytes: usize) -> Result<bool> {
        while self.buffer.len() < want_bytes {
            let have = self.buffer.len();
            self.buffer.resize(want_bytes.min(have + have.max(CHUNK_BYTES)), 0);
            let read = reader.read(&mut self.buffer[have..]);
            self.buffer.truncate(have + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => return Err(WireError::Io(ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => return Ok(false),
                    _ => return Err(WireError::Io(error)),
                },
            }
        }
        Ok(true)
    }
}

/// Decodes what follows the length prefix.
fn decode(frame: &[u8]) -> Result<(ProtoVersion, Message)> {
    let (version, body) = frame.split_at(VERSION_BYTES);
    let (message, rest) = postcard::take_from_bytes(body).map_err(WireError::Malformed)?;
    if !rest.is_empty() {
        return Err(WireError::TrailingBytes { extra: rest.len() });
    }
    Ok((u16::from_le_bytes([version[0], version[1]]), message))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives what it has, then says that it would block.
    struct Trickle<'a>(&'a [u8]);

    impl Read for Trickle<'_> {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            match self.0.read(out)? {
                0 => Err(ErrorKind::WouldBlock.into()),
                read => Ok(read),
            }
        }
    }

    #[test]
    fn memory_follows_the_bytes_that_arrived_and_not_the_prefix() {
        let mut accumulator = FrameAccumulator::new();
        assert!(accumulator.poll_read(&mut Trickle(&MAX_FRAME_BYTES.to_le_bytes())).unwrap().is_none());
        assert!(accumulator.has_partial());
        assert!(accumulator.buffer.capacity() <= 2 * CHUNK_BYTES, "{}", accumulator.buffer.capacity());
        let mut arrived = PREFIX_BYTES;
        for bytes in [1, 1000, 60_000, 300_000] {
            assert!(accumulator.poll_read(&mut Trickle(&vec![0; bytes])).unwrap().is_none());
            arrived += bytes;
            assert!(accumulator.buffer.capacity() <= 4 * arrived.max(CHUNK_BYTES), "{}", accumulator.buffer.capacity());
        }
        let rest = vec![0; MAX_FRAME_BYTES as usize + PREFIX_BYTES - arrived];
        accumulator.poll_read(&mut Trickle(&rest)).unwrap_err();
        assert!(!accumulator.has_partial());
        assert!(accumulator.buffer.capacity() <= 2 * CHUNK_BYTES, "a large frame's memory is given back");
    }

    #[test]
    fn a_kept_buffer_is_enough_for_small_messages() {
        let mut out = Vec::with_capacity(64);
        let before = out.as_ptr();
        for ts_ms in [0, 1, u64::MAX] {
            out.clear();
            encode_into(&mut out, 1, &Message::Heartbeat { ts_ms }).unwrap();
            assert_eq!(out.as_ptr(), before);
        }
    }

    #[test]
    fn an_interrupted_read_goes_on() {
        struct Interrupted<'a>(&'a [u8], bool);
        impl Read for Interrupted<'_> {
            fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
                self.1 = !self.1;
                if self.1 { Err(ErrorKind::Interrupted.into()) } else { self.0.read(&mut out[..1]) }
            }
        }
        let frame = encode(2, &Message::Status).unwrap();
        assert_eq!(read_message(&mut Interrupted(&frame, false)).unwrap(), (2, Message::Status));
    }

    #[test]
    fn a_broken_stream_is_an_error_and_leaves_nothing() {
        struct Reset;
        impl Read for Reset {
            fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                Err(ErrorKind::ConnectionReset.into())
            }
        }
        let mut accumulator = FrameAccumulator::new();
        assert!(accumulator.poll_read(&mut Trickle(&[9, 0])).unwrap().is_none());
        let error = accumulator.poll_read(&mut Reset).unwrap_err();
        assert!(matches!(error, WireError::Io(error) if error.kind() == ErrorKind::ConnectionReset));
        assert!(!accumulator.has_partial());
    }
}
