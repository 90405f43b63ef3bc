//! The codec: this library's, the peer's, plain postcard, and bincode 2.0.1, on the same messages.
//!
//! `cargo bench -p handoff-testkit --features bench --bench codec`

#![allow(missing_docs, reason = "criterion's macros make functions of their own")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use handoff_proto::frame::{self, FrameAccumulator};
use handoff_proto::{HandoffId, Message};

const ID: [u8; 16] = [0x5a; 16];
const SHARDS: usize = 100_000;

/// A message in this library's words and in the peer's; the bytes are the same.
struct Pair {
    name: &'static str,
    ours: Message,
    theirs: handoff::protocol::Message,
}

/// Their id can't be made of bytes; on the wire it is the same as ours, its length ahead.
fn their_id() -> handoff::HandoffId {
    let bytes = postcard::to_allocvec(&HandoffId::from_bytes(ID)).expect("an id encodes");
    postcard::from_bytes(&bytes).expect("the same bytes are an id of theirs")
}

/// Of one to eight bytes, in no order: counters of shards that are not equally busy.
fn mixed(shards: usize) -> Vec<u64> {
    (0..shards as u64).map(|shard| shard.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (8 + (shard * 7) % 56)).collect()
}

/// All of them about as high as the others.
fn steady(shards: usize) -> Vec<u64> {
    (0..shards as u64).map(|shard| 1_000_000_000 + shard * 37).collect()
}

fn pairs() -> Vec<Pair> {
    use handoff::protocol::Message as Theirs;
    let (ours, theirs) = (HandoffId::from_bytes(ID), their_id());
    let sealed = |name, revisions: Vec<u64>| Pair {
        name,
        ours: Message::SealComplete {
            handoff_id: ours,
            last_revision_per_shard: revisions.clone(),
            data_dir_fingerprint: [7; 32],
        },
        theirs: Theirs::SealComplete {
            handoff_id: theirs,
            last_revision_per_shard: revisions,
            data_dir_fingerprint: [7; 32],
        },
    };
    vec![
        Pair {
            name: "heartbeat",
            ours: Message::Heartbeat { ts_ms: 1_700_000_000_000 },
            theirs: Theirs::Heartbeat { ts_ms: 1_700_000_000_000 },
        },
        Pair {
            name: "prepare",
            ours: Message::PrepareHandoff {
                handoff_id: ours,
                successor_pid: 12_345,
                deadline_ms: 300_000,
                drain_grace_ms: 60_000,
            },
            theirs: Theirs::PrepareHandoff {
                handoff_id: theirs,
                successor_pid: 12_345,
                deadline_ms: 300_000,
                drain_grace_ms: 60_000,
            },
        },
        sealed("seal-complete-1", steady(1)),
        sealed("seal-complete-100000-steady", steady(SHARDS)),
        sealed("seal-complete-100000-mixed", mixed(SHARDS)),
        sealed("seal-complete-100000-small", vec![100; SHARDS]),
    ]
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    for Pair { name, ours, theirs } in pairs() {
        let frame = frame::encode(1, &ours).expect("it fits");
        let in_bincode = bincode::serde::encode_to_vec(&ours, bincode::config::standard()).expect("encodes");
        println!(
            "{name}: {} bytes in postcard, {} in bincode, frame {}",
            frame.len() - 6,
            in_bincode.len(),
            frame.len()
        );
        let mut kept = Vec::with_capacity(2 * frame.len().max(64));
        group.bench_function(BenchmarkId::new("handoff", name), |bencher| {
            bencher.iter(|| {
                kept.clear();
                frame::encode_into(&mut kept, 1, black_box(&ours)).expect("it fits");
                black_box(&kept).len()
            });
        });
        group.bench_function(BenchmarkId::new("peer", name), |bencher| {
            bencher.iter(|| {
                kept.clear();
                handoff::frame::write_message(&mut kept, 1, black_box(&theirs)).expect("it fits");
                black_box(&kept).len()
            });
        });
        assert_eq!(kept, frame, "the peer's bytes are ours");
        group.bench_function(BenchmarkId::new("bincode", name), |bencher| {
            bencher.iter(|| {
                kept.clear();
                let config = bincode::config::standard();
                bincode::serde::encode_into_std_write(black_box(&ours), &mut kept, config).expect("it fits");
                black_box(&kept).len()
            });
        });
        group.bench_function(BenchmarkId::new("floor", name), |bencher| {
            bencher.iter(|| {
                kept.clear();
                kept.extend_from_slice(black_box(&frame));
                black_box(&kept).len()
            });
        });
    }
    group.finish();
}

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    for Pair { name, ours, .. } in pairs() {
        let frame = frame::encode(1, &ours).expect("it fits");
        let in_bincode = bincode::serde::encode_to_vec(&ours, bincode::config::standard()).expect("encodes");
        let mut accumulator = FrameAccumulator::new();
        group.bench_function(BenchmarkId::new("handoff", name), |bencher| {
            bencher.iter(|| accumulator.poll_read(&mut black_box(frame.as_slice())).expect("whole"));
        });
        let mut theirs = handoff::frame::FrameAccumulator::new();
        group.bench_function(BenchmarkId::new("peer", name), |bencher| {
            bencher.iter(|| theirs.poll_read(&mut black_box(frame.as_slice())).expect("whole"));
        });
        group.bench_function(BenchmarkId::new("bincode", name), |bencher| {
            bencher.iter(|| {
                let config = bincode::config::standard();
                let decoded: (Message, usize) =
                    bincode::serde::decode_from_slice(black_box(&in_bincode), config).expect("whole");
                decoded
            });
        });
    }
    group.finish();
}

criterion_group!(benches, encode, decode);
criterion_main!(benches);
