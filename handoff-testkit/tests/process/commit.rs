//! The commit path under load: real supervisor, real store, real clients, and the count of everything that may not happen.

use std::time::{Duration, Instant};

use handoff_testkit::fixture::{Fixture, Setup};
use handoff_testkit::load::{Cost, Load, LoadSpec};
use handoff_testkit::store::StoreClient;
use handoff_testkit::{Spread, Yardstick};
use rustix::fs::Access;

use crate::daemons::SHARDS;
use crate::{Outcome, check, trials};

trials![
    fifty_handovers_under_32_clients,
    two_hundred_handovers_without_a_pause_between_them,
    two_builds_take_over_from_each_other,
    a_stop_leaves_nothing_behind,
    more_than_a_thousand_listeners,
    a_hundred_thousand_shards,
    any_bound_is_taken,
];

/// How long anything may take that must happen.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a moment without a handover is looked at, and for how long: about as long as a handover.
const CONTROLS: u32 = 20;
const SPAN: Duration = Duration::from_millis(20);
/// A handover's pause and its call are so many bare starts and syncs at most, in the median; they are two to eight. A part that grew to
/// as much as all the rest is found by the benchmark.
const STARTS_MAX: u32 = 25;

/// Hands over under load, `times` times, and counts.
fn hand_over(times: u32, clients: usize) -> Result<Fixture, Box<dyn std::error::Error>> {
    let mut fixture = Setup::store()?.start()?;
    let acks = fixture.path().join("acks");
    let spec = LoadSpec { clients, readers: 2, ..LoadSpec::new(fixture.endpoint("http")?, &acks) };
    let load = Load::start(&spec, StoreClient::new())?;
    let yardstick = Yardstick::measure(fixture.path())?;
    let mut pid = fixture.incumbent_pid()?;
    let mut controls = Vec::new();
    for _ in 0..CONTROLS {
        let from = Instant::now();
        controls.push(load.gaps().longest_around(from, from + SPAN, PATIENCE).ok_or("nobody answers")?);
    }
    let mut handovers = Vec::new();
    for number in 1..=times {
        let from = Instant::now();
        let upgrade = fixture.upgrade(&[])?;
        handovers.push((from, Instant::now()));
        check(upgrade.committed(), format!("handover {number}: {upgrade:?}\n{}", fixture.log()))?;
        let outcome = upgrade.outcome.ok_or("upgrade --json prints an object")?;
        check(outcome["old_pid"] == pid, format!("handover {number} replaces {pid}: {outcome}"))?;
        pid = outcome["new_pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).ok_or("a new pid")?;
    }
    // Looked at now, so that nothing is waited for between two handovers.
    check(load.gaps().wait_for_reply_after(Instant::now(), PATIENCE), "the last successor answers")?;
    let pauses: Vec<_> = handovers.iter().map(|(from, to)| load.gaps().longest_between(*from, *to)).collect();
    let calls: Vec<_> = handovers.iter().map(|(from, to)| *to - *from).collect();
    let yardstick = yardstick.again(fixture.path())?;
    let seen = load.stop()?;
    check(fixture.incumbent_pid()? == pid, "the last successor serves")?;
    let stopped = fixture.stop()?;
    check(stopped.success(), format!("{stopped}\n{}", fixture.log()))?;
    check(seen.counts.read > 0, "the clients read")?;
    let verdict = fixture.verify(&seen, Cost::NOTHING)?;
    check(verdict.is_clean(), format!("{:?}", verdict.problems()))?;
    let (pause, call, control) = (Spread::of(&pauses), Spread::of(&calls), Spread::of(&controls));
    println!("pause {pause}; call {call}; without a handover {control}");
    let anyway = Duration::from_secs_f64(control.p50 / 1e3);
    yardstick.explains("the pause", pause, STARTS_MAX, anyway)?;
    yardstick.explains("the call", call, STARTS_MAX, anyway)?;
    Ok(fixture)
}

fn fifty_handovers_under_32_clients() -> Outcome {
    hand_over(50, 32).map(drop)
}

fn two_hundred_handovers_without_a_pause_between_them() -> Outcome {
    hand_over(200, 4).map(drop)
}

fn two_builds_take_over_from_each_other() -> Outcome {
    let fixture = Setup::store()?.start()?;
    for build in ["blue", "green", "blue"] {
        // A build of its own: the same program, started with another build id.
        let wrapper = fixture.path().join(build);
        if rustix::fs::access(&wrapper, Access::EXISTS).is_err() {
            let program = std::env::current_exe()?;
            let script = format!("#!/bin/sh\nSTORE_BUILD_ID={build} exec '{}' \"$@\"\n", program.display());
            std::fs::write(&wrapper, script)?;
            std::fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        }
        let upgrade = fixture.upgrade(&[&wrapper.to_string_lossy()])?;
        check(upgrade.committed(), format!("{upgrade:?}\n{}", fixture.log()))?;
        let status = fixture.status()?;
        check(status["incumbent"]["build_id"] == build, format!("{build} serves: {status}"))?;
    }
    Ok(())
}

fn a_stop_leaves_nothing_behind() -> Outcome {
    let mut fixture = Setup::store()?.start()?;
    let address = fixture.address("http")?;
    check(fixture.upgrade(&[])?.committed(), "a handover commits")?;
    check(fixture.stop()?.success(), fixture.log())?;
    check(fixture.processes().is_empty(), format!("no process is left: {:?}", fixture.processes()))?;
    check(std::net::TcpStream::connect(address).is_err(), "nobody listens any more")?;
    let holder = handoff_lock::holder(fixture.data_dir())?;
    check(holder.is_none(), format!("nobody holds the data: {holder:?}"))
}

fn more_than_a_thousand_listeners() -> Outcome {
    const LISTENERS: usize = 1200;
    let setup = (1..LISTENERS).fold(Setup::role("daemon-ours")?.listener("http", "127.0.0.1:0"), |setup, number| {
        setup.listener(format!("more-{number}"), "127.0.0.1:0")
    });
    let fixture = setup.start()?;
    let upgrade = fixture.upgrade(&[])?;
    check(upgrade.committed(), format!("{upgrade:?}\n{}", fixture.log()))?;
    let pid = fixture.incumbent_pid()?;
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    check(descriptors > LISTENERS, format!("the successor has all listeners, among {descriptors} descriptors"))
}

/// Each report is half a MiB: no socket takes it at once, the last one when the successor serves already. A supervisor that does not
/// hear all of it finds out by the lease, after a long silence, that the successor serves.
fn a_hundred_thousand_shards() -> Outcome {
    const HANDOVERS: usize = 5;
    let setup = Setup::role("daemon-ours")?.listener("http", "127.0.0.1:0").supervisor_env(SHARDS, "100000");
    let mut fixture = setup.start()?;
    for _ in 0..HANDOVERS {
        let upgrade = fixture.upgrade(&[])?;
        check(upgrade.committed(), format!("{upgrade:?}"))?;
    }
    let left = fixture.stop()?;
    check(left.success(), format!("{left:?}"))?;
    let heard = fixture.log().matches("ready_received").count();
    check(heard == HANDOVERS, format!("{heard} of {HANDOVERS} Readys were heard:\n{}", fixture.log()))
}

/// A number too large for any clock is how people write "no limit".
fn any_bound_is_taken() -> Outcome {
    let fixture = Setup::role("daemon-ours")?.listener("http", "127.0.0.1:0").start()?;
    let endless = "18446744073709551615s";
    let upgrade = fixture.upgrade(&["--drain-grace", endless, "--deadline", endless])?;
    check(upgrade.committed(), format!("it is committed: {upgrade:?}"))
}
