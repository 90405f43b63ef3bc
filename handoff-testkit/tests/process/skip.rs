//! What a test needs and not every system gives. A test without it is skipped, and that is seen: it counts as ignored, with the
//! reason, and is named in the last line. Where the skip is forbidden it fails, and says what to do.
//!
//! `HANDOFF_NO_SKIP=1` forbids every skip, `HANDOFF_NO_SKIP=strace,mount` those for want of these two.

use std::error::Error;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use libtest_mimic::{Completion, Trial};

use crate::Outcome;

const VARIABLE: &str = "HANDOFF_NO_SKIP";

/// What may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Strace,
    Mount,
    Cgroup,
    Root,
    Seccomp,
}

impl Need {
    const ALL: [Self; 5] = [Self::Strace, Self::Mount, Self::Cgroup, Self::Root, Self::Seccomp];

    /// As the variable names it.
    const fn name(self) -> &'static str {
        match self {
            Self::Strace => "strace",
            Self::Mount => "mount",
            Self::Cgroup => "cgroup",
            Self::Root => "root",
            Self::Seccomp => "seccomp",
        }
    }

    const fn remedy(self) -> &'static str {
        match self {
            Self::Strace => "install strace and allow ptrace(2)",
            Self::Mount => "run as root with CAP_SYS_ADMIN, so that a tmpfs can be mounted",
            Self::Cgroup => "run as root with a writable cgroup file system that has the pids controller",
            Self::Root => "run as root",
            Self::Seccomp => "run without a seccomp filter on a kernel with SECCOMP_RET_USER_NOTIF (5.5)",
        }
    }
}

/// Ends a test that can't go on.
#[derive(Debug)]
pub(crate) struct Skip {
    need: Need,
    reason: String,
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl Error for Skip {}

/// What a test returns that can't go on without `need`.
pub(crate) fn without(need: Need, reason: &str) -> Box<dyn Error> {
    Box::new(Skip { need, reason: reason.to_owned() })
}

/// A part of `test` is left out, and the rest goes on.
///
/// # Errors
/// That is forbidden.
pub(crate) fn part_of(test: &str, need: Need, reason: &str) -> Outcome {
    let skip = Skip { need, reason: reason.to_owned() };
    forbidden_by(&variable()?, &skip)?;
    println!("SKIP a part of {test}: {skip}");
    note(format!("a part of {test} ({skip})"));
    Ok(())
}

/// A test that may say that it can't go on.
pub(crate) fn trial(name: impl Into<String>, test: impl FnOnce() -> Outcome + Send + 'static) -> Trial {
    let name = name.into();
    Trial::ignorable_test(name.clone(), move || {
        let Err(error) = test() else { return Ok(Completion::Completed) };
        let skip = error.downcast::<Skip>().map_err(|error| error.to_string())?;
        variable().and_then(|forbidden| forbidden_by(&forbidden, &skip))?;
        note(format!("{name} ({skip})"));
        Ok(Completion::ignored_with(skip))
    })
}

/// That the variable names nothing that does not exist: a skip that is forbidden under a wrong name is allowed.
pub(crate) fn check_variable() -> Result<(), String> {
    variable().map(drop)
}

/// The last line, where there is something to say.
pub(crate) fn summarize() {
    let skipped = SKIPPED.lock().unwrap_or_else(PoisonError::into_inner);
    if !skipped.is_empty() {
        eprintln!("{} skipped: {}", skipped.len(), skipped.join("; "));
    }
}

static SKIPPED: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn note(what: String) {
    SKIPPED.lock().unwrap_or_else(PoisonError::into_inner).push(what);
}

fn variable() -> Result<Vec<Need>, String> {
    forbidden(&std::env::var(VARIABLE).unwrap_or_default())
}

/// What may not be missing.
fn forbidden(variable: &str) -> Result<Vec<Need>, String> {
    let known = |name: &str| {
        let found = Need::ALL.into_iter().find(|need| need.name() == name);
        let names = || Need::ALL.map(Need::name).join(", ");
        found.ok_or_else(|| format!("{VARIABLE}={variable}: {name:?} is none of {}; 1 is all of them", names()))
    };
    match variable {
        "" | "0" => Ok(Vec::new()),
        "1" => Ok(Need::ALL.to_vec()),
        names => names.split(',').map(|name| known(name.trim())).collect(),
    }
}

fn forbidden_by(forbidden: &[Need], skip: &Skip) -> Result<(), String> {
    if !forbidden.contains(&skip.need) {
        return Ok(());
    }
    let (name, remedy) = (skip.need.name(), skip.need.remedy());
    Err(format!("{skip}, and {VARIABLE} forbids to skip for want of {name}: {remedy}"))
}

/// What the mechanism itself promises.
pub(crate) mod tests {
    use super::*;
    use crate::{check, trials};

    trials![what_is_forbidden_is_named, a_wrong_name_is_an_error, a_forbidden_skip_says_what_to_do];

    fn what_is_forbidden_is_named() -> Outcome {
        check(forbidden("")?.is_empty() && forbidden("0")?.is_empty(), "nothing")?;
        check(forbidden("1")? == Need::ALL, "everything")?;
        check(forbidden("strace, mount")? == [Need::Strace, Need::Mount], "these two")
    }

    fn a_wrong_name_is_an_error() -> Outcome {
        for wrong in ["starce", "strace,", "yes"] {
            let error = forbidden(wrong).err().ok_or_else(|| format!("{wrong} is accepted"))?;
            check(error.contains("strace, mount, cgroup, root, seccomp"), error)?;
        }
        Ok(())
    }

    fn a_forbidden_skip_says_what_to_do() -> Outcome {
        let skip = Skip { need: Need::Strace, reason: "strace is not installed".into() };
        check(forbidden_by(&[Need::Mount], &skip).is_ok(), "another need is none of its business")?;
        let error = forbidden_by(&[Need::Strace], &skip).err().ok_or("it is forbidden")?;
        check(error.starts_with("strace is not installed") && error.contains("install strace"), error)
    }
}
