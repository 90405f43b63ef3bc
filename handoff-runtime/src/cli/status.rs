//! `handoff status`.

use std::process::ExitCode;

use super::args::StatusArgs;
use super::client::{self, Client};
use super::config::Place;
use super::output;
use crate::service::{HandoverReport, IncumbentStatus, Request, SealStatus, ServiceStatus};

pub(super) fn status(args: &StatusArgs) -> Result<ExitCode, String> {
    let state_dir = Place::here()?.state_dir(args.state_dir.state_dir.as_deref())?;
    let answer = Client::order(&state_dir, &Request::Status {})?.answer()?;
    if args.json {
        output::line(&answer);
    } else {
        output::line(&table(&client::read(&answer)?));
    }
    Ok(ExitCode::SUCCESS)
}

fn table(status: &ServiceStatus) -> String {
    let mut rows = vec![
        ("state", status.state.name().to_owned()),
        ("supervisor", format!("pid {}", status.supervisor_pid)),
        ("daemon", status.incumbent.as_ref().map_or_else(|| "none".to_owned(), daemon)),
    ];
    rows.extend(status.listeners.iter().map(|listener| ("listening", format!("{} {}", listener.name, listener.addr))));
    if let Some(handover) = &status.handover {
        let successor = handover.successor_pid.map(|pid| format!(", successor pid {pid}")).unwrap_or_default();
        let seal = handover.seal.as_ref().map(sealed).unwrap_or_default();
        rows.push(("handover", format!("{}{seal}{successor}", handover.phase)));
    }
    if let Some(last) = &status.last_handover {
        rows.push(("last", ended(last)));
    }
    rows.iter().map(|(name, value)| format!("{name:<11} {value}")).collect::<Vec<_>>().join("\n")
}

fn sealed(seal: &SealStatus) -> String {
    format!(", {} of {} shards sealed", seal.shards_sealed, seal.shards_total)
}

fn daemon(incumbent: &IncumbentStatus) -> String {
    let epoch = incumbent.epoch.map(|epoch| format!(", epoch {epoch}")).unwrap_or_default();
    let build = incumbent.build_id.as_deref().filter(|build| !build.is_empty());
    let build = build.map(|build| format!(", build {build}")).unwrap_or_default();
    format!("pid {}{build}{epoch}, since {}", incumbent.pid, output::time(incumbent.since_unix_ms))
}

fn ended(last: &HandoverReport) -> String {
    match &last.abort_reason {
        Some(reason) => format!("not committed: {reason}"),
        None => format!(
            "committed: pid {} -> {}, pause {:.3} ms",
            output::or_unknown(last.old_pid),
            output::or_unknown(last.new_pid),
            last.timings_ms.pause
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::{HandoverStatus, ListenerStatus, ServiceState};

    #[test]
    fn the_table_names_everything_that_is_known() {
        let status = ServiceStatus {
            state: ServiceState::HandingOver,
            supervisor_pid: 1,
            incumbent: Some(IncumbentStatus { pid: 2, build_id: Some("v1".into()), since_unix_ms: 0, epoch: Some(4) }),
            handover: Some(HandoverStatus {
                handoff_id: None,
                phase: "sealing".into(),
                successor_pid: Some(3),
                seal: Some(SealStatus { shards_sealed: 1, shards_total: 4, last_revision: 9 }),
            }),
            listeners: vec![ListenerStatus { name: "http".into(), addr: "127.0.0.1:80".into() }],
            last_handover: Some(HandoverReport { abort_reason: Some("no".into()), ..HandoverReport::default() }),
        };
        let expected = "\
state       handing_over
supervisor  pid 1
daemon      pid 2, build v1, epoch 4, since 1970-01-01T00:00:00Z
listening   http 127.0.0.1:80
handover    sealing, 1 of 4 shards sealed, successor pid 3
last        not committed: no";
        assert_eq!(table(&status), expected);
    }
}
