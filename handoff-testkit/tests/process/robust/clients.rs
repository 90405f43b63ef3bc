//! Clients on the control and admin sockets that are silent, slow, too many, foreign, or talk nonsense.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use handoff_proto::{Message, Side};
use handoff_testkit::fixture::Fixture;
use handoff_testkit::mock::ScriptedSupervisor;

use crate::refusals::as_nobody;
use crate::stage::Stage;
use crate::{Outcome, check, trials};

trials![
    hostile_clients_stop_no_handover,
    a_foreign_user_stops_no_handover,
    a_client_that_falls_silent_when_drained,
    a_client_that_falls_silent_when_sealed,
    a_client_that_goes_when_sealed,
];

/// The control protocol's version that these clients speak.
const VERSION: u16 = 2;

fn control(fixture: &Fixture) -> PathBuf {
    fixture.state_dir().join("control.sock")
}

fn admin(fixture: &Fixture) -> PathBuf {
    fixture.state_dir().join("admin.sock")
}

/// Everything that a client may do wrong, on both sockets; they stay connected as long as the value lives.
fn hostile_clients(fixture: &Fixture) -> std::io::Result<Vec<UnixStream>> {
    let half_a_frame = [40, 0, 0, 0, 1, 0, 1];
    let oversized = [0xff, 0xff, 0xff, 0x7f, 1, 0, 1, 2, 3];
    let garbage = [0x5a; 3000];
    let half_a_line = b"{\"cmd\":\"upgr";
    let long_line = [b'x'; 70 * 1024];
    let mut clients = Vec::new();
    let mut say = |path: &Path, bytes: &[u8]| -> std::io::Result<()> {
        let mut client = UnixStream::connect(path)?;
        client.set_write_timeout(Some(Duration::from_secs(10)))?;
        // Whoever is sent away in the middle of it has had the answer that it deserves.
        let _ = client.write_all(bytes);
        clients.push(client);
        Ok(())
    };
    for bytes in [&half_a_frame[..], &oversized, &garbage, b""] {
        (0..12).try_for_each(|_| say(&control(fixture), bytes))?;
    }
    for bytes in [&half_a_line[..], &long_line, &garbage, b"\n\n\n", b"[]\n", b""] {
        (0..12).try_for_each(|_| say(&admin(fixture), bytes))?;
    }
    Ok(clients)
}

fn hostile_clients_stop_no_handover() -> Outcome {
    let mut stage = Stage::start(Stage::setup()?)?;
    for _ in 0..3 {
        // The control socket is a new one after each handover.
        let _clients = hostile_clients(&stage.fixture)?;
        let upgrade = stage.upgrade(&[])?;
        check(upgrade.committed(), format!("{upgrade:?}"))?;
        stage.serves()?;
    }
    stage.is_tidy()?;
    stage.finish()
}

/// The role of a client that connects to a path, says something, and prints what it hears.
pub(crate) const STRANGER: &str = "stranger";

/// Plays it: its arguments are the path and what to say.
pub(crate) fn stranger(args: Vec<OsString>) -> ExitCode {
    let [_, path, says] = &args[..] else { return ExitCode::from(2) };
    let heard = UnixStream::connect(path).and_then(|mut client| {
        client.set_read_timeout(Some(Duration::from_secs(30)))?;
        // Who is sent away before it has spoken may still hear why.
        let _ = client.write_all(says.as_encoded_bytes());
        let mut heard = [0; 4096];
        let count = client.read(&mut heard)?;
        Ok(String::from_utf8_lossy(&heard[..count]).into_owned())
    });
    match heard {
        Ok(heard) => {
            print!("{heard}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn a_foreign_user_stops_no_handover() -> Outcome {
    let mut stage = Stage::start(Stage::setup()?)?;
    // The doors are opened for them, so that the peer's uid alone can turn them away.
    for (path, mode) in [
        (stage.fixture.path().to_owned(), 0o755),
        (stage.fixture.state_dir(), 0o755),
        (control(&stage.fixture), 0o666),
        (admin(&stage.fixture), 0o666),
    ] {
        fs::set_permissions(path, PermissionsExt::from_mode(mode))?;
    }
    let calling = |path: &Path, says: &str| {
        let mut command = stage.fixture.command(&[])?;
        command.env(handoff_testkit::ROLE_VARIABLE, STRANGER).arg(path).arg(says);
        std::io::Result::Ok(command)
    };
    let status = "{\"cmd\":\"status\"}\n";
    // The same client with our own uid is heard.
    for (path, says, answer) in [(control(&stage.fixture), "", "\0"), (admin(&stage.fixture), status, "incumbent")] {
        let theirs = as_nobody(calling(&path, says)?)?;
        let ours = calling(&path, says)?.output()?;
        check(String::from_utf8_lossy(&ours.stdout).contains(answer), format!("{}: {ours:?}", path.display()))?;
        let heard = String::from_utf8_lossy(&theirs.stdout).into_owned();
        let is_turned_away = theirs.status.success() && (heard.is_empty() || heard.contains("not allowed"));
        let is_reset = String::from_utf8_lossy(&theirs.stderr).contains("reset");
        check(is_turned_away || is_reset, format!("{}: {theirs:?}", path.display()))?;
    }
    stage.serves()?;
    stage.hands_over()?;
    stage.finish()
}

/// Plays a supervisor up to `last`, which is answered before this returns.
fn driven(stage: &Stage, last: Side) -> ScriptedSupervisor {
    let mut client = ScriptedSupervisor::connect(&control(&stage.fixture));
    client.greet(Side::Incumbent, VERSION);
    client.prepare(std::process::id(), Duration::from_secs(2));
    assert!(matches!(client.receive(), Message::Drained { .. }), "it drains");
    if last == Side::Successor {
        client.request_seal();
        assert!(matches!(client.receive(), Message::SealComplete { .. }), "it seals");
    }
    client
}

fn a_client_that_falls_silent_when_drained() -> Outcome {
    let mut stage = Stage::start(Stage::setup()?)?;
    let silent = driven(&stage, Side::Incumbent);
    stage.serves()?;
    drop(silent);
    stage.hands_over()?;
    stage.finish()
}

fn a_client_that_falls_silent_when_sealed() -> Outcome {
    let mut stage = Stage::start(Stage::setup()?)?;
    let silent = driven(&stage, Side::Successor);
    stage.serves()?;
    drop(silent);
    stage.hands_over()?;
    stage.finish()
}

fn a_client_that_goes_when_sealed() -> Outcome {
    let mut stage = Stage::start(Stage::setup()?)?;
    drop(driven(&stage, Side::Successor));
    stage.serves()?;
    stage.hands_over()?;
    stage.finish()
}
