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
