//! The line protocol. Pure: bytes in, bytes out.
//!
//! | request | reply | |
//! |---|---|---|
//! | `INC key [token]` | `OK count` | counts one event; durable when the reply comes |
//! | `GET key` | `VALUE count score score score` | scores as of now, by half-lives of a minute, an hour, a day |
//! | `COHORT name` | `COHORT events hour days` | events ever, in the last hour, in the last two days |
//! | `ADD collection item` | `OK 1`, or `OK 0` | puts a number into a collection; 0 when it was there already; durable |
//! | `HAS collection item` | `OK 1`, or `OK 0` | whether it is there |
//! | `COUNT collection` | `OK count` | how many are there |
//! | `PAIR a b` | `OK weight` | two keys were engaged with together; durable |
//! | `NEAR key` | `NEAR key:weight…` | what was engaged with together with it |
//! | `CHECKPOINT` | `OK sequence` | makes a checkpoint now; durable |
//! | `STATS` | `STATS name=value…` | one line about the store |
//! | `PING` | `PONG` | |
//! | anything else | `ERR text` | nothing was done; the connection goes on |
//!
//! Lines end with `\n`, or `\r\n`, and are at most [`LINE_BYTES_MAX`] bytes long. Each request gets one reply, in order. Two
//! more lines come with a handover:
//!
//! - `BYE`, unasked: no request is carried out on this connection any more. A client closes it and connects again.
//! - `RETRY`, in reply: this request was *not* carried out, and may be sent again on a new connection. It answers a request
//!   that crossed the `BYE`.

use std::fmt::{self, Display};

use super::{Neighbours, StoreError};

/// The longest request line, its end not counted.
pub const LINE_BYTES_MAX: usize = 1024;

/// What a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// Count one event.
    Increment {
        /// Of which key.
        key: &'a str,
        /// What names this write in the log.
        token: Option<&'a str>,
    },
    /// Tell a signal.
    Get {
        /// Which.
        key: &'a str,
    },
    /// Tell a cohort.
    Cohort {
        /// Which.
        cohort: &'a str,
    },
    /// Put an item into a collection.
    Add {
        /// Into which.
        collection: &'a str,
        /// What.
        item: u32,
    },
    /// Tell whether an item is in a collection.
    Has {
        /// In which.
        collection: &'a str,
        /// What.
        item: u32,
    },
    /// Tell how many items a collection holds.
    Count {
        /// Which.
        collection: &'a str,
    },
    /// Two keys were engaged with together.
    Pair {
        /// The one.
        a: &'a str,
        /// The other.
        b: &'a str,
    },
    /// Tell what was engaged with together with a key.
    Near {
        /// Which.
        key: &'a str,
    },
    /// Make a checkpoint.
    Checkpoint,
    /// Tell about the store.
    Stats,
    /// Are you there?
    Ping,
}

impl<'a> Request<'a> {
    /// Reads a line without its end.
    ///
    /// # Errors
    /// The client's fault; the text says what is wrong with the line.
    pub fn parse(line: &'a [u8]) -> Result<Self, &'static str> {
        let line = std::str::from_utf8(line).map_err(|_| "not UTF-8")?;
        let mut words = line.split_ascii_whitespace();
        let request = match (words.next(), words.next(), words.next()) {
            (Some("INC"), Some(key), token) => Self::Increment { key, token },
            (Some("GET"), Some(key), None) => Self::Get { key },
            (Some("COHORT"), Some(cohort), None) => Self::Cohort { cohort },
            (Some("ADD"), Some(collection), Some(item)) => Self::Add { collection, item: number(item)? },
            (Some("HAS"), Some(collection), Some(item)) => Self::Has { collection, item: number(item)? },
            (Some("COUNT"), Some(collection), None) => Self::Count { collection },
            (Some("PAIR"), Some(a), Some(b)) => Self::Pair { a, b },
            (Some("NEAR"), Some(key), None) => Self::Near { key },
            (Some("CHECKPOINT"), None, None) => Self::Checkpoint,
            (Some("STATS"), None, None) => Self::Stats,
            (Some("PING"), None, None) => Self::Ping,
            (Some("INC" | "GET" | "COHORT" | "COUNT" | "NEAR"), None, None) => return Err("a name is missing"),
            (Some("ADD" | "HAS"), _, None) => return Err("a collection and an item are wanted"),
            (Some("PAIR"), _, None) => return Err("two keys are wanted"),
            (Some("GET" | "COHORT" | "COUNT" | "NEAR" | "CHECKPOINT" | "STATS" | "PING"), ..) => {
                return Err("too many words");
            }
            _ => {
                return Err(
                    "unknown command; known are INC, GET, COHORT, ADD, HAS, COUNT, PAIR, NEAR, CHECKPOINT, STATS, PING",
                );
            }
        };
        words.next().map_or(Ok(request), |_| Err("too many words"))
    }
}

fn number(word: &str) -> Result<u32, &'static str> {
    word.parse().map_err(|_| "an item is a number")
}

/// What the store answers; `Display` is the line without its end.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// To an increment, the count; to others the number that they ask for.
    Ok(u64),
    /// To a get.
    Value {
        /// How often the key was incremented.
        count: u64,
        /// Its scores as of now.
        scores: [f64; 3],
    },
    /// To a question for a cohort.
    Cohort {
        /// How many events it ever had.
        events: u64,
        /// How many in the last hour.
        hour: u64,
        /// How many in the last two days.
        days: u64,
    },
    /// To a question for neighbours.
    Near(Neighbours),
    /// To `STATS`.
    Stats(Stats),
    /// To `PING`.
    Pong,
    /// The request was not carried out; send it again on a new connection.
    Retry,
    /// The request was refused, or failed.
    Error(String),
}

/// What `STATS` tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// How many keys there are.
    pub keys: usize,
    /// The last write's sequence.
    pub sequence: u64,
    /// The epoch under which this process writes.
    pub epoch: u64,
    /// Open client connections.
    pub connections: usize,
    /// Who answers.
    pub pid: u32,
    /// Its build.
    pub build: String,
}

/// The line that says that no request is carried out on this connection any more.
pub const BYE: &str = "BYE";
/// The reply to a request that was not carried out.
pub const RETRY: &str = "RETRY";

impl Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok(count) => write!(f, "OK {count}"),
            Self::Value { count, scores: [minute, hour, day] } => {
                write!(f, "VALUE {count} {minute:.6} {hour:.6} {day:.6}")
            }
            Self::Cohort { events, hour, days } => write!(f, "COHORT {events} {hour} {days}"),
            Self::Near(neighbours) => {
                f.write_str("NEAR")?;
                neighbours.iter().try_for_each(|near| write!(f, " {}:{}", near.key, near.weight))
            }
            Self::Stats(Stats { keys, sequence, epoch, connections, pid, build }) => write!(
                f,
                "STATS keys={keys} sequence={sequence} epoch={epoch} connections={connections} pid={pid} build={build}"
            ),
            Self::Pong => f.write_str("PONG"),
            Self::Retry => f.write_str(RETRY),
            Self::Error(text) => write!(f, "ERR {}", text.replace(['\r', '\n'], " ")),
        }
    }
}

impl From<StoreError> for Reply {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Sealed => Self::Retry,
            error => Self::Error(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read() {
        assert_eq!(Request::parse(b"INC likes"), Ok(Request::Increment { key: "likes", token: None }));
        assert_eq!(Request::parse(b"INC likes c.1\r"), Ok(Request::Increment { key: "likes", token: Some("c.1") }));
        assert_eq!(Request::parse(b"GET likes"), Ok(Request::Get { key: "likes" }));
        assert_eq!(Request::parse(b"COHORT de"), Ok(Request::Cohort { cohort: "de" }));
        assert_eq!(Request::parse(b"ADD pins 7"), Ok(Request::Add { collection: "pins", item: 7 }));
        assert_eq!(Request::parse(b"HAS pins 7"), Ok(Request::Has { collection: "pins", item: 7 }));
        assert_eq!(Request::parse(b"COUNT pins"), Ok(Request::Count { collection: "pins" }));
        assert_eq!(Request::parse(b"PAIR a b"), Ok(Request::Pair { a: "a", b: "b" }));
        assert_eq!(Request::parse(b"NEAR a"), Ok(Request::Near { key: "a" }));
        assert_eq!(Request::parse(b"CHECKPOINT"), Ok(Request::Checkpoint));
        assert_eq!(Request::parse(b"STATS"), Ok(Request::Stats));
        assert_eq!(Request::parse(b"PING"), Ok(Request::Ping));
    }

    #[test]
    fn everything_else_is_refused() {
        let lines: [&[u8]; 22] = [
            b"",
            b" ",
            b"INC",
            b"GET",
            b"GET a b",
            b"INC a b c",
            b"PING x",
            b"inc a",
            b"DROP a",
            b"\xff\xfe",
            b"ADD",
            b"ADD pins",
            b"ADD pins x",
            b"ADD pins -1",
            b"ADD pins 4294967296",
            b"ADD pins 1 2",
            b"HAS pins",
            b"COUNT",
            b"PAIR a",
            b"PAIR a b c",
            b"CHECKPOINT now",
            b"COHORT a b",
        ];
        for line in lines {
            assert!(Request::parse(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn a_reply_is_one_line() {
        assert_eq!(Reply::Error("two\nlines".into()).to_string(), "ERR two lines");
        assert_eq!(Reply::from(StoreError::Sealed).to_string(), "RETRY");
        assert_eq!(
            Reply::Value { count: 2, scores: [1.5, 2.0, 2.0] }.to_string(),
            "VALUE 2 1.500000 2.000000 2.000000"
        );
    }
}
