//! `handoff lock`.

use std::process::ExitCode;

use handoff_lock::Holder;
use serde::Serialize;

use super::args::LockArgs;
use super::output;

/// As `--json` prints it.
#[derive(Serialize)]
struct Held<'a> {
    pid: u32,
    alive: bool,
    command: Option<&'a str>,
    since_unix_ms: Option<u64>,
    inherited: bool,
}

pub(super) fn lock(args: &LockArgs) -> Result<ExitCode, String> {
    let dir = &args.data_dir;
    if !dir.is_dir() {
        return Err(format!("{}: there is no such directory", dir.display()));
    }
    let holder = handoff_lock::holder(dir).map_err(|error| error.to_string())?;
    if args.json {
        output::json(&holder.as_ref().map(held))?;
    } else {
        let lease = handoff_lock::read_lease(dir);
        let unreadable = lease.err().map(|error| format!("; its lease is unreadable: {error}")).unwrap_or_default();
        let readers = handoff_lock::readers(dir).map_err(|error| error.to_string())?;
        output::line(&format!("{} is {}{unreadable}", dir.display(), taken(holder.as_ref(), &readers)));
    }
    Ok(ExitCode::SUCCESS)
}

fn held(holder: &Holder) -> Held<'_> {
    Held {
        pid: holder.pid,
        alive: holder.alive,
        command: holder.command.as_deref(),
        since_unix_ms: holder.since_unix_ms,
        inherited: holder.inherited,
    }
}

/// Readers are no holders; they count only while there is none.
fn taken(holder: Option<&Holder>, readers: &[Holder]) -> String {
    match (holder, readers) {
        (Some(holder), _) => format!("held by {}", described(holder)),
        (None, []) => "free".to_owned(),
        (None, readers) => {
            let readers: Vec<String> = readers.iter().map(described).collect();
            format!("being read by {}", readers.join(", by "))
        }
    }
}

fn described(holder: &Holder) -> String {
    let command = holder.command.as_deref().map(|command| format!(" ({command})")).unwrap_or_default();
    let since = holder.since_unix_ms.map(|since| format!(" since {}", output::time(since))).unwrap_or_default();
    let inherited = if holder.inherited { ", through a descriptor that it inherited" } else { "" };
    let alive = if holder.alive { "" } else { ", which is dead: the kernel is still freeing the lock" };
    format!("pid {}{command}{since}{inherited}{alive}", holder.pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder() -> Holder {
        Holder { pid: 7, alive: true, command: Some("d -x".into()), since_unix_ms: Some(0), inherited: false }
    }

    #[test]
    fn the_json_has_the_fields_of_a_holder() {
        let json = serde_json::to_value(held(&holder())).unwrap();
        let expected = serde_json::json!(
            {"pid": 7, "alive": true, "command": "d -x", "since_unix_ms": 0, "inherited": false}
        );
        assert_eq!(json, expected);
        assert_eq!(serde_json::to_string(&None::<Held<'_>>).unwrap(), "null");
    }

    #[test]
    fn people_are_told_all_of_it() {
        assert_eq!(described(&holder()), "pid 7 (d -x) since 1970-01-01T00:00:00Z");
        let odd = Holder { alive: false, command: None, since_unix_ms: None, inherited: true, ..holder() };
        assert!(described(&odd).starts_with("pid 7, through a descriptor that it inherited, which is dead"));
        assert_eq!(taken(Some(&holder()), &[odd]), "held by pid 7 (d -x) since 1970-01-01T00:00:00Z");
        assert_eq!(taken(None, &[]), "free");
        let reader = || Holder { since_unix_ms: None, ..holder() };
        assert_eq!(taken(None, &[reader(), reader()]), "being read by pid 7 (d -x), by pid 7 (d -x)");
    }
}
