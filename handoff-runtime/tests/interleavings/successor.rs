//! The successor's two threads: whatever the supervisor says, while the daemon waits, works or wants something, is dealt with,
//! and the library's thread ends with the daemon's part.

mod effects;
#[path = "../../src/successor/shifts.rs"]
mod shifts;

use std::sync::Arc;

use handoff_proto::successor::{Answer, Errand};
use libtest_mimic::Trial;

use crate::kernel::with_time;
use crate::trial;
use effects::{Core, Said, World};
use shifts::{Next, Shared, converse};

pub(crate) fn all() -> Vec<Trial> {
    vec![
        trial("successor::the_answer_to_the_greeting_comes", 2, || {
            play(|world| world.say(Said::Answer), |daemon, _| daemon.listen());
        }),
        trial("successor::the_turn_comes_after_some_work", 2, || {
            play(
                |world| {
                    world.say(Said::Answer);
                    world.say(Said::Answer);
                },
                |daemon, _| {
                    daemon.listen();
                    daemon.listen();
                },
            );
        }),
        trial("successor::the_supervisor_is_heard_while_the_daemon_works", 2, || {
            play(
                |world| {
                    world.say(Said::Answer);
                    world.wait_until_heard(1);
                    world.say(Said::Heartbeat);
                },
                |daemon, world| {
                    daemon.listen();
                    // Its work, in which it calls nothing of the library's.
                    world.wait_until_heard(2);
                },
            );
        }),
        trial("successor::an_answer_that_only_the_library_can_bring_comes", 2, || {
            play(
                |world| {
                    world.say(Said::Answer);
                    world.say(Said::Answer);
                },
                |daemon, _| {
                    daemon.listen();
                    daemon.expect_answer();
                },
            );
        }),
        trial("successor::so_does_an_errand", 2, || {
            play(
                |world| {
                    world.say(Said::Answer);
                    world.say(Said::Errand);
                },
                |daemon, _| {
                    daemon.0.listen_until_answered();
                    let both = [daemon.next(), daemon.next()];
                    assert!(both.iter().any(|next| matches!(next, Next::Answer(Answer::Done))));
                    assert!(both.iter().any(|next| matches!(next, Next::Errand { errand: Errand::TryLock, .. })));
                },
            );
        }),
        trial("successor::what_is_to_be_waited_for_after_a_call_is_waited_for", 2, || {
            play(
                |world| {
                    world.say(Said::Answer);
                    world.say(Said::Answer);
                },
                |daemon, _| {
                    daemon.listen();
                    daemon.0.lock().is_deaf = true;
                    daemon.call(|core| core.is_deaf = false);
                    daemon.expect_answer();
                },
            );
        }),
        trial("successor::a_wait_that_was_taken_over_does_not_go_on", 2, || {
            play(
                |world| {
                    world.say(Said::Answer);
                    world.say(Said::Answer);
                    world.wait_until_heard(2);
                    world.say(Said::Heartbeat);
                },
                |daemon, world| {
                    daemon.listen();
                    daemon.0.lock().is_deaf = true;
                    // Here the library's thread may begin to wait for less than it should later.
                    daemon.0.lock().is_deaf = false;
                    daemon.listen();
                    world.wait_until_heard(3);
                },
            );
        }),
        trial("successor::the_end_of_the_conversation_is_noticed", 2, || {
            play(
                |world| {
                    world.say(Said::Answer);
                    world.say(Said::Goodbye);
                },
                |daemon, _| {
                    daemon.listen();
                    assert!(matches!(daemon.next(), Next::Nothing));
                },
            );
        }),
        trial("successor::gives_up_whoever_waits", 2, || {
            play(
                |world| world.say(Said::Answer),
                |daemon, _| {
                    daemon.listen();
                    daemon.0.end();
                },
            );
        }),
    ]
}

/// What the daemon's thread does of `Driver`'s calls.
struct Daemon(Arc<Shared>);

impl Daemon {
    /// Waits for an answer itself.
    fn listen(&self) {
        self.0.listen_until_answered();
        self.expect_answer();
    }

    fn expect_answer(&self) {
        assert!(matches!(self.next(), Next::Answer(Answer::Done)));
    }

    fn next(&self) -> Next {
        self.0.next()
    }

    /// A call that changes what is to be waited for.
    fn call(&self, change: impl FnOnce(&mut Core)) {
        let mut core = self.0.lock();
        change(&mut core);
        core.wake_due = true;
    }
}

/// Three threads: the supervisor, the daemon's and the library's, which must all end.
fn play(supervisor: fn(&World), daemon: fn(&Daemon, &World)) {
    with_time(|| {
        let (world, polled) = World::new();
        let shared = Arc::new(Shared::new(Core::new(&world, &polled), polled).unwrap());
        let theirs = Arc::clone(&shared);
        let library = loom::thread::spawn(move || converse(&theirs));
        let theirs = Arc::clone(&world);
        let supervisor = loom::thread::spawn(move || supervisor(&theirs));
        daemon(&Daemon(Arc::clone(&shared)), &world);
        // One that has given up has parted.
        let _channel = shared.part();
        library.join().unwrap();
        supervisor.join().unwrap();
    });
}
