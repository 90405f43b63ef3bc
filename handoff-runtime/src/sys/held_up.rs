//! For tests: a process that can't be stopped for a while, as one that waits for its disk can't (vfork(2)).

use rustix::process::{Pid, WaitOptions, waitpid};

/// Runs `meanwhile` in a copy of this process. The calling thread waits for that where no signal reaches it but SIGKILL.
pub(crate) fn while_it_can_not_be_stopped(meanwhile: impl FnOnce()) {
    // SAFETY: clone(2), as fork(2) calls it: the child has memory of its own. It runs `meanwhile` and leaves; of this process's
    // other threads, which the child does not have, none may be holding a lock that `meanwhile` needs: the callers have none.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_VFORK | libc::SIGCHLD, 0, 0, 0, 0) };
    if pid == 0 {
        meanwhile();
        // SAFETY: _exit(2).
        unsafe { libc::_exit(0) };
    }
    let child = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("clone failed");
    waitpid(Some(child), WaitOptions::empty()).unwrap();
}
