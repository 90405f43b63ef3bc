//! What one client was told, on disk: a line for each token that it sends, ahead of it, and one for each that was acknowledged. The
//! [audit](crate::audit) reads all of them.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// A line begins with it: this token was sent.
const SENT: char = '+';
/// The same: this token was acknowledged.
const ACKED: char = '=';

/// The log of one client. It is only ever appended to.
#[derive(Debug)]
pub struct AckLog {
    file: File,
}

impl AckLog {
    /// A log of this name in a directory of its own, which exists.
    ///
    /// # Errors
    /// The file can't be made.
    pub fn create(dir: &Path, name: &str) -> io::Result<Self> {
        let path = dir.join(format!("acks-{name}.log"));
        Ok(Self { file: File::options().append(true).create(true).open(path)? })
    }

    /// Notes that this token is about to be sent, for the first time.
    ///
    /// # Errors
    /// The disk's.
    pub fn sent(&mut self, token: u64) -> io::Result<()> {
        self.note(SENT, token)
    }

    /// Notes that this token was acknowledged.
    ///
    /// # Errors
    /// The disk's.
    pub fn acked(&mut self, token: u64) -> io::Result<()> {
        self.note(ACKED, token)
    }

    fn note(&mut self, what: char, token: u64) -> io::Result<()> {
        self.file.write_all(format!("{what}{token}\n").as_bytes())
    }
}

/// What all clients were told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) sent: HashSet<u64>,
    pub(crate) acked: HashSet<u64>,
}

impl Told {
    /// Reads all logs of a directory. The last line of a client that was killed may be torn.
    pub(crate) fn read(dir: &Path) -> io::Result<Self> {
        let mut told = Self::default();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let text = fs::read_to_string(&path)?;
            for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
                told.take(line).ok_or_else(|| bad_line(&path, line))?;
            }
        }
        Ok(told)
    }

    fn take(&mut self, line: &str) -> Option<bool> {
        let mut chars = line.chars();
        let tokens = match chars.next()? {
            SENT => &mut self.sent,
            ACKED => &mut self.acked,
            _ => return None,
        };
        Some(tokens.insert(chars.as_str().parse().ok()?))
    }
}

fn bad_line(path: &Path, line: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {line:?} is no line of a client's log", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_tell_what_was_sent_and_what_was_acknowledged() {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, tokens) in [("a", [1, 2]), ("b", [3, 4])] {
            let mut log = AckLog::create(dir.path(), name).expect("made");
            tokens.iter().for_each(|token| log.sent(*token).expect("noted"));
            log.acked(tokens[0]).expect("noted");
        }
        let told = Told::read(dir.path()).expect("readable");
        assert_eq!((told.sent, told.acked), (HashSet::from([1, 2, 3, 4]), HashSet::from([1, 3])));
    }

    #[test]
    fn a_torn_end_is_no_line_and_any_other_nonsense_is_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("acks-a.log");
        fs::write(&path, "+7\n=").expect("written");
        assert!(Told::read(dir.path()).expect("readable").acked.is_empty());
        fs::write(&path, "+7\n?7\n").expect("written");
        assert!(Told::read(dir.path()).is_err());
    }
}
