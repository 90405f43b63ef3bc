//! A waker and a relief by themselves: what was said before a call is seen by the look that follows it.

use libtest_mimic::Trial;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use rustix::event::{PollFd, PollFlags};

use crate::kernel::{poll, with_time};
use crate::relief::Relief;
use crate::trial;
use crate::waker::Waker;

pub(crate) fn all() -> Vec<Trial> {
    vec![
        trial("waker::a_loop_sees_what_it_is_woken_for", 3, woken),
        trial("waker::two_who_wake_at_once_are_both_seen", 3, woken_by_two),
        trial("relief::who_stands_in_sees_what_is_called_for", 3, || with_time(called)),
        trial("relief::a_call_behind_one_that_was_taken_back_comes", 3, || with_time(called_again)),
        trial("relief::a_call_at_once_comes_whatever_was_before", 3, || with_time(called_at_once)),
    ]
}

/// Says so much, each time with a wake-up.
fn say(times: usize, said: &AtomicUsize, wake: impl Fn()) {
    for _ in 0..times {
        // The weakest that there is: the wake-up alone carries it.
        said.fetch_add(1, Ordering::Relaxed);
        wake();
    }
}

fn listen(until: usize, said: &AtomicUsize, wait: impl Fn()) {
    while said.load(Ordering::Relaxed) < until {
        wait();
    }
}

fn wait_for(waker: &Waker) {
    poll::wait(&mut [PollFd::new(waker, PollFlags::IN)], None).unwrap();
    waker.drain();
}

fn woken() {
    let (waker, said) = (Waker::new().unwrap(), Arc::new(AtomicUsize::new(0)));
    let (theirs, saying) = (waker.clone(), said.clone());
    let other = loom::thread::spawn(move || say(3, &saying, || theirs.wake()));
    listen(3, &said, || wait_for(&waker));
    other.join().unwrap();
}

fn woken_by_two() {
    let (waker, said) = (Waker::new().unwrap(), Arc::new(AtomicUsize::new(0)));
    let others = [1, 1].map(|times| {
        let (theirs, saying) = (waker.clone(), said.clone());
        loom::thread::spawn(move || say(times, &saying, || theirs.wake()))
    });
    listen(2, &said, || wait_for(&waker));
    others.into_iter().for_each(|other| other.join().unwrap());
}

fn called() {
    let (relief, said) = (Relief::new().unwrap(), Arc::new(AtomicUsize::new(0)));
    let (theirs, saying) = (relief.clone(), said.clone());
    let other = loom::thread::spawn(move || say(3, &saying, || theirs.in_a_moment()));
    listen(3, &said, || relief.wait());
    other.join().unwrap();
}

fn called_again() {
    let (relief, said) = (Relief::new().unwrap(), Arc::new(AtomicUsize::new(0)));
    let (theirs, saying) = (relief.clone(), said.clone());
    let other = loom::thread::spawn(move || {
        theirs.in_a_moment();
        theirs.not_needed();
        say(1, &saying, || theirs.in_a_moment());
    });
    listen(1, &said, || relief.wait());
    other.join().unwrap();
}

fn called_at_once() {
    let (relief, said) = (Relief::new().unwrap(), Arc::new(AtomicUsize::new(0)));
    let (theirs, saying) = (relief.clone(), said.clone());
    let other = loom::thread::spawn(move || {
        say(1, &saying, || theirs.in_a_moment());
        theirs.not_needed();
        say(1, &saying, || theirs.at_once());
    });
    listen(2, &said, || relief.wait());
    other.join().unwrap();
}
