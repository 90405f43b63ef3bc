//! The wire under any message, any cut of the stream, and any bytes of a peer that means ill.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};

use handoff_proto::frame::{self, FrameAccumulator, read_message, write_message};
use handoff_proto::{
    BeginMode, Capabilities, HandoffId, MAX_FRAME_BYTES, Message, Phase, ProtoVersion, Side, StatusReport, WireError,
};
use proptest::collection::vec;
use proptest::prelude::*;

fn any_id() -> impl Strategy<Value = HandoffId> {
    any::<[u8; 16]>().prop_map(HandoffId::from_bytes)
}

/// Values of every encoded length.
fn any_revisions() -> impl Strategy<Value = Vec<u64>> {
    vec((any::<u64>(), 0..64u32).prop_map(|(value, shift)| value >> shift), 0..200)
}

fn any_text() -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..40).prop_map(String::from_iter)
}

fn any_phase() -> impl Strategy<Value = Phase> {
    prop::sample::select(vec![
        Phase::Negotiating,
        Phase::Draining,
        Phase::Sealing,
        Phase::AwaitingReady,
        Phase::Committed,
        Phase::ResumingAfterAbort,
    ])
}

fn any_version_1() -> impl Strategy<Value = Message> {
    let side = prop::sample::select(vec![Side::Incumbent, Side::Successor]);
    prop_oneof![
        (side, any::<u32>(), vec(any::<u8>(), 0..64), any::<u16>(), any::<u16>(), any::<u64>()).prop_map(
            |(role, pid, build_id, proto_min, proto_max, reserved)| Message::Hello {
                role,
                pid,
                build_id,
                proto_min,
                proto_max,
                capabilities: Capabilities { reserved },
            }
        ),
        (any::<u16>(), any_id())
            .prop_map(|(proto_version_chosen, handoff_id)| Message::HelloAck { proto_version_chosen, handoff_id }),
        (any_id(), any::<u32>(), any::<u64>(), any::<u64>()).prop_map(
            |(handoff_id, successor_pid, deadline_ms, drain_grace_ms)| Message::PrepareHandoff {
                handoff_id,
                successor_pid,
                deadline_ms,
                drain_grace_ms,
            }
        ),
        (any::<u32>(), any::<bool>())
            .prop_map(|(open_conns_remaining, accept_closed)| Message::Drained { open_conns_remaining, accept_closed }),
        any_id().prop_map(|handoff_id| Message::SealRequest { handoff_id }),
        (any::<u32>(), any::<u32>(), any::<u64>()).prop_map(|(shards_sealed, shards_total, last_revision)| {
            Message::SealProgress { shards_sealed, shards_total, last_revision }
        }),
        (any_id(), any_revisions(), any::<[u8; 32]>()).prop_map(
            |(handoff_id, last_revision_per_shard, data_dir_fingerprint)| Message::SealComplete {
                handoff_id,
                last_revision_per_shard,
                data_dir_fingerprint,
            }
        ),
        (any_id(), any_text(), any_text()).prop_map(|(handoff_id, error, partial_state)| Message::SealFailed {
            handoff_id,
            error,
            partial_state,
        }),
        any_id().prop_map(|handoff_id| Message::Begin { handoff_id }),
        (any_id(), vec(any_text(), 0..4), any::<bool>(), any_revisions()).prop_map(
            |(handoff_id, listening_on, healthz_ok, advertised_revision_per_shard)| Message::Ready {
                handoff_id,
                listening_on,
                healthz_ok,
                advertised_revision_per_shard,
            }
        ),
        any_id().prop_map(|handoff_id| Message::Commit { handoff_id }),
        (any_id(), any_text()).prop_map(|(handoff_id, reason)| Message::Abort { handoff_id, reason }),
        any_id().prop_map(|handoff_id| Message::ResumeAfterAbort { handoff_id }),
        any::<u64>().prop_map(|ts_ms| Message::Heartbeat { ts_ms }),
    ]
}

fn any_version_2() -> impl Strategy<Value = Message> {
    let mode = prop::sample::select(vec![BeginMode::Sealed, BeginMode::Recover]);
    prop_oneof![
        any_id().prop_map(|handoff_id| Message::Warmed { handoff_id }),
        (any_id(), mode, any_revisions(), any::<[u8; 32]>(), any::<u64>(), any::<u64>(), any::<u64>()).prop_map(
            |(handoff_id, mode, sealed_revision_per_shard, data_dir_fingerprint, epoch, deadline_ns, open_ms)| {
                Message::BeginWith {
                    handoff_id,
                    mode,
                    sealed_revision_per_shard,
                    data_dir_fingerprint,
                    epoch,
                    deadline_ns,
                    open_ms,
                }
            }
        ),
        any_id().prop_map(|handoff_id| Message::Resumed { handoff_id }),
        (any_id(), any_text()).prop_map(|(handoff_id, error)| Message::DrainFailed { handoff_id, error }),
        Just(Message::ListenersRequest),
        vec(any_text(), 0..8).prop_map(|names| Message::Listeners { names }),
        Just(Message::Status),
        (prop::option::of(any_phase()), any::<u32>(), any::<u32>(), any_revisions(), any::<u64>()).prop_map(
            |(phase, shard_count, open_conns, last_revision_per_shard, epoch)| {
                Message::StatusReport(StatusReport { phase, shard_count, open_conns, last_revision_per_shard, epoch })
            }
        ),
        (any::<u32>(), any_revisions())
            .prop_map(|(first_shard, revisions)| Message::Revisions { first_shard, revisions }),
        (any_id(), any_text()).prop_map(|(handoff_id, reason)| Message::NotReady { handoff_id, reason }),
        any_id().prop_map(|handoff_id| Message::TransferChannel { handoff_id }),
        any_id().prop_map(|handoff_id| Message::OpenProgress { handoff_id }),
    ]
}

fn any_message() -> impl Strategy<Value = Message> {
    prop_oneof![any_version_1(), any_version_2()]
}

/// A frame around a body of our choice, with the length that it has.
fn frame_around(version: ProtoVersion, body: &[u8]) -> Vec<u8> {
    let mut bytes = (body.len() as u32 + 2).to_le_bytes().to_vec();
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// Hands out one chunk after another, with what a nonblocking or timed socket says between them, then the end.
struct Chunks {
    chunks: VecDeque<Vec<u8>>,
    pauses: VecDeque<ErrorKind>,
    paused: bool,
}

impl Chunks {
    fn new(bytes: &[u8], cuts: &[prop::sample::Index], pauses: impl IntoIterator<Item = ErrorKind>) -> Self {
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        at.extend([0, bytes.len()]);
        at.sort_unstable();
        let chunks = at.windows(2).map(|ends| bytes[ends[0]..ends[1]].to_vec()).filter(|chunk| !chunk.is_empty());
        Self { chunks: chunks.collect(), pauses: pauses.into_iter().collect(), paused: false }
    }
}

impl Read for Chunks {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if !std::mem::replace(&mut self.paused, true)
            && let Some(kind) = self.pauses.pop_front()
        {
            return Err(kind.into());
        }
        let Some(mut chunk) = self.chunks.pop_front() else { return Ok(0) };
        let length = chunk.len().min(out.len());
        out[..length].copy_from_slice(&chunk[..length]);
        if length < chunk.len() {
            self.chunks.push_front(chunk.split_off(length));
        } else {
            self.paused = false;
        }
        Ok(length)
    }
}

fn any_pause() -> impl Strategy<Value = ErrorKind> {
    prop::sample::select(vec![ErrorKind::WouldBlock, ErrorKind::TimedOut, ErrorKind::Interrupted])
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_message_comes_back_as_it_was(message in any_message(), version: u16) {
        let mut bytes = Vec::new();
        write_message(&mut bytes, version, &message).unwrap();
        let mut rest = bytes.as_slice();
        prop_assert_eq!(read_message(&mut rest).unwrap(), (version, message));
        prop_assert!(rest.is_empty());
    }

    /// However the encoder goes about it, the body is what postcard makes of the message.
    #[test]
    fn the_body_is_plain_postcard(message in any_message()) {
        let body = postcard::to_allocvec(&message).unwrap();
        prop_assert_eq!(frame::encode(7, &message).unwrap(), frame_around(7, &body));
    }

    #[test]
    fn frames_pile_up_in_one_buffer(messages in vec(any_message(), 0..5)) {
        let mut together = Vec::new();
        let mut apart = Vec::new();
        for message in &messages {
            frame::encode_into(&mut together, 2, message).unwrap();
            apart.extend(frame::encode(2, message).unwrap());
        }
        prop_assert_eq!(&together, &apart);
    }

    #[test]
    fn an_accumulator_loses_nothing_wherever_the_stream_is_cut(
        messages in vec(any_message(), 1..5),
        cuts in vec(any::<prop::sample::Index>(), 0..20),
        pauses in vec(any_pause(), 0..30),
    ) {
        let mut bytes = Vec::new();
        for message in &messages {
            write_message(&mut bytes, 2, message).unwrap();
        }
        let mut stream = Chunks::new(&bytes, &cuts, pauses);
        let mut accumulator = FrameAccumulator::new();
        let mut read = Vec::new();
        while read.len() < messages.len() {
            if let Some((version, message)) = accumulator.poll_read(&mut stream).unwrap() {
                prop_assert_eq!(version, 2);
                prop_assert!(!accumulator.has_partial());
                read.push(message);
            }
        }
        prop_assert_eq!(read, messages);
    }

    #[test]
    fn an_end_inside_a_frame_is_an_error(message in any_message(), cut: prop::sample::Index) {
        let bytes = frame::encode(1, &message).unwrap();
        let mut stream = &bytes[..cut.index(bytes.len())];
        let mut accumulator = FrameAccumulator::new();
        let error = accumulator.poll_read(&mut stream).unwrap_err();
        prop_assert!(matches!(error, WireError::Io(error) if error.kind() == ErrorKind::UnexpectedEof));
        prop_assert!(!accumulator.has_partial());
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in vec(any::<u8>(), 0..600)) {
        let mut stream = bytes.as_slice();
        let mut accumulator = FrameAccumulator::new();
        while accumulator.poll_read(&mut stream).is_ok() {}
        prop_assert!(!accumulator.has_partial(), "empty after an error");
        let _ = read_message(&mut bytes.as_slice());
    }

    /// Whatever a body is, with an honest length it is consumed to its last byte, or refused.
    #[test]
    fn any_body_is_a_message_or_an_error(number in 0..30u8, body in vec(any::<u8>(), 0..600)) {
        let mut bytes = vec![number];
        bytes.extend(body);
        let bytes = frame_around(1, &bytes);
        let mut stream = bytes.as_slice();
        match read_message(&mut stream) {
            Ok((_, message)) => {
                prop_assert!(number <= 22);
                let again = frame::encode(1, &message).unwrap();
                prop_assert_eq!(read_message(&mut again.as_slice()).unwrap(), (1, message));
            }
            Err(WireError::Malformed(_) | WireError::TrailingBytes { .. }) => {}
            Err(other) => prop_assert!(false, "{other}"),
        }
        prop_assert!(stream.is_empty());
    }

    #[test]
    fn a_damaged_message_is_another_message_or_an_error(message in any_message(), at: prop::sample::Index, bit in 0..8u8) {
        let mut bytes = frame::encode(2, &message).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(read) = read_message(&mut bytes.as_slice()) {
            prop_assert_ne!(read, (2, message));
        }
    }

    #[test]
    fn bytes_behind_a_message_are_refused(message in any_message(), extra in 1..100usize) {
        let mut body = postcard::to_allocvec(&message).unwrap();
        body.resize(body.len() + extra, 0);
        let error = read_message(&mut frame_around(1, &body).as_slice()).unwrap_err();
        let WireError::TrailingBytes { extra: counted } = error else { panic!("{error}") };
        prop_assert_eq!(counted, extra);
    }
}

/// A prefix is refused before a byte of its frame is read.
#[test]
fn a_prefix_out_of_bounds_is_refused_at_once() {
    for bytes in [MAX_FRAME_BYTES + 1, u32::MAX] {
        let error = read_message(&mut bytes.to_le_bytes().as_slice()).unwrap_err();
        assert!(matches!(error, WireError::FrameTooLarge { bytes: told } if told == u64::from(bytes)), "{error}");
    }
    for bytes in [0, 1] {
        let error = read_message(&mut u32::to_le_bytes(bytes).as_slice()).unwrap_err();
        assert!(matches!(error, WireError::FrameTooShort { bytes: told } if told == bytes), "{error}");
    }
    let error = read_message(&mut [2, 0, 0, 0, 1, 0].as_slice()).unwrap_err();
    assert!(matches!(error, WireError::Malformed(_)), "a version and no message: {error}");
}

#[test]
fn the_largest_frame_passes_and_one_byte_more_does_not() {
    let with_reason = |reason_bytes: usize| Message::Abort {
        handoff_id: HandoffId::from_bytes([1; 16]),
        reason: "x".repeat(reason_bytes),
    };
    // Version, variant, id with its length, and three bytes for the length of the reason.
    let fits = MAX_FRAME_BYTES as usize - 2 - 1 - 17 - 3;
    let bytes = frame::encode(1, &with_reason(fits)).unwrap();
    assert_eq!(bytes.len(), 4 + MAX_FRAME_BYTES as usize);
    assert_eq!(read_message(&mut bytes.as_slice()).unwrap(), (1, with_reason(fits)));

    let mut out = b"kept".to_vec();
    let error = frame::encode_into(&mut out, 1, &with_reason(fits + 1)).unwrap_err();
    assert!(matches!(error, WireError::FrameTooLarge { bytes } if bytes == u64::from(MAX_FRAME_BYTES) + 1), "{error}");
    assert_eq!(out, b"kept", "nothing of a refused frame is left");
    write_message(&mut out, 1, &with_reason(fits + 1)).unwrap_err();
    assert_eq!(out, b"kept");
}

#[test]
fn too_many_shards_for_one_frame_are_refused_whatever_their_number() {
    for shards in [200_000, MAX_FRAME_BYTES as usize + 1] {
        let message = Message::SealComplete {
            handoff_id: HandoffId::from_bytes([1; 16]),
            last_revision_per_shard: vec![u64::MAX; shards],
            data_dir_fingerprint: [0; 32],
        };
        let error = frame::encode(1, &message).unwrap_err();
        assert!(matches!(error, WireError::FrameTooLarge { bytes } if bytes > u64::from(MAX_FRAME_BYTES)), "{error}");
    }
}

/// A list claims a length that its frame can't hold.
#[test]
fn a_claimed_length_beyond_the_frame_is_malformed() {
    let id = [&[16][..], &[7; 16]].concat();
    let endless = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    for body in [
        [&[6][..], &id, &endless].concat(),
        [&[7][..], &id, &endless].concat(),
        [&[9][..], &id, &endless].concat(),
        [&[19][..], &endless].concat(),
        [&[22, 0][..], &endless].concat(),
        [&[0, 0, 1][..], &endless].concat(),
        [&[8, 15][..], &[7; 16]].concat(),
        vec![0xff; 20],
        vec![23],
    ] {
        let error = read_message(&mut frame_around(1, &body).as_slice()).unwrap_err();
        assert!(matches!(error, WireError::Malformed(_)), "{body:?}: {error}");
    }
}

/// After an error an accumulator starts anew, as for a fresh connection.
#[test]
fn an_accumulator_can_be_used_again_after_an_error() {
    let mut accumulator = FrameAccumulator::new();
    for garbage in [&[0xff; 4][..], &[1, 0, 0, 0], &[3, 0, 0, 0, 1, 0, 99], &[9, 0, 0, 0, 1]] {
        accumulator.poll_read(&mut &*garbage).unwrap_err();
        assert!(!accumulator.has_partial());
        let frame = frame::encode(1, &Message::Heartbeat { ts_ms: 5 }).unwrap();
        let read = accumulator.poll_read(&mut frame.as_slice()).unwrap();
        assert_eq!(read, Some((1, Message::Heartbeat { ts_ms: 5 })));
    }
}

/// A blocking read that times out can't be taken up again: that is what the accumulator is for.
#[test]
fn read_message_reports_a_timeout_as_an_error() {
    let frame = frame::encode(1, &Message::Status).unwrap();
    let mut stream = Chunks::new(&frame, &[], [ErrorKind::TimedOut]);
    let error = read_message(&mut stream).unwrap_err();
    assert!(matches!(error, WireError::Io(error) if error.kind() == ErrorKind::WouldBlock));
}

/// Two frames in the stream's buffer: the first read leaves the second one alone.
#[test]
fn a_read_takes_not_a_byte_beyond_its_frame() {
    let mut bytes = Vec::new();
    write_message(&mut bytes, 1, &Message::Heartbeat { ts_ms: 1 }).unwrap();
    let first = bytes.len();
    write_message(&mut bytes, 2, &Message::Status).unwrap();
    let mut stream = bytes.as_slice();
    read_message(&mut stream).unwrap();
    assert_eq!(stream.len(), bytes.len() - first);
    assert_eq!(read_message(&mut stream).unwrap(), (2, Message::Status));
}
