//! A service under load whose processes can be made to fail, and the reckoning at its end.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::thread;

use super::client::{Audit, Writer};
use super::settled::{Footprint, until_within, wait_until_settled};
use super::subject::Subject;
use super::trap::Trap;
use super::{CLOSED_WITHIN, Matrix, TIMING};
use crate::fixture::{Fixture, Setup};

/// A running service with its clients.
pub(super) struct Scene<'a> {
    pub(super) matrix: &'a Matrix<'a>,
    pub(super) fixture: &'a mut Fixture,
    pub(super) writer: &'a Writer,
    pub(super) trap: Trap,
    /// The program that serves, and takes over.
    pub(super) binary: PathBuf,
}

/// What was found when it had stopped.
#[derive(Debug)]
pub(super) struct End {
    pub(super) status: ExitStatus,
    /// Processes that live on.
    pub(super) left: Vec<u32>,
    pub(super) audit: Audit,
    pub(super) refused: u64,
}

/// The daemon's service with the matrix's intervals.
pub(super) fn setup(subject: &dyn Subject) -> io::Result<Setup> {
    let (name, timing) = handoff_runtime::crash::timing_variable(&TIMING);
    let watchdog = format!("watchdog = \"{}ms\"", TIMING.liveness.as_millis());
    let lines = ["deadline = \"4s\"", "drain_grace = \"2s\"", "warm = \"3s\"", "retire = \"700ms\"", &watchdog];
    Ok(lines.iter().fold(subject.setup()?.supervisor_env(name, timing), |setup, line| setup.config(line)))
}

/// Starts a service and its clients, lets `play` do with it what it likes, stops it and compares what was acknowledged with
/// what is on disk.
pub(super) fn under_load(matrix: &Matrix<'_>, play: impl FnOnce(&mut Scene<'_>) -> io::Result<()>) -> io::Result<End> {
    matrix.control()?;
    let trap = Trap::new()?;
    let setup = setup(matrix.subject)?;
    let binary = setup.binary().to_owned();
    let (name, value) = trap.variable();
    let mut fixture = setup.supervisor_env(name, value).prepare()?;
    let end = play_out(matrix, &mut fixture, trap, binary, play);
    end.map_err(|error| io::Error::new(error.kind(), format!("{error}\n{}", fixture.log())))
}

fn play_out(
    matrix: &Matrix<'_>,
    fixture: &mut Fixture,
    trap: Trap,
    binary: PathBuf,
    play: impl FnOnce(&mut Scene<'_>) -> io::Result<()>,
) -> io::Result<End> {
    fixture.start_supervisor()?;
    let address = fixture.address(matrix.subject.listener())?;
    let writer = Writer::default();
    thread::scope(|scope| {
        for client in 1..=u64::from(matrix.clients) {
            let writer = &writer;
            scope.spawn(move || writer.run(matrix.subject, address, (client..).step_by(matrix.clients as usize)));
        }
        let played = play(&mut Scene { matrix, fixture, writer: &writer, trap, binary });
        writer.stop();
        played
    })?;
    let status = fixture.stop()?;
    let audit = writer.audit(&matrix.subject.written(fixture.data_dir())?);
    Ok(End { status, left: fixture.processes(), audit, refused: writer.refused() })
}

impl Scene<'_> {
    /// Waits until one daemon serves alone, and gives its pid.
    pub(super) fn settle(&mut self) -> io::Result<u32> {
        wait_until_settled(self.fixture, self.writer)
    }

    /// A handover without a fault; gives what is wrong with it, and what is left behind of all that was before.
    pub(super) fn hand_over_undisturbed(&mut self) -> io::Result<Undisturbed> {
        let upgrade = self.fixture.upgrade(&[])?;
        let refusal = (!upgrade.committed())
            .then(|| format!("the next handover does not commit: {upgrade:?}\n{}", self.fixture.log()));
        let serving = self.settle()?;
        let control = self.matrix.control()?;
        let leaks = until_within(CLOSED_WITHIN, "nothing is left behind", || {
            let leaks = control.leaks(&Footprint::of(self.fixture, serving)?);
            Ok(if leaks.is_empty() { Ok(()) } else { Err(leaks) })
        });
        Ok(Undisturbed { refusal, leaks: leaks.err().map(|error| error.to_string()) })
    }
}

/// What a handover without a fault came to; nothing, if all is well.
#[derive(Debug)]
pub(super) struct Undisturbed {
    pub(super) refusal: Option<String>,
    pub(super) leaks: Option<String>,
}
