//! One control connection: whole messages in, whole messages out, with descriptors beside them.
//!
//! Never blocks, never raises SIGPIPE, never holds more than a bounded amount for a peer that does not read. Knows frames,
//! not what they mean.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use handoff_proto::frame::{FrameAccumulator, encode};
use handoff_proto::{Message, ProtoVersion, WireError};

use crate::sys::socket;
pub(crate) use crate::sys::socket::{FDS_PER_MESSAGE_MAX, Peer};

/// The most that may wait for a peer that does not read.
const OUTBOUND_BYTES_MAX: usize = 16 << 20;
/// What is received at a time. A handover's messages are far smaller, so one call brings each of them whole.
const INBOUND_BYTES: usize = 16 << 10;

/// A control connection.
#[derive(Debug)]
pub(crate) struct Channel {
    stream: UnixStream,
    inbound: Inbound,
    accumulator: FrameAccumulator,
    outbound: VecDeque<Outbound>,
    outbound_bytes: usize,
}

/// What [`Channel::receive`] found.
#[derive(Debug)]
pub(crate) enum Received {
    /// A whole message.
    Message {
        /// The version of its frame.
        version: ProtoVersion,
        /// The message.
        message: Message,
        /// The descriptors that came with it, close-on-exec.
        fds: Vec<OwnedFd>,
    },
    /// All that has arrived is taken.
    Nothing,
    /// The peer has closed, or is gone.
    Closed,
    /// The peer sent what is no message, or the socket failed. Close the channel.
    Malformed(WireError),
}

/// A frame on its way out.
#[derive(Debug)]
struct Outbound {
    bytes: Vec<u8>,
    written: usize,
    /// They go with the first byte.
    fds: Vec<OwnedFd>,
}

impl Channel {
    /// Takes over a connected socket.
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            inbound: Inbound::default(),
            accumulator: FrameAccumulator::new(),
            outbound: VecDeque::new(),
            outbound_bytes: 0,
        })
    }

    /// A channel and the other end of it, which is blocking and close-on-exec, to be given to a child.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Self::new(ours)?, theirs.into()))
    }

    /// Sends a message: at once what fits, the rest when [`flush`](Self::flush) is called.
    ///
    /// # Errors
    /// The message does not fit a frame, the peer is gone, or it has not read for so long that too much waits for it.
    pub(crate) fn send(&mut self, version: ProtoVersion, message: &Message) -> Result<(), WireError> {
        self.send_with_fds(version, message, &[])
    }

    /// As [`send`](Self::send), with at most [`FDS_PER_MESSAGE_MAX`] descriptors beside the message.
    ///
    /// # Errors
    /// As `send`, and `InvalidInput` for too many descriptors.
    pub(crate) fn send_with_fds(
        &mut self,
        version: ProtoVersion,
        message: &Message,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), WireError> {
        if fds.len() > FDS_PER_MESSAGE_MAX {
            return Err(too_many_fds(fds.len()).into());
        }
        let mut frame = Outbound { bytes: encode(version, message)?, written: 0, fds: Vec::new() };
        self.flush()?;
        if self.outbound.is_empty() {
            frame.written = write_some(&self.stream, &frame.bytes, fds)?;
            if frame.written > 0 {
                return self.enqueue(frame);
            }
        }
        frame.fds = fds.iter().map(BorrowedFd::try_clone_to_owned).collect::<io::Result<_>>()?;
        self.enqueue(frame)
    }

    /// Writes what waits, as far as the peer takes it.
    ///
    /// # Errors
    /// The peer is gone.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while let Some(frame) = self.outbound.front_mut() {
            let fds: Vec<_> = frame.fds.iter().map(AsFd::as_fd).collect();
            let written = write_some(&self.stream, &frame.bytes[frame.written..], &fds)?;
            if written == 0 {
                break;
            }
            frame.fds.clear();
            frame.written += written;
            self.outbound_bytes -= written;
            if frame.written == frame.bytes.len() {
                self.outbound.pop_front();
            }
        }
        Ok(())
    }

    /// Whether to wait for the socket to take more.
    pub(crate) fn wants_write(&self) -> bool {
        !self.outbound.is_empty()
    }

    /// The next message that has arrived. Call it until [`Received::Nothing`].
    pub(crate) fn receive(&mut self) -> Received {
        loop {
            match self.accumulator.poll_read(&mut self.inbound) {
                Ok(Some((version, message))) => {
                    let fds = self.inbound.take_fds_of_frame();
                    return Received::Message { version, message, fds };
                }
                Ok(None) => match self.inbound.refill(&self.stream) {
                    Ok(Refill::Some) => {}
                    Ok(Refill::Nothing) => return Received::Nothing,
                    Ok(Refill::Closed) => return Received::Closed,
                    Err(error) => return Received::Malformed(error.into()),
                },
                Err(error) => return Received::Malformed(error),
            }
        }
    }

    /// Who is at the other end.
    pub(crate) fn peer(&self) -> io::Result<Peer> {
        socket::peer(self.stream.as_fd())
    }

    fn enqueue(&mut self, frame: Outbound) -> Result<(), WireError> {
        let waiting = frame.bytes.len() - frame.written;
        if waiting == 0 {
            return Ok(());
        }
        if self.outbound_bytes + waiting > OUTBOUND_BYTES_MAX {
            return Err(io::Error::new(ErrorKind::OutOfMemory, "the peer does not read what is sent to it").into());
        }
        self.outbound_bytes += waiting;
        self.outbound.push_back(frame);
        Ok(())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Writes what the socket takes now; 0: it takes nothing.
fn write_some(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    match socket::send(stream.as_fd(), bytes, fds) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        result => result,
    }
}

fn too_many_fds(count: usize) -> io::Error {
    let text = format!("{count} descriptors for one message; at most {FDS_PER_MESSAGE_MAX} go with it");
    io::Error::new(ErrorKind::InvalidInput, text)
}

/// What has arrived and is not decoded yet.
///
/// The kernel stops a receive behind bytes that carried descriptors (unix(7)), and a sender gives them with a frame's first
/// byte. So the descriptors of one receive belong to the last frame that begins in its bytes.
#[derive(Debug, Default)]
struct Inbound {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Descriptors of the last receive.
    fresh_fds: Vec<OwnedFd>,
    /// Descriptors of earlier receives, which belong to the frame that is incomplete.
    held_fds: Vec<OwnedFd>,
    /// The last receive did not fill the buffer: there is no more.
    drained: bool,
}

enum Refill {
    Some,
    Nothing,
    Closed,
}

impl Inbound {
    /// Receives more; only when everything before is decoded or kept by the accumulator.
    fn refill(&mut self, stream: &UnixStream) -> io::Result<Refill> {
        if std::mem::take(&mut self.drained) {
            return Ok(Refill::Nothing);
        }
        self.held_fds.append(&mut self.fresh_fds);
        self.buffer.resize(INBOUND_BYTES, 0);
        let arrived = match socket::receive(stream.as_fd(), &mut self.buffer, &mut self.fresh_fds) {
            Ok(arrived) => arrived,
            Err(error) => return closed_or_error(error),
        };
        if arrived.fds_lost {
            return Err(io::Error::other("descriptors were lost: the limit of open files (RLIMIT_NOFILE) is reached"));
        }
        if self.held_fds.len() + self.fresh_fds.len() > FDS_PER_MESSAGE_MAX {
            return Err(too_many_fds(self.held_fds.len() + self.fresh_fds.len()));
        }
        (self.start, self.end) = (0, arrived.bytes);
        self.drained = self.fresh_fds.is_empty() && arrived.bytes < self.buffer.len();
        Ok(if arrived.bytes == 0 { Refill::Closed } else { Refill::Some })
    }

    /// The descriptors that belong to the frame that was just completed.
    fn take_fds_of_frame(&mut self) -> Vec<OwnedFd> {
        let mut fds = std::mem::take(&mut self.held_fds);
        let another_begins_behind_it = self.start < self.end;
        if !another_begins_behind_it {
            fds.append(&mut self.fresh_fds);
        }
        fds
    }
}

fn closed_or_error(error: io::Error) -> io::Result<Refill> {
    match error.kind() {
        ErrorKind::WouldBlock => Ok(Refill::Nothing),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Ok(Refill::Closed),
        _ => Err(error),
    }
}

impl Read for Inbound {
    /// Gives what is in the buffer; an empty one would block.
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let bytes = out.len().min(self.end - self.start);
        if bytes == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        out[..bytes].copy_from_slice(&self.buffer[self.start..self.start + bytes]);
        self.start += bytes;
        Ok(bytes)
    }
}
