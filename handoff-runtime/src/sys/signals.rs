//! Signals as a descriptor of a loop (signalfd(2)), and threads that take none: no handler ever runs.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

#[cfg(feature = "service")]
pub(crate) use descriptor::Signals;

/// Keeps this thread out of the daemon's way until the guard is dropped, and for their whole lives the threads that it starts
/// meanwhile: signals to the process go to the daemon's own threads, which may handle them, or wait for them with sigwait(3) and
/// would miss those that a thread of ours took, or die of them. Faults of the thread itself stay unblocked, so that they are
/// reported as ever.
pub(crate) fn leave_to_other_threads() -> Restored {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigfillset(3) initialises the set that it is given.
    unsafe { libc::sigfillset(set.as_mut_ptr()) };
    // SAFETY: it was initialised just now.
    let mut set = unsafe { set.assume_init() };
    for fault in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGABRT] {
        // SAFETY: sigdelset(3) changes an initialised set.
        unsafe { libc::sigdelset(&raw mut set, fault) };
    }
    replace_mask(&set)
}

/// Which signals a thread does not take.
#[derive(Clone, Copy)]
pub(crate) struct Mask(libc::sigset_t);

impl Mask {
    /// That of the calling thread.
    pub(crate) fn of_this_thread() -> Self {
        let mut mask = MaybeUninit::uninit();
        // SAFETY: pthread_sigmask(3) without a new set initialises `mask` with the present one, and can't fail.
        unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), mask.as_mut_ptr());
            Self(mask.assume_init())
        }
    }

    /// Gives it to the calling thread until the guard is dropped.
    pub(crate) fn adopt(&self) -> Restored {
        replace_mask(&self.0)
    }
}

fn replace_mask(mask: &libc::sigset_t) -> Restored {
    let mut before = MaybeUninit::uninit();
    // SAFETY: pthread_sigmask(3) reads the mask, which is initialised, and initialises `before`. It fails only for an unknown
    // first argument.
    let before = unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const *mask, before.as_mut_ptr());
        before.assume_init()
    };
    Restored { before, of_this_thread: PhantomData }
}

/// When it is dropped, the thread has the mask again that it had before.
pub(crate) struct Restored {
    before: libc::sigset_t,
    of_this_thread: PhantomData<*const ()>,
}

impl Drop for Restored {
    fn drop(&mut self) {
        // SAFETY: pthread_sigmask(3) reads the set, which is initialised.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}

/// Reading signals instead of handling them, which a service does.
#[cfg(feature = "service")]
mod descriptor {
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

    use rustix::io::{Errno, retry_on_intr};

    use super::*;

    /// Blocked signals, to be read instead of handled.
    #[derive(Debug)]
    pub(crate) struct Signals {
        fd: OwnedFd,
    }

    impl Signals {
        /// Blocks these signals (SIGTERM and the like, by number) in this thread and in those that it starts from now on, so
        /// call it before there are others. Programs started by [`spawn`](super::super::spawn) get an empty mask again.
        pub(crate) fn block(signals: &[i32]) -> io::Result<Self> {
            let set = signal_set(signals)?;
            // SAFETY: pthread_sigmask(3) reads the set, which is initialised; no old set is asked for.
            let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            // SAFETY: signalfd(2) reads the set and gives a new descriptor or -1.
            let raw = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
            if raw < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the descriptor is new and nobody else's.
            Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(raw) } })
        }

        /// The number of the next signal that has arrived; `None`: none is left.
        pub(crate) fn next(&self) -> io::Result<Option<i32>> {
            let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
            match retry_on_intr(|| rustix::io::read(&self.fd, &mut info)) {
                // The number is the first field, `ssi_signo`.
                Ok(_) => Ok(Some(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))),
                Err(Errno::AGAIN) => Ok(None),
                Err(error) => Err(error.into()),
            }
        }
    }

    impl AsFd for Signals {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.fd.as_fd()
        }
    }

    fn signal_set(signals: &[i32]) -> io::Result<libc::sigset_t> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset(3) initialises the set that it is given.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: it was initialised just now.
        let mut set = unsafe { set.assume_init() };
        for &signal in signals {
            // SAFETY: sigaddset(3) changes an initialised set and refuses numbers that are no signal.
            if unsafe { libc::sigaddset(&raw mut set, signal) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(set)
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::testing::run_alone;

        #[test]
        #[ignore = "run by the next test in a process of its own"]
        fn sent_to_this_thread() {
            let signals = Signals::block(&[libc::SIGTERM, libc::SIGHUP]).unwrap();
            assert_eq!(signals.next().unwrap(), None);
            // SAFETY: raise(3) sends to this thread, which blocks the signal.
            unsafe { libc::raise(libc::SIGTERM) };
            assert_eq!(signals.next().unwrap(), Some(libc::SIGTERM));
            assert_eq!(signals.next().unwrap(), None);
        }

        #[test]
        fn a_blocked_signal_is_read_instead_of_handled() {
            run_alone("sys::signals::descriptor::tests::sent_to_this_thread");
        }

        /// As a daemon does that blocks its signals after it has become reachable, and waits for them.
        #[test]
        #[ignore = "run by the next test in a process of its own"]
        fn sent_to_a_process_with_a_thread_of_the_library() {
            let mask = signal_set(&[]).unwrap();
            let as_usual = replace_mask(&mask);
            let _library = crate::helper::Helper::start().unwrap();
            drop(as_usual);
            let signals = Signals::block(&[libc::SIGTERM]).unwrap();
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
            let mut fds = [rustix::event::PollFd::new(&signals, rustix::event::PollFlags::IN)];
            crate::sys::poll::wait(&mut fds, None).unwrap();
            assert_eq!(signals.next().unwrap(), Some(libc::SIGTERM));
        }

        #[test]
        fn a_signal_that_the_daemon_waits_for_never_reaches_the_librarys_thread() {
            // That process's other threads, which are the test harness's, inherit it.
            let _harness = leave_to_other_threads();
            run_alone("sys::signals::descriptor::tests::sent_to_a_process_with_a_thread_of_the_library");
        }

        #[test]
        fn what_is_no_signal_is_refused() {
            assert!(Signals::block(&[9999]).is_err());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocked() -> String {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap().to_owned()
    }

    #[test]
    fn a_mask_lasts_as_long_as_its_guard_and_is_inherited() {
        let seen = std::thread::spawn(|| {
            let (before, mask) = (blocked(), Mask::of_this_thread());
            let guard = leave_to_other_threads();
            let within = blocked();
            let inherits = std::thread::spawn(blocked);
            let adopted = mask.adopt();
            let as_before = blocked();
            drop(adopted);
            let again = blocked();
            drop(guard);
            (before.clone(), within.clone(), [inherits.join().unwrap(), again], [as_before, blocked()])
        });
        let (before, within, like_within, like_before) = seen.join().unwrap();
        assert_ne!(before, within);
        assert_eq!(like_within, [within.clone(), within]);
        assert_eq!(like_before, [before.clone(), before]);
    }
}
