//! `handoff upgrade` and `handoff rollback`: one order, one handover, one exit code.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::aftermath::{self, Came, Found, Order};
use super::args::{RollbackArgs, StateDirArg, UpgradeArgs};
use super::client::{self, Client, Line};
use super::config::Place;
use super::progress::Show;
use super::{ABORTED, COMMITTED, NOT_DONE, NOT_KNOWN, output};
use crate::outcome::OldProcess;
use crate::service::{Event, HandoverReport, Request};

pub(super) fn upgrade(args: &UpgradeArgs) -> Result<ExitCode, String> {
    let request = |place: &Place| {
        let binary = args.binary.as_deref().map(|binary| sendable(place, binary)).transpose()?;
        Ok(Request::Upgrade { binary, deadline: args.deadline, drain_grace: args.drain_grace })
    };
    hand_over(request, &args.state_dir, Voice::of(args.json, args.quiet))
}

pub(super) fn rollback(args: &RollbackArgs) -> Result<ExitCode, String> {
    hand_over(|_| Ok(Request::Rollback {}), &args.state_dir, Voice::of(args.json, args.quiet))
}

/// What is printed beside errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Voice {
    Text,
    Json,
    Nothing,
}

impl Voice {
    fn of(json: bool, quiet: bool) -> Self {
        match (json, quiet) {
            (true, _) => Self::Json,
            (false, true) => Self::Nothing,
            (false, false) => Self::Text,
        }
    }
}

fn hand_over(
    request: impl FnOnce(&Place) -> Result<Request, String>,
    state_dir: &StateDirArg,
    voice: Voice,
) -> Result<ExitCode, String> {
    let outcome = ordered(request, state_dir, voice).unwrap_or_else(|error| Outcome {
        exit_code: NOT_DONE,
        report: HandoverReport { abort_reason: Some(error), ..HandoverReport::default() },
        by_what_is_left: false,
    });
    if voice == Voice::Json {
        output::json(&outcome.report)?;
    }
    match &outcome.report.abort_reason {
        Some(reason) => output::error(&failure(reason, &outcome)),
        None if voice == Voice::Text => output::line(&success(&outcome)),
        None => {}
    }
    if outcome.by_what_is_left && outcome.report.committed {
        output::error(&format!("{GONE}: start it again"));
    }
    Ok(ExitCode::from(outcome.exit_code))
}

struct Outcome {
    exit_code: u8,
    report: HandoverReport,
    /// The supervisor went away before it could say so.
    by_what_is_left: bool,
}

fn ordered(
    request: impl FnOnce(&Place) -> Result<Request, String>,
    state_dir: &StateDirArg,
    voice: Voice,
) -> Result<Outcome, String> {
    let place = Place::here()?;
    let request = request(&place)?;
    let state_dir = place.state_dir(state_dir.state_dir.as_deref())?;
    let mut client = Client::order(&state_dir, &request)?;
    let show = if voice == Voice::Text { Show::to_people() } else { Show::Nothing };
    let mut exit_code = NOT_DONE;
    let mut taken = Taken::Not;
    let lost = loop {
        match client.next() {
            Ok(Some(Line::Event(Event::Finished { exit_code: code }))) => exit_code = code,
            Ok(Some(Line::Event(event))) => {
                taken.note(&event);
                show.event(&event);
            }
            Ok(Some(Line::Answer(answer))) => match client::read(&answer) {
                Ok(report) => return Ok(Outcome { exit_code, report, by_what_is_left: false }),
                Err(error) => break error,
            },
            Ok(None) => break GONE.to_owned(),
            Err(error) => break error,
        }
    };
    match taken {
        Taken::Not => Err(lost),
        Taken::Unnamed => Ok(Outcome {
            exit_code: NOT_KNOWN,
            report: HandoverReport { abort_reason: Some(format!("{lost}; {ASK}")), ..HandoverReport::default() },
            by_what_is_left: true,
        }),
        Taken::As(order) => {
            show.waiting_for("what became of it");
            let found = aftermath::find_out(&order, client.supervisor(), &state_dir);
            Ok(without_supervisor(&order, &lost, &found))
        }
    }
}

/// How far the service had taken the order when nothing more was heard of it.
enum Taken {
    /// It has said nothing: nothing was done.
    Not,
    /// By a service that does not say what is needed to find out more.
    Unnamed,
    As(Order),
}

impl Taken {
    fn note(&mut self, event: &Event) {
        match Order::from_event(event) {
            Some(order) => *self = Self::As(order),
            None if matches!(self, Self::Not) => *self = Self::Unnamed,
            None => {}
        }
    }
}

const GONE: &str = "the supervisor went away in the middle of the order";
const ASK: &str = "who serves is not known: ask `handoff status` when a supervisor runs again";

/// The outcome of a handover of which nothing more was heard, because of what is `lost`.
fn without_supervisor(order: &Order, lost: &str, found: &Found) -> Outcome {
    let (exit_code, abort_reason) = match found.came {
        Came::Committed => (COMMITTED, None),
        Came::Undone => (ABORTED, Some(lost.to_owned())),
        Came::NotTried => (NOT_DONE, Some(lost.to_owned())),
        Came::NotKnown => (NOT_KNOWN, Some(format!("{lost}; {ASK}"))),
    };
    let report = HandoverReport {
        handoff_id: Some(order.handoff_id().to_string()),
        committed: found.came == Came::Committed,
        abort_reason,
        old_pid: Some(order.old_pid()),
        new_pid: found.new_pid,
        epoch: found.epoch,
        ..HandoverReport::default()
    };
    Outcome { exit_code, report, by_what_is_left: true }
}

/// The admin protocol is JSON, so a path must be text.
fn sendable(place: &Place, binary: &Path) -> Result<PathBuf, String> {
    let absolute = place.cwd.join(binary);
    match absolute.to_str() {
        Some(_) => Ok(absolute),
        None => Err(format!("{}: a binary's path must be UTF-8", absolute.display())),
    }
}

fn success(outcome: &Outcome) -> String {
    let report = &outcome.report;
    let epoch = report.epoch.map(|epoch| format!(", epoch {epoch}")).unwrap_or_default();
    let pids = format!("pid {} -> {}", output::or_unknown(report.old_pid), output::or_unknown(report.new_pid));
    if outcome.by_what_is_left {
        return format!("committed: {pids}{epoch}");
    }
    format!(
        "committed: {pids}, pause {:.3} ms, total {:.0} ms{epoch}",
        report.timings_ms.pause, report.timings_ms.total
    )
}

fn failure(reason: &str, outcome: &Outcome) -> String {
    match (outcome.exit_code, outcome.report.old_pid) {
        (ABORTED, Some(old)) => format!("aborted: {reason}; {}", old_process(old, outcome.report.incumbent)),
        (ABORTED, None) => format!("aborted: {reason}"),
        (NOT_DONE, Some(old)) if outcome.by_what_is_left => {
            format!("{reason}, before a new process was started; pid {old} serves on")
        }
        _ => reason.to_owned(),
    }
}

/// Without a word of the supervisor the lease has said that the data are its own: its resume may still be under way, or fail.
fn old_process(pid: u32, known: Option<OldProcess>) -> String {
    match known {
        Some(OldProcess::NotHeard) => {
            format!("pid {pid} lives and has not said yet that it serves again: see `handoff status`")
        }
        Some(OldProcess::Dead) => format!("pid {pid} is dead: the last good build is started in its place"),
        None => format!("pid {pid} has its data: `handoff status` says whether it serves"),
        Some(OldProcess::Serves | OldProcess::Replaced) => format!("pid {pid} serves on"),
    }
}

#[cfg(test)]
mod tests {
    use handoff_proto::HandoffId;

    use super::*;

    fn outcome(came: Came) -> Outcome {
        let event = Event::Ordered {
            handoff_id: HandoffId::from_bytes([0x11; 16]),
            old_pid: 7,
            old_start_time: 1,
            data_dir: None,
            deadline_ms: 1,
        };
        let order = Order::from_event(&event).unwrap();
        without_supervisor(&order, GONE, &Found { came, new_pid: Some(8), epoch: Some(3) })
    }

    #[test]
    fn the_exit_code_says_who_serves_also_without_a_supervisor() {
        for (came, exit_code) in [(Came::Committed, 0), (Came::Undone, 2), (Came::NotTried, 3), (Came::NotKnown, 6)] {
            let outcome = outcome(came);
            let report = &outcome.report;
            assert_eq!(outcome.exit_code, exit_code);
            assert_eq!(report.committed, came == Came::Committed, "{came:?}");
            assert_eq!(report.abort_reason.is_none(), report.committed, "{came:?}");
            assert_eq!((report.old_pid, report.new_pid, report.epoch), (Some(7), Some(8), Some(3)));
            assert_eq!(report.handoff_id.as_deref(), Some("11111111-1111-1111-1111-111111111111"));
        }
    }

    #[test]
    fn the_line_says_who_serves_also_without_a_supervisor() {
        let line = |came| {
            let outcome = outcome(came);
            match &outcome.report.abort_reason {
                Some(reason) => failure(reason, &outcome),
                None => success(&outcome),
            }
        };
        assert_eq!(line(Came::Committed), "committed: pid 7 -> 8, epoch 3", "no time of it is known");
        assert_eq!(
            line(Came::Undone),
            format!("aborted: {GONE}; pid 7 has its data: `handoff status` says whether it serves")
        );
        assert_eq!(line(Came::NotTried), format!("{GONE}, before a new process was started; pid 7 serves on"));
        assert_eq!(line(Came::NotKnown), format!("{GONE}; {ASK}"));
    }

    #[test]
    fn only_one_that_serves_is_said_to_serve_on() {
        let line = |incumbent| {
            let report = HandoverReport { old_pid: Some(7), incumbent: Some(incumbent), ..HandoverReport::default() };
            failure("why", &Outcome { exit_code: ABORTED, report, by_what_is_left: false })
        };
        assert_eq!(line(OldProcess::Serves), "aborted: why; pid 7 serves on");
        for incumbent in [OldProcess::NotHeard, OldProcess::Dead] {
            assert!(!line(incumbent).contains("serves on"), "{}", line(incumbent));
        }
    }

    #[test]
    fn a_service_that_says_nothing_has_done_nothing() {
        let phase = Event::Phase { phase: "negotiating".into(), handoff_id: None, successor_pid: None, after_ms: 0 };
        let mut taken = Taken::Not;
        taken.note(&phase);
        assert!(matches!(taken, Taken::Unnamed), "an older service is under way, and has not said what it does");
    }
}
