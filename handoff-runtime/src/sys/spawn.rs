//! Starting a program: clone(2) with shared memory and execveat(2), and the placing of descriptors for it.
//!
//! The child borrows the parent's memory and a small stack of its own until it executes the program. So a start costs the
//! same in a process of 10 MiB and in one of 10 GiB, a failure is told by a plain write, and the child can put its own pid
//! into the environment that it passes on. In that time it calls nothing but the system: no allocation, no lock, and
//! every signal is blocked, so no handler.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;
use std::sync::{Mutex, PoisonError};

use rustix::io::retry_on_intr;
use rustix::process::{WaitId, WaitIdOptions, waitid};

/// The first descriptor behind standard input, output and error.
pub(crate) const FIRST_FD: RawFd = 3;

const STACK_BYTES: usize = 64 << 10;
/// The stack of the child, made at the first start and kept. The mutex is also what serialises the starts.
static STACK: Mutex<Option<Stack>> = Mutex::new(None);

/// 52 fields of at most 20 digits, and a name.
pub(crate) const STAT_BYTES_MAX: usize = 2048;

/// A pid's digits and a closing zero.
const PID_BYTES: usize = 11;
/// A child without a program leaves with this, and nobody sees it: the reason was told before.
const EXIT_STATUS: c_int = 127;
const SIGNAL_MAX: c_int = 64;

/// Everything that a program is started with.
pub(crate) struct Order<'a> {
    /// The program, open (O_PATH is enough).
    pub(crate) binary: BorrowedFd<'a>,
    /// Where it was opened, for what can't be executed by descriptor: scripts.
    pub(crate) path: &'a CStr,
    /// Its arguments, the zeroth first.
    pub(crate) args: &'a [CString],
    /// Its environment, without the variable that follows.
    pub(crate) env: &'a [CString],
    /// The variable that is to hold the program's own pid.
    pub(crate) pid_variable: &'a str,
    /// What it finds from [`FIRST_FD`] on, in this order. All others are closed in it but the first three.
    pub(crate) fds: &'a [BorrowedFd<'a>],
}

/// A program that runs.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    /// Its own `/proc/self/stat` (proc_pid_stat(5)), read before it executed the program: from then on it may be hidden from
    /// us, and the start time that stands there stays the same.
    pub(crate) stat: Vec<u8>,
}

/// Where a start failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// No new process was to be had.
    Clone,
    /// The new process could not read `/proc/self/stat`.
    ReadStat,
    /// The descriptors could not be put in their places.
    PlaceFds,
    /// The system does not run this program.
    Exec,
}

/// Starts the program and returns when it runs.
pub(crate) fn start(order: &Order<'_>) -> Result<Started, (Step, io::Error)> {
    let mut pid_entry = format!("{}=", order.pid_variable).into_bytes();
    let digits_at = pid_entry.len();
    pid_entry.resize(digits_at + PID_BYTES, 0);
    let pid_entry = pid_entry.as_mut_ptr();
    let args: Vec<_> = order.args.iter().map(|arg| arg.as_ptr()).chain([ptr::null()]).collect();
    let ends = [pid_entry.cast_const().cast(), ptr::null()];
    let env: Vec<*const c_char> = order.env.iter().map(|entry| entry.as_ptr()).chain(ends).collect();
    let mut fds: Vec<_> = order.fds.iter().map(AsRawFd::as_raw_fd).collect();

    let mut child = Child {
        binary: order.binary.as_raw_fd(),
        path: order.path.as_ptr(),
        args: args.as_ptr(),
        env: env.as_ptr(),
        // SAFETY: inside the buffer, which is longer than `digits_at`.
        pid_digits: unsafe { pid_entry.add(digits_at) },
        fds: &mut fds,
        stat: [0; STAT_BYTES_MAX],
        stat_bytes: 0,
        failure: None,
    };
    // Read back through the same pointer: the child writes behind the compiler's back.
    let child: *mut Child<'_> = &raw mut child;
    let (pid, pidfd) = clone_and_wait(child).map_err(|error| (Step::Clone, error))?;
    // SAFETY: clone(2) with CLONE_VFORK returned, so the child has executed its program or left, and uses this no more.
    let child = unsafe { &*child };
    match child.failure {
        None => Ok(Started { pid, pidfd, stat: child.stat[..child.stat_bytes].to_vec() }),
        Some((step, errno)) => {
            // Fails only if the program ignores SIGCHLD, and then there is nothing to reap.
            let _ = retry_on_intr(|| waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED));
            Err((step, io::Error::from_raw_os_error(errno)))
        }
    }
}

/// Puts descriptors in place in a [`Command`]'s child: `fds[i]` becomes `FIRST_FD + i`. The command keeps them open.
pub(crate) fn place_at_exec(command: &mut Command, fds: Vec<OwnedFd>) {
    let mut scratch = vec![0; fds.len()];
    let place = move || {
        for (raw, fd) in scratch.iter_mut().zip(&fds) {
            *raw = fd.as_raw_fd();
        }
        place_fds(&mut scratch).map_err(io::Error::from_raw_os_error)
    };
    // SAFETY: pre_exec wants what is safe behind fork(2) in a program with threads: `place` calls fcntl(2) and dup2(2)
    // alone, and allocates nothing.
    unsafe { command.pre_exec(place) };
}

/// What the child works with. It is the parent's memory.
struct Child<'a> {
    binary: RawFd,
    path: *const c_char,
    args: *const *const c_char,
    env: *const *const c_char,
    pid_digits: *mut u8,
    fds: &'a mut [RawFd],
    stat: [u8; STAT_BYTES_MAX],
    stat_bytes: usize,
    failure: Option<(Step, c_int)>,
}

/// Runs [`child_main`] in a new process and waits until it has executed a program or left.
fn clone_and_wait(child: *mut Child<'_>) -> io::Result<(u32, OwnedFd)> {
    let mut stack = STACK.lock().unwrap_or_else(PoisonError::into_inner);
    let top = match &*stack {
        Some(stack) => stack.top(),
        None => stack.insert(Stack::map()?).top(),
    };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    let mut pidfd: RawFd = -1;
    let mask = block_signals();
    // SAFETY: clone(2). The stack is nobody else's while the mutex is held. With CLONE_VFORK this thread stands still until
    // the child is done with our memory, so all that `child` points to outlives its use, and nothing of it is used by two
    // at once. `child_main` keeps to what its comment says. The pidfd goes where the fifth argument points.
    let pid = unsafe { libc::clone(child_main, top, flags, child.cast(), &raw mut pidfd) };
    let error = io::Error::last_os_error();
    restore_signals(&mask);
    match u32::try_from(pid) {
        // SAFETY: a new descriptor (CLONE_PIDFD), close-on-exec and nobody else's.
        Ok(pid) => Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) })),
        Err(_) => Err(error),
    }
}

/// The child's life: ends in the program or in `_exit`. Calls the system alone.
extern "C" fn child_main(child: *mut c_void) -> c_int {
    // SAFETY: `start` passes a valid `Child` and does not touch it until we are done.
    let child = unsafe { &mut *child.cast::<Child<'_>>() };
    child.failure = Some(child.execute());
    // SAFETY: _exit(2) does not return and runs nothing of the parent's.
    unsafe { libc::_exit(EXIT_STATUS) }
}

impl Child<'_> {
    /// Becomes the program. Returns only if that failed.
    fn execute(&mut self) -> (Step, c_int) {
        reset_handlers();
        self.write_pid();
        if let Err(errno) = self.read_stat() {
            return (Step::ReadStat, errno);
        }
        let first_free = FIRST_FD + self.fds.len() as RawFd;
        if self.binary < first_free {
            match duplicate_from(self.binary, first_free) {
                Ok(binary) => self.binary = binary,
                Err(errno) => return (Step::PlaceFds, errno),
            }
        }
        if let Err(errno) = place_fds(self.fds) {
            return (Step::PlaceFds, errno);
        }
        close_at_exec_from(first_free);
        unblock_signals();
        (Step::Exec, self.exec())
    }

    fn write_pid(&mut self) {
        // SAFETY: getpid(2) always succeeds. The raw call, because a C library may remember the parent's pid.
        let mut rest = unsafe { libc::syscall(libc::SYS_getpid) } as u32;
        let mut digits = [0; PID_BYTES];
        let mut start = PID_BYTES - 1;
        while rest > 0 && start > 0 {
            start -= 1;
            digits[start] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        // SAFETY: `pid_digits` has room for PID_BYTES, and this is at most that many, the closing zero included.
        unsafe { ptr::copy_nonoverlapping(digits.as_ptr().add(start), self.pid_digits, PID_BYTES - start) };
    }

    fn read_stat(&mut self) -> Result<(), c_int> {
        // SAFETY: open(2) of a path that ends with zero.
        let fd =
            uninterrupted(|| unsafe { libc::open(c"/proc/self/stat".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) })?;
        // SAFETY: read(2) into a buffer of this length. One read is enough: the kernel makes the line at the first one.
        let bytes = uninterrupted(|| unsafe { libc::read(fd, self.stat.as_mut_ptr().cast(), STAT_BYTES_MAX) });
        // SAFETY: close(2) of the descriptor that was opened just now.
        unsafe { libc::close(fd) };
        self.stat_bytes = bytes?.unsigned_abs();
        Ok(())
    }

    fn exec(&self) -> c_int {
        // SAFETY: execveat(2) with AT_EMPTY_PATH; the lists end with a null pointer and hold strings that end with zero.
        unsafe {
            libc::syscall(libc::SYS_execveat, self.binary, c"".as_ptr(), self.args, self.env, libc::AT_EMPTY_PATH)
        };
        let errno = last_errno();
        // An interpreter could not open the script again by a descriptor that is closed at exec (execveat(2), BUGS), and
        // some sandboxes lack the call or forbid it.
        if ![libc::ENOENT, libc::ENOSYS, libc::EPERM].contains(&errno) {
            return errno;
        }
        // SAFETY: execve(2); as above.
        unsafe { libc::execve(self.path, self.args, self.env) };
        last_errno()
    }
}

/// Makes `fds[i]` descriptor `FIRST_FD + i`, open across exec. Changes the numbers in `fds` on the way.
fn place_fds(fds: &mut [RawFd]) -> Result<(), c_int> {
    let first_free = FIRST_FD + fds.len() as RawFd;
    // With each at or above its place, placing them in order overwrites none that is still to be placed.
    for (place, fd) in (FIRST_FD..).zip(fds.iter_mut()) {
        if *fd < place {
            *fd = duplicate_from(*fd, first_free)?;
        }
    }
    for (place, fd) in (FIRST_FD..).zip(fds.iter()) {
        if *fd == place {
            // SAFETY: fcntl(2) with F_SETFD takes any number.
            uninterrupted(|| unsafe { libc::fcntl(place, libc::F_SETFD, 0) })?;
        } else {
            duplicate_to(*fd, place)?;
        }
    }
    Ok(())
}

fn duplicate_from(fd: RawFd, lowest: RawFd) -> Result<RawFd, c_int> {
    // SAFETY: fcntl(2) with F_DUPFD_CLOEXEC takes any numbers.
    uninterrupted(|| unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, lowest) })
}

fn duplicate_to(fd: RawFd, place: RawFd) -> Result<RawFd, c_int> {
    // SAFETY: dup2(2) takes any numbers. What it closes is the child's copy alone.
    uninterrupted(|| unsafe { libc::dup2(fd, place) })
}

/// A kernel before 5.11 can't do this; there the descriptors that their owners did not mark stay open.
fn close_at_exec_from(first: RawFd) {
    // SAFETY: close_range(2) takes any numbers.
    unsafe { libc::syscall(libc::SYS_close_range, first, c_int::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

/// Makes the call, and makes it again while a signal interrupts it (signal(7)).
fn uninterrupted<T: PartialOrd + Default>(mut call: impl FnMut() -> T) -> Result<T, c_int> {
    loop {
        let result = call();
        if result >= T::default() {
            return Ok(result);
        }
        match last_errno() {
            libc::EINTR => {}
            errno => return Err(errno),
        }
    }
}

fn last_errno() -> c_int {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// No handler of the parent's may run in its memory when the signals are unblocked. What is ignored stays so (nohup(1)),
/// but for SIGPIPE, which the Rust runtime ignores and programs do not expect to be.
fn reset_handlers() {
    for signal in 1..=SIGNAL_MAX {
        let mut action = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: sigaction(2) fills the buffer when it returns 0, and refuses numbers that are no signal.
        if unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) } != 0 {
            continue;
        }
        // SAFETY: it was filled.
        let mut action = unsafe { action.assume_init() };
        let ignored = action.sa_sigaction == libc::SIG_IGN && signal != libc::SIGPIPE;
        if action.sa_sigaction != libc::SIG_DFL && !ignored {
            action.sa_sigaction = libc::SIG_DFL;
            // SAFETY: sigaction(2); without CLONE_SIGHAND the child's actions are its own.
            unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
        }
    }
}

/// Blocks every signal in this thread and gives the mask before.
fn block_signals() -> libc::sigset_t {
    let mut all = MaybeUninit::uninit();
    let mut before = MaybeUninit::uninit();
    // SAFETY: sigfillset(3) initialises `all`, pthread_sigmask(3) reads it and initialises `before`; with these arguments
    // neither fails.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        before.assume_init()
    }
}

fn restore_signals(mask: &libc::sigset_t) {
    // SAFETY: pthread_sigmask(3) reads the mask.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, ptr::null_mut()) };
}

/// Programs start with an empty mask; one that is pending by now meets no handler any more.
fn unblock_signals() {
    let mut none = MaybeUninit::uninit();
    // SAFETY: sigemptyset(3) initialises the set.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: it was initialised.
    restore_signals(unsafe { none.assume_init_ref() });
}

/// A mapping with a guard page at its lower end. Never unmapped.
struct Stack {
    base: *mut c_void,
}

// SAFETY: plain memory; it belongs to whoever holds the mutex.
unsafe impl Send for Stack {}

impl Stack {
    fn map() -> io::Result<Self> {
        let guard_bytes = rustix::param::page_size();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
        // SAFETY: mmap(2) of new anonymous memory at an address of the kernel's choice.
        let base = unsafe { libc::mmap(ptr::null_mut(), STACK_BYTES, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Self { base };
        // SAFETY: mprotect(2) of the first page of that mapping, which nobody uses yet.
        if unsafe { libc::mprotect(base, guard_bytes, libc::PROT_NONE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stack)
    }

    /// Stacks grow downwards on every machine that this runs on.
    fn top(&self) -> *mut c_void {
        // SAFETY: one past the end of the mapping.
        unsafe { self.base.add(STACK_BYTES) }
    }
}
