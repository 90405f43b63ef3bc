//! `handoff history`: reads the file, and needs no supervisor.

use std::process::ExitCode;
use std::time::Duration;

use handoff_journal::{History, HistoryEntry};

use super::args::HistoryArgs;
use super::config::Place;
use super::{client, output, plot};

/// A supervisor that is busy or frozen keeps nobody from reading for longer.
const SUPERVISOR_WITHIN: Duration = Duration::from_secs(1);

pub(super) fn history(args: &HistoryArgs) -> Result<ExitCode, String> {
    let state_dir = Place::here()?.state_dir(args.state_dir.state_dir.as_deref())?;
    if !state_dir.is_dir() {
        return Err(format!("{}: there is no such state directory", state_dir.display()));
    }
    // One that has answered an upgrade writes its entry next: an answer to this comes behind it.
    client::wait_for_answer(&state_dir, SUPERVISOR_WITHIN);
    let recent = History::new(state_dir.join("history")).newest(args.newest).map_err(|error| error.to_string())?;
    if recent.damaged > 0 {
        output::error(&format!("history: unreadable lines are left out: {}", recent.damaged));
    }
    if recent.unknown > 0 {
        output::error(&format!("history: lines that only a newer build reads are left out: {}", recent.unknown));
    }
    if let Some(path) = &args.plot {
        std::fs::write(path, plot::svg(&recent.entries)).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    match (args.json, &args.plot) {
        (true, _) => output::line(&json(&recent.entries)?),
        (false, None) => output::line(&table(&recent.entries)),
        (false, Some(_)) => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// One array, an entry a line.
fn json(entries: &[HistoryEntry]) -> Result<String, String> {
    let lines: Result<Vec<_>, _> = entries.iter().map(serde_json::to_string).collect();
    let lines = lines.map_err(|error| format!("the history can't be encoded: {error}"))?;
    Ok(if lines.is_empty() { "[]".to_owned() } else { format!("[\n{}\n]", lines.join(",\n")) })
}

const HEADINGS: [&str; 12] =
    ["started", "outcome", "pause", "total", "spawn", "warm", "drain", "seal", "ready", "retire", "pid", "epoch"];

fn table(entries: &[HistoryEntry]) -> String {
    if entries.is_empty() {
        return "no handover yet".to_owned();
    }
    let rows: Vec<_> = entries.iter().map(|entry| (row(entry), remark(entry))).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|(cells, _)| cells[column].chars().count());
        cells.chain([HEADINGS[column].len()]).max().unwrap_or_default()
    };
    let widths: Vec<_> = (0..HEADINGS.len()).map(width).collect();
    let line = |cells: [&str; 12], remark: &str| {
        let cells = cells.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            0 | 1 | 10 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        format!("{}  {remark}", cells.collect::<Vec<_>>().join("  ")).trim_end().to_owned()
    };
    let head = line(HEADINGS, "build, or why not; times in ms");
    let body = rows.iter().map(|(cells, remark)| line(cells.each_ref().map(String::as_str), remark));
    std::iter::once(head).chain(body).collect::<Vec<_>>().join("\n")
}

fn row(entry: &HistoryEntry) -> [String; 12] {
    let times = &entry.timings_ms;
    let ms = |ms: f64| if ms > 0.0 { format!("{ms:.3}") } else { "-".to_owned() };
    [
        output::time(entry.started_at_unix_ms),
        if entry.committed { "committed" } else { "aborted" }.to_owned(),
        ms(times.pause),
        ms(times.total),
        ms(times.spawn),
        ms(times.warm),
        ms(times.drain),
        ms(times.seal),
        ms(times.begin_to_ready),
        times.retire.map_or_else(|| "-".to_owned(), ms),
        pids(entry),
        entry.epoch.map_or_else(|| "-".to_owned(), |epoch| epoch.to_string()),
    ]
}

fn pids(entry: &HistoryEntry) -> String {
    let pid = |pid: Option<u32>| pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
    format!("{} -> {}", pid(entry.old_pid), pid(entry.new_pid))
}

/// What is to be said of it besides numbers, in one line.
pub(super) fn remark(entry: &HistoryEntry) -> String {
    let text = match (&entry.abort_reason, &entry.aborted_in) {
        (Some(reason), Some(phase)) => format!("{phase}: {reason}"),
        (Some(reason), None) => reason.clone(),
        (None, _) => builds(entry),
    };
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

fn builds(entry: &HistoryEntry) -> String {
    let known = |build: &Option<String>| build.clone().filter(|build| !build.is_empty());
    match (known(&entry.old_build), known(&entry.new_build)) {
        (Some(old), Some(new)) if old == new => new,
        (None, None) => String::new(),
        (old, new) => format!("{} -> {}", output::or_unknown(old), output::or_unknown(new)),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use handoff_journal::{HandoffId, HistoryTimings, PhaseSpan};

    use super::*;

    pub(in crate::cli) fn committed() -> HistoryEntry {
        let spans = [
            ("spawn", 0.4, 2.3),
            ("warm", 2.7, 0.5),
            ("drain", 3.9, 0.25),
            ("seal", 4.2, 0.3),
            ("begin_to_ready", 4.6, 0.6),
        ];
        let span = |(phase, at_ms, ms): (&str, f64, f64)| PhaseSpan { phase: phase.into(), at_ms, ms };
        HistoryEntry {
            handoff_id: Some(HandoffId::from_bytes([7; 16])),
            committed: true,
            old_pid: Some(101),
            new_pid: Some(117),
            epoch: Some(5),
            old_build: Some("v1".into()),
            new_build: Some("v2".into()),
            timings_ms: HistoryTimings {
                spawn: 2.3,
                warm: 0.5,
                drain: 0.25,
                seal: 0.3,
                begin_to_ready: 0.6,
                total: 6.125,
                pause: 1.3,
                retire: Some(12.0),
            },
            phases: spans.map(span).into(),
            ..HistoryEntry::default()
        }
    }

    pub(in crate::cli) fn aborted() -> HistoryEntry {
        HistoryEntry {
            committed: false,
            abort_reason: Some("seal: no <space>\nleft".into()),
            aborted_in: Some("sealing".into()),
            timings_ms: HistoryTimings {
                seal: 0.0,
                begin_to_ready: 0.0,
                pause: 0.0,
                retire: None,
                ..committed().timings_ms
            },
            phases: committed().phases[..4].into(),
            ..committed()
        }
    }

    #[test]
    fn the_table_has_a_line_for_each_and_the_reason_in_it() {
        let expected = "\
started               outcome    pause  total  spawn   warm  drain   seal  ready  retire  pid         epoch  build, or why not; times in ms
1970-01-01T00:00:00Z  committed  1.300  6.125  2.300  0.500  0.250  0.300  0.600  12.000  101 -> 117      5  v1 -> v2
1970-01-01T00:00:00Z  aborted        -  6.125  2.300  0.500  0.250      -      -       -  101 -> 117      5  sealing: seal: no <space> left";
        assert_eq!(table(&[committed(), aborted()]), expected);
        assert_eq!(table(&[]), "no handover yet");
    }

    #[test]
    fn the_json_is_one_array_of_what_upgrade_prints_and_more() {
        let printed: serde_json::Value = serde_json::from_str(&json(&[committed(), aborted()]).unwrap()).unwrap();
        assert_eq!(json(&[]).unwrap(), "[]");
        let upgrade = serde_json::to_value(crate::service::HandoverReport::default()).unwrap();
        for (key, value) in upgrade.as_object().unwrap() {
            assert!(printed[0].get(key).is_some(), "{key}");
            for part in value.as_object().into_iter().flatten() {
                assert!(printed[0][key].get(part.0).is_some(), "{}", part.0);
            }
        }
        assert_eq!(printed[0]["timings_ms"]["retire"], 12.0);
        assert_eq!(printed[1]["aborted_in"], "sealing");
    }
}
