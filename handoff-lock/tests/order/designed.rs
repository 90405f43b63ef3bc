//! The designed orders. Nothing here is synced but the mark: after a power loss no process is alive, so who owned what is worthless, and only
//! an epoch must never be used twice.

use super::trace::Step;

pub(crate) const LOCK: &[Step] = &[
    Step {
        name: "acquire",
        calls: &[
            ("open .", "the first of the two inodes"),
            ("open ..", "to look the directory's name up there, should its path be hidden one day"),
            ("create or open .handoff.lock", "below the directory that is open, whatever its path leads to by now"),
            ("lock .", "first: a replaced file makes no second owner, and who is late never touches the file"),
            ("lock .handoff.lock", "second, so that peers that lock the file alone are excluded"),
            ("read .handoff.lock at 0", "under the lock: who reads before decides on a lease that may be another's"),
            ("write .handoff.lock at 512", "the next lease, Opening, into the slot that does not hold the newest"),
            ("create or empty .handoff.pidfile.new", "for people, after the lease: nobody waits for it"),
            ("write .handoff.pidfile.new at 0", "its text"),
            ("rename .handoff.pidfile.new to .handoff.pidfile", "whole or not at all; not synced"),
        ],
    },
    Step {
        name: "acquire what is held",
        calls: &[
            ("open .", "as above"),
            ("open ..", "as above"),
            ("create or open .handoff.lock", "as above"),
            ("lock .: EAGAIN", "once: it returns at once, and never touches the file of a service that lives"),
            ("read .handoff.lock at 0", "to name the holder; nothing is written"),
        ],
    },
    Step { name: "stamp", calls: &[("write .handoff.lock at 0", "the other slot, by one write, not synced")] },
    Step { name: "activate", calls: &[("write .handoff.lock at 512", "the slots take turns")] },
    Step { name: "withdraw", calls: &[("unlink .handoff.pidfile", "before the drain, so that nobody waits for it")] },
    Step {
        name: "announce",
        calls: &[
            ("create or empty .handoff.pidfile.new", "as above"),
            ("write .handoff.pidfile.new at 0", "as above"),
            ("rename .handoff.pidfile.new to .handoff.pidfile", "as above"),
        ],
    },
    Step {
        name: "seal",
        calls: &[
            ("write .handoff.lock at 0", "Sealed, while the lock is held: who takes it reads this"),
            ("unlink .handoff.pidfile", "while it is certainly ours"),
            ("unlock .handoff.lock", "in the opposite order: who gets the directory finds the file free"),
            ("unlock .", "from here on another may own it"),
        ],
    },
    Step {
        name: "take it back",
        calls: &[
            ("lock .", "with the descriptors that are open still: none has to be made"),
            ("lock .handoff.lock", "as above"),
            ("read .handoff.lock at 0", "under the lock"),
        ],
    },
    Step { name: "claim", calls: &[("write .handoff.lock at 512", "one write is all that somebody waits for")] },
    Step {
        name: "write a lease when the lock file is gone",
        calls: &[
            ("create or open .handoff.lock", "a new one in its place"),
            ("lock .handoff.lock", "before anything is in it: else a peer that locks the file alone would own it"),
            ("write .handoff.lock at 0", "the last lease, and the mark: who comes next finds both"),
            ("write .handoff.lock at 0", "then the lease that was to be written"),
        ],
    },
    Step {
        name: "release",
        calls: &[
            ("unlink .handoff.pidfile: ENOENT", "there was none: it was claimed quietly. One of a dead owner would go"),
            (
                "write .handoff.lock at 512",
                "the same lease, with a word that its owner let go, for who can't ask the kernel",
            ),
            ("unlock .handoff.lock", "as above"),
            ("unlock .", "as above"),
        ],
    },
    Step {
        name: "break a dead owner's lock",
        calls: &[
            ("open .", "as above"),
            ("open ..", "as above"),
            ("create or open .handoff.lock", "the same file: no lock is ever broken by unlinking"),
            ("lock .", "the kernel has freed it"),
            ("lock .handoff.lock", "as above"),
            ("read .handoff.lock at 0", "as above"),
            ("write .handoff.lock at 512", "as above, beside the dead owner's lease"),
            ("create or empty .handoff.pidfile.new", "as above"),
            ("write .handoff.pidfile.new at 0", "as above"),
            ("rename .handoff.pidfile.new to .handoff.pidfile", "in the place of the dead owner's"),
        ],
    },
    Step {
        name: "drop",
        calls: &[
            ("unlink .handoff.pidfile", "while it is certainly ours"),
            ("write .handoff.lock at 0", "as above"),
            ("unlock .handoff.lock", "explicitly: a child that is just being spawned has copies of the descriptors"),
            ("unlock .", "as above"),
        ],
    },
    Step {
        name: "read while nobody writes",
        calls: &[
            ("open .", "as above"),
            ("open ..", "as above"),
            ("share .", "first, as an owner locks it: who owns the data has it"),
            ("open .handoff.lock", "to read only; a reader creates nothing"),
            ("share .handoff.lock", "against peers that lock the file alone"),
        ],
    },
    Step {
        name: "acquire what is being read",
        calls: &[
            ("open .", "as above"),
            ("open ..", "as above"),
            ("create or open .handoff.lock", "as above"),
            ("lock .: EAGAIN", "as of what is held"),
            ("read .handoff.lock at 0", "as of what is held"),
        ],
    },
    Step {
        name: "read no more",
        calls: &[
            ("unlock .handoff.lock", "in the opposite order, and explicitly, as an owner does"),
            ("unlock .", "nothing is written"),
        ],
    },
    Step { name: "copy the directory", calls: &[] },
    Step { name: "adopt it", calls: &[] },
    Step {
        name: "seal and pass",
        calls: &[
            ("write .handoff.lock at 0", "as in every seal"),
            ("unlink .handoff.pidfile", "as in every seal"),
            (
                "unlock .handoff.lock",
                "this alone: the directory stays locked by the description that the successor has too",
            ),
        ],
    },
    Step {
        name: "lock what was passed",
        calls: &[
            ("lock .", "has it already; or takes it, if the peer had not locked it"),
            ("lock .handoff.lock", "decides between the two"),
            ("read .handoff.lock at 0", "as above"),
        ],
    },
    Step { name: "leave it to the successor", calls: &[] },
    Step {
        name: "release what was passed",
        calls: &[
            ("unlink .handoff.pidfile: ENOENT", "as above"),
            ("write .handoff.lock at 0", "as above"),
            ("unlock .handoff.lock", "as above; the directory is closed, as a copy of it may be somebody's yet"),
        ],
    },
];

pub(crate) const MARK: &[Step] = &[
    Step {
        name: "acquire in a new directory",
        calls: &[
            ("open data: ENOENT", "mostly it is there"),
            ("mkdir data", "not synced: with nothing in it, nothing is lost"),
            ("open data", "as of one that was there"),
            ("open ..", "as of one that was there"),
            ("create or open .handoff.lock", "as of one that was there"),
            ("lock data", "as of one that was there"),
            ("lock data/.handoff.lock", "as of one that was there"),
            ("read data/.handoff.lock at 0", "no lease and no mark"),
            ("open .handoff.epoch: ENOENT", "the second copy could know of epochs that were used"),
            ("create or open .handoff.epoch.new", "a new file, since the lock file has no mark to fall back on"),
            ("write data/.handoff.epoch.new at 0", "the mark"),
            (
                "fdatasync data/.handoff.epoch.new",
                "before it has its name: a power loss leaves the old one or the new one",
            ),
            ("rename .handoff.epoch.new to .handoff.epoch", "in one step"),
            ("fsync data", "its name, and with it the lock file's"),
            ("write data/.handoff.lock at 4096", "only now: who reads a mark there uses it at once"),
            ("fdatasync data/.handoff.lock", "before an epoch of it is used"),
            ("write data/.handoff.lock at 512", "the first lease, in a sector of its own, not synced"),
            ("create or empty .handoff.pidfile.new", "as of one that was there"),
            ("write data/.handoff.pidfile.new at 0", "as of one that was there"),
            ("rename .handoff.pidfile.new to .handoff.pidfile", "as of one that was there"),
        ],
    },
    Step {
        name: "reserve when enough is left",
        calls: &[
            ("open .handoff.epoch", "is the second copy as high as the first?"),
            ("read data/.handoff.epoch at 0", "it is: nothing is written and nothing synced"),
        ],
    },
    Step {
        name: "reserve when the second copy is lost",
        calls: &[
            ("open .handoff.epoch: ENOENT", "as above"),
            ("create or open .handoff.epoch.new", "as above"),
            ("write data/.handoff.epoch.new at 0", "as above"),
            ("fdatasync data/.handoff.epoch.new", "as above"),
            ("rename .handoff.epoch.new to .handoff.epoch", "as above"),
            ("fsync data", "as above"),
            ("write data/.handoff.lock at 4096", "as above"),
            ("fdatasync data/.handoff.lock", "as above"),
        ],
    },
    Step {
        name: "reserve when little is left",
        calls: &[
            ("open .handoff.epoch", "as above"),
            ("read data/.handoff.epoch at 0", "it is whole"),
            (
                "fdatasync data/.handoff.lock",
                "first the mark that is to be fallen back on while the second copy is torn",
            ),
            ("fsync data", "and its name"),
            ("create or open .handoff.epoch", "in place: this needs no new file, on a full disk neither"),
            ("write data/.handoff.epoch at 0", "the mark"),
            ("fdatasync data/.handoff.epoch", "before the first copy promises it"),
            ("write data/.handoff.lock at 4096", "as above"),
            ("fdatasync data/.handoff.lock", "as above"),
        ],
    },
];
