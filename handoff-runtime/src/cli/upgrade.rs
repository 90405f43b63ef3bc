//! `handoff upgrade` and `handoff rollback`: one order, one handover, one exit code.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::args::{RollbackArgs, StateDirArg, UpgradeArgs};
use super::client::{self, Client, Line};
use super::config::Place;
use super::progress::Show;
use super::{NOT_DONE, output};
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
    });
    if voice == Voice::Json {
        output::json(&outcome.report)?;
    }
    match &outcome.report.abort_reason {
        Some(reason) => output::error(&failure(reason, &outcome)),
        None if voice == Voice::Text => output::line(&success(&outcome.report)),
        None => {}
    }
    Ok(ExitCode::from(outcome.exit_code))
}

struct Outcome {
    exit_code: u8,
    report: HandoverReport,
}

fn ordered(
    request: impl FnOnce(&Place) -> Result<Request, String>,
    state_dir: &StateDirArg,
    voice: Voice,
) -> Result<Outcome, String> {
    let place = Place::here()?;
    let request = request(&place)?;
    let mut client = Client::order(&place.state_dir(state_dir.state_dir.as_deref())?, &request)?;
    let show = if voice == Voice::Text { Show::to_people() } else { Show::Nothing };
    let mut exit_code = NOT_DONE;
    loop {
        match client.next()? {
            Some(Line::Event(Event::Finished { exit_code: code })) => exit_code = code,
            Some(Line::Event(event)) => show.event(&event),
            Some(Line::Answer(answer)) => {
                return Ok(Outcome { exit_code, report: client::read(&answer)? });
            }
            None => return Err(GONE.to_owned()),
        }
    }
}

const GONE: &str = "the supervisor went away before the handover ended; `handoff status` says who serves";

/// The admin protocol is JSON, so a path must be text.
fn sendable(place: &Place, binary: &Path) -> Result<PathBuf, String> {
    let absolute = place.cwd.join(binary);
    match absolute.to_str() {
        Some(_) => Ok(absolute),
        None => Err(format!("{}: a binary's path must be UTF-8", absolute.display())),
    }
}

fn success(report: &HandoverReport) -> String {
    let epoch = report.epoch.map(|epoch| format!(", epoch {epoch}")).unwrap_or_default();
    format!(
        "committed: pid {} -> {}, pause {:.3} ms, total {:.0} ms{epoch}",
        output::or_unknown(report.old_pid),
        output::or_unknown(report.new_pid),
        report.timings_ms.pause,
        report.timings_ms.total,
    )
}

fn failure(reason: &str, outcome: &Outcome) -> String {
    match (outcome.exit_code, outcome.report.old_pid) {
        (2, Some(old)) => format!("aborted: {reason}; pid {old} serves on"),
        (2, None) => format!("aborted: {reason}"),
        _ => reason.to_owned(),
    }
}
