//! What goes to stdout and stderr. Whoever closed them does not want to read it: a write that fails is dropped.

use std::io::{self, Write};

use serde::Serialize;

/// One line on stdout.
pub(super) fn line(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
}

/// One JSON object on stdout, in one line.
pub(super) fn json(object: &impl Serialize) -> Result<(), String> {
    line(&serde_json::to_string(object).map_err(|error| format!("the answer can't be encoded: {error}"))?);
    Ok(())
}

/// One line on stderr, whatever is in the text.
pub(super) fn error(text: &str) {
    let one_line = text.lines().map(str::trim).collect::<Vec<_>>().join("; ");
    let _ = writeln!(io::stderr().lock(), "handoff: {one_line}");
}

/// A time of the wall clock.
pub(super) fn time(unix_ms: u64) -> String {
    let time = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_millis(unix_ms));
    time.map_or_else(|| format!("{unix_ms} ms"), |time| humantime::format_rfc3339_seconds(time).to_string())
}

/// Something that may be unknown.
pub(super) fn or_unknown(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "unknown".to_owned(), |value| value.to_string())
}
