//! Signals as a descriptor of a loop (signalfd(2)), and threads that take none: no handler ever runs.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

#[cfg(feature = "service")]
pub(crate) use descriptor::Signals;

/// Keeps this thread out of the daemon's way until the guard is dropped: signals to the process go to the daemon's own threads, which may handle them,
/// or wait for them with signalfd(2) and would miss those that a thread of ours took. Faults of the thread itself stay
/// unblocked, so that they are reported as ever.
pub(crate) fn leave_to_other_threads() -> LeftToOthers {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigfillset(3) initialises the set that it is given.
    unsafe { libc::sigfillset(set.as_mut_ptr()) };
    // SAFETY: it was initialised just now.
    let mut set = unsafe { set.assume_init() };
    for fault in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGABRT] {
        // SAFETY: sigdelset(3) changes an initialised set.
        unsafe { libc::sigdelset(&raw mut set, fault) };
    }
    let mut before = MaybeUninit::uninit();
    // SAFETY: pthread_sigmask(3) reads the set, which is initialised, and initialises `before`. It fails only for an unknown
    // first argument.
    let before = unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, before.as_mut_ptr());
        before.assume_init()
    };
    LeftToOthers { before, of_this_thread: PhantomData }
}

/// As long as it lives, other threads take the signals.
pub(crate) struct LeftToOthers {
    before: libc::sigset_t,
    of_this_thread: PhantomData<*const ()>,
}

impl Drop for LeftToOthers {
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

    /// Hooks run on the thread that has conversed: what they start must not find every signal blocked.
    #[test]
    fn signals_are_left_to_others_only_as_long_as_the_guard_lives() {
        let seen = std::thread::spawn(|| {
            let before = blocked();
            let guard = leave_to_other_threads();
            let within = blocked();
            drop(guard);
            (before, within, blocked())
        });
        let (before, within, after) = seen.join().unwrap();
        assert_ne!(before, within);
        assert_eq!(before, after);
    }
}
