//! What this machine needs by itself, without any handover: the measure for times that must bind on every machine.
//!
//! A [`Yardstick`] is measured before and after; a [`Metronome`] runs beside what is measured, and tells how late the machine was meanwhile.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::Spread;

/// The role in which the program is started to be measured.
pub(crate) const ROLE: &str = "yardstick";

/// How often each thing is measured.
const ROUNDS: usize = 9;

/// The times of what every change of processes consists of.
#[derive(Debug, Clone, Copy)]
pub struct Yardstick {
    /// To start this program again, until it has said a byte.
    pub start: Spread,
    /// To append a line to a file in the directory, and to sync it.
    pub sync: Spread,
}

impl Yardstick {
    /// Measures on the file system of this directory. Call [`crate::init`] first in `main`: the program starts itself.
    ///
    /// # Errors
    /// The program can't be started, or the disk refuses.
    pub fn measure(dir: &Path) -> io::Result<Self> {
        let starts = (0..ROUNDS).map(|_| time_of_a_start()).collect::<io::Result<Vec<_>>>()?;
        let mut file = tempfile::tempfile_in(dir)?;
        let syncs = (0..ROUNDS).map(|_| time_of_a_sync(&mut file)).collect::<io::Result<Vec<_>>>()?;
        Ok(Self { start: Spread::of(&starts), sync: Spread::of(&syncs) })
    }

    /// Measures once more, behind what is to be explained, and keeps the slower of both: a machine that got busy meanwhile was no
    /// quicker for it than it is now.
    ///
    /// # Errors
    /// As [`measure`](Self::measure).
    pub fn again(self, dir: &Path) -> io::Result<Self> {
        Ok(self.slower(Self::measure(dir)?))
    }

    fn slower(self, other: Self) -> Self {
        let slower = |one: Spread, other: Spread| if other.p50 > one.p50 { other } else { one };
        Self { start: slower(self.start, other.start), sync: slower(self.sync, other.sync) }
    }

    /// Whether what was `found` takes no longer, in the median, than so many starts and syncs, beside what is there anyway. Medians: what
    /// disturbs the machine for a moment is no length.
    ///
    /// # Errors
    /// It takes longer: in words.
    pub fn explains(&self, what: &str, found: Spread, times: u32, anyway: Duration) -> Result<(), String> {
        let most = (self.start.p50 + self.sync.p50) * f64::from(times) + anyway.as_secs_f64() * 1e3;
        if found.p50 <= most {
            return Ok(());
        }
        let (start, sync) = (self.start.p50, self.sync.p50);
        Err(format!(
            "{what} takes {found}; at most {most:.1} ms, by {times} starts ({start:.2} ms) and syncs ({sync:.2} ms) of this machine, and {anyway:?}"
        ))
    }
}

/// What the role does.
pub(crate) fn main() -> ExitCode {
    match io::stdout().write_all(b"\n").and_then(|()| io::stdout().flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn time_of_a_start() -> io::Result<Duration> {
    let from = Instant::now();
    let mut command = Command::new(std::env::current_exe()?);
    let mut child = command.env(crate::ROLE_VARIABLE, ROLE).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let said = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?.read_exact(&mut [0]);
    let time = from.elapsed();
    child.wait()?;
    said.map(|()| time)
}

fn time_of_a_sync(file: &mut File) -> io::Result<Duration> {
    let from = Instant::now();
    file.write_all(b"a line of a log\n")?;
    file.sync_data()?;
    Ok(from.elapsed())
}

/// How often it beats. Rare enough to cost nothing, often enough to be there when the machine stands still.
const BEAT: Duration = Duration::from_millis(25);
/// Only the latest beats are kept: some ten minutes of them.
const BEATS_MAX: usize = 1 << 16;

/// A thread that wants to wake, and to sync a line, at every beat, and notes how late it was: by so much has the machine itself held
/// up whatever else ran meanwhile.
#[derive(Debug)]
pub struct Metronome {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    beats: Mutex<Beats>,
    stop: Condvar,
}

#[derive(Debug, Default)]
struct Beats {
    /// When a beat was over, and by how much it was late.
    late: std::collections::VecDeque<(Instant, Duration)>,
    stopped: bool,
}

impl Metronome {
    /// Starts it, on the file system of this directory.
    ///
    /// # Errors
    /// No file or no thread can be had.
    pub fn start(dir: &Path) -> io::Result<Self> {
        let mut file = tempfile::tempfile_in(dir)?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new().name("metronome".into()).spawn(move || theirs.beat(&mut file))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The latest beat of those that were over after `from`.
    pub fn worst_since(&self, from: Instant) -> Duration {
        let beats = self.shared.beats();
        let since = beats.late.iter().rev().take_while(|(at, _)| *at >= from);
        since.map(|(_, late)| *late).max().unwrap_or_default()
    }
}

impl Shared {
    fn beat(&self, file: &mut File) {
        let mut due = Instant::now() + BEAT;
        let mut beats = self.beats();
        while !beats.stopped {
            let left = due.saturating_duration_since(Instant::now());
            drop(self.stop.wait_timeout_while(beats, left, |beats| !beats.stopped));
            // A disk that refuses is late for as long as it takes to say so; the service under test has its own errors.
            let _ = time_of_a_sync(file);
            let over = Instant::now();
            let late = over.saturating_duration_since(due);
            // Whatever holds it up from here on makes the next one late.
            due = over + BEAT;
            beats = self.beats();
            if beats.late.len() == BEATS_MAX {
                beats.late.pop_front();
            }
            beats.late.push_back((over, late));
        }
    }

    fn beats(&self) -> MutexGuard<'_, Beats> {
        self.beats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Metronome {
    fn drop(&mut self) {
        self.shared.beats().stopped = true;
        self.shared.stop.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_explained_up_to_its_multiple() {
        let spread = |ms| Spread { n: 9, p50: ms, p99: ms, max: ms };
        let yardstick = Yardstick { start: spread(3.0), sync: spread(1.0) };
        let explains = |ms, anyway| yardstick.explains("it", spread(ms), 10, Duration::from_millis(anyway));
        assert!(explains(40.0, 0).is_ok() && explains(45.0, 5).is_ok());
        let told = explains(41.0, 0).expect_err("too long");
        assert!(told.contains("it takes p50 41.00 ms") && told.contains("at most 40.0 ms"), "{told}");
    }

    #[test]
    fn the_slower_of_two_measurements_counts() {
        let spread = |ms| Spread { n: 9, p50: ms, p99: ms, max: ms };
        let (before, after) =
            (Yardstick { start: spread(3.0), sync: spread(0.1) }, Yardstick { start: spread(2.0), sync: spread(0.2) });
        for slower in [before.slower(after), after.slower(before)] {
            assert!(slower.start.p50 == 3.0 && slower.sync.p50 == 0.2, "{slower:?}");
        }
    }

    #[test]
    fn a_beat_that_was_held_up_is_late_by_as_much() {
        let metronome = Metronome::start(&std::env::temp_dir()).expect("starts");
        let from = Instant::now();
        let held = Duration::from_millis(60);
        {
            let _nobody_notes_anything = metronome.shared.beats();
            while from.elapsed() < held {
                thread::yield_now();
            }
        }
        let patience = Instant::now() + Duration::from_secs(20);
        while metronome.worst_since(from) < held - 2 * BEAT {
            assert!(Instant::now() < patience, "{:?}", metronome.worst_since(from));
            thread::yield_now();
        }
        assert_eq!(metronome.worst_since(Instant::now() + held), Duration::ZERO);
    }
}
