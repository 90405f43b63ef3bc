//! `handoff stop`.

use std::process::ExitCode;

use super::args::StopArgs;
use super::client::Client;
use super::config::Place;
use super::output;
use crate::service::Request;

pub(super) fn stop(args: &StopArgs) -> Result<ExitCode, String> {
    let state_dir = Place::here()?.state_dir(args.state_dir.state_dir.as_deref())?;
    let mut client = Client::order(&state_dir, &Request::Stop {})?;
    let answer = client.answer()?;
    // Until the process is gone it holds the state directory.
    client.wait_until_gone()?;
    output::line(if args.json { &answer } else { "stopped" });
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::super::args::StateDirArg;
    use super::*;
    use crate::testing::arguments_for;

    const DIR: &str = "HANDOFF_TEST_STOP_DIR";

    /// Answers, and is gone a while later. The while is what is tested: nothing waits for something else by it.
    #[test]
    #[ignore = "run by the next test in a process of its own"]
    fn plays_a_supervisor_that_takes_its_time_to_leave() {
        let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
        let listener = UnixListener::bind(dir.join("admin.sock")).unwrap();
        eprintln!("listening");
        let (mut client, _) = listener.accept().unwrap();
        let mut order = String::new();
        BufReader::new(client.try_clone().unwrap()).read_line(&mut order).unwrap();
        assert_eq!(order, "{\"cmd\":\"stop\"}\n");
        client.write_all(b"{\"stopped\":true,\"supervisor_pid\":1}\n").unwrap();
        drop(client);
        std::thread::sleep(Duration::from_millis(300));
    }

    #[test]
    fn it_returns_when_the_supervisor_is_gone_and_not_when_it_has_answered() {
        let dir = tempfile::tempdir().unwrap();
        let part = "cli::stop::tests::plays_a_supervisor_that_takes_its_time_to_leave";
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(arguments_for(part)).env(DIR, dir.path()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut supervisor = command.spawn().unwrap();
        let mut said = BufReader::new(supervisor.stderr.take().unwrap()).lines();
        assert!(said.any(|line| line.unwrap() == "listening"));
        let state_dir = StateDirArg { state_dir: Some(dir.path().to_owned()) };
        stop(&StopArgs { json: false, state_dir }).unwrap();
        let left = supervisor.try_wait().unwrap().expect("it has left by now");
        assert!(left.success(), "{left}");
    }
}
