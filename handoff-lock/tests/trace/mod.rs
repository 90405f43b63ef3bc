//! Recorded orders of system calls, as strace(1) sees them, beside designed ones. The journal's tests use this file too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One step of a play, and each of its calls beside the reason for it.
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) calls: &'static [(&'static str, &'static str)],
}

/// Where the directory of a play is told to the process that plays.
const BASE: &str = "HANDOFF_TEST_ORDER_BASE";
/// In front of the name of a step: a look at a file of that name, which is not there, shows in the trace where the step begins.
const MARKER: &str = "step ";
/// What is recorded. Not the looks at open files: they change nothing.
const TRACED: &str = "trace=openat,flock,read,pread64,write,pwrite64,fsync,fdatasync,sync_file_range,ftruncate,fallocate,\
                      rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,rmdir,statx";

/// Plays the ignored test `play` of this program under strace, in a directory of its own, and compares.
pub(crate) fn assert_as_designed(play: &str, designed: &[Step]) {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    fs::create_dir(&base).unwrap();
    let Some(lines) = lines_of(play, &base, &dir.path().join("trace")) else { return };
    let base = base.to_str().unwrap();
    for line in lines.iter().filter(|line| line.contains("openat(") && line.contains(base)) {
        assert!(line.contains("O_CLOEXEC"), "a program that is executed would have it: {line}");
    }
    let recorded = steps(&lines, base);
    let names: Vec<&str> = designed.iter().map(|step| step.name).collect();
    assert_eq!(recorded.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), names);
    for ((name, calls), step) in recorded.iter().zip(designed) {
        let designed: Vec<&str> = step.calls.iter().map(|(call, _)| *call).collect();
        assert_eq!(*calls, designed, "{name}");
    }
}

/// Where to play; `None`: nobody asked for a play.
pub(crate) fn base() -> Option<PathBuf> {
    std::env::var_os(BASE).map(Into::into)
}

/// Performs one step, whose calls follow its marker.
pub(crate) fn step<T>(base: &Path, name: &str, action: impl FnOnce() -> T) -> T {
    let mark = |name: &str| drop(fs::symlink_metadata(base.join(format!("{MARKER}{name}"))));
    mark(name);
    let result = action();
    mark("");
    result
}

fn lines_of(play: &str, base: &Path, trace: &Path) -> Option<Vec<String>> {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-y", "-s", "0", "-e", TRACED, "-e", "signal=none", "-o"]).arg(trace);
    strace.arg(std::env::current_exe().unwrap()).args(["--exact", play, "--ignored", "--test-threads=1"]);
    let Ok(ran) = strace.env(BASE, base).stdin(Stdio::null()).output() else {
        return skipped("strace is not installed");
    };
    let (said, complained) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    if complained.contains("PTRACE_TRACEME") {
        return skipped("strace may not trace here");
    }
    assert!(ran.status.success() && said.contains("1 passed"), "{said}{complained}");
    Some(fs::read_to_string(trace).unwrap().lines().map(str::to_owned).collect())
}

fn skipped<T>(why: &str) -> Option<T> {
    assert!(std::env::var_os("HANDOFF_NO_SKIP").is_none(), "{why}");
    println!("skipped: {why}");
    None
}

/// The calls of each step, in the words of [`call`]; those outside of steps are the play's own.
fn steps(lines: &[String], base: &str) -> Vec<(String, Vec<String>)> {
    let mut steps: Vec<(String, Vec<String>)> = Vec::new();
    for line in lines.iter().filter(|line| line.contains(base)) {
        if let Some((_, rest)) = line.split_once(MARKER) {
            steps.push((rest.split('"').next().unwrap_or_default().to_owned(), Vec::new()));
        } else if let (Some((_, calls)), Some(call)) = (steps.last_mut(), call(line, base)) {
            calls.push(call);
        }
    }
    steps.retain(|(name, _)| !name.is_empty());
    steps
}

/// A line such as `7 pwrite64(5</base/.handoff.lock>, ""..., 160, 512) = 160` as `write .handoff.lock at 512`. `None`: it is of no
/// interest.
fn call(line: &str, base: &str) -> Option<String> {
    let (name, rest) = line.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(" = ")?;
    let words = words(arguments, base);
    let (first, last) = (words.first()?, words.last()?);
    let has = |flag: &str| arguments.contains(flag);
    let what = match name.rsplit(' ').next()? {
        "openat" if has("O_EXCL") => format!("create only {}", words[1]),
        "openat" if has("O_CREAT") && has("O_TRUNC") => format!("create or empty {}", words[1]),
        "openat" if has("O_APPEND") => format!("create or open {} to append", words[1]),
        "openat" if has("O_CREAT") => format!("create or open {}", words[1]),
        "openat" => format!("open {}", words[1]),
        "flock" if has("LOCK_UN") => format!("unlock {first}"),
        "flock" if has("LOCK_EX|LOCK_NB") => format!("lock {first}"),
        "flock" if has("LOCK_SH|LOCK_NB") => format!("share {first}"),
        "pread64" => format!("read {first} at {last}"),
        "pwrite64" => format!("write {first} at {last}"),
        "rename" => format!("rename {first} to {last}"),
        "renameat" | "renameat2" => format!("rename {} to {}", words[1], words[3]),
        "unlinkat" => format!("unlink {}", words[1]),
        "mkdirat" => format!("mkdir {}", words[1]),
        "statx" => return None,
        other => format!("{other} {first}"),
    };
    let failed = result.strip_prefix("-1 ").and_then(|error| error.split(' ').next());
    Some(match failed {
        Some(error) => format!("{what}: {error}"),
        None => what,
    })
}

/// The arguments, files as they are named below `base`, which is itself `.`.
fn words(arguments: &str, base: &str) -> Vec<String> {
    let short = |word: &str| {
        let word = word.trim().trim_end_matches(')');
        let file = word.split_once('<').map_or(word, |(_, file)| file.trim_end_matches('>'));
        let file = file.trim_matches('"');
        match file.strip_prefix(base) {
            Some("") => ".".to_owned(),
            Some(below) => below.trim_start_matches('/').to_owned(),
            None => file.to_owned(),
        }
    };
    arguments.split(", ").map(short).collect()
}
