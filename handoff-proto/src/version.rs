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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_common_version_is_chosen() {
        for (ours, theirs, expected) in [
            ((1, 1), (1, 1), 1),
            ((1, 2), (1, 1), 1),
            ((1, 1), (1, 2), 1),
            ((1, 2), (1, 2), 2),
            ((1, 3), (2, 5), 3),
            ((1, 5), (3, 4), 4),
            ((3, 4), (1, 5), 4),
            ((2, 9), (9, 9), 9),
            ((0, u16::MAX), (0, u16::MAX), u16::MAX),
            ((PROTO_MIN, PROTO_MAX), (PROTO_MIN, PROTO_MAX), 2),
        ] {
            assert_eq!(negotiate_version(ours.0, ours.1, theirs.0, theirs.1).unwrap(), expected, "{ours:?} {theirs:?}");
        }
    }

    /// A range whose end lies before its start holds nothing, whatever the other side speaks.
    #[test]
    fn disjoint_and_empty_ranges_have_nothing_in_common() {
        for (ours, theirs) in [
            ((1, 1), (2, 2)),
            ((3, 4), (1, 2)),
            ((2, 1), (1, 5)),
            ((1, 5), (4, 2)),
            ((2, 1), (2, 1)),
            ((u16::MAX, 0), (0, u16::MAX)),
        ] {
            let error = negotiate_version(ours.0, ours.1, theirs.0, theirs.1).unwrap_err();
            let expected = format!(
                "no common protocol version: ours {}..={}, the peer's {}..={}",
                ours.0, ours.1, theirs.0, theirs.1
            );
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn both_sides_come_to_the_same_end() {
        for [a, b, c, d] in (0..4u16.pow(4)).map(|n| [n % 4, n / 4 % 4, n / 16 % 4, n / 64]) {
            assert_eq!(negotiate_version(a, b, c, d).ok(), negotiate_version(c, d, a, b).ok());
            if let Ok(chosen) = negotiate_version(a, b, c, d) {
                assert!((a..=b).contains(&chosen) && (c..=d).contains(&chosen));
            }
        }
    }
}
