//! What the kernel's answers about processes mean: one table of call, error number and kernel.
//!
//! Whoever asks about a process looks its answer up here and judges no error number by itself. Where a kernel, a sandbox or a
//! mount option answers in another way, one row is added.

use rustix::io::Errno;

/// How a process is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    /// pidfd_open(2), with the pid of a process that may be gone by now.
    PidfdOpen,
    /// pidfd_send_signal(2).
    PidfdSendSignal,
    /// waitid(2) with P_PIDFD.
    Waitid,
    /// open(2), read(2) or getdents(2) below `/proc/PID`.
    ReadProc,
}

impl Call {
    /// Its name in the manual, for people who look for it in the rules of a sandbox.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::PidfdOpen => "pidfd_open",
            Self::PidfdSendSignal => "pidfd_send_signal",
            Self::Waitid => "waitid",
            Self::ReadProc => "read of /proc",
        }
    }
}

/// What an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// There is no such process: it is dead, or the pid is a thread's by now.
    NoProcess,
    /// It is no child of ours, or it was reaped already: its exit status is not ours to have.
    NotOurs,
    /// It is dead, or it lives and the system hides it from us. Its pidfd tells which.
    Unseen,
    /// The kernel is too old for the call, or a sandbox forbids it.
    NoSuchCall,
    /// The system's own trouble, such as no descriptor left, or a right that we lack. It says nothing of the process.
    Trouble,
}

/// What it means that `call` failed with `errno`.
pub(super) fn meaning(call: Call, errno: Errno) -> Meaning {
    let row = TABLE.iter().find(|row| row.call == call && row.errno == errno);
    row.map_or(Meaning::Trouble, |row| row.meaning)
}

struct Row {
    call: Call,
    errno: Errno,
    meaning: Meaning,
}

const fn row(call: Call, errno: Errno, meaning: Meaning) -> Row {
    Row { call, errno, meaning }
}

/// The rows name the kernels that answer so; where none is named, all do that have the call.
const TABLE: [Row; 13] = [
    row(Call::PidfdOpen, Errno::SRCH, Meaning::NoProcess),
    // Linux 5.3 to 6.15: the pid of a thread that is no process.
    row(Call::PidfdOpen, Errno::INVAL, Meaning::NoProcess),
    // The same since Linux 6.16.
    row(Call::PidfdOpen, Errno::NOENT, Meaning::NoProcess),
    // Before Linux 5.3, and in some sandboxes.
    row(Call::PidfdOpen, Errno::NOSYS, Meaning::NoSuchCall),
    // The call itself needs no right: only a sandbox says so.
    row(Call::PidfdOpen, Errno::PERM, Meaning::NoSuchCall),
    row(Call::PidfdSendSignal, Errno::SRCH, Meaning::NoProcess),
    // Before Linux 5.1, and in some sandboxes. (EPERM is the usual want of a right: kill(2).)
    row(Call::PidfdSendSignal, Errno::NOSYS, Meaning::NoSuchCall),
    row(Call::Waitid, Errno::CHILD, Meaning::NotOurs),
    // Before Linux 5.4, which knows no P_PIDFD.
    row(Call::Waitid, Errno::INVAL, Meaning::NoSuchCall),
    // Nobody has the pid; or hidepid=2 and ProtectProc=invisible hide it, and /proc may not be mounted at all.
    row(Call::ReadProc, Errno::NOENT, Meaning::Unseen),
    // It died between the open and the read.
    row(Call::ReadProc, Errno::SRCH, Meaning::Unseen),
    // hidepid=1 and ProtectProc=noaccess; and a security module.
    row(Call::ReadProc, Errno::PERM, Meaning::Unseen),
    row(Call::ReadProc, Errno::ACCESS, Meaning::Unseen),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_means_what_it_says() {
        let expected = [
            (Call::PidfdOpen, Errno::SRCH, Meaning::NoProcess),
            (Call::PidfdOpen, Errno::INVAL, Meaning::NoProcess),
            (Call::PidfdOpen, Errno::NOENT, Meaning::NoProcess),
            (Call::PidfdOpen, Errno::NOSYS, Meaning::NoSuchCall),
            (Call::PidfdOpen, Errno::PERM, Meaning::NoSuchCall),
            (Call::PidfdSendSignal, Errno::SRCH, Meaning::NoProcess),
            (Call::PidfdSendSignal, Errno::NOSYS, Meaning::NoSuchCall),
            (Call::Waitid, Errno::CHILD, Meaning::NotOurs),
            (Call::Waitid, Errno::INVAL, Meaning::NoSuchCall),
            (Call::ReadProc, Errno::NOENT, Meaning::Unseen),
            (Call::ReadProc, Errno::SRCH, Meaning::Unseen),
            (Call::ReadProc, Errno::PERM, Meaning::Unseen),
            (Call::ReadProc, Errno::ACCESS, Meaning::Unseen),
        ];
        assert_eq!(expected.len(), TABLE.len(), "a line without a test");
        for (call, errno, means) in expected {
            assert_eq!(meaning(call, errno), means, "{call:?} {errno:?}");
        }
    }

    #[test]
    fn what_the_table_does_not_name_says_nothing_of_the_process() {
        for (call, errno) in [
            (Call::PidfdOpen, Errno::MFILE),
            (Call::PidfdOpen, Errno::NOMEM),
            (Call::PidfdSendSignal, Errno::PERM),
            (Call::PidfdSendSignal, Errno::INVAL),
            (Call::Waitid, Errno::BADF),
            (Call::ReadProc, Errno::MFILE),
            (Call::ReadProc, Errno::IO),
        ] {
            assert_eq!(meaning(call, errno), Meaning::Trouble, "{call:?} {errno:?}");
        }
    }
}
