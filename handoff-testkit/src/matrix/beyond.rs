//! What the world does to a row beyond its fault, and what must not be said meanwhile.

use std::io;

use handoff_lock::LeaseState;
use rustix::process::Signal;

use super::besides::{Meanwhile, Moved, Times};
use super::points::Fault;
use super::report::RowReport;
use super::row::{Act, signal};
use super::scene::Scene;
use super::{HOLD, Hooks, Row, Strike};
use crate::fixture::Upgrade;

impl Act<'_> {
    /// The process stands at the point; then it goes on, unless it is to stay.
    pub(super) fn while_it_stands(&self, strike: Strike, scene: &mut Scene<'_>, hit: u32) -> io::Result<()> {
        match self.row.meanwhile {
            Meanwhile::IncumbentDies => signal(self.old, Signal::KILL),
            Meanwhile::Moves(moved) => scene.place.displace(moved)?,
            Meanwhile::Nothing | Meanwhile::MovesAfterwards(_) => {}
        }
        if strike.fault == Fault::StopCont {
            signal(hit, Signal::CONT);
        }
        Ok(())
    }

    /// As soon as nobody is left who would take the one for the other: the order is answered, or the successor is gone or serves.
    /// Gives what was done to the wrong directory.
    pub(super) fn put_back_what_was_moved(&mut self, scene: &mut Scene<'_>) -> io::Result<Vec<String>> {
        if !scene.place.is_moved() {
            return Ok(Vec::new());
        }
        self.note_births(scene);
        let living = scene.fixture.processes();
        // One that died on purpose, so that the point was reached, was not seen: then it is a matter of time.
        let seen_out = match self.row.point.led_to_by() {
            Some(_) => self.since.elapsed() >= HOLD,
            None => !self.born.is_empty() && !self.born.iter().any(|pid| living.contains(pid)),
        };
        let lease = handoff_lock::read_lease(&scene.place.held()).ok().flatten();
        let serves = lease.is_some_and(|lease| lease.state == LeaseState::Active && lease.owner.pid != self.old);
        let answered = match &mut self.order {
            Some(order) => order.is_answered()?,
            None => true,
        };
        if answered || seen_out || serves { scene.place.put_back() } else { Ok(Vec::new()) }
    }

    /// Of an incumbent whose every resume fails nobody may say that it serves.
    pub(super) fn catch_a_lie(&self, scene: &Scene<'_>, report: &mut RowReport) {
        let never_resumes = self.row.hooks == Hooks::FailingResume(Times::Always);
        if !never_resumes || scene.trap.resumes_that_did_not_fail() > 0 || !report.problems.is_empty() {
            return;
        }
        if let Ok(status) = scene.fixture.status() {
            let lies = status["state"] == "serving" && status["incumbent"]["pid"] == self.old;
            report.complain(!lies, || format!("its resume fails, and `status` says that it serves: {status}"));
        }
    }
}

/// The daemon's own words for its error reach whoever ordered the handover.
pub(super) fn untold(row: &Row, answer: &Upgrade) -> Option<String> {
    let told = format!("on purpose at {}", row.point.name());
    let reason = answer.outcome.as_ref().and_then(|said| said["abort_reason"].as_str()).unwrap_or_default();
    let must_be_told = row.fault == Fault::Error && row.second.is_none() && row.point.is_told_of();
    (must_be_told && !reason.contains(&told))
        .then(|| format!("the reason is {reason:?}, and not the daemon's {told:?}"))
}

/// Between two handovers: the next one is refused before anybody is asked to stop, and nothing is written to the wrong directory.
pub(super) fn no_handover_while_moved(scene: &mut Scene<'_>, moved: Moved, serving: u32) -> io::Result<Vec<String>> {
    scene.place.displace(moved)?;
    let refused = scene.fixture.upgrade(&[])?;
    let mut problems = scene.place.put_back()?;
    let said = refused.stderr.trim_end();
    let is_told = !said.contains('\n') && said.contains("data directory") && said.contains(&format!("pid {serving}"));
    if refused.code != Some(3) || !is_told {
        problems.push(format!("the data directory was {}, and the order comes to {refused:?}", moved.name()));
    }
    if scene.settle()? != serving {
        problems.push(format!("the data directory was {}, and {serving} does not serve any more", moved.name()));
    }
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Matrix;
    use super::*;

    #[test]
    fn an_error_whose_words_are_lost_is_told() {
        let matrix = Matrix::built_in().filter("*/matrix-opened/error");
        let row = &matrix.rows()[0];
        let answer =
            |reason| Upgrade { code: Some(2), outcome: Some(json!({ "abort_reason": reason })), stderr: String::new() };
        assert_eq!(untold(row, &answer("the successor can't take over: an error on purpose at matrix-opened")), None);
        assert!(untold(row, &answer("the successor can't take over: the daemon gave up")).is_some());
        let another = Matrix::built_in().filter("n-after-lock/kill");
        assert_eq!(untold(&another.rows()[0], &answer("the successor was killed")), None, "nobody had words");
    }
}
