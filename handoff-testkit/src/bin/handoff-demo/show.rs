//! What the demo says: while it runs, one line that changes where somebody looks on, and a line for each fault in any case; the table at its
//! end.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use handoff_testkit::Spread;
use handoff_testkit::load::Endpoint;

use crate::Report;
use crate::faults::{Ended, Fault};

/// A percentile of fewer samples is the longest of them.
const ENOUGH: usize = 100;

pub(crate) struct Show {
    handovers: u32,
    begun: Instant,
    /// Somebody looks on, and there is a line to be written over.
    live: bool,
}

impl Show {
    pub(crate) fn new(handovers: u32) -> Self {
        Self { handovers, begun: Instant::now(), live: io::stdout().is_terminal() }
    }

    pub(crate) fn begin(&mut self, endpoint: &Endpoint, clients: usize, company: &str) {
        println!("{} handovers of the reference store at {endpoint}, {clients} clients, {company}", self.handovers);
        self.begun = Instant::now();
    }

    pub(crate) fn committed(&self, number: u32, pid: u32, pause: Duration, acked: u64) {
        if self.live {
            let rate = acked as f64 / self.begun.elapsed().as_secs_f64().max(1e-3);
            self.rewrite(&format!(
                "handover {number:>3} of {}: pid {pid} serves, pause {:.1} ms, {rate:.0} writes a second",
                self.handovers,
                ms(pause)
            ));
        }
    }

    /// Before it is known what comes of it, which takes a moment.
    pub(crate) fn strikes(&self, number: u32, fault: Fault) {
        if self.live {
            self.rewrite("");
        }
        let patience = if fault == Fault::FrozenSupervisor { ", after 2 s of silence" } else { "" };
        print!("handover {number:>3} of {}: {}{patience} … ", self.handovers, fault.in_words());
        flush();
    }

    pub(crate) fn struck(&self, ended: Ended, pid: u32, outage: Duration) {
        let who = match ended {
            Ended::Committed => "the new one serves",
            Ended::RolledBack => "the old one serves on",
        };
        println!("{who} (pid {pid}), {:.1} ms without an answer", ms(outage));
    }

    pub(crate) fn end_line(&self) {
        if self.live {
            println!();
        }
    }

    pub(crate) fn checking(&self) {
        println!("stopped; every acknowledged write is looked for in the store, reopened from disk");
    }

    pub(crate) fn table(&self, report: &Report) {
        let line = |what: &str, count: u64| println!("  {what:<32}{count:>12}");
        line("handovers committed", report.committed.into());
        line("handovers rolled back", report.rolled_back.into());
        line("writes acknowledged", report.acked);
        line("refused", report.refused);
        line("closed without an answer", report.closed_unanswered);
        line("acknowledged and lost", report.acked_lost);
        line("written twice", report.duplicated);
        match report.two_writers {
            Some(count) => line("two writers", count),
            None => println!("  {:<32}{:>12}", "two writers", "not checked"),
        }
        let times = |what: &str, spread: &Spread| println!("  {what:<32}{}", in_words(spread));
        times("pause, as the clients see it", &report.pause_ms);
        times("without a handover", &report.control_ms);
        times("the whole call", &report.handover_ms);
        for (fault, outage) in &report.struck {
            println!("  without an answer, where {fault}: {}", in_words(outage));
        }
    }

    fn rewrite(&self, line: &str) {
        print!("\r\x1b[2K{line}");
        flush();
    }
}

fn in_words(spread: &Spread) -> String {
    let Spread { n, p50, p99, max } = spread;
    match *n {
        ENOUGH.. => format!("{p50:>9.2} ms p50 {p99:>9.2} p99 {max:>9.2} max of {n}"),
        _ => format!("{p50:>9.2} ms p50 {max:>9.2} max of {n}"),
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A screen that can't be written to is no reason to stop.
fn flush() {
    let _ = io::stdout().flush();
}
