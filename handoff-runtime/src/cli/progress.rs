//! What `upgrade` shows while it waits: a moving line on a terminal, plain lines elsewhere, or nothing.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::output;
use crate::service::Event;

/// Where the phases of a handover are shown.
pub(super) enum Show {
    /// Nowhere.
    Nothing,
    /// As lines on stdout.
    Lines,
    /// On a terminal at stderr, with the phase under way in the last line until it is over.
    Terminal(ProgressBar),
}

impl Show {
    /// For people: on a terminal if there is one.
    pub(super) fn to_people() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines;
        }
        let bar = ProgressBar::new_spinner().with_style(waiting());
        bar.enable_steady_tick(Duration::from_millis(100));
        Self::Terminal(bar)
    }

    pub(super) fn event(&self, event: &Event) {
        match self {
            Self::Nothing => {}
            Self::Lines => plain(event).into_iter().for_each(|line| output::line(&line)),
            Self::Terminal(bar) => moving(bar, event),
        }
    }

    /// What is waited for behind the last event.
    pub(super) fn waiting_for(&self, what: &'static str) {
        if let Self::Terminal(bar) = self {
            bar.set_style(waiting());
            bar.set_message(what);
        }
    }
}

impl Drop for Show {
    fn drop(&mut self) {
        if let Self::Terminal(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn plain(event: &Event) -> Option<String> {
    match event {
        Event::Phase { phase, successor_pid, after_ms, .. } => {
            let successor = successor_pid.map(|pid| format!("  (successor: pid {pid})")).unwrap_or_default();
            Some(format!("{after_ms:>7} ms  {phase}{successor}"))
        }
        Event::SealProgress { shards_sealed, shards_total, .. } => {
            Some(format!("            {shards_sealed} of {shards_total} shards sealed"))
        }
        Event::Ordered { .. } | Event::Finished { .. } | Event::Stopping {} => None,
    }
}

fn moving(bar: &ProgressBar, event: &Event) {
    match event {
        Event::Phase { phase, .. } => {
            bar.set_style(waiting());
            bar.set_message(phase.clone());
            bar.println(plain(event).unwrap_or_default());
        }
        Event::SealProgress { shards_sealed, shards_total, .. } => {
            bar.set_style(sealing());
            bar.set_length(u64::from(*shards_total));
            bar.set_position(u64::from(*shards_sealed));
        }
        Event::Ordered { .. } | Event::Finished { .. } | Event::Stopping {} => {}
    }
}

fn waiting() -> ProgressStyle {
    styled("{spinner} {msg} {elapsed}")
}

fn sealing() -> ProgressStyle {
    styled("{spinner} {msg} [{bar:40}] {pos}/{len} shards {elapsed}").progress_chars("=> ")
}

fn styled(template: &str) -> ProgressStyle {
    // A test reads the templates.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_sound() {
        for template in ["{spinner} {msg} {elapsed}", "{spinner} {msg} [{bar:40}] {pos}/{len} shards {elapsed}"] {
            ProgressStyle::with_template(template).unwrap();
        }
    }

    #[test]
    fn without_a_terminal_there_is_a_line_for_each_phase() {
        let phase = Event::Phase { phase: "sealing".into(), handoff_id: None, successor_pid: Some(7), after_ms: 12 };
        assert_eq!(plain(&phase).unwrap(), "     12 ms  sealing  (successor: pid 7)");
        let sealed = Event::SealProgress { shards_sealed: 3, shards_total: 8, last_revision: 0 };
        assert_eq!(plain(&sealed).unwrap(), "            3 of 8 shards sealed");
        assert_eq!(plain(&Event::Finished { exit_code: 0 }), None);
    }
}
