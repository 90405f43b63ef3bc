//! The incumbent's two threads: whatever a client says, beside a hook and between hooks, is dealt with, and they end.

#[path = "../../src/incumbent/crew.rs"]
mod crew;
mod driver;
#[path = "../../src/incumbent/watch.rs"]
mod watch;

use std::sync::Arc;

use libtest_mimic::Trial;

use crate::error::Result;
use crate::helper::Helper;
use crate::kernel::with_time;
use crate::relief::Relief;
use crate::trial;
use crate::waker::Waker;
use crew::IdleWorker;
pub(crate) use driver::Bench;
use driver::{Driver, Hook, Told, World};

/// In the place of the library's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Served {
    Committed,
}

pub(crate) fn all() -> Vec<Trial> {
    vec![
        trial("incumbent::leaves_when_it_is_told_to", 3, || serve(|_| {})),
        trial("incumbent::a_hook_runs_and_its_end_is_told", 2, || {
            serve(|client| {
                client.tell(Told::Run(Hook::Short));
                client.hear(1);
            });
        }),
        trial("incumbent::an_abort_reaches_the_hook_that_runs", 2, || {
            serve(|client| {
                client.tell(Told::Run(Hook::UntilCancelled));
                client.tell(Told::Cancel);
                client.hear(1);
            });
        }),
        trial("incumbent::a_hook_behind_a_long_one_runs", 2, || {
            serve(|client| {
                client.tell(Told::Run(Hook::UntilCancelled));
                client.tell(Told::Cancel);
                client.tell(Told::Run(Hook::Short));
                client.hear(2);
            });
        }),
        trial("incumbent::progress_is_told_while_the_hook_runs", 2, || {
            serve(|client| {
                client.tell(Told::Run(Hook::Reports));
                client.hear(1);
                client.let_go();
                client.hear(2);
            });
        }),
        trial("incumbent::a_thread_that_is_lost_is_noticed", 2, || {
            lose(|client| client.tell(Told::Run(Hook::Panics)));
        }),
        trial("incumbent::so_it_is_beside_one_who_waits", 2, || {
            lose(|client| {
                client.tell(Told::Run(Hook::UntilCancelled));
                client.tell(Told::Cancel);
                client.tell(Told::Run(Hook::Panics));
            });
        }),
        trial("incumbent::what_is_to_be_waited_for_after_a_hook_is_waited_for", 2, || {
            serve(|client| {
                client.tell(Told::Run(Hook::UntilCancelled));
                client.tell(Told::Cancel);
                client.tell(Told::Run(Hook::Asks));
                client.hear(2);
                client.answer();
                client.hear(3);
            });
        }),
    ]
}

/// A client does its part and then has the incumbent leave.
fn serve(client: fn(&World)) {
    with_time(|| {
        let client = move |world: &World| {
            client(world);
            world.tell(Told::Leave);
        };
        assert_eq!(served(client).unwrap(), Served::Committed);
    });
}

/// A client does its part, which costs the library's thread its life.
fn lose(client: fn(&World)) {
    with_time(|| assert!(served(client).is_err()));
}

fn served(client: impl FnOnce(&World) + 'static) -> Result<Served> {
    let world = Arc::new(World::new());
    let (waker, relief) = (Waker::new().unwrap(), Relief::new().unwrap());
    let driver = Driver::new(&world, waker.clone());
    let bench = Bench::new(&world, waker.clone());
    let theirs = Arc::clone(&world);
    let client = loom::thread::spawn(move || client(&theirs));
    let worker = IdleWorker::taken_over(Helper::start().unwrap(), waker, relief);
    let served = worker.serve(driver, bench);
    client.join().unwrap();
    served
}
