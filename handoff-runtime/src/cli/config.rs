//! From a TOML file and a command line to a [`ServiceConfig`]. Every error is one line that names the file and the line, or
//! the option. Nothing is looked at on disk but the file itself and, for a bare program name, `PATH`.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::args::RunArgs;
use crate::service::{Address, DurationText, Listen, Restart, ServiceConfig, Watchdog};

/// The file as written. Names are those of the options.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    control_socket: Option<PathBuf>,
    binary: Option<PathBuf>,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    listeners: BTreeMap<ListenerName, AddressText>,
    data_dir: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    drain_grace: Option<DurationText>,
    deadline: Option<DurationText>,
    warm: Option<DurationText>,
    open: Option<DurationText>,
    resume: Option<DurationText>,
    retire: Option<DurationText>,
    probation: Option<DurationText>,
    watchdog: Option<WatchdogText>,
    restart: Option<RestartText>,
    #[serde(default)]
    allowed_uids: Vec<u32>,
    #[serde(default)]
    allowed_binaries: Vec<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
struct ListenerName(String);

impl TryFrom<String> for ListenerName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let anywhere = Address::Unix(PathBuf::new());
        Listen::new(name, anywhere).map(|listen| Self(listen.name)).map_err(|error| error.to_string())
    }
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct AddressText(Address);

impl TryFrom<String> for AddressText {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map(Self).map_err(|error: crate::service::AddressError| error.to_string())
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RestartText {
    OnFailure,
    Always,
    Never,
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct WatchdogText(Watchdog);

impl TryFrom<String> for WatchdogText {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "off" => Ok(Self(Watchdog::Off)),
            _ => text
                .parse()
                .map(|DurationText(silence)| Self(Watchdog::After(silence)))
                .map_err(|error: String| format!("{error}, or \"off\"")),
        }
    }
}

/// What `handoff run` is to do, all paths absolute.
///
/// # Errors
/// One line for a person: what is wrong, where, and what to write instead.
pub(super) fn service_config(args: &RunArgs, place: &Place) -> Result<ServiceConfig, String> {
    let (file, base) = match &args.config {
        Some(path) => (read(path)?, place.cwd.join(path).parent().map(Path::to_owned).unwrap_or_default()),
        None => (File::default(), place.cwd.clone()),
    };
    let state_dir = match (&args.state_dir.state_dir, &file.state_dir) {
        (Some(path), _) => place.cwd.join(path),
        (None, Some(path)) => base.join(path),
        (None, None) => place.default_state_dir()?,
    };
    let (binary, program_args) = program(args, &file, &base, place)?;
    let mut config = ServiceConfig::new(state_dir, binary);
    config.args = program_args;
    config.listeners = listeners(&args.listen, file.listeners, &base, &place.cwd)?;
    config.env = file.env.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
    config.data_dir = either(&args.data_dir, &place.cwd, &file.data_dir, &base);
    if let Some(path) = either(&args.control_socket, &place.cwd, &file.control_socket, &base) {
        config.control_socket = path;
    }
    set(&mut config.drain_grace, file.drain_grace);
    set(&mut config.deadline, file.deadline);
    set(&mut config.warm, file.warm);
    set(&mut config.open, file.open);
    set(&mut config.resume, file.resume);
    set(&mut config.retire, file.retire);
    set(&mut config.probation, file.probation);
    config.watchdog = file.watchdog.map_or_else(Watchdog::default, |WatchdogText(watchdog)| watchdog);
    config.restart = match file.restart {
        None | Some(RestartText::OnFailure) => Restart::OnFailure,
        Some(RestartText::Always) => Restart::Always,
        Some(RestartText::Never) => Restart::Never,
    };
    config.allowed_uids = file.allowed_uids;
    config.allowed_binaries = file.allowed_binaries.iter().map(|path| base.join(path)).collect();
    Ok(config)
}

/// What the place where the command is given says.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) cwd: PathBuf,
    pub(super) path: Option<OsString>,
    pub(super) runtime_dir: Option<PathBuf>,
    pub(super) uid: u32,
}

impl Place {
    pub(super) fn here() -> Result<Self, String> {
        Ok(Self {
            cwd: std::env::current_dir().map_err(|error| format!("the working directory can't be found: {error}"))?,
            path: std::env::var_os("PATH"),
            runtime_dir: std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute()),
            uid: rustix::process::geteuid().as_raw(),
        })
    }

    /// The state directory of a command that was given none, or this one.
    pub(super) fn state_dir(&self, given: Option<&Path>) -> Result<PathBuf, String> {
        given.map_or_else(|| self.default_state_dir(), |path| Ok(self.cwd.join(path)))
    }

    fn default_state_dir(&self) -> Result<PathBuf, String> {
        match &self.runtime_dir {
            _ if self.uid == 0 => Ok(PathBuf::from("/run/handoff")),
            Some(dir) => Ok(dir.join("handoff")),
            None => Err("there is no $XDG_RUNTIME_DIR here; name a directory with --state-dir".to_owned()),
        }
    }

    fn on_path(&self, name: &OsStr) -> Option<PathBuf> {
        let is_program =
            |path: &PathBuf| rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file();
        std::env::split_paths(self.path.as_ref()?).map(|dir| self.cwd.join(dir).join(name)).find(is_program)
    }
}

fn read(path: &Path) -> Result<File, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("config {}: {error}", path.display()))?;
    parse(&text).map_err(|error| format!("config {}: {error}", path.display()))
}

fn parse(text: &str) -> Result<File, String> {
    toml::from_str(text).map_err(|error| {
        let message = error.message().lines().collect::<Vec<_>>().join(" ");
        match error.span() {
            Some(span) => format!("line {}: {message}", 1 + text[..span.start].matches('\n').count()),
            None => message,
        }
    })
}

fn program(args: &RunArgs, file: &File, base: &Path, place: &Place) -> Result<(PathBuf, Vec<OsString>), String> {
    let Some((name, rest)) = args.program.split_first() else {
        let binary =
            file.binary.as_ref().ok_or("no daemon is named: write it after `--`, or `binary` in the config")?;
        return Ok((base.join(binary), file.args.iter().map(OsString::from).collect()));
    };
    let has_slash = Path::new(name).components().count() > 1;
    let binary = if has_slash || name.is_empty() {
        place.cwd.join(name)
    } else {
        let not_found = || format!("no program {} on PATH; write ./{0} for one in this directory", name.display());
        place.on_path(name).ok_or_else(not_found)?
    };
    Ok((binary, rest.to_vec()))
}

fn listeners(
    given: &[Listen],
    file: BTreeMap<ListenerName, AddressText>,
    base: &Path,
    cwd: &Path,
) -> Result<Vec<Listen>, String> {
    let mut all: Vec<Listen> = Vec::new();
    for listen in given {
        if all.iter().any(|other| other.name == listen.name) {
            return Err(format!("two listeners are named \"{}\"", listen.name));
        }
        all.push(Listen { name: listen.name.clone(), address: listen.address.clone().relative_to(cwd) });
    }
    for (ListenerName(name), AddressText(address)) in file {
        if !all.iter().any(|other| other.name == name) {
            all.push(Listen { name, address: address.relative_to(base) });
        }
    }
    Ok(all)
}

fn either(given: &Option<PathBuf>, cwd: &Path, file: &Option<PathBuf>, base: &Path) -> Option<PathBuf> {
    match (given, file) {
        (Some(path), _) => Some(cwd.join(path)),
        (None, Some(path)) => Some(base.join(path)),
        (None, None) => None,
    }
}

fn set(value: &mut Duration, text: Option<DurationText>) {
    if let Some(DurationText(duration)) = text {
        *value = duration;
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::args::{Cli, Command};
    use super::*;

    fn place() -> Place {
        Place { cwd: "/here".into(), path: None, runtime_dir: Some("/run/user/7".into()), uid: 7 }
    }

    fn configured(line: &str) -> Result<ServiceConfig, String> {
        let words = ["handoff", "run"].into_iter().chain(line.split_whitespace());
        let Command::Run(run) = Cli::try_parse_from(words).unwrap().command else { panic!() };
        service_config(&run, &place())
    }

    fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("handoff.toml");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    const EVERY_KEY: &str = r#"
        control_socket = "c.sock"
        binary = "bin/d"
        args = ["--fast"]
        env = { RUST_LOG = "info" }
        listeners = { http = "127.0.0.1:8080", local = "unix:x.sock" }
        data_dir = "data"
        state_dir = "/var/s"
        drain_grace = "25s"
        deadline = "5m"
        warm = "250ms"
        open = "7s"
        resume = "8s"
        retire = "1s"
        probation = "2s"
        watchdog = "3s"
        restart = "always"
        allowed_uids = [7]
        allowed_binaries = ["bin/d", "/opt/d"]
    "#;

    #[test]
    fn every_key_arrives_and_relative_paths_are_the_files() {
        let (dir, path) = written(EVERY_KEY);
        let config = configured(&format!("--config {}", path.display())).unwrap();
        let beside = |name: &str| dir.path().join(name);
        assert_eq!(config.control_socket, beside("c.sock"));
        assert_eq!(config.binary, beside("bin/d"));
        assert_eq!(config.args, ["--fast"]);
        assert_eq!(config.env, [("RUST_LOG".into(), "info".into())]);
        assert_eq!(config.listeners[0], "http=127.0.0.1:8080".parse().unwrap());
        assert_eq!(config.listeners[1].address, Address::Unix(beside("x.sock")));
        assert_eq!(config.data_dir, Some(beside("data")));
        assert_eq!(config.state_dir, Path::new("/var/s"));
        assert_eq!((config.drain_grace, config.deadline), (Duration::from_secs(25), Duration::from_secs(300)));
        assert_eq!((config.warm, config.retire), (Duration::from_millis(250), Duration::from_secs(1)));
        assert_eq!((config.open, config.resume), (Duration::from_secs(7), Duration::from_secs(8)));
        assert_eq!(config.probation, Duration::from_secs(2));
        assert_eq!(config.watchdog, Watchdog::After(Duration::from_secs(3)));
        assert_eq!(config.restart, Restart::Always);
        assert_eq!(config.allowed_uids, [7]);
        assert_eq!(config.allowed_binaries, [beside("bin/d"), "/opt/d".into()]);
    }

    #[test]
    fn the_command_line_wins() {
        let (dir, path) = written(EVERY_KEY);
        let line =
            "--data-dir dd --control-socket /c --state-dir ss --listen http=[::1]:1 --listen more=unix:m -- ./p -v";
        let config = configured(&format!("--config {} {line}", path.display())).unwrap();
        assert_eq!(config.data_dir, Some("/here/dd".into()));
        assert_eq!(config.control_socket, Path::new("/c"));
        assert_eq!(config.state_dir, Path::new("/here/ss"));
        assert_eq!((config.binary.as_path(), config.args), (Path::new("/here/./p"), vec!["-v".into()]));
        let listeners: Vec<_> = config.listeners.iter().map(|l| (l.name.as_str(), l.address.to_string())).collect();
        let local = format!("unix:{}/x.sock", dir.path().display());
        assert_eq!(listeners, [("http", "[::1]:1".into()), ("more", "unix:/here/m".into()), ("local", local)]);
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let config = configured("-- ./p").unwrap();
        assert_eq!(config.state_dir, Path::new("/run/user/7/handoff"));
        assert_eq!(config.control_socket, Path::new("/run/user/7/handoff/control.sock"));
        assert_eq!(config.journal(), Path::new("/run/user/7/handoff/journal"));
        let root = Place { uid: 0, ..place() };
        assert_eq!(root.state_dir(None).unwrap(), Path::new("/run/handoff"));
        let nowhere = Place { runtime_dir: None, ..place() };
        assert!(nowhere.state_dir(None).unwrap_err().contains("--state-dir"));
    }

    #[test]
    fn an_error_in_the_file_is_one_line_that_names_file_and_line() {
        for (text, line, what) in [
            ("binary = \"d\"\ncolour = 1\n", 2, "unknown field `colour`"),
            ("\n\ndeadline = \"soon\"\n", 3, "write 250ms, 25s or 5m"),
            ("deadline = 25\n", 1, "string"),
            ("binary = \"d\"\n[listeners]\nhttp = \"localhost\"\n", 3, "\"localhost\" is no address"),
            ("[listeners]\n\"a:b\" = \"127.0.0.1:1\"\n", 2, "listener name \"a:b\" is not allowed"),
            ("binary = \"d\"\nbinary = \"e\"\n", 2, "duplicate key"),
            ("restart = \"sometimes\"\n", 1, "unknown variant `sometimes`"),
            ("watchdog = \"maybe\"\n", 1, "or \"off\""),
            ("a = [\n", 1, ""),
        ] {
            let (_dir, path) = written(text);
            let error = configured(&format!("--config {}", path.display())).unwrap_err();
            let start = format!("config {}: line {line}: ", path.display());
            assert!(error.starts_with(&start) && error.contains(what), "{text:?} gives {error:?}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(configured("--config nowhere.toml").unwrap_err().contains("nowhere.toml"));
        assert!(configured("").unwrap_err().contains("no daemon is named"));
        assert!(configured("-- prog").unwrap_err().contains("no program prog on PATH"));
        let twice = "--listen a=127.0.0.1:1 --listen a=127.0.0.1:2 -- ./p";
        assert_eq!(configured(twice).unwrap_err(), "two listeners are named \"a\"");
    }
}
