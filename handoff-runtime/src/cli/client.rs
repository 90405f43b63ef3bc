//! The other end of the admin socket. It waits as long as the service takes; the service's own bounds are the bounds.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::process::Process;
use crate::service::{Event, Refusal, Request};
use crate::sys::socket::peer;

/// The longest line that a service sends.
const LINE_BYTES_MAX: u64 = 1024 * 1024;

/// A connection on which one order was given.
pub(super) struct Client {
    stream: BufReader<UnixStream>,
    /// The supervisor; none if it was gone before it could be opened, or lives in a pid namespace that is not seen from here.
    supervisor: Option<Process>,
}

/// One line from the service.
pub(super) enum Line {
    Event(Event),
    /// The object, as it was sent.
    Answer(String),
}

impl Client {
    /// Gives an order to the service of this state directory.
    ///
    /// # Errors
    /// One line that names the socket.
    pub(super) fn order(state_dir: &Path, request: &Request) -> Result<Self, String> {
        let path = state_dir.join("admin.sock");
        let nobody = |why: std::io::Error| match why.kind() {
            ErrorKind::PermissionDenied => format!("{}: {why}", path.display()),
            _ => {
                format!("nobody answers at {} ({why}): is `handoff run` running with this --state-dir?", path.display())
            }
        };
        let mut stream = UnixStream::connect(&path).map_err(nobody)?;
        let supervisor = peer(stream.as_fd()).ok().and_then(|peer| Process::open(peer.pid).ok().flatten());
        let mut line = serde_json::to_vec(request).map_err(|error| format!("the order can't be encoded: {error}"))?;
        line.push(b'\n');
        stream.write_all(&line).map_err(nobody)?;
        Ok(Self { stream: BufReader::new(stream), supervisor })
    }

    /// The next line; none when the service has closed the connection.
    pub(super) fn next(&mut self) -> Result<Option<Line>, String> {
        loop {
            let mut line = String::new();
            let count = (&mut self.stream).take(LINE_BYTES_MAX).read_line(&mut line);
            match count {
                Ok(0) => return Ok(None),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(format!("the supervisor's answer can't be read: {error}")),
                Ok(_) => {}
            }
            let value: Value = read(&line)?;
            if value.get("event").is_none() {
                return match serde_json::from_value::<Refusal>(value) {
                    Ok(refusal) => Err(refusal.error),
                    Err(_) => Ok(Some(Line::Answer(line.trim_end().to_owned()))),
                };
            }
            // A newer service may tell more than this program knows.
            if let Ok(event) = serde_json::from_value(value) {
                return Ok(Some(Line::Event(event)));
            }
        }
    }

    /// The answer, whatever comes ahead of it.
    pub(super) fn answer(&mut self) -> Result<String, String> {
        loop {
            match self.next()? {
                Some(Line::Answer(answer)) => return Ok(answer),
                Some(Line::Event(_)) => {}
                None => return Err("the supervisor has closed the connection without an answer".to_owned()),
            }
        }
    }

    /// The supervisor, if it can be seen.
    pub(super) fn supervisor(&self) -> Option<&Process> {
        self.supervisor.as_ref()
    }

    /// Waits until the supervisor's process is gone.
    pub(super) fn wait_until_gone(&self) -> Result<(), String> {
        let Some(supervisor) = &self.supervisor else { return Ok(()) };
        loop {
            match poll(&mut [PollFd::new(supervisor, PollFlags::IN)], None) {
                Err(Errno::INTR) => {}
                Err(error) => return Err(format!("waiting for the supervisor's end: {error}")),
                Ok(_) => return Ok(()),
            }
        }
    }
}

/// Waits until the service of this state directory has answered a question, if one runs and answers in time: what it did before
/// is done then.
pub(super) fn wait_for_answer(state_dir: &Path, within: Duration) {
    let Ok(mut stream) = UnixStream::connect(state_dir.join("admin.sock")) else { return };
    let bounds = stream.set_read_timeout(Some(within)).and_then(|()| stream.set_write_timeout(Some(within)));
    if bounds.and_then(|()| stream.write_all(b"{\"cmd\":\"status\"}\n")).is_ok() {
        let _ = BufReader::new(stream).take(LINE_BYTES_MAX).read_line(&mut String::new());
    }
}

/// An answer as what it should be.
pub(super) fn read<T: DeserializeOwned>(answer: &str) -> Result<T, String> {
    serde_json::from_str(answer).map_err(|error| format!("unreadable answer: {error}"))
}
