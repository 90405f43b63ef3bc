//! `handoff run`.

use std::io::IsTerminal;
use std::process::ExitCode;

use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::args::{LogFormat, RunArgs};
use super::config::{Place, service_config};
use super::output;
use crate::service::{Ended, Service};

/// The daemon ended and is not to be started again.
const DAEMON_LEFT: u8 = 1;

pub(super) fn run(args: &RunArgs) -> Result<ExitCode, String> {
    let config = service_config(args, &Place::here()?)?;
    log_to_stderr(args.log_format);
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

/// `RUST_LOG` chooses: a level, or levels by module. It may be meant for the daemon and in another form: then, as without
/// it, what is logged is info and above.
fn log_to_stderr(format: LogFormat) {
    let chosen = std::env::var("RUST_LOG").ok().and_then(|text| text.parse().ok());
    let filter: Targets = chosen.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Text => lines.with_target(false).with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
    };
    // An embedder may have installed a subscriber of its own: then that one stays.
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
}
