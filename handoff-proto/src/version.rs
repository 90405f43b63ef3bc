//! Protocol versions and how two peers agree on one.

use crate::error::WireError;

/// A version of the wire protocol.
pub type ProtoVersion = u16;

/// The oldest version that this build speaks: byte-compatible with `beyond-handoff` 0.1.
pub const PROTO_MIN: ProtoVersion = 1;

/// The newest version that this build speaks. What it adds to version 1 stands in [`crate::message`].
pub const PROTO_MAX: ProtoVersion = 2;

/// The highest version that both ranges hold.
///
/// # Errors
/// [`WireError::VersionMismatch`], which prints both ranges, when they have nothing in common, or when a range is empty.
pub fn negotiate_version(
    our_min: ProtoVersion,
    our_max: ProtoVersion,
    their_min: ProtoVersion,
    their_max: ProtoVersion,
) -> Result<ProtoVersion, WireError> {
    let lowest = our_min.max(their_min);
    let highest = our_max.min(their_max);
    if lowest > highest {
        return Err(WireError::VersionMismatch { our_min, our_max, their_min, their_max });
    }
    Ok(highest)
}
