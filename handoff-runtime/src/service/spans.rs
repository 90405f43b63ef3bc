//! The parts of a handover as stretches of time, from the moments of its steps: pure arithmetic, no clock.
//!
//! Invariants: the parts are in their order, none overlaps another, and one that was cut off ends where the undoing began.

use handoff_journal::PhaseSpan;
use handoff_proto::supervisor::Milestone;

/// The moments of one handover, in nanoseconds of CLOCK_MONOTONIC.
#[derive(Debug, Clone)]
pub(super) struct Moments {
    ordered_ns: u64,
    reached: Vec<(Milestone, u64)>,
}

/// What a part is called, where it begins, and where it ends.
const PARTS: [(&str, Milestone, Milestone); 5] = [
    ("spawn", Milestone::IncumbentGreeted, Milestone::SuccessorGreeted),
    ("warm", Milestone::SuccessorGreeted, Milestone::Warmed),
    ("drain", Milestone::PrepareSent, Milestone::DrainedReceived),
    ("seal", Milestone::SealRequestSent, Milestone::SealCompleteReceived),
    ("begin_to_ready", Milestone::BeginSent, Milestone::ReadyReceived),
];

impl Moments {
    pub(super) fn new(ordered_ns: u64) -> Self {
        Self { ordered_ns, reached: Vec::with_capacity(16) }
    }

    pub(super) fn note(&mut self, milestone: Milestone, at_ns: u64) {
        self.reached.push((milestone, at_ns));
    }

    /// When it was first reached.
    pub(super) fn at_ns(&self, wanted: Milestone) -> Option<u64> {
        self.reached.iter().find(|(milestone, _)| *milestone == wanted).map(|&(_, at_ns)| at_ns)
    }

    /// How long after the order this moment is, in milliseconds.
    pub(super) fn after_ms(&self, at_ns: u64) -> u64 {
        at_ns.saturating_sub(self.ordered_ns) / 1_000_000
    }

    /// The parts of a handover that has ended at this moment.
    pub(super) fn spans(&self, ended_ns: u64) -> Vec<PhaseSpan> {
        let undone_ns = self.at_ns(Milestone::UndoStarted);
        let cut_ns = undone_ns.unwrap_or(ended_ns);
        let mut over_ns = self.ordered_ns;
        let mut spans = Vec::with_capacity(PARTS.len() + 1);
        for (number, (phase, begin, end)) in PARTS.iter().enumerate() {
            let Some(begin_ns) = self.at_ns(*begin) else { continue };
            let next_ns = PARTS[number + 1..].iter().find_map(|(_, begin, _)| self.at_ns(*begin));
            let begin_ns = begin_ns.max(over_ns);
            let end_ns = self.at_ns(*end).or(next_ns).unwrap_or(cut_ns).max(begin_ns);
            spans.push(self.span(phase, begin_ns, end_ns));
            over_ns = end_ns;
        }
        spans.extend(undone_ns.map(|undone_ns| self.span("undo", undone_ns.max(over_ns), ended_ns)));
        spans
    }

    fn span(&self, phase: &str, begin_ns: u64, end_ns: u64) -> PhaseSpan {
        let ms = |ns: u64| (ns / 1000) as f64 / 1000.0;
        PhaseSpan {
            phase: phase.to_owned(),
            at_ms: ms(begin_ns.saturating_sub(self.ordered_ns)),
            ms: ms(end_ns.saturating_sub(begin_ns)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// The parts of a handover ordered at 100 ms, with these steps, and ended at 200 ms after that.
    fn spans(steps: &[(Milestone, u64)]) -> Vec<(String, f64, f64)> {
        let mut moments = Moments::new(100 * MS);
        steps.iter().for_each(|&(milestone, at_ms)| moments.note(milestone, (100 + at_ms) * MS));
        moments.spans(300 * MS).into_iter().map(|span| (span.phase, span.at_ms, span.ms)).collect()
    }

    fn part(phase: &str, at_ms: f64, ms: f64) -> (String, f64, f64) {
        (phase.to_owned(), at_ms, ms)
    }

    const WARMED: [(Milestone, u64); 3] =
        [(Milestone::IncumbentGreeted, 1), (Milestone::SuccessorGreeted, 4), (Milestone::Warmed, 9)];

    #[test]
    fn a_committed_handover_has_its_five_parts() {
        let rest = [
            (Milestone::PrepareSent, 10),
            (Milestone::DrainedReceived, 12),
            (Milestone::SealRequestSent, 12),
            (Milestone::SealCompleteReceived, 15),
            (Milestone::BeginSent, 16),
            (Milestone::ReadyReceived, 20),
            (Milestone::CommitSent, 21),
        ];
        let expected = [
            part("spawn", 1.0, 3.0),
            part("warm", 4.0, 5.0),
            part("drain", 10.0, 2.0),
            part("seal", 12.0, 3.0),
            part("begin_to_ready", 16.0, 4.0),
        ];
        assert_eq!(spans(&[WARMED.as_slice(), &rest].concat()), expected);
    }

    #[test]
    fn what_is_cut_off_ends_where_the_undoing_begins() {
        let rest = [
            (Milestone::PrepareSent, 10),
            (Milestone::DrainedReceived, 12),
            (Milestone::SealRequestSent, 13),
            (Milestone::UndoStarted, 50),
        ];
        let found = spans(&[WARMED.as_slice(), &rest].concat());
        assert_eq!(found[3..], [part("seal", 13.0, 37.0), part("undo", 50.0, 150.0)]);
    }

    #[test]
    fn a_seal_that_was_asked_for_ahead_begins_when_the_drain_is_over() {
        let rest = [
            (Milestone::PrepareSent, 10),
            (Milestone::SealRequestSent, 10),
            (Milestone::DrainedReceived, 12),
            (Milestone::SealCompleteReceived, 15),
        ];
        let found = spans(&[WARMED.as_slice(), &rest].concat());
        assert_eq!(found[2..], [part("drain", 10.0, 2.0), part("seal", 12.0, 3.0)]);
    }

    #[test]
    fn a_part_that_nobody_ended_ends_with_the_next_one() {
        let old_successor =
            [(Milestone::IncumbentGreeted, 1), (Milestone::SuccessorGreeted, 4), (Milestone::PrepareSent, 6)];
        assert_eq!(spans(&old_successor)[1..], [part("warm", 4.0, 2.0), part("drain", 6.0, 194.0)]);
        let dead_incumbent =
            [(Milestone::SealRequestSent, 13), (Milestone::BeginSent, 20), (Milestone::ReadyReceived, 30)];
        assert_eq!(spans(&dead_incumbent), [part("seal", 13.0, 7.0), part("begin_to_ready", 20.0, 10.0)]);
        assert_eq!(spans(&[]), []);
    }
}
