//! Encoding a small message into a kept buffer takes nothing from the heap, nor does decoding one without text or lists; and no
//! frame costs its reader more than a small multiple of its size.

use handoff_proto::frame::{FrameAccumulator, encode_into};
use handoff_proto::{BeginMode, HandoffId, MAX_FRAME_BYTES, Message};

use sys::{allocations, peak_bytes};

const ID: HandoffId = HandoffId::from_bytes([7; 16]);

fn small() -> Vec<Message> {
    vec![
        Message::HelloAck { proto_version_chosen: 2, handoff_id: ID },
        Message::PrepareHandoff {
            handoff_id: ID,
            successor_pid: u32::MAX,
            deadline_ms: u64::MAX,
            drain_grace_ms: u64::MAX,
        },
        Message::Drained { open_conns_remaining: u32::MAX, accept_closed: true },
        Message::SealRequest { handoff_id: ID },
        Message::SealProgress { shards_sealed: 1, shards_total: 2, last_revision: u64::MAX },
        Message::Begin { handoff_id: ID },
        Message::Commit { handoff_id: ID },
        Message::ResumeAfterAbort { handoff_id: ID },
        Message::Heartbeat { ts_ms: u64::MAX },
        Message::Warmed { handoff_id: ID },
        Message::Resumed { handoff_id: ID },
        Message::ListenersRequest,
        Message::Status,
    ]
}

/// Those that have a list, or a text.
fn small_with_lists() -> Vec<Message> {
    vec![
        Message::SealComplete {
            handoff_id: ID,
            last_revision_per_shard: vec![u64::MAX; 4],
            data_dir_fingerprint: [7; 32],
        },
        Message::BeginWith {
            handoff_id: ID,
            mode: BeginMode::Sealed,
            sealed_revision_per_shard: vec![u64::MAX; 4],
            data_dir_fingerprint: [7; 32],
            epoch: u64::MAX,
            deadline_ns: u64::MAX,
            open_ms: 10_000,
        },
        Message::Ready {
            handoff_id: ID,
            listening_on: vec!["127.0.0.1:8080".into()],
            healthz_ok: true,
            advertised_revision_per_shard: vec![u64::MAX; 4],
        },
        Message::Abort { handoff_id: ID, reason: "the drain failed".into() },
    ]
}

#[test]
fn small_messages_take_nothing_from_the_heap() {
    let mut out = Vec::with_capacity(256);
    for message in small().iter().chain(&small_with_lists()) {
        out.clear();
        let taken = allocations(|| encode_into(&mut out, 2, message).expect("it fits"));
        assert_eq!(taken, 0, "encoding {message:?}");
    }
    let mut accumulator = FrameAccumulator::new();
    for message in small() {
        out.clear();
        encode_into(&mut out, 2, &message).expect("it fits");
        let mut poll = || accumulator.poll_read(&mut out.as_slice()).expect("a frame").expect("whole");
        assert_eq!(poll(), (2, message.clone()), "the accumulator has its buffer now");
        let taken = allocations(|| drop(poll()));
        assert_eq!(taken, 0, "decoding {message:?}");
    }
    assert!(allocations(|| drop(Vec::<u8>::with_capacity(1))) > 0, "the count counts");
}

/// A frame with this body.
fn frame(body: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(2 + body.len()).unwrap().to_le_bytes().to_vec();
    frame.extend_from_slice(&2u16.to_le_bytes());
    frame.extend_from_slice(body);
    frame
}

/// A number as postcard writes it.
fn varint(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number > 0x7f {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// `head`, and then a list of as many zeros as fit a frame: empty texts, or revisions.
fn longest_list(head: &[u8], tail: &[u8]) -> Vec<u8> {
    let count = MAX_FRAME_BYTES as usize - 16 - head.len() - tail.len();
    frame(&[head, &varint(count), &vec![0; count], tail].concat())
}

#[test]
fn a_frame_costs_its_reader_no_more_than_a_small_multiple_of_its_size() {
    let ready_head = [&[9][..], ID.as_bytes()].concat();
    let refused = [longest_list(&[19], &[]), longest_list(&ready_head, &[1, 0])];
    // A length that nothing follows.
    let claimed = frame(&[&[22, 0][..], &varint(1 << 20)].concat());
    let taken = longest_list(&[22, 0], &[]);
    for (bytes, is_taken, mib_max) in
        [(&refused[0], false, 3), (&refused[1], false, 3), (&claimed, false, 1), (&taken, true, 16)]
    {
        let mut read = None;
        let peak = peak_bytes(|| read = Some(FrameAccumulator::new().poll_read(&mut bytes.as_slice())));
        assert_eq!(read.unwrap().is_ok(), is_taken);
        assert!(peak <= mib_max << 20, "{peak} bytes for a frame of {}", bytes.len());
    }
}

#[allow(unsafe_code)]
mod sys {
    //! An allocator that counts, for this thread.

    use std::alloc::{GlobalAlloc, Layout, System};
    use std::cell::Cell;

    thread_local! {
        static TAKEN: Cell<usize> = const { Cell::new(0) };
        static BYTES: Cell<usize> = const { Cell::new(0) };
        static PEAK: Cell<usize> = const { Cell::new(0) };
    }

    struct Counting;

    // SAFETY: GlobalAlloc: every call goes to the system's allocator as it came; counting allocates nothing.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            TAKEN.with(|taken| taken.set(taken.get() + 1));
            BYTES.with(|bytes| bytes.set(bytes.get().wrapping_add(layout.size())));
            PEAK.with(|peak| peak.set(peak.get().max(BYTES.with(Cell::get))));
            // SAFETY: malloc(3), the caller's layout.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            BYTES.with(|bytes| bytes.set(bytes.get().wrapping_sub(layout.size())));
            // SAFETY: free(3), a block of `alloc` above with the caller's layout.
            unsafe { System.dealloc(block, layout) }
        }
    }

    #[global_allocator]
    static ALLOCATOR: Counting = Counting;

    /// How many bytes `act` has in hand at most.
    pub(super) fn peak_bytes(act: impl FnOnce()) -> usize {
        let before = BYTES.with(Cell::get);
        PEAK.with(|peak| peak.set(before));
        act();
        PEAK.with(Cell::get).saturating_sub(before)
    }

    /// How many blocks `act` takes from the heap.
    pub(super) fn allocations(act: impl FnOnce()) -> usize {
        let before = TAKEN.with(Cell::get);
        act();
        TAKEN.with(Cell::get) - before
    }
}
