//! `handoff run`.

use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

use super::args::RunArgs;
use super::config::{Place, service_config};
use super::output;
use crate::service::{Ended, Service};

/// The daemon ended and is not to be started again.
const DAEMON_LEFT: u8 = 1;

pub(super) fn run(args: &RunArgs) -> Result<ExitCode, String> {
    let config = service_config(args, &Place::here()?)?;
    log_to_stderr();
    let service = Service::prepare(config).map_err(|error| error.to_string())?;
    match service.run() {
        Ok(Ended::Stopped) => Ok(ExitCode::SUCCESS),
        Ok(Ended::DaemonLeft(Some(status))) if status.success() => Ok(ExitCode::SUCCESS),
        Ok(Ended::DaemonLeft(status)) => {
            let how = status.map_or_else(|| "with an unknown status".to_owned(), |status| format!("with {status}"));
            output::error(&format!("the daemon has left {how} and is not to be started again"));
            Ok(ExitCode::from(DAEMON_LEFT))
        }
        Err(error) => {
            output::error(&format!(
                "{error}; the daemon lives on, and `handoff run` adopts it when it is started again"
            ));
            Ok(ExitCode::from(DAEMON_LEFT))
        }
    }
}

/// `RUST_LOG` chooses (default: info).
fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // An embedder may have installed a subscriber of its own: then that one stays.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .try_init();
}
