//! `handoff stop`.

use std::process::ExitCode;

use super::args::StopArgs;
use super::client::Client;
use super::config::Place;
use super::output;
use crate::service::Request;

pub(super) fn stop(args: &StopArgs) -> Result<ExitCode, String> {
    let state_dir = Place::here()?.state_dir(args.state_dir.state_dir.as_deref())?;
    let mut client = Client::order(&state_dir, &Request::Stop {})?;
    let answer = client.answer()?;
    // Until the process is gone it holds the state directory.
    client.wait_until_gone()?;
    output::line(if args.json { &answer } else { "stopped" });
    Ok(ExitCode::SUCCESS)
}
