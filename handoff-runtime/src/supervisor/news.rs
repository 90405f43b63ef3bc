//! What a handover tells people: its progress, and the events in the log. Told in order, and when nobody waits for us.
//!
//! While the daemon is silent every call counts, and a line in the log costs more than a message; right after it, whoever gave
//! the order waits for the outcome. So news is kept for a moment and told with the outcome; one that takes longer is told on
//! its way. Never waits, never decides.

use std::time::Duration;

use crate::events;
use crate::progress::{Onlooker, Progress, Step};
use crate::timers::now_ns;

use super::stopwatch::{EVENTS, name};

/// How long news may be kept, in nanoseconds: longer than a quick handover takes, shorter than people notice.
const KEPT_NS_MAX: u64 = 100_000_000;

/// The news of one handover.
pub(super) struct News<'a> {
    onlooker: &'a dyn Onlooker,
    kept: Vec<Progress>,
}

impl<'a> News<'a> {
    pub(super) fn new(onlooker: &'a dyn Onlooker) -> Self {
        Self { onlooker, kept: Vec::with_capacity(16) }
    }

    /// Takes a piece of news.
    pub(super) fn note(&mut self, news: Progress) {
        self.kept.push(news);
    }

    /// How long the loop may sleep before something is to be told; `None`: there is nothing.
    pub(super) fn timeout(&self) -> Option<Duration> {
        Some(Duration::from_nanos(self.due_ns()?.saturating_sub(now_ns())))
    }

    /// Tells what was kept for long enough. Ask when all that has arrived is dealt with.
    pub(super) fn tell_if_due(&mut self) {
        if self.due_ns().is_some_and(|due_ns| now_ns() >= due_ns) {
            self.onlooker.see(std::mem::take(&mut self.kept));
        }
    }

    /// What was not told.
    pub(super) fn rest(self) -> Vec<Progress> {
        self.kept
    }

    fn due_ns(&self) -> Option<u64> {
        self.kept.first().map(|news| news.at_ns.saturating_add(KEPT_NS_MAX))
    }
}

/// Writes the points that were reached into the log.
pub(crate) fn log_news(news: &[Progress]) {
    for news in news {
        if let &Progress { handoff_id, successor_pid, after, step: Step::Reached(milestone), .. } = news {
            let step = name(milestone);
            let after_us = after.as_micros();
            events::info!(target: EVENTS, %handoff_id, step, successor_pid, after_us, "handover");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use handoff_proto::HandoffId;
    use handoff_proto::supervisor::Milestone;

    use super::*;

    fn reached(milestone: Milestone, at_ns: u64) -> Progress {
        let handoff_id = HandoffId::from_bytes([7; 16]);
        Progress { handoff_id, successor_pid: None, at_ns, after: Duration::ZERO, step: Step::Reached(milestone) }
    }

    #[test]
    fn is_kept_in_order_until_the_end() {
        let told = RefCell::new(0);
        let see = |news: Vec<Progress>| *told.borrow_mut() += news.len();
        let mut news = News::new(&see);
        let steps = [Milestone::PrepareSent, Milestone::CommitSent, Milestone::JournalClosed];
        for milestone in steps {
            news.note(reached(milestone, now_ns()));
            news.tell_if_due();
        }
        assert!(news.timeout() <= Some(Duration::from_nanos(KEPT_NS_MAX)));
        let rest: Vec<_> = news.rest().into_iter().map(|news| news.step).collect();
        assert_eq!((*told.borrow(), rest), (0, steps.map(Step::Reached).to_vec()));
    }

    #[test]
    fn is_not_kept_for_longer_than_a_moment() {
        let told = RefCell::new(0);
        let see = |news: Vec<Progress>| *told.borrow_mut() += news.len();
        let mut news = News::new(&see);
        news.note(reached(Milestone::PrepareSent, now_ns() - KEPT_NS_MAX));
        assert_eq!(news.timeout(), Some(Duration::ZERO));
        news.tell_if_due();
        assert_eq!((*told.borrow(), news.timeout()), (1, None));
    }
}
