//! A client's side of the store's [protocol](super::wire), and a record of what all clients were told: a reply that no order of
//! their requests explains is wrong, or comes out of order.
//!
//! A key's counter only grows, so three rules tell (Herlihy and Wing, "Linearizability", 1990): a reply shows at least what was
//! answered before its request was sent; no two increments are answered with the same count; and no count is higher than the
//! number of increments that were sent.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::wire::{BYE, RETRY};
use crate::load::{Answer, Connection, Protocol, Standing, Suffered};

/// Speaks for all clients of a store that was empty before the first of them.
#[derive(Debug)]
pub struct StoreClient {
    keys: u64,
    told: Mutex<HashMap<u64, Told>>,
}

/// What the clients were told of one key.
#[derive(Debug, Default)]
struct Told {
    /// The highest count in any reply.
    shown: u64,
    /// Increments that were sent and may have been carried out.
    sent: u64,
    /// The counts in replies to increments.
    given: HashSet<u64>,
}

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Increment,
    Get,
}

/// A reply, as a line.
enum Line {
    Count { count: u64, leaving: bool },
    Retry,
}

impl StoreClient {
    /// For clients that share this many keys.
    pub fn with_keys(keys: u64) -> Arc<Self> {
        Arc::new(Self { keys: keys.max(1), told: Mutex::default() })
    }

    /// For clients that share 64 keys.
    pub fn new() -> Arc<Self> {
        Self::with_keys(64)
    }

    fn ask(&self, connection: &mut Connection, token: u64, asked: Asked) -> Result<Answer, Suffered> {
        let key = token % self.keys;
        let floor = self.told(key, |told| {
            told.sent += u64::from(asked == Asked::Increment);
            told.shown
        });
        let request = match asked {
            Asked::Increment => format!("INC key-{key} {token}\n"),
            Asked::Get => format!("GET key-{key}\n"),
        };
        match exchange(connection, &request, asked)? {
            Line::Retry => {
                self.told(key, |told| told.sent -= u64::from(asked == Asked::Increment));
                Ok(Answer::Again)
            }
            Line::Count { count, leaving } => Ok(match self.told(key, |told| told.check(asked, floor, count)) {
                Some(wrong) => Answer::Wrong(wrong),
                None if leaving => Answer::DoneAndLeaving,
                None => Answer::Done,
            }),
        }
    }

    fn told<T>(&self, key: u64, look: impl FnOnce(&mut Told) -> T) -> T {
        let mut told: MutexGuard<'_, _> = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        look(told.entry(key).or_default())
    }
}

impl Protocol for StoreClient {
    fn write(&self, connection: &mut Connection, token: u64) -> Result<Answer, Suffered> {
        self.ask(connection, token, Asked::Increment)
    }

    fn read(&self, connection: &mut Connection, token: u64) -> Result<Answer, Suffered> {
        self.ask(connection, token, Asked::Get)
    }

    fn look(&self, connection: &mut Connection) -> Standing {
        match connection.unasked() {
            Ok([]) => Standing::Good,
            Ok(said) if said.starts_with(BYE.as_bytes()) => Standing::Leaving,
            _ => Standing::Broken,
        }
    }
}

impl Told {
    /// Takes a reply in; what is wrong with it, if anything is.
    fn check(&mut self, asked: Asked, floor: u64, count: u64) -> Option<Suffered> {
        let (least, fresh) = match asked {
            Asked::Increment => (floor + 1, self.given.insert(count)),
            Asked::Get => (floor, true),
        };
        let wrong = match count {
            _ if count < least => Some(Suffered::OutOfOrder),
            _ if !fresh || count > self.sent => Some(Suffered::WrongValue),
            _ => None,
        };
        // What can't be true must not make true replies look late.
        if count <= self.sent {
            self.shown = self.shown.max(count);
        }
        wrong
    }
}

/// Sends a request and reads its reply, with a BYE perhaps ahead of it.
fn exchange(connection: &mut Connection, request: &str, asked: Asked) -> Result<Line, Suffered> {
    let failed = |error: io::Error| Suffered::from_request(&error);
    connection.write_all(request.as_bytes()).map_err(failed)?;
    let mut leaving = false;
    loop {
        match connection.read_line().map_err(failed)? {
            None => return Err(Suffered::Ended),
            Some(line) if line == BYE => leaving = true,
            Some(line) if line == RETRY => return Ok(Line::Retry),
            Some(line) => return count_in(&line, asked).map(|count| Line::Count { count, leaving }),
        }
    }
}

fn count_in(line: &str, asked: Asked) -> Result<u64, Suffered> {
    let word = match asked {
        Asked::Increment => "OK",
        Asked::Get => "VALUE",
    };
    let mut words = line.split(' ');
    if words.next() != Some(word) {
        return Err(Suffered::Rejected);
    }
    words.next().and_then(|count| count.parse().ok()).ok_or(Suffered::WrongValue)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(sent: u64) -> Told {
        Told { sent, ..Told::default() }
    }

    #[test]
    fn replies_that_some_order_explains_are_right() {
        let mut told = told(3);
        assert_eq!(told.check(Asked::Increment, 0, 2), None);
        assert_eq!(told.check(Asked::Increment, 0, 1), None, "it was sent before the other was answered");
        assert_eq!(told.check(Asked::Get, 2, 3), None, "the third is carried out, and not answered yet");
        assert_eq!(told.check(Asked::Increment, 2, 3), None);
    }

    #[test]
    fn a_count_below_what_was_answered_before_is_out_of_order() {
        let mut told = told(9);
        assert_eq!(told.check(Asked::Increment, 0, 5), None);
        assert_eq!(told.check(Asked::Get, 5, 4), Some(Suffered::OutOfOrder));
        assert_eq!(told.check(Asked::Increment, 5, 5), Some(Suffered::OutOfOrder));
    }

    #[test]
    fn a_count_given_twice_or_from_the_future_is_wrong() {
        let mut told = told(3);
        assert_eq!(told.check(Asked::Increment, 0, 1), None);
        assert_eq!(told.check(Asked::Increment, 0, 1), Some(Suffered::WrongValue));
        assert_eq!(told.check(Asked::Get, 1, 4), Some(Suffered::WrongValue));
        assert_eq!(told.check(Asked::Get, 1, 3), None, "the wrong one counts for nothing");
    }
}
