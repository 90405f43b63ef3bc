//! The kernel as far as two threads wake each other through it: eventfds, timerfds and poll(2).
//!
//! What is readable is decided by real eventfds, which know no thread, so it is level-triggered here as it is elsewhere. Each
//! call begins with a step that loom sees, and is done before the next one: loom changes threads only there. A poll that
//! would block parks its thread, so that loom sees it sleep. Time is a thread of its own: a timer that is set runs out at some moment
//! after that, at any at all, unless it is set anew before.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread::Thread;

loom::lazy_static! {
    static ref KERNEL: Kernel = Kernel { calls: AtomicUsize::new(0), state: Mutex::new(State::default()) };
}

struct Kernel {
    /// What loom sees of a call. Relaxed: no call of the kernel's is relied upon to order memory.
    calls: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sleepers: Vec<Sleeper>,
    /// The timers that are set, by the number that they were set under.
    running: Vec<(RawFd, OwnedFd)>,
    clock: Clock,
}

struct Sleeper {
    waits_for: Vec<RawFd>,
    thread: Thread,
}

#[derive(Default)]
enum Clock {
    #[default]
    Busy,
    Sleeps(Thread),
    /// It is not needed any more.
    Over,
}

/// Lets time pass while `play` runs.
pub(crate) fn with_time(play: impl FnOnce()) {
    let clock = loom::thread::spawn(run_out);
    play();
    let before = std::mem::replace(&mut enter().clock, Clock::Over);
    wake_clock(before);
    clock.join().unwrap();
}

fn run_out() {
    loop {
        let mut state = enter();
        if let Clock::Over = state.clock {
            return;
        }
        if let Some((number, timer)) = state.running.pop() {
            ring(state, number, &timer);
        } else {
            state.clock = Clock::Sleeps(loom::thread::current());
            drop(state);
            loom::thread::park();
        }
    }
}

fn wake_clock(clock: Clock) {
    if let Clock::Sleeps(clock) = clock {
        clock.unpark();
    }
}

fn enter() -> MutexGuard<'static, State> {
    KERNEL.calls.fetch_add(1, Ordering::Relaxed);
    KERNEL.state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes it readable, and wakes who waits for that.
fn ring(state: MutexGuard<'_, State>, number: RawFd, event: impl AsFd) {
    assert_eq!(rustix::io::write(event, &1u64.to_ne_bytes()), Ok(8));
    wake(state, number);
}

fn wake(mut state: MutexGuard<'_, State>, number: RawFd) {
    let woken: Vec<_> = state.sleepers.extract_if(.., |sleeper| sleeper.waits_for.contains(&number)).collect();
    drop(state);
    woken.iter().for_each(|sleeper| sleeper.thread.unpark());
}

/// In the place of `sys::counter`.
pub(crate) mod counter {
    use std::io;
    use std::time::Duration;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    pub(crate) fn event() -> io::Result<OwnedFd> {
        Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
    }

    pub(crate) fn count_up(event: &OwnedFd) -> io::Result<()> {
        ring(enter(), event.as_raw_fd(), event);
        Ok(())
    }

    pub(crate) fn timer() -> io::Result<OwnedFd> {
        event()
    }

    pub(crate) fn set_timer(timer: &OwnedFd, after: Duration) -> io::Result<()> {
        let mut state = enter();
        state.running.retain(|(set, _)| *set != timer.as_raw_fd());
        read_out(timer);
        if !after.is_zero() {
            state.running.push((timer.as_raw_fd(), timer.try_clone().unwrap()));
            let clock = std::mem::take(&mut state.clock);
            drop(state);
            wake_clock(clock);
        }
        Ok(())
    }

    pub(crate) fn take(counter: impl AsFd) -> io::Result<()> {
        let _entered = enter();
        read_out(counter);
        Ok(())
    }

    fn read_out(counter: impl AsFd) {
        // Nothing, if it was not readable.
        let _ = rustix::io::read(counter, &mut [0; 8]);
    }
}

/// A connection, a byte at a time.
pub(crate) mod wire {
    use std::os::unix::net::UnixStream;

    use rustix::net::{RecvFlags, recv};

    use super::*;

    pub(crate) fn write(from: &UnixStream, to: &UnixStream, byte: u8) {
        let state = enter();
        assert_eq!(rustix::io::write(from, &[byte]), Ok(1));
        wake(state, to.as_raw_fd());
    }

    /// What has arrived.
    pub(crate) fn read(at: &UnixStream) -> Vec<u8> {
        let _entered = enter();
        let mut bytes = vec![0; 16];
        let length = recv(at, &mut bytes[..], RecvFlags::DONTWAIT).map_or(0, |(length, _)| length);
        bytes.truncate(length);
        bytes
    }
}

/// In the place of `sys::poll`.
pub(crate) mod poll {
    use std::io;
    use std::time::Duration;

    use rustix::event::{PollFd, Timespec};

    use super::*;

    pub(crate) fn wait(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<()> {
        assert_eq!(timeout, None, "only what is called waits here");
        loop {
            let mut state = enter();
            if rustix::event::poll(fds, Some(&Timespec::default()))? > 0 {
                return Ok(());
            }
            let waits_for = fds.iter().map(|fd| fd.as_fd().as_raw_fd()).collect();
            state.sleepers.push(Sleeper { waits_for, thread: loom::thread::current() });
            drop(state);
            loom::thread::park();
        }
    }
}
