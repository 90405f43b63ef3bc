//! One control connection: whole messages in, whole messages out, with descriptors beside them.
//!
//! Never blocks (each call says so for itself, so the socket's own mode does not matter), never raises SIGPIPE, never holds more than a bounded amount for a peer that does not read. Knows frames,
//! not what they mean.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use handoff_proto::frame::{FrameAccumulator, encode};
use handoff_proto::{Message, ProtoVersion, WireError};

use crate::sys::fork::StaysHere;
use crate::sys::socket;
pub(crate) use crate::sys::socket::{FDS_PER_MESSAGE_MAX, Peer};

/// The most that may wait for a peer that does not read.
const OUTBOUND_BYTES_MAX: usize = 16 << 20;
/// What is received at a time. A handover's messages are far smaller, so one call brings each of them whole.
const INBOUND_BYTES: usize = 16 << 10;

/// A control connection.
#[derive(Debug)]
pub(crate) struct Channel {
    /// Shared with whoever waits for it: its number stays ours until they have seen that it is closed.
    stream: Arc<StaysHere>,
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
    /// Takes over a connected socket. A child that is forked from now on does not have it: its peer hears of our end.
    pub(crate) fn new(stream: impl Into<StaysHere>) -> Self {
        Self {
            stream: Arc::new(stream.into()),
            inbound: Inbound::default(),
            accumulator: FrameAccumulator::new(),
            outbound: VecDeque::new(),
            outbound_bytes: 0,
        }
    }

    /// A channel and the other end of it, which is blocking and close-on-exec, to be given to a child.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Self::new(ours), theirs.into()))
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
        if self.outbound.is_empty() {
            frame.written = write_some(&self.stream, &frame.bytes, fds)?;
            if frame.written > 0 {
                return self.enqueue(frame);
            }
        }
        frame.fds = fds.iter().map(BorrowedFd::try_clone_to_owned).collect::<io::Result<_>>()?;
        self.enqueue(frame)?;
        Ok(self.flush()?)
    }

    /// Keeps a message that goes with the next one: one system call and one wake-up of the peer for both.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub(crate) fn send_with_next(&mut self, version: ProtoVersion, message: &Message) -> Result<(), WireError> {
        self.enqueue(Outbound { bytes: encode(version, message)?, written: 0, fds: Vec::new() })
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

    /// The socket, to wait for what it brings while another thread uses the channel.
    pub(crate) fn polled(&self) -> Arc<StaysHere> {
        Arc::clone(&self.stream)
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
        match self.outbound.back_mut() {
            // Both untouched and without descriptors, which go with the first byte of their own frame.
            Some(last) if last.written == 0 && last.fds.is_empty() && frame.fds.is_empty() => {
                last.bytes.extend_from_slice(&frame.bytes);
            }
            _ => self.outbound.push_back(frame),
        }
        Ok(())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Writes what the socket takes now; 0: it takes nothing.
fn write_some(stream: &StaysHere, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
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
    fn refill(&mut self, stream: &StaysHere) -> io::Result<Refill> {
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
        if arrived.bytes == 0 {
            return Ok(Refill::Closed);
        }
        (self.start, self.end) = (0, arrived.bytes);
        self.drained = self.fresh_fds.is_empty() && arrived.bytes < self.buffer.len();
        Ok(Refill::Some)
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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::time::Duration;

    use handoff_proto::{HandoffId, PROTO_MAX};
    use rustix::event::{PollFd, PollFlags};
    use rustix::io::{FdFlags, fcntl_getfd};

    use super::*;
    use crate::sys::fork::beside_a_child;
    use crate::sys::poll;
    use crate::testing::{hears_the_end, open_fds, run_alone, with_free_fds};

    fn channels() -> (Channel, Channel) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Channel::new(ours), Channel::new(theirs))
    }

    fn heartbeat(ts_ms: u64) -> Message {
        Message::Heartbeat { ts_ms }
    }

    fn of_shards(count: usize) -> Message {
        Message::Revisions { first_shard: 0, revisions: vec![u64::MAX; count] }
    }

    fn listeners(count: usize) -> Vec<TcpListener> {
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect()
    }

    fn borrowed(listeners: &[TcpListener]) -> Vec<BorrowedFd<'_>> {
        listeners.iter().map(AsFd::as_fd).collect()
    }

    /// All that is there now.
    fn received(channel: &mut Channel) -> Vec<(Message, Vec<OwnedFd>)> {
        let mut all = Vec::new();
        loop {
            match channel.receive() {
                Received::Message { message, fds, .. } => all.push((message, fds)),
                Received::Nothing => return all,
                other => panic!("{other:?}"),
            }
        }
    }

    fn messages(channel: &mut Channel) -> Vec<Message> {
        received(channel).into_iter().map(|(message, _)| message).collect()
    }

    /// Moves everything from one end to the other.
    fn pump(from: &mut Channel, to: &mut Channel) -> Vec<(Message, Vec<OwnedFd>)> {
        let mut all = received(to);
        while from.wants_write() {
            from.flush().unwrap();
            all.extend(received(to));
        }
        all
    }

    fn wait_readable(channel: &Channel) {
        let mut fds = [PollFd::new(channel, PollFlags::IN)];
        poll::wait(&mut fds, Some(Duration::from_secs(30))).unwrap();
        assert!(!fds[0].revents().is_empty());
    }

    #[test]
    fn messages_arrive_in_order_and_then_nothing() {
        let (mut ours, mut theirs) = channels();
        assert_eq!(messages(&mut theirs), []);
        for ts_ms in 0..3 {
            ours.send(PROTO_MAX, &heartbeat(ts_ms)).unwrap();
        }
        assert_eq!(messages(&mut theirs), [heartbeat(0), heartbeat(1), heartbeat(2)]);
        assert!(matches!(theirs.receive(), Received::Nothing));
    }

    #[test]
    fn a_message_goes_with_the_next_one() {
        let (mut ours, mut theirs) = channels();
        ours.send_with_next(PROTO_MAX, &heartbeat(0)).unwrap();
        assert!(ours.wants_write());
        assert_eq!(messages(&mut theirs), []);
        let listeners = listeners(1);
        ours.send(PROTO_MAX, &heartbeat(1)).unwrap();
        assert!(!ours.wants_write());
        ours.send_with_next(PROTO_MAX, &heartbeat(2)).unwrap();
        ours.send_with_fds(PROTO_MAX, &heartbeat(3), &borrowed(&listeners)).unwrap();
        let counts: Vec<_> = received(&mut theirs).into_iter().map(|(message, fds)| (message, fds.len())).collect();
        assert_eq!(counts, [(heartbeat(0), 0), (heartbeat(1), 0), (heartbeat(2), 0), (heartbeat(3), 1)]);
        assert_eq!(ours.outbound_bytes, 0);
    }

    #[test]
    fn a_message_in_single_bytes_arrives_once_it_is_whole() {
        let (mut raw, theirs) = UnixStream::pair().unwrap();
        let mut channel = Channel::new(theirs);
        let frame = encode(1, &heartbeat(7)).unwrap();
        let (last, before) = frame.split_last().unwrap();
        for byte in before {
            raw.write_all(&[*byte]).unwrap();
            assert!(matches!(channel.receive(), Received::Nothing));
        }
        raw.write_all(&[*last]).unwrap();
        assert_eq!(messages(&mut channel), [heartbeat(7)]);
    }

    #[test]
    fn what_a_peer_does_not_take_waits_and_arrives_whole() {
        let (mut ours, mut theirs) = channels();
        let big = of_shards(90_000);
        for _ in 0..4 {
            ours.send(PROTO_MAX, &big).unwrap();
        }
        ours.send(PROTO_MAX, &heartbeat(1)).unwrap();
        assert!(ours.wants_write());
        let all: Vec<_> = pump(&mut ours, &mut theirs).into_iter().map(|(message, _)| message).collect();
        assert_eq!(all, [big.clone(), big.clone(), big.clone(), big, heartbeat(1)]);
        assert_eq!(ours.outbound_bytes, 0);
    }

    #[test]
    fn a_peer_that_never_reads_costs_a_bounded_amount() {
        let (mut ours, _theirs) = channels();
        let big = of_shards(100_000);
        let error = std::iter::repeat_with(|| ours.send(PROTO_MAX, &big)).take(1000).find_map(Result::err);
        assert!(matches!(error, Some(WireError::Io(error)) if error.kind() == ErrorKind::OutOfMemory));
        assert!(ours.outbound_bytes <= OUTBOUND_BYTES_MAX);
    }

    #[test]
    fn a_peer_that_is_gone_is_closed_and_raises_no_signal() {
        let (mut ours, mut theirs) = channels();
        theirs.send(PROTO_MAX, &heartbeat(1)).unwrap();
        drop(theirs);
        // The Rust runtime ignores SIGPIPE and a daemon may not; the flag of the call is what counts, see `sys::socket`.
        let error = ours.send(PROTO_MAX, &heartbeat(2)).unwrap_err();
        assert!(matches!(error, WireError::Io(error) if error.kind() == ErrorKind::BrokenPipe));
        assert_eq!(messages(&mut ours), [heartbeat(1)]);
        assert!(matches!(ours.receive(), Received::Closed));
        assert!(matches!(ours.receive(), Received::Closed));
    }

    #[test]
    fn a_reset_is_closed_too() {
        let (mut ours, theirs) = channels();
        ours.send(PROTO_MAX, &heartbeat(1)).unwrap();
        // Closed with something unread: the other end sees ECONNRESET (unix(7)).
        drop(theirs);
        assert!(matches!(ours.receive(), Received::Closed));
    }

    #[test]
    fn garbage_is_malformed() {
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 8], &[4, 0, 0, 0, 1, 0, 99, 99], &[0xff; 64]] {
            let (mut raw, theirs) = UnixStream::pair().unwrap();
            let mut channel = Channel::new(theirs);
            raw.write_all(garbage).unwrap();
            assert!(matches!(channel.receive(), Received::Malformed(_)), "{garbage:?}");
        }
    }

    #[test]
    fn descriptors_come_with_their_message_and_close_on_exec() {
        let (mut ours, mut theirs) = channels();
        let sockets = listeners(FDS_PER_MESSAGE_MAX + 1);
        ours.send(PROTO_MAX, &heartbeat(1)).unwrap();
        ours.send_with_fds(PROTO_MAX, &heartbeat(2), &borrowed(&sockets[..FDS_PER_MESSAGE_MAX])).unwrap();
        ours.send(PROTO_MAX, &heartbeat(3)).unwrap();
        ours.send_with_fds(PROTO_MAX, &heartbeat(4), &borrowed(&sockets[FDS_PER_MESSAGE_MAX..])).unwrap();
        let all = received(&mut theirs);
        let counts: Vec<_> = all.iter().map(|(_, fds)| fds.len()).collect();
        assert_eq!(counts, [0, FDS_PER_MESSAGE_MAX, 0, 1]);
        let arrived = all.into_iter().flat_map(|(_, fds)| fds);
        for (fd, socket) in arrived.zip(&sockets) {
            assert!(fcntl_getfd(&fd).unwrap().contains(FdFlags::CLOEXEC));
            assert_eq!(TcpListener::from(fd).local_addr().unwrap(), socket.local_addr().unwrap());
        }
    }

    #[test]
    fn descriptors_of_a_message_that_waits_come_with_it() {
        let (mut ours, mut theirs) = channels();
        let sockets = listeners(3);
        let big = of_shards(90_000);
        ours.send_with_fds(PROTO_MAX, &big, &borrowed(&sockets[..1])).unwrap();
        ours.send_with_fds(PROTO_MAX, &big, &borrowed(&sockets[1..2])).unwrap();
        ours.send(PROTO_MAX, &heartbeat(1)).unwrap();
        ours.send_with_fds(PROTO_MAX, &heartbeat(2), &borrowed(&sockets[2..])).unwrap();
        let addresses: Vec<_> = sockets.iter().map(|socket| Some(socket.local_addr().unwrap())).collect();
        drop(sockets);
        let all = pump(&mut ours, &mut theirs).into_iter();
        let arrived: Vec<_> =
            all.map(|(_, mut fds)| fds.pop().map(|fd| TcpListener::from(fd).local_addr().unwrap())).collect();
        assert_eq!(arrived, [addresses[0], addresses[1], None, addresses[2]]);
    }

    #[test]
    fn too_many_descriptors_are_refused() {
        let (mut ours, mut theirs) = channels();
        let socket = &listeners(1)[0];
        let error = ours.send_with_fds(PROTO_MAX, &heartbeat(1), &vec![socket.as_fd(); FDS_PER_MESSAGE_MAX + 1]);
        assert!(matches!(error, Err(WireError::Io(error)) if error.kind() == ErrorKind::InvalidInput));
        assert_eq!(messages(&mut theirs), []);
    }

    #[test]
    fn descriptors_without_end_are_malformed() {
        let (raw, theirs) = UnixStream::pair().unwrap();
        let mut channel = Channel::new(theirs);
        let socket = &listeners(1)[0];
        let frame = encode(PROTO_MAX, &of_shards(10)).unwrap();
        for byte in &frame[..3] {
            socket::send(raw.as_fd(), &[*byte], &[socket.as_fd(); 200]).unwrap();
        }
        assert!(matches!(channel.receive(), Received::Malformed(_)));
    }

    #[test]
    #[ignore = "run by the next test in a process of its own"]
    fn at_the_limit_of_files() {
        let (mut ours, mut theirs) = channels();
        let socket = &listeners(1)[0];
        ours.send_with_fds(PROTO_MAX, &heartbeat(1), &[socket.as_fd(); 100]).unwrap();
        let before = open_fds();
        let received = with_free_fds(10, || theirs.receive());
        assert!(matches!(received, Received::Malformed(WireError::Io(_))));
        drop(theirs);
        drop(ours);
        assert_eq!(open_fds().len(), before.len() - 2);
    }

    #[test]
    fn descriptors_that_find_no_room_are_an_error_and_leak_nothing() {
        run_alone("channel::tests::at_the_limit_of_files");
    }

    #[test]
    fn the_peer_is_who_made_the_socket() {
        let (ours, _theirs) = channels();
        let own = Peer { pid: std::process::id(), uid: rustix::process::geteuid().as_raw() };
        assert_eq!(ours.peer().unwrap(), own);
    }

    #[test]
    fn a_pair_blocks_at_the_other_end_alone() {
        let (mut ours, theirs) = Channel::pair().unwrap();
        let writer = std::thread::spawn(move || {
            let mut theirs = UnixStream::from(theirs);
            handoff_proto::frame::read_message(&mut theirs).unwrap().1
        });
        assert!(matches!(ours.receive(), Received::Nothing));
        let id = HandoffId::from_bytes([1; 16]);
        ours.send(1, &Message::Commit { handoff_id: id }).unwrap();
        assert_eq!(writer.join().unwrap(), Message::Commit { handoff_id: id });
        wait_readable(&ours);
        assert!(matches!(ours.receive(), Received::Closed));
    }

    #[test]
    fn a_forked_child_keeps_no_channel() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (ours, (paired, other)) = (Channel::new(ours), Channel::pair().unwrap());
        beside_a_child(|| {
            drop((ours, paired));
            hears_the_end(theirs);
            hears_the_end(other.into());
        });
    }
}
