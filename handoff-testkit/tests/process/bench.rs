//! The measurement itself: that it measures all sides, that its JSON has the promised shape, that every side's syncs are made
//! slower when they are to be. Nothing is said about how long anything takes.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use handoff_testkit::ROLE_VARIABLE;
use serde_json::Value;

use crate::skip::{self, Need};
use crate::{Outcome, check, trials};

trials![a_run_has_the_promised_shape, growth_has_a_row_for_each_size, a_wrong_argument_is_one_error];

const SIDES: [&str; 4] = ["handoff", "peer", "floor", "restart"];
const RATIOS: [&str; 7] = [
    "pause_vs_peer",
    "pause_vs_floor",
    "call_vs_peer",
    "perform_vs_peer",
    "lock_vs_peer",
    "lock_in_a_handover_vs_peer",
    "journal_vs_peer",
];

fn bench(args: &[&str]) -> std::io::Result<Output> {
    Command::new(std::env::current_exe()?).args(args).env(ROLE_VARIABLE, "bench").output()
}

fn measured(dir: &Path, args: &[&str]) -> Result<Value, Box<dyn std::error::Error>> {
    let json = dir.join("figures.json");
    let place = [&["--dir", path(dir)?, "--json", path(&json)?], args].concat();
    let output = bench(&place)?;
    check(output.status.success(), format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)))?;
    Ok(serde_json::from_str(&fs::read_to_string(json)?)?)
}

fn path(path: &Path) -> Result<&str, &'static str> {
    path.to_str().ok_or("a path in UTF-8")
}

/// Whether the system lets a process have a filter of its own.
fn syncs_can_be_made_slower() -> std::io::Result<bool> {
    Ok(fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").is_ok_and(|actions| actions.contains("user_notif"))
        && fs::read_to_string("/proc/self/status")?.contains("Seccomp:\t0"))
}

fn a_run_has_the_promised_shape() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path().canonicalize()?;
    let svg = dir.join("phases.svg");
    let slower = syncs_can_be_made_slower()?;
    if !slower {
        let test = "bench::a_run_has_the_promised_shape";
        skip::part_of(test, Need::Seccomp, "the system forbids what makes syncs slower")?;
    }
    let delay: &[&str] = if slower { &["--fsync-delay", "1ms"] } else { &[] };
    let json = measured(&dir, &[&["--handovers", "2", "--clients", "2", "--svg", path(&svg)?], delay].concat())?;

    let sides = &json["dirs"][path(&dir)?];
    for side in SIDES {
        let side = &sides[side];
        for figure in ["pause_us", "control_us", "call_us", "perform_us"] {
            let figure = &side[figure];
            let fine = figure["n"] == 2 && figure["p50"].as_f64().is_some_and(|p50| p50 > 0.0);
            check(fine, format!("not two samples: {side:#}"))?;
        }
        check(side["phases_us"].as_object().is_some_and(|parts| !parts.is_empty()), format!("no phases: {side:#}"))?;
        let held = side["syncs_made_slower"].as_u64();
        check(!slower || held.is_some_and(|held| held > 0), format!("no sync was made slower: {side:#}"))?;
        check(side["problems"] == Value::Array(Vec::new()), format!("clients lost something: {side:#}"))?;
    }
    for ratio in RATIOS {
        check(json["ratio"][ratio].as_f64().is_some_and(|ratio| ratio > 0.0), format!("{ratio}: {}", json["ratio"]))?;
    }
    let svg = fs::read_to_string(svg)?;
    check(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "a drawing")?;
    check(SIDES.iter().all(|side| svg.contains(&format!(">{side}<"))), "each side has its row in the drawing")?;
    check(fs::read_dir(&dir)?.count() == 2, "nothing is left but the two files")?;
    Ok(())
}

fn growth_has_a_row_for_each_size() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path().canonicalize()?;
    let json = measured(&dir, &["--growth", "--handovers", "1", "--sizes-up-to", "10"])?;
    let curves = json["growth"][path(&dir)?].as_object().ok_or("curves")?.clone();
    check(curves.len() == 5, format!("{curves:#?}"))?;
    for (title, curve) in curves {
        let columns = curve["columns"].as_array().map_or(0, Vec::len);
        let rows = curve["rows"].as_array().ok_or("rows")?;
        let whole = rows.iter().all(|row| row[1].as_array().is_some_and(|figures| figures.len() == columns));
        check(!rows.is_empty() && whole, format!("{title}: {rows:?}"))?;
    }
    Ok(())
}

fn a_wrong_argument_is_one_error() -> Outcome {
    for bad in [
        &["--nonsense"][..],
        &["--handovers", "none"],
        &["stray"],
        &["--growth", "--fsync-delay", "5ms"],
        &["--check", "--growth"],
    ] {
        let output = bench(bad)?;
        let said = String::from_utf8(output.stderr)?;
        check(output.status.code() == Some(2) && said.lines().count() == 1, format!("{bad:?}: {said}"))?;
    }
    Ok(())
}
