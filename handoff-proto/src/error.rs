//! What can be wrong with bytes on a control channel, and who is at fault.

use std::io;

use crate::version::ProtoVersion;

/// The result of everything that reads or writes the wire.
pub type Result<T> = std::result::Result<T, WireError>;

/// A frame or a message that could not be read, written or agreed upon.
///
/// After an error of a read the stream has lost its place: close it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The stream failed or ended. Nobody's fault; the peer may have died.
    #[error("control channel: {0}")]
    Io(#[from] io::Error),

    /// The peer announced a frame beyond [`crate::MAX_FRAME_BYTES`], or we were asked to write one. The peer's fault on a
    /// read, the caller's on a write.
    #[error("frame of {bytes} bytes is over the limit of {max} bytes", max = crate::MAX_FRAME_BYTES)]
    FrameTooLarge {
        /// The length that the prefix would carry.
        bytes: u64,
    },

    /// The peer announced a frame that can't even hold its version. The peer's fault.
    #[error("frame of {bytes} bytes is too short to hold a version")]
    FrameTooShort {
        /// The length that the prefix carried.
        bytes: u32,
    },

    /// The bytes are no message. The peer's fault.
    #[error("the peer sent bytes that are no message: {0}")]
    Malformed(postcard::Error),

    /// The bytes hold a message and something behind it. The peer's fault.
    #[error("the peer sent {extra} bytes behind a message")]
    TrailingBytes {
        /// How many bytes were left over.
        extra: usize,
    },

    /// A message could not be encoded. The caller's fault.
    #[error("message can't be encoded: {0}")]
    Encode(postcard::Error),

    /// The two sides have no version in common. Nobody's fault; upgrade the older one first.
    #[error("no common protocol version: ours {our_min}..={our_max}, the peer's {their_min}..={their_max}")]
    VersionMismatch {
        /// Our oldest.
        our_min: ProtoVersion,
        /// Our newest.
        our_max: ProtoVersion,
        /// The peer's oldest.
        their_min: ProtoVersion,
        /// The peer's newest.
        their_max: ProtoVersion,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_is_one_line_with_its_figures() {
        for (error, expected) in [
            (
                WireError::FrameTooLarge { bytes: 1 << 32 },
                "frame of 4294967296 bytes is over the limit of 1048576 bytes",
            ),
            (WireError::FrameTooShort { bytes: 1 }, "frame of 1 bytes is too short to hold a version"),
            (WireError::TrailingBytes { extra: 7 }, "the peer sent 7 bytes behind a message"),
            (
                WireError::VersionMismatch { our_min: 2, our_max: 3, their_min: 1, their_max: 1 },
                "no common protocol version: ours 2..=3, the peer's 1..=1",
            ),
            (WireError::Io(io::ErrorKind::UnexpectedEof.into()), "control channel: unexpected end of file"),
        ] {
            assert_eq!(error.to_string(), expected);
        }
        let malformed = WireError::Malformed(postcard::Error::DeserializeUnexpectedEnd).to_string();
        assert!(malformed.starts_with("the peer sent bytes that are no message: "), "{malformed}");
    }
}
