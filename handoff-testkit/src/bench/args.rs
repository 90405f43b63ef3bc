//! The command line. What is wrong with it is said in one line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

/// Handovers by this library, by `beyond-handoff`, by a bare floor and by a restart, measured side by side under load.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(name = "handoff-bench")]
pub(super) struct Args {
    /// How many handovers of each side, in each directory
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) handovers: u32,
    /// How many writing clients, all on kept connections
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    pub(super) clients: u16,
    /// Where the data and the journals are; may be given again. Without it: a directory under target/, and /dev/shm
    #[arg(long = "dir", value_name = "DIR")]
    pub(super) dirs: Vec<PathBuf>,
    /// Makes every fsync and fdatasync of every side slower by this time, such as 5ms
    #[arg(long, value_name = "D", value_parser = duration)]
    pub(super) fsync_delay: Option<Duration>,
    /// Measure instead what a handover costs as listeners, shards, connections, the log and the handovers grow
    #[arg(long, conflicts_with_all = ["fsync_delay", "svg"])]
    pub(super) growth: bool,
    /// With --growth: leave out the sizes above this one
    #[arg(long, default_value_t = usize::MAX, hide_default_value = true, value_name = "N", requires = "growth")]
    pub(super) sizes_up_to: usize,
    /// Judge instead whether a handover costs no multiple of the floor's, in as many rounds as that takes. Exit status: 0 it
    /// does not, 1 it does, 3 the machine is too noisy to tell
    #[arg(long, conflicts_with_all = ["fsync_delay", "svg", "growth", "json", "handovers"])]
    pub(super) check: bool,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Draw where the time goes, phase by phase, into this file
    #[arg(long, value_name = "FILE")]
    pub(super) svg: Option<PathBuf>,
}

/// Reads the arguments, the first of which is the program's name.
///
/// # Errors
/// The exit code: of help that was asked for, or of one line that says what is wrong.
pub(super) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Args, ExitCode> {
    let mut args = Args::try_parse_from(args).map_err(answer)?;
    if args.dirs.is_empty() {
        args.dirs = default_dirs();
    }
    Ok(args)
}

fn answer(error: clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    eprintln!("handoff-bench: {}; --help shows what there is", first_line(&error));
    ExitCode::from(2)
}

fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

/// A disk, and memory where there is some.
fn default_dirs() -> Vec<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let memory = PathBuf::from("/dev/shm");
    let mut dirs = vec![target.join("handoff-bench")];
    dirs.extend(memory.is_dir().then_some(memory));
    dirs
}

fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(char::is_alphabetic);
    let count: f64 = digits.parse().map_err(|_| "not a time, such as 5ms".to_owned())?;
    let seconds = match &text[digits.len()..] {
        "us" => count / 1e6,
        "ms" => count / 1e3,
        "s" => count,
        _ => return Err("not a time with its unit: us, ms or s".to_owned()),
    };
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if time <= Duration::from_secs(1) => Ok(time),
        _ => Err("not between 0 and 1s".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Args, String> {
        Args::try_parse_from(["handoff-bench"].iter().chain(args)).map_err(|error| first_line(&error))
    }

    #[test]
    fn everything_has_a_default_and_can_be_set() {
        let args = parsed(&[]).expect("parses");
        assert_eq!((args.handovers, args.clients, args.fsync_delay), (50, 8, None));
        let args =
            parsed(&["--handovers", "3", "--clients", "2", "--dir", "/a", "--dir", "/b", "--fsync-delay", "5ms"])
                .expect("parses");
        assert_eq!((args.handovers, args.clients), (3, 2));
        assert_eq!(args.dirs, [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert_eq!(args.fsync_delay, Some(Duration::from_millis(5)));
    }

    #[test]
    fn what_is_wrong_is_one_line_that_names_it() {
        for (bad, named) in [
            (&["--nonsense"][..], "--nonsense"),
            (&["extra"], "extra"),
            (&["--handovers", "0"], "--handovers"),
            (&["--clients", "many"], "--clients"),
            (&["--fsync-delay", "5"], "--fsync-delay"),
            (&["--fsync-delay", "5h"], "--fsync-delay"),
            (&["--fsync-delay", "2s"], "--fsync-delay"),
            (&["--fsync-delay=-1ms"], "--fsync-delay"),
        ] {
            let error = parsed(bad).expect_err("refused");
            assert!(error.contains(named) && !error.contains('\n'), "{bad:?}: {error}");
        }
    }
}
