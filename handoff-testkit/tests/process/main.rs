//! Tests on real processes, real sockets and a real disk; a module per subject.
//!
//! The program plays the daemons and the program `handoff` too: [`handoff_testkit::init_with`] comes first in `main`, which is
//! why this test has a `main` of its own. It takes the arguments of `cargo test`.

mod bench;
mod commit;
mod daemons;
mod datagrams;
mod eyes;
mod failing_syscalls;
mod guest;
mod interop;
mod matrix;
mod recovery;
mod refusals;
mod robust;
mod skip;
mod stage;
mod store_points;
mod strace;
mod strangers;
mod syscalls;

use std::process::ExitCode;

use handoff_testkit::ChildRole;

/// What a test comes to.
pub(crate) type Outcome = Result<(), Box<dyn std::error::Error>>;

/// An error with this text unless `held`.
pub(crate) fn check(held: bool, what: impl Into<String>) -> Outcome {
    if held { Ok(()) } else { Err(what.into().into()) }
}

/// Lists a module's tests: `trials![one, two];` makes `pub fn all() -> Vec<Trial>`.
#[macro_export]
macro_rules! trials {
    ($($name:ident),+ $(,)?) => {
        pub(crate) fn all() -> Vec<libtest_mimic::Trial> {
            let module = module_path!().split_once("::").map_or("", |(_, module)| module);
            vec![$($crate::skip::trial(format!("{module}::{}", stringify!($name)), $name)),+]
        }
    };
}

fn main() -> ExitCode {
    guest::listener::install_if_told();
    handoff_testkit::init_with(&[
        ChildRole { name: "daemon-ours", main: |_| daemons::exit_code(daemons::ours::main()) },
        ChildRole { name: "daemon-scripted", main: |_| daemons::exit_code(daemons::scripted::main()) },
        ChildRole { name: "daemon-theirs", main: |_| daemons::exit_code(daemons::theirs::main()) },
        ChildRole { name: guest::daemon::ROLE, main: |_| guest::daemon::main() },
        ChildRole { name: eyes::shards::ROLE, main: |_| daemons::exit_code(eyes::shards::main()) },
        ChildRole {
            name: interop::faults::daemon::ROLE,
            main: |_| daemons::exit_code(interop::faults::daemon::main()),
        },
        ChildRole { name: interop::faults::supervisor::ROLE, main: |_| interop::faults::supervisor::main() },
        ChildRole { name: eyes::BEQUEATHER, main: eyes::bequeath },
        ChildRole { name: recovery::daemon::ROLE, main: recovery::daemon::main },
        ChildRole { name: recovery::leftovers::LOCKER, main: recovery::leftovers::locker },
        ChildRole { name: robust::hidden::ROLE, main: robust::hidden::main },
        ChildRole { name: robust::STRANGER, main: robust::stranger },
    ]);
    let arguments = libtest_mimic::Arguments::from_args();
    if let Err(error) = skip::check_variable() {
        eprintln!("{error}");
        return ExitCode::from(2);
    }
    let trials = [
        bench::all(),
        commit::all(),
        datagrams::all(),
        eyes::all(),
        failing_syscalls::all(),
        guest::all(),
        interop::all(),
        interop::faults::all(),
        matrix::all(),
        recovery::all(),
        refusals::all(),
        robust::all(),
        skip::tests::all(),
        store_points::all(),
        strangers::all(),
        syscalls::all(),
    ];
    let trials = trials.into_iter().flatten().collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    skip::summarize();
    conclusion.exit_code()
}
