//! The bytes of every message, so that the wire never changes by accident.
//!
//! The frames of version 1 were printed by `beyond-handoff` 0.1.4 itself (its `write_message` with these field values), not
//! by this crate: they are what the peer sends and expects. Those of version 2 are our own, fixed when it was introduced.
//! A line here may be added, and never edited.

use handoff_proto::frame::{read_message, write_message};
use handoff_proto::{BeginMode, Capabilities, HandoffId, Message, Phase, ProtoVersion, Side, StatusReport, short_name};

const HANDOFF_ID: HandoffId = HandoffId::from_bytes([
    0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0x4d, 0xef, 0x80, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77,
]);

fn fingerprint() -> [u8; 32] {
    std::array::from_fn(|index| 0xe0 + index as u8)
}

fn version_1() -> Vec<(&'static str, Message)> {
    let handoff_id = HANDOFF_ID;
    vec![
        (
            "0e000000 0100 00 00 e724 04deadbeef 01 01 00",
            Message::Hello {
                role: Side::Incumbent,
                pid: 4711,
                build_id: vec![0xde, 0xad, 0xbe, 0xef],
                proto_min: 1,
                proto_max: 1,
                capabilities: Capabilities { reserved: 0 },
            },
        ),
        (
            "17000000 0100 00 01 ffffffff0f 00 01 ac02 ffffffffffffffffff01",
            Message::Hello {
                role: Side::Successor,
                pid: u32::MAX,
                build_id: vec![],
                proto_min: 1,
                proto_max: 300,
                capabilities: Capabilities { reserved: u64::MAX },
            },
        ),
        (
            "15000000 0100 01 01 100123456789ab4def8011223344556677",
            Message::HelloAck { proto_version_chosen: 1, handoff_id },
        ),
        (
            "1c000000 0100 02 100123456789ab4def8011223344556677 e824 e0a712 e0d403",
            Message::PrepareHandoff { handoff_id, successor_pid: 4712, deadline_ms: 300_000, drain_grace_ms: 60_000 },
        ),
        ("06000000 0100 03 8101 01", Message::Drained { open_conns_remaining: 129, accept_closed: true }),
        ("05000000 0100 03 00 00", Message::Drained { open_conns_remaining: 0, accept_closed: false }),
        ("14000000 0100 04 100123456789ab4def8011223344556677", Message::SealRequest { handoff_id }),
        (
            "0c000000 0100 05 03 8001 808080808020",
            Message::SealProgress { shards_sealed: 3, shards_total: 128, last_revision: 1 << 40 },
        ),
        (
            "46000000 0100 06 100123456789ab4def8011223344556677 05 00 7f 8001 808001 ffffffffffffffffff01 \
             e0e1e2e3e4e5e6e7e8e9eaebecedeeeff0f1f2f3f4f5f6f7f8f9fafbfcfdfeff",
            Message::SealComplete {
                handoff_id,
                last_revision_per_shard: vec![0, 127, 128, 16_384, u64::MAX],
                data_dir_fingerprint: fingerprint(),
            },
        ),
        (
            "35000000 0100 06 100123456789ab4def8011223344556677 00 \
             0000000000000000000000000000000000000000000000000000000000000000",
            Message::SealComplete { handoff_id, last_revision_per_shard: vec![], data_dir_fingerprint: [0; 32] },
        ),
        (
            "3a000000 0100 07 100123456789ab4def8011223344556677 \
             17 6e6f207370616365206c656674206f6e20646576696365 0d 32206f662033207368617264 73",
            Message::SealFailed {
                handoff_id,
                error: "no space left on device".into(),
                partial_state: "2 of 3 shards".into(),
            },
        ),
        ("14000000 0100 08 100123456789ab4def8011223344556677", Message::Begin { handoff_id }),
        (
            "45000000 0100 09 100123456789ab4def8011223344556677 02 \
             0e 3132372e302e302e313a38303830 11 756e69783a2f72756e2fc3a92e736f636b \
             01 03 01 ac02 ffffffffffffffffff01",
            Message::Ready {
                handoff_id,
                listening_on: vec!["127.0.0.1:8080".into(), "unix:/run/\u{e9}.sock".into()],
                healthz_ok: true,
                advertised_revision_per_shard: vec![1, 300, u64::MAX],
            },
        ),
        (
            "17000000 0100 09 100123456789ab4def8011223344556677 00 00 00",
            Message::Ready {
                handoff_id,
                listening_on: vec![],
                healthz_ok: false,
                advertised_revision_per_shard: vec![],
            },
        ),
        ("14000000 0100 0a 100123456789ab4def8011223344556677", Message::Commit { handoff_id }),
        (
            "2f000000 0100 0b 100123456789ab4def8011223344556677 \
             1a 737563636573736f72206578697465643a207374617475732031",
            Message::Abort { handoff_id, reason: "successor exited: status 1".into() },
        ),
        (
            "15000000 0100 0b 100123456789ab4def8011223344556677 00",
            Message::Abort { handoff_id, reason: String::new() },
        ),
        ("14000000 0100 0c 100123456789ab4def8011223344556677", Message::ResumeAfterAbort { handoff_id }),
        ("09000000 0100 0d 80d095ffbc31", Message::Heartbeat { ts_ms: 1_700_000_000_000 }),
    ]
}

fn version_2() -> Vec<(&'static str, Message)> {
    let handoff_id = HANDOFF_ID;
    vec![
        ("14000000 0200 0e 100123456789ab4def8011223344556677", Message::Warmed { handoff_id }),
        (
            "4d000000 0200 0f 100123456789ab4def8011223344556677 00 03 01 ac02 ffffffffffffffffff01 \
             e0e1e2e3e4e5e6e7e8e9eaebecedeeeff0f1f2f3f4f5f6f7f8f9fafbfcfdfeff 8101 808080808020 904e",
            Message::BeginWith {
                handoff_id,
                mode: BeginMode::Sealed,
                sealed_revision_per_shard: vec![1, 300, u64::MAX],
                data_dir_fingerprint: fingerprint(),
                epoch: 129,
                deadline_ns: 1 << 40,
                open_ms: 10_000,
            },
        ),
        (
            "3a000000 0200 0f 100123456789ab4def8011223344556677 01 00 \
             0000000000000000000000000000000000000000000000000000000000000000 01 00 904e",
            Message::BeginWith {
                handoff_id,
                mode: BeginMode::Recover,
                sealed_revision_per_shard: vec![],
                data_dir_fingerprint: [0; 32],
                epoch: 1,
                deadline_ns: 0,
                open_ms: 10_000,
            },
        ),
        ("14000000 0200 10 100123456789ab4def8011223344556677", Message::Resumed { handoff_id }),
        (
            "19000000 0200 11 100123456789ab4def8011223344556677 04 66756c6c",
            Message::DrainFailed { handoff_id, error: "full".into() },
        ),
        ("03000000 0200 12", Message::ListenersRequest),
        (
            "0f000000 0200 13 02 04 68747470 05 61646d696e",
            Message::Listeners { names: vec!["http".into(), "admin".into()] },
        ),
        ("03000000 0200 14", Message::Status),
        (
            "0c000000 0200 15 01 02 03 8001 02 07 09 05",
            Message::StatusReport(StatusReport {
                phase: Some(Phase::Sealing),
                shard_count: 3,
                open_conns: 128,
                last_revision_per_shard: vec![7, 9],
                epoch: 5,
            }),
        ),
        ("08000000 0200 15 00 00 00 00 00", Message::StatusReport(StatusReport::default())),
        (
            "0b000000 0200 16 808004 03 00 01 ac02",
            Message::Revisions { first_shard: 65_536, revisions: vec![0, 1, 300] },
        ),
        (
            "19000000 0200 17 100123456789ab4def8011223344556677 04 66756c6c",
            Message::NotReady { handoff_id, reason: "full".into() },
        ),
        ("14000000 0200 18 100123456789ab4def8011223344556677", Message::TransferChannel { handoff_id }),
        ("14000000 0200 19 100123456789ab4def8011223344556677", Message::OpenProgress { handoff_id }),
    ]
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        hex.chars().filter(|digit| !digit.is_whitespace()).map(|digit| digit.to_digit(16).unwrap() as u8).collect();
    assert!(digits.len().is_multiple_of(2), "{hex}");
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn check(version: ProtoVersion, table: Vec<(&'static str, Message)>) {
    for (golden, message) in table {
        let golden = bytes(golden);
        let mut written = Vec::new();
        write_message(&mut written, version, &message).unwrap();
        assert_eq!(hex(&written), hex(&golden), "{message:?}");
        assert_eq!(read_message(&mut golden.as_slice()).unwrap(), (version, message));
    }
}

#[test]
fn version_1_is_what_beyond_handoff_writes_and_reads() {
    check(1, version_1());
}

#[test]
fn version_2_stays_as_it_is() {
    check(2, version_2());
}

/// The variant's number is the seventh byte of its frame.
#[test]
fn every_message_has_golden_bytes_under_the_version_that_knows_it() {
    let mut numbers = Vec::new();
    for (golden, message) in version_1().into_iter().chain(version_2()) {
        let number = bytes(golden)[6];
        assert_eq!(message.since_version(), if number <= 13 { 1 } else { 2 }, "{}", short_name(&message));
        if numbers.last() != Some(&number) {
            numbers.push(number);
        }
    }
    assert_eq!(numbers, Vec::from_iter(0..=25));
}
