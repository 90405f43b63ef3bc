//! The program as a supervisor on `beyond-handoff`.

use std::env;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::ExitCode;

use handoff_testkit::ROLE_VARIABLE;

use super::daemon;
use super::stage::{DEADLINE, DRAIN_GRACE, Result};
use crate::daemons::LISTENER;

/// The role in which it is one, for one handover.
pub(crate) const ROLE: &str = "supervisor-theirs";

/// Their supervisor hands over once: exit code 0 when it has committed, 2 when it has not.
pub(crate) fn main() -> ExitCode {
    match hand_over_by_theirs() {
        Ok(outcome) if outcome.committed => ExitCode::SUCCESS,
        Ok(outcome) => {
            eprintln!("aborted: {}", outcome.abort_reason.unwrap_or_default());
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn hand_over_by_theirs() -> Result<handoff::HandoffOutcome> {
    let path_in = |variable: &str| env::var_os(variable).map(PathBuf::from).ok_or("no such variable");
    let control = path_in("HANDOFF_CONTROL_SOCKET")?;
    let listener = match handoff::detect_role()? {
        handoff::Role::ColdStart { mut inherited } => inherited.take(LISTENER).ok_or("no listener")?,
        handoff::Role::Successor(_) => return Err("a supervisor is nobody's successor".into()),
    };
    let supervisor = handoff::Supervisor::new(&control)?
        .with_listener(LISTENER, listener.as_raw_fd())
        .with_journal(control.with_file_name("journal"));
    supervisor.resume_from_journal()?;
    let mut spec = handoff::SpawnSpec::new(env::current_exe()?);
    spec.env = vec![(ROLE_VARIABLE.to_owned(), daemon::ROLE.to_owned())];
    spec.deadline = DEADLINE;
    spec.drain_grace = DRAIN_GRACE;
    Ok(supervisor.perform_handoff(spec)?)
}
