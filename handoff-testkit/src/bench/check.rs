//! Whether a handover costs no multiple of the floor's: `handoff-bench --check`.
//!
//! This library and the floor take turns, so that whatever slows the machine down slows both. What is judged is the ratio of
//! their medians, and of that the interval in which it lies: too dear is a ratio whose lower end is above the bound, and fine
//! one whose upper end is not. In between more rounds are run, up to a limit of time. What is undecided then is laid to the
//! machine only if the machine says so itself: both sides are also measured without a handover, in the same turns, where they do
//! the same; if these controls differ, or their ratio is as good as unknown, nothing can be told here.

use std::fmt;
use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::args::Args;
use super::rounds::{Samples, Turns};
use super::sides::Side;
use super::stats::{Ratio, Summary};

/// Of the pause. Measured: 1.0 to 1.3, and with 1.5 ms more 1.9 to 2.7, beside three builds on two processors.
const PAUSE_MAX: f64 = 1.6;
/// Of the call. Measured: 1.2 to 1.6.
const CALL_MAX: f64 = 1.9;
/// How far apart the controls may be.
const CONTROL_MAX: f64 = 1.25;
/// Upper over lower end of the controls' interval: beyond this it is as good as unknown.
const CONTROL_WIDTH_MAX: f64 = 1.5;

/// So many rounds are judged, and then so many more.
const ROUNDS: usize = 40;
/// No more rounds are begun after this.
const LONGEST: Duration = Duration::from_secs(80);

const TOO_NOISY: u8 = 3;

/// Judges, and says what it has found.
pub(super) fn main(args: &Args) -> ExitCode {
    match run(args) {
        Ok(verdict) => {
            println!("{verdict}");
            match verdict {
                Verdict::Fine => ExitCode::SUCCESS,
                Verdict::TooDear | Verdict::Lost(_) => ExitCode::FAILURE,
                Verdict::TooNoisy => ExitCode::from(TOO_NOISY),
            }
        }
        Err(error) => {
            eprintln!("handoff-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> io::Result<Verdict> {
    // In memory where there is some: a disk is one more source of noise, and no part of what is judged.
    let dir = args.dirs.last().ok_or_else(|| io::Error::other("no directory is given"))?;
    std::fs::create_dir_all(dir)?;
    let room = tempfile::Builder::new().prefix("bench-").tempdir_in(dir.canonicalize()?)?;
    let mut turns = Turns::start(&SIDES, room.path(), args)?;
    let until = Instant::now() + LONGEST;
    loop {
        (0..ROUNDS).try_for_each(|_| turns.round())?;
        let figures = Figures::of(turns.samples()).ok_or_else(|| io::Error::other("nothing was measured"))?;
        println!("{figures}");
        let is_last = Instant::now() >= until;
        if let Some(verdict) = figures.judge().or_else(|| is_last.then(|| figures.judge_at_last())) {
            print!("{}", distribution(&turns.stop()?));
            return Ok(verdict);
        }
        println!("too wide to tell: more rounds");
    }
}

const SIDES: [Side; 2] = [Side::Handoff, Side::Floor];

/// What it comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Fine,
    TooDear,
    /// By our clients, so many times: no figure means anything then.
    Lost(String),
    TooNoisy,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fine => f.write_str("fine: a handover costs no multiple of the floor's"),
            Self::TooDear => f.write_str("too dear: a handover costs more beside the floor's than is allowed"),
            Self::Lost(problem) => write!(f, "no figure counts: {problem}"),
            Self::TooNoisy => {
                f.write_str("too noisy to judge: even without a handover the sides can't be compared here")
            }
        }
    }
}

/// What the rounds so far have shown.
#[derive(Debug, Clone, PartialEq)]
struct Figures {
    rounds: usize,
    pause: Ratio,
    call: Ratio,
    control: Ratio,
    problems: Vec<String>,
}

impl Figures {
    fn of(samples: &[Samples]) -> Option<Self> {
        let [ours, floor] = samples else { return None };
        Some(Self {
            rounds: ours.pause.len(),
            pause: Ratio::of(&ours.pause, &floor.pause)?,
            call: Ratio::of(&ours.call, &floor.call)?,
            control: Ratio::of(&ours.control, &floor.control)?,
            problems: ours.problems(),
        })
    }

    /// None: more rounds are needed.
    fn judge(&self) -> Option<Verdict> {
        if let Some(problem) = self.problems.first() {
            return Some(Verdict::Lost(problem.clone()));
        }
        if self.controls_differ() {
            return None;
        }
        if self.pause.low > PAUSE_MAX || self.call.low > CALL_MAX {
            return Some(Verdict::TooDear);
        }
        (self.pause.high <= PAUSE_MAX && self.call.high <= CALL_MAX).then_some(Verdict::Fine)
    }

    /// What is still undecided, on a machine that is calm, lies at the bound.
    fn judge_at_last(&self) -> Verdict {
        let is_unknown = self.control.high > self.control.low * CONTROL_WIDTH_MAX;
        if self.controls_differ() || is_unknown { Verdict::TooNoisy } else { Verdict::TooDear }
    }

    fn controls_differ(&self) -> bool {
        self.control.low > CONTROL_MAX || self.control.high < 1.0 / CONTROL_MAX
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratio = |it: Ratio| format!("{:.2} ({:.2} - {:.2})", it.ratio, it.low, it.high);
        let (pause, call, control) = (ratio(self.pause), ratio(self.call), ratio(self.control));
        write!(
            f,
            "{} rounds, against the floor: pause {pause}, at most {PAUSE_MAX}; call {call}, at most {CALL_MAX}; \
             without a handover {control}",
            self.rounds
        )
    }
}

/// A line for each side, in microseconds.
fn distribution(samples: &[Samples]) -> String {
    let cell = |samples: &[f64]| {
        let it = Summary::of(samples);
        format!("{:.0} ({:.0} - {:.0}, at most {:.0})", it.p50, it.p10, it.p90, it.max)
    };
    let line = |(side, of): (&Side, &Samples)| {
        let [pause, call, control] = [&of.pause, &of.call, &of.control].map(|samples| cell(samples));
        format!("{:<8}pause {pause}, call {call}, without a handover {control}\n", side.name())
    };
    SIDES.iter().zip(samples).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ratio(low: f64, high: f64) -> Ratio {
        Ratio { ratio: (low + high) / 2.0, low, high }
    }

    /// As it is.
    fn today() -> Figures {
        Figures {
            rounds: 40,
            pause: ratio(1.0, 1.3),
            call: ratio(1.2, 1.5),
            control: ratio(0.9, 1.1),
            problems: Vec::new(),
        }
    }

    #[test]
    fn what_is_below_the_bounds_is_fine() {
        assert_eq!(today().judge(), Some(Verdict::Fine));
    }

    #[test]
    fn what_is_twice_as_long_is_too_dear() {
        let twice = |it: Ratio| ratio(2.0 * it.low, 2.0 * it.high);
        let (pause, call) = (twice(today().pause), twice(today().call));
        assert_eq!(Figures { pause, ..today() }.judge(), Some(Verdict::TooDear));
        assert_eq!(Figures { call, ..today() }.judge(), Some(Verdict::TooDear));
    }

    #[test]
    fn what_lies_across_a_bound_needs_more_rounds() {
        let pause = Figures { pause: ratio(1.2, 1.8), ..today() };
        let call = Figures { call: ratio(1.5, 2.1), ..today() };
        for figures in [pause, call] {
            assert_eq!(figures.judge(), None);
            assert_eq!(figures.judge_at_last(), Verdict::TooDear, "the machine is calm: it is at the bound");
            let noisy = Figures { control: ratio(0.7, 1.3), ..figures };
            assert_eq!(noisy.judge_at_last(), Verdict::TooNoisy);
        }
    }

    #[test]
    fn nothing_is_told_where_the_controls_differ() {
        for control in [ratio(1.3, 1.5), ratio(0.5, 0.7)] {
            for pause in [ratio(1.0, 1.3), ratio(2.0, 2.5)] {
                let figures = Figures { control, pause, ..today() };
                assert_eq!(figures.judge(), None);
                assert_eq!(figures.judge_at_last(), Verdict::TooNoisy);
            }
        }
    }

    #[test]
    fn a_lost_request_makes_every_figure_worthless() {
        let problem = "clients suffered: 1 reset".to_owned();
        assert_eq!(Figures { problems: vec![problem.clone()], ..today() }.judge(), Some(Verdict::Lost(problem)));
    }

    #[test]
    fn both_sides_have_their_distribution() {
        let samples = [(); 2].map(|()| Samples { pause: vec![1.0, 2.0, 9.0], ..Samples::default() });
        let lines = distribution(&samples);
        assert!(lines.starts_with("handoff pause 2 (1 - 8, at most 9)"), "{lines}");
        assert_eq!(lines.lines().count(), 2);
    }
}
