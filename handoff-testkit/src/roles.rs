//! The calling program, run again: how a test starts real processes without another package's binary.
//!
//! A child is the same program with [`ROLE_VARIABLE`] in its environment; [`init`] at the start of `main` turns it into what
//! the variable says, and never returns there. The variable stays in the environment, so a child that starts further
//! processes of the same program gives them a role of their own.

use std::ffi::OsString;
use std::process::{self, ExitCode};

use crate::strangers::Manner;

/// Which role a child plays.
pub const ROLE_VARIABLE: &str = "HANDOFF_TESTKIT_ROLE";

/// One part that a child can play.
#[derive(Debug, Clone, Copy)]
pub struct ChildRole {
    /// What [`ROLE_VARIABLE`] says.
    pub name: &'static str,
    /// The role's `main`; its arguments begin with the program's name.
    pub main: fn(Vec<OsString>) -> ExitCode,
}

/// The roles that the testkit brings.
const OWN: &[ChildRole] = &[
    ChildRole { name: "handoff", main: |args| handoff_runtime::cli::main(args) },
    ChildRole { name: crate::yardstick::ROLE, main: |_| crate::yardstick::main() },
    ChildRole { name: "matrix-daemon", main: |_| crate::matrix::daemon::main() },
    ChildRole { name: Manner::QUEUES, main: |args| crate::strangers::play(Manner::Queues, &args) },
    ChildRole { name: Manner::TRIES, main: |args| crate::strangers::play(Manner::Tries, &args) },
    ChildRole { name: Manner::SECOND_DAEMON, main: |args| crate::strangers::play(Manner::SecondDaemon, &args) },
    #[cfg(feature = "store")]
    ChildRole { name: "store", main: |args| crate::store::daemon::main(args) },
    #[cfg(feature = "store")]
    ChildRole { name: "verify", main: |args| crate::oracle::main(args) },
];

#[cfg(feature = "bench")]
use crate::bench::ROLES as BENCH;
#[cfg(not(feature = "bench"))]
const BENCH: &[ChildRole] = &[];

/// Call it first in `main`, before any thread. Returns at once in the parent; in a child it plays the child's role and ends
/// the process: `handoff` is the program of that name, `matrix-daemon` the matrix's built-in daemon, the `outsider-…` those that are after its data, `store` the reference daemon, `verify` the oracle, `bench`
/// the measurement.
pub fn init() {
    init_with(&[]);
}

/// The same with roles of the caller's own, which go before those of the same name.
pub fn init_with(more: &[ChildRole]) {
    #[cfg(feature = "bench")]
    crate::bench::enter();
    let Some(wanted) = std::env::var_os(ROLE_VARIABLE) else { return };
    let Some(role) = more.iter().chain(OWN).chain(BENCH).find(|role| wanted == role.name) else {
        eprintln!("{ROLE_VARIABLE}={}: there is no such role", wanted.display());
        process::exit(2);
    };
    let code = (role.main)(std::env::args_os().collect());
    process::exit(status(code));
}

/// The number in an exit code, which tells it only to who asks for the right one.
fn status(code: ExitCode) -> i32 {
    (0..=u8::MAX).find(|status| ExitCode::from(*status) == code).map_or(1, i32::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_keep_their_number() {
        for number in [0, 1, 3, 99, 255] {
            assert_eq!(status(ExitCode::from(number)), i32::from(number));
        }
    }
}
