//! The command line: what is accepted and what `--help` says. No behaviour.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::service::{DurationText, Listen};

/// Replaces the binary of a running, stateful daemon: no client refused, no write lost, never two writers.
#[derive(Debug, Parser)]
#[command(name = "handoff", version, max_term_width = 110, subcommand_required = true, arg_required_else_help = true)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Run(RunArgs),
    Upgrade(UpgradeArgs),
    Rollback(RollbackArgs),
    Status(StatusArgs),
    History(HistoryArgs),
    Stop(StopArgs),
    Lock(LockArgs),
}

/// Run a daemon: own its listening sockets, start it, watch it, and hand it over when `handoff upgrade` says so.
///
/// Every child finds its sockets by LISTEN_FDS, LISTEN_FDNAMES and LISTEN_PID from descriptor 3 on, and its paths in
/// HANDOFF_CONTROL_SOCKET and (with --data-dir) HANDOFF_DATA_DIR.
///
/// SIGTERM and SIGINT stop the daemon gracefully and then the supervisor; a handover under way is undone first, or
/// finished if it is too late for that. SIGHUP is ignored. RUST_LOG chooses what is logged to stderr [default: info].
///
/// By default the paths are <state-dir>/control.sock, <state-dir>/admin.sock and <state-dir>/journal.
/// Exit status: 0 after a stop, 1 when the daemon ended and is not to be started again, 3 when
/// nothing was started: one line on stderr says why.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// TOML file with the same names as the options, and more; the command line wins.
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// A socket to bind and to pass on: NAME=127.0.0.1:8080, NAME=[::1]:8080, NAME=unix:/run/x.sock or
    /// NAME=udp:127.0.0.1:53. Taken from our own LISTEN_FDS if one there has this name.
    #[arg(long, value_name = "NAME=ADDR")]
    pub(super) listen: Vec<Listen>,
    /// The daemon's data directory.
    #[arg(long, value_name = "DIR")]
    pub(super) data_dir: Option<PathBuf>,
    /// Where the daemon listens for handovers [default: <state-dir>/control.sock].
    #[arg(long, value_name = "PATH")]
    pub(super) control_socket: Option<PathBuf>,
    #[command(flatten)]
    pub(super) state_dir: StateDirArg,
    /// How the log on stderr is written: lines for people, or one JSON object a line.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub(super) log_format: LogFormat,
    /// The daemon and its arguments.
    #[arg(last = true, value_name = "PROGRAM")]
    pub(super) program: Vec<OsString>,
}

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    Text,
    Json,
}

/// Hand the running daemon over to a new process.
///
/// Exit status: 0 committed, the new process serves; 2 aborted after the new process was started, the line says whether the old one serves on; 3 not
/// tried, the old one serves on; 4 another handover is under way; 6 the supervisor went away in the middle, and who serves is not
/// known. Where it went away and who serves is known, that is the status: 0, 2 or 3.
#[derive(Debug, Args)]
pub(super) struct UpgradeArgs {
    /// The new binary [default: the configured one, as it is on disk now].
    pub(super) binary: Option<PathBuf>,
    /// The bound on the whole handover, from the order to drain: 250ms, 25s, 5m.
    #[arg(long, value_name = "D")]
    pub(super) deadline: Option<DurationText>,
    /// The bound on the drain.
    #[arg(long, value_name = "D")]
    pub(super) drain_grace: Option<DurationText>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub(super) json: bool,
    /// Print nothing but errors.
    #[arg(long, conflicts_with = "json")]
    pub(super) quiet: bool,
    #[command(flatten)]
    pub(super) state_dir: StateDirArg,
}

/// Hand the running daemon over to the build that served before it.
///
/// The build is kept in the state directory, so its file may have been replaced or deleted. A second rollback leads back.
/// Exit status: as of `upgrade`; 3 also when there is no build to go back to.
#[derive(Debug, Args)]
pub(super) struct RollbackArgs {
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub(super) json: bool,
    /// Print nothing but errors.
    #[arg(long, conflicts_with = "json")]
    pub(super) quiet: bool,
    #[command(flatten)]
    pub(super) state_dir: StateDirArg,
}

/// Say what the service does right now, also in the middle of a handover.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) state_dir: StateDirArg,
}

/// Tell what came of the last handovers and how long their phases took. No supervisor need run.
#[derive(Debug, Args)]
pub(super) struct HistoryArgs {
    /// So many of them, the newest last.
    #[arg(short = 'n', value_name = "N", default_value_t = 20)]
    pub(super) newest: usize,
    /// Print an array of JSON objects, one a line: those of `upgrade --json`, and more.
    #[arg(long)]
    pub(super) json: bool,
    /// Draw them as a timeline of phases into this SVG file, and print no table.
    #[arg(long, value_name = "FILE.svg")]
    pub(super) plot: Option<PathBuf>,
    #[command(flatten)]
    pub(super) state_dir: StateDirArg,
}

/// Stop the daemon gracefully, then the supervisor, and wait until both are gone.
#[derive(Debug, Args)]
pub(super) struct StopArgs {
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) state_dir: StateDirArg,
}

/// Name the process that holds a data directory.
#[derive(Debug, Args)]
pub(super) struct LockArgs {
    /// The data directory.
    pub(super) data_dir: PathBuf,
    /// Print one JSON object instead of text; null when nobody holds it.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct StateDirArg {
    /// The supervisor's own directory [default: /run/handoff for root, else $XDG_RUNTIME_DIR/handoff].
    #[arg(long, value_name = "DIR")]
    pub(super) state_dir: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("handoff").chain(line.split_whitespace()))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_documented_line_is_accepted() {
        for line in [
            "run --config f.toml",
            "run --listen http=127.0.0.1:1 --listen dns=udp:[::1]:53 --data-dir d --control-socket c --state-dir s -- p -x --y",
            "upgrade",
            "upgrade --state-dir s ./new --deadline 5m --drain-grace 250ms --json",
            "upgrade --quiet",
            "rollback --state-dir s --json",
            "status --state-dir s --json",
            "history --state-dir s -n 5 --json",
            "history --plot f.svg",
            "run --log-format json --state-dir s -- p",
            "stop --state-dir s",
            "lock d --json",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn the_daemons_own_options_are_not_ours() {
        let Command::Run(run) = parse("run -- prog --listen --version").unwrap().command else { panic!() };
        assert_eq!(run.program, ["prog", "--listen", "--version"]);
        assert!(run.listen.is_empty());
    }

    #[test]
    fn what_does_not_exist_is_not_offered() {
        for line in ["history -n few", "run --log-format xml", "upgrade --deadline soon", "run --listen 1.2.3.4:5"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
