//! What `handoff upgrade` and the history said of a handover, compared with what came of it.

use std::io;
use std::process::{Child, Stdio};

use serde_json::Value;

use super::{Limits, SHORT_LIMIT, Serving};
use crate::fixture::{Fixture, Upgrade};

/// `handoff upgrade`, under way. Dropping it kills the client, which is nobody's role.
pub(super) struct Order(Option<Child>);

impl Order {
    pub(super) fn give(fixture: &Fixture, binary: Option<&std::path::Path>, limits: Limits) -> io::Result<Self> {
        let mut command = fixture.command(&["upgrade", "--json", "--state-dir"])?;
        let limit = match limits {
            Limits::AsConfigured => None,
            Limits::ShortGrace => Some("--drain-grace"),
            Limits::ShortDeadline => Some("--deadline"),
        };
        let limit = limit.map(|limit| [limit.to_owned(), format!("{}ms", SHORT_LIMIT.as_millis())]);
        command
            .arg(fixture.state_dir())
            .args(limit.into_iter().flatten())
            .args(binary)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(Self(Some(command.spawn()?)))
    }

    pub(super) fn pid(&self) -> u32 {
        self.0.as_ref().map_or(0, Child::id)
    }

    /// Whether it has ended.
    pub(super) fn is_answered(&mut self) -> io::Result<bool> {
        match &mut self.0 {
            Some(child) => Ok(child.try_wait()?.is_some()),
            None => Ok(true),
        }
    }

    /// Waits for its end; what it printed.
    pub(super) fn answer(mut self) -> io::Result<Upgrade> {
        let child = self.0.take().ok_or_else(|| io::Error::other("it was asked before"))?;
        child.wait_with_output().map(Upgrade::of)
    }
}

impl Drop for Order {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What came of a handover, as it was seen from outside.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fact {
    pub(super) who: Serving,
    pub(super) old: u32,
    pub(super) serving: u32,
    /// Of the lease, when all had settled.
    pub(super) epoch: u64,
    pub(super) supervisor: Supervisor,
}

/// Whether the supervisor that took the order saw its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Supervisor {
    Lived,
    WasHit,
}

/// Where the answer is not what came of it; a line each.
pub(super) fn contradictions(answer: &Upgrade, fact: &Fact) -> Vec<String> {
    let said = answer.outcome.clone().unwrap_or_default();
    let committed = answer.code == Some(0);
    let reason = said["abort_reason"].as_str().unwrap_or_default();
    let is = |key: &str, number: u64| said[key].as_u64() == Some(number);
    let code_fits = match (answer.code, fact.who, fact.supervisor) {
        (Some(0), Serving::New | Serving::Fresh, _) => true,
        (Some(2), Serving::Old | Serving::Fresh, _) => true,
        // The order may have found nobody who could carry it out; then nothing has changed.
        (Some(3), Serving::Old, _) => true,
        // The client's supervisor is gone, and the others have not settled it before it had to say something.
        (Some(6), _, Supervisor::WasHit) => true,
        _ => false,
    };
    let incumbent = said["incumbent"].as_str().unwrap_or("nothing");
    let incumbent_fits = match incumbent {
        "serves" => !committed && fact.who == Serving::Old,
        "replaced" => committed,
        "dead" => !committed && fact.who != Serving::Old,
        // It may have come back, or not, since then.
        "not_heard" => !committed,
        // Nobody could say.
        _ => true,
    };
    let serves_on = answer.stderr.contains(&format!("pid {} serves on", fact.old));
    let claims = [
        (incumbent_fits, format!("upgrade says of the old one {incumbent:?}, and the {} one serves", fact.who)),
        (
            fact.who == Serving::Old || !serves_on,
            format!("upgrade says {:?}, and the {} one serves", answer.stderr.trim_end(), fact.who),
        ),
        (code_fits, format!("upgrade exits with {:?}, and the {} one serves", answer.code, fact.who)),
        (answer.outcome.is_some(), "upgrade prints no object".to_owned()),
        (
            said["committed"] == committed,
            format!("upgrade exits with {:?} and says committed: {}", answer.code, said["committed"]),
        ),
        (
            committed == reason.is_empty(),
            format!("upgrade exits with {:?} and gives as the reason {reason:?}", answer.code),
        ),
        (!reason.contains('\n'), format!("the reason is more than one line: {reason:?}")),
        (
            !committed || is("old_pid", u64::from(fact.old)),
            format!("the old process was {}, not {}", fact.old, said["old_pid"]),
        ),
        (
            !committed || fact.who != Serving::New || is("new_pid", u64::from(fact.serving)),
            format!("the new process is {}, not {}", fact.serving, said["new_pid"]),
        ),
        (
            !committed || fact.who != Serving::New || is("epoch", fact.epoch),
            format!("the epoch is {}, not {}", fact.epoch, said["epoch"]),
        ),
    ];
    claims.into_iter().filter(|(held, _)| !held).map(|(_, claim)| claim).collect()
}

/// The same for the history's last entry, which must say what the answer said. It is written after the answer.
pub(super) fn history_contradicts(fixture: &Fixture, answer: &Upgrade) -> io::Result<Result<(), String>> {
    let Some(said) = answer.outcome.as_ref().filter(|said| said["handoff_id"].is_string()) else { return Ok(Ok(())) };
    let output = fixture.handoff("history", &["-n", "1"])?;
    let entries: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let entry = entries.first().cloned().unwrap_or_default();
    let differs = ["handoff_id", "committed", "abort_reason", "incumbent", "old_pid", "new_pid", "epoch"];
    let differs: Vec<_> = differs.into_iter().filter(|key| entry[key] != said[key]).collect();
    Ok(if differs.is_empty() {
        Ok(())
    } else {
        Err(format!("the history differs in {differs:?}: {entry}, not {said}"))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NEW: Fact = Fact { who: Serving::New, old: 10, serving: 11, epoch: 2, supervisor: Supervisor::Lived };
    const FRESH: Fact = Fact { who: Serving::Fresh, serving: 12, ..NEW };
    const OLD: Fact = Fact { who: Serving::Old, serving: 10, epoch: 1, ..NEW };

    fn committed() -> Value {
        json!({"handoff_id": "x", "committed": true, "abort_reason": null, "incumbent": "replaced", "old_pid": 10, "new_pid": 11, "epoch": 2})
    }

    fn aborted() -> Value {
        json!({"handoff_id": "x", "committed": false, "abort_reason": "seal failed", "incumbent": "serves", "old_pid": 10, "new_pid": 11, "epoch": 1})
    }

    fn wrong(code: i32, outcome: Value, fact: &Fact) -> usize {
        contradictions(&Upgrade { code: Some(code), outcome: Some(outcome), stderr: String::new() }, fact).len()
    }

    fn with(mut outcome: Value, key: &str, value: Value) -> Value {
        outcome[key] = value;
        outcome
    }

    #[test]
    fn an_answer_that_is_true_contradicts_nothing() {
        assert_eq!((wrong(0, committed(), &NEW), wrong(2, aborted(), &OLD)), (0, 0));
        let unknown = with(aborted(), "incumbent", json!(null));
        assert_eq!(wrong(6, unknown, &Fact { supervisor: Supervisor::WasHit, ..NEW }), 0);
    }

    #[test]
    fn every_lie_is_told() {
        assert_eq!(wrong(0, committed(), &OLD), 1);
        assert_eq!(wrong(2, aborted(), &NEW), 2, "the code, the old one");
        assert_eq!(wrong(3, aborted(), &NEW), 2);
        assert_eq!(wrong(6, aborted(), &NEW), 2, "the supervisor lives");
        assert_eq!(wrong(0, aborted(), &NEW), 4, "committed, a reason, the epoch, the old one");
        for (old, fact) in [("dead", &OLD), ("replaced", &OLD), ("serves", &FRESH)] {
            assert_eq!(wrong(2, with(aborted(), "incumbent", json!(old)), fact), 1, "{old}");
        }
        let text = Upgrade { code: Some(2), outcome: None, stderr: "aborted: x; pid 10 serves on".into() };
        assert_eq!(contradictions(&text, &FRESH).len(), contradictions(&text, &OLD).len() + 1);
        for (key, value) in
            [("old_pid", json!(9)), ("new_pid", json!(9)), ("epoch", json!(1)), ("committed", json!(false))]
        {
            assert_eq!(wrong(0, with(committed(), key, value), &NEW), 1, "{key}");
        }
        for reason in [json!(null), json!(""), json!("two\nlines")] {
            assert_eq!(wrong(2, with(aborted(), "abort_reason", reason), &OLD), 1);
        }
        assert!(!contradictions(&Upgrade { code: Some(2), outcome: None, stderr: String::new() }, &OLD).is_empty());
    }
}
