//! Encoding a small message into a kept buffer takes nothing from the heap, nor does decoding one without text or lists.

use handoff_proto::frame::{FrameAccumulator, encode_into};
use handoff_proto::{BeginMode, HandoffId, Message};

use sys::allocations;

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

#[allow(unsafe_code)]
mod sys {
    //! An allocator that counts, for this thread.

    use std::alloc::{GlobalAlloc, Layout, System};
    use std::cell::Cell;

    thread_local! {
        static TAKEN: Cell<usize> = const { Cell::new(0) };
    }

    struct Counting;

    // SAFETY: GlobalAlloc: every call goes to the system's allocator as it came; counting allocates nothing.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            TAKEN.with(|taken| taken.set(taken.get() + 1));
            // SAFETY: malloc(3), the caller's layout.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            // SAFETY: free(3), a block of `alloc` above with the caller's layout.
            unsafe { System.dealloc(block, layout) }
        }
    }

    #[global_allocator]
    static ALLOCATOR: Counting = Counting;

    /// How many blocks `act` takes from the heap.
    pub(super) fn allocations(act: impl FnOnce()) -> usize {
        let before = TAKEN.with(Cell::get);
        act();
        TAKEN.with(Cell::get) - before
    }
}
