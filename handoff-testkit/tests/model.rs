//! The shipped machines hold their promises in every state of the world, with any fault and with any two; from every state
//! somebody comes to serve; and a rule that is broken on purpose is noticed.
//!
//! The deeper walks are ignored by default: `cargo test -p handoff-testkit --test model --release -- --ignored`.

use handoff_testkit::model::{Graph, HandoverModel};
use handoff_testkit::world::{Broken, Init, Limits, Sabotage, Strangers};
use stateright::{Checker, Model};

/// Without strangers.
fn limits(handovers: u8, faults: u8) -> Limits {
    Limits { handovers, faults, init: Init::Replaces, strangers: Strangers::Away, sabotage: None }
}

/// The same, and more: somebody locks the data directory whenever it can be locked, and a second daemon is started in a loop.
fn among_strangers(handovers: u8, faults: u8) -> Limits {
    Limits { strangers: Strangers::Around, ..limits(handovers, faults) }
}

/// The page that says how far the walks go.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/decisions/model.md");

/// No promise is broken anywhere, from everywhere somebody can come to serve, and the walk is as long as the page says of
/// `walk`.
fn holds(limits: Limits, walk: &str) {
    let graph = Graph::explore(HandoverModel(limits));
    let summary = graph.summary();
    println!("{limits:?}: {summary:?}");
    assert!(summary.broken.is_empty() && summary.dead_ends == 0, "{}", graph.traces());
    let found = format!("| {walk} | {} | {} |", grouped(summary.states), grouped(summary.edges));
    let page = std::fs::read_to_string(PAGE).unwrap();
    assert!(page.lines().any(|line| line.starts_with(&found)), "{PAGE} says something else than\n{found}");
}

/// A number as people write it.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap()).collect();
    groups.join(",")
}

#[test]
fn numbers_are_written_in_groups_of_three() {
    assert_eq!([1, 999, 1000, 24_532_646].map(grouped), ["1", "999", "1,000", "24,532,646"]);
}

#[test]
fn one_handover_with_any_two_faults() {
    holds(among_strangers(1, 2), "one handover, any two faults");
}

#[test]
fn two_handovers_with_any_fault() {
    holds(among_strangers(2, 1), "two handovers, any fault");
}

/// What nobody else can mend: the supervisor ends between SIGSTOP and SIGCONT, or after it has ended an incumbent that counts as dead.
#[test]
fn without_anybody_who_restarts_the_supervisor() {
    let graph = Graph::explore(HandoverModel(Limits { init: Init::LeavesAlone, ..limits(1, 1) }));
    assert!(graph.summary().broken.is_empty(), "{}", graph.traces());
    assert!(graph.dead_ends().all(|world| world.is_left_standing_still() || world.is_empty()), "{}", graph.traces());
}

#[test]
fn stateright_finds_the_same() {
    let checker = HandoverModel(limits(1, 1)).checker().threads(2).spawn_bfs().join();
    checker.assert_properties();
    assert_eq!(checker.unique_state_count(), Graph::explore(HandoverModel(limits(1, 1))).summary().states);
}

/// A walk at random with up to eight faults in two handovers: no number of faults makes two writers. The seed of a walk that
/// failed goes into `HANDOFF_MODEL_SEED`.
#[test]
fn long_walks_with_many_faults() {
    let model = HandoverModel(limits(2, 8));
    let given = std::env::var("HANDOFF_MODEL_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = given.map_or(1..=64, |seed: u64| seed..=seed);
    let mut faults = 0;
    for seed in seeds {
        match model.simulate(seed, 4000) {
            Ok(walked) => {
                faults += walked.faults;
                assert!(walked.serving > 0);
            }
            Err(failure) => {
                panic!("HANDOFF_MODEL_SEED={} finds {:?}:\n{}", failure.seed, failure.broken, failure.trace)
            }
        }
    }
    assert!(faults > 0, "no fault has happened");
}

#[test]
fn a_seed_that_fails_fails_again_in_the_same_way() {
    let model = HandoverModel(Limits { sabotage: Some(Sabotage::KillActive), ..limits(2, 4) });
    let failure = (1..200).find_map(|seed| model.simulate(seed, 4000).err()).expect("the broken rule goes unnoticed");
    assert_eq!(model.simulate(failure.seed, 4000), Err(failure));
}

/// With this rule broken, a stranger that locks the directory between the two owners leaves nobody serving, and a second daemon can
/// be a second owner; without a stranger nothing is amiss.
fn lets_strangers_in(sabotage: Sabotage) {
    let graph = Graph::explore(HandoverModel(Limits { sabotage: Some(sabotage), ..among_strangers(1, 0) }));
    println!("{sabotage:?}: {:?}", graph.summary());
    assert_eq!(graph.summary().broken, [Broken::SlippedIn], "{sabotage:?}:\n{}", graph.traces());
    assert!(graph.summary().dead_ends > 0, "{sabotage:?} is not noticed");
    let alone = Graph::explore(HandoverModel(Limits { sabotage: Some(sabotage), ..limits(1, 0) })).summary();
    assert!(alone.broken.is_empty() && alone.dead_ends == 0, "{sabotage:?}: {alone:?}");
}

#[test]
fn a_handover_that_passes_no_directory_lets_strangers_in() {
    lets_strangers_in(Sabotage::PassNothing);
}

#[test]
fn unlocking_a_directory_that_was_passed_lets_strangers_in() {
    lets_strangers_in(Sabotage::UnlockWhatWasPassed);
}

/// The broken rule breaks this promise first.
fn notices(sabotage: Sabotage, handovers: u8, faults: u8, expected: Broken) {
    let limits = Limits { sabotage: Some(sabotage), ..limits(handovers, faults) };
    let graph = Graph::explore_until_broken(HandoverModel(limits));
    println!("{sabotage:?}: {:?}", graph.summary());
    assert_eq!(graph.summary().broken, [expected], "{sabotage:?}:\n{}", graph.traces());
}

#[test]
fn killing_an_active_successor_is_noticed() {
    notices(Sabotage::KillActive, 1, 0, Broken::ActiveEnded);
}

#[test]
fn releasing_the_lock_before_the_seal_is_noticed() {
    notices(Sabotage::ReleaseBeforeSeal, 1, 0, Broken::WritesWithoutLock);
}

#[test]
fn deciding_without_another_look_under_the_lock_is_noticed() {
    notices(Sabotage::DecideWithoutLookingAgain, 2, 0, Broken::TookBackFromNewer);
}

/// The epoch is the second line of defence: without it, leftovers that nobody ended take the data.
#[test]
fn ignoring_the_epoch_that_begin_named_is_noticed() {
    notices(Sabotage::SpareLeftoversAndIgnoreEpoch, 2, 1, Broken::TookOutOfTurn);
}

#[test]
#[ignore = "minutes: the first line of defence left out, the second one alone"]
fn leftovers_that_nobody_ends_find_another_epoch() {
    let spared = Limits { sabotage: Some(Sabotage::SpareLeftovers), ..limits(2, 1) };
    let graph = Graph::explore(HandoverModel(spared));
    assert!(graph.summary().broken.is_empty(), "{}", graph.traces());
}

#[test]
#[ignore = "a quarter of an hour and several GiB"]
fn two_handovers_with_any_two_faults() {
    holds(among_strangers(2, 2), "two handovers, any two faults");
}

#[test]
fn saying_that_it_serves_before_it_has_said_so_is_noticed() {
    notices(Sabotage::TakeResumeForGranted, 1, 0, Broken::SaidToServe);
}

#[test]
fn sparing_an_incumbent_that_counts_as_dead_is_noticed() {
    notices(Sabotage::SpareSilentIncumbent, 1, 1, Broken::NotWaitedFor);
}

#[test]
fn ending_a_warm_successor_while_the_incumbent_is_silent_is_noticed() {
    notices(Sabotage::TakeDeadlineForLife, 1, 1, Broken::EndedForSilence);
}

#[test]
fn an_opening_without_a_bound_of_its_own_is_noticed() {
    notices(Sabotage::LeaveOpeningUnbounded, 1, 1, Broken::OpeningUnbounded);
}

#[test]
fn a_long_warm_up_while_nobody_serves_is_noticed() {
    notices(Sabotage::WarmAsPlannedForTheDead, 1, 1, Broken::WarmsWhileNobodyServes);
}

#[test]
fn waiting_for_a_failure_until_the_resume_is_over_is_noticed() {
    notices(Sabotage::KeepFailureBack, 1, 1, Broken::FailureKeptBack);
}

/// Nothing is broken by it, and nobody ever serves again.
#[test]
fn waiting_without_end_for_a_resume_is_noticed() {
    let limits = Limits { sabotage: Some(Sabotage::LeaveResumeUnbounded), ..limits(1, 2) };
    let summary = Graph::explore(HandoverModel(limits)).summary();
    println!("{summary:?}");
    assert!(summary.broken.is_empty() && summary.dead_ends > 0, "{summary:?}");
}

#[test]
fn resuming_from_memory_is_noticed() {
    notices(Sabotage::ResumeFromMemory, 1, 1, Broken::WritesLost);
}
