//! What goes over the direct channel from an incumbent to its successor: items, each a header and at most one descriptor beside
//! it (SCM_RIGHTS, unix(7)). The supervisor makes the channel and never looks into it.
//!
//! ```text
//! byte   0       4         6      8
//!        magic   version   kind        both numbers little-endian
//! ```

use std::fmt;

/// The length of a header.
pub const HEADER_BYTES: usize = 8;

const MAGIC: [u8; 4] = *b"hofT";
const VERSION: u16 = 1;

/// What an item is. Its number travels: only append.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The data directory, open and locked (flock(2)): the lock belongs to the open file, so whoever has a copy of the
    /// descriptor has a part in it.
    Directory,
}

/// Why a header is none that this build understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unreadable {
    /// It does not begin as one.
    NoHeader,
    /// It is of another version.
    Version(u16),
    /// It announces what this build does not know.
    Kind(u16),
}

impl Kind {
    const fn number(self) -> u16 {
        match self {
            Self::Directory => 0,
        }
    }

    /// The header of an item of this kind.
    pub const fn header(self) -> [u8; HEADER_BYTES] {
        let ([a, b, c, d], [e, f], [g, h]) = (MAGIC, VERSION.to_le_bytes(), self.number().to_le_bytes());
        [a, b, c, d, e, f, g, h]
    }

    /// What this header announces.
    ///
    /// # Errors
    /// It is cut short, no header at all, or a later build's.
    pub fn of_header(bytes: &[u8]) -> Result<Self, Unreadable> {
        let Some((MAGIC, rest)) = bytes.split_first_chunk().map(|(magic, rest)| (*magic, rest)) else {
            return Err(Unreadable::NoHeader);
        };
        match *rest {
            [e, f, g, h] => match (u16::from_le_bytes([e, f]), u16::from_le_bytes([g, h])) {
                (VERSION, 0) => Ok(Self::Directory),
                (VERSION, kind) => Err(Unreadable::Kind(kind)),
                (version, _) => Err(Unreadable::Version(version)),
            },
            _ => Err(Unreadable::NoHeader),
        }
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHeader => f.write_str("it has no header"),
            Self::Version(version) => write!(f, "its format is version {version}, this build reads {VERSION}"),
            Self::Kind(kind) => write!(f, "it is of kind {kind}, which this build does not know"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These bytes go from one build to another.
    #[test]
    fn the_header_of_a_directory_stays_as_it_is() {
        assert_eq!(Kind::Directory.header(), *b"hofT\x01\x00\x00\x00");
        assert_eq!(Kind::of_header(b"hofT\x01\x00\x00\x00"), Ok(Kind::Directory));
    }

    #[test]
    fn what_is_no_header_of_this_build_is_told_apart() {
        for cut in
            [&b""[..], b"hof", b"hofT", b"hofT\x01\x00\x00", b"hofT\x01\x00\x00\x00\x00", b"hoft\x01\x00\x00\x00"]
        {
            assert_eq!(Kind::of_header(cut), Err(Unreadable::NoHeader), "{cut:?}");
        }
        assert_eq!(Kind::of_header(b"hofT\x02\x00\x00\x00"), Err(Unreadable::Version(2)));
        assert_eq!(Kind::of_header(b"hofT\x01\x00\x00\x01"), Err(Unreadable::Kind(256)));
    }
}
