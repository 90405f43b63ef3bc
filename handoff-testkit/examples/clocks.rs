//! Does the history tell the truth? Hands over again and again under load, and compares the pause in the history with the longest
//! time between two replies that reaches into it, as the clients saw it by their own clock. Of eight clients some read, four
//! unless told otherwise: a reply to a write comes when the disk has it, and what a disk takes for the first write after a handover
//! is in no history.
//!
//! `cargo run --release -p handoff-testkit --features store --example clocks [HANDOVERS [READERS]]`

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use handoff_testkit::fixture::Setup;
use handoff_testkit::load::{Load, LoadSpec};
use handoff_testkit::store::StoreClient;
use serde_json::Value;

type AnyError = Box<dyn std::error::Error>;

const CLIENTS: usize = 8;
const THINK: Duration = Duration::from_millis(1);
/// How far the two may be apart, beside the time that a client thinks.
const APART: Duration = Duration::from_millis(2);

fn main() -> Result<ExitCode, AnyError> {
    handoff_testkit::init();
    let number = |at, default| std::env::args().nth(at).map_or(Ok(default), |count| count.parse());
    let (handovers, readers): (usize, usize) = (number(1, 100)?, number(2, CLIENTS / 2)?);
    let clients = CLIENTS.checked_sub(readers).ok_or("so many clients there are not")?;
    let mut fixture = Setup::store()?.start()?;
    let acks = fixture.path().join("acks");
    let spec = LoadSpec { clients, readers, think: THINK, ..LoadSpec::new(fixture.address("http")?, &acks) };
    let load = Load::start(&spec, StoreClient::new())?;
    let (mut seen_ms, mut told_ms) = (Vec::with_capacity(handovers), Vec::with_capacity(handovers));
    for number in 1..=handovers {
        let upgrade = fixture.upgrade(&[])?;
        if !upgrade.committed() {
            return Err(format!("handover {number}: {upgrade:?}\n{}", fixture.log()).into());
        }
        load.gaps().wait_for_reply_after(Instant::now(), spec.patience);
        let (now, now_unix_ms) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64() * 1e3);
        let entries: Vec<Value> = serde_json::from_slice(&fixture.handoff("history", &["-n", "1"])?.stdout)?;
        let (begun_unix_ms, pause_ms) = pause(&entries[0]).ok_or_else(|| format!("no pause in {entries:?}"))?;
        let ago = |unix_ms: f64| now.checked_sub(Duration::from_secs_f64((now_unix_ms - unix_ms).max(0.0) / 1e3));
        // The history has the order's time in whole milliseconds.
        let (from, to) = (ago(begun_unix_ms), ago(begun_unix_ms + pause_ms + 1.0));
        let (from, to) = from.zip(to).ok_or("the clock does not reach back so far")?;
        seen_ms.push(load.gaps().longest_between(from, to).as_secs_f64() * 1e3);
        told_ms.push(pause_ms);
    }
    let seen = load.stop()?;
    fixture.stop()?;

    let mut apart_ms: Vec<f64> = seen_ms.iter().zip(&told_ms).map(|(seen, told)| seen - told).collect();
    let within_ms = (APART + THINK).as_secs_f64() * 1e3;
    let agree = apart_ms.iter().filter(|apart| apart.abs() < within_ms).count();
    println!("{} handovers, {clients} clients write, {readers} read: {}", told_ms.len(), seen.counts);
    println!("{agree} of {handovers} agree within {within_ms} ms (2 ms and one think time)");
    for (what, values) in [("told by the history", told_ms), ("seen by the clients", seen_ms)] {
        println!("{what:<22}{}", spread(values));
    }
    apart_ms.sort_by(f64::total_cmp);
    println!("{:<22}{}", "seen less told", spread(apart_ms));
    Ok(ExitCode::from(u8::from(agree * 100 < handovers * 95)))
}

/// When the pause of a handover began, in milliseconds since the Unix epoch, and how long it was.
fn pause(entry: &Value) -> Option<(f64, f64)> {
    let drain = entry["phases"].as_array()?.iter().find(|part| part["phase"] == "drain")?;
    let begun_unix_ms = entry["started_at_unix_ms"].as_f64()? + drain["at_ms"].as_f64()?;
    Some((begun_unix_ms, entry["timings_ms"]["pause"].as_f64()?))
}

fn spread(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values.get(((values.len() - 1) as f64 * share) as usize).copied().unwrap_or_default();
    format!("min {:7.3}   median {:7.3}   p95 {:7.3}   max {:7.3} ms", at(0.0), at(0.5), at(0.95), at(1.0))
}
