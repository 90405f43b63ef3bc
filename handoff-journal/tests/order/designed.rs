//! The designed orders. A journal's records are ordered without a disk wait; only what is asked to be durable is synced. A history is for
//! people and is never synced.

use super::trace::Step;

pub(crate) const JOURNAL: &[Step] = &[
    Step {
        name: "open in a new directory",
        calls: &[
            ("mkdir state", "it is missing"),
            ("open .", "the directory that it stands in"),
            ("fsync .", "its name: else a power loss takes the journal with it"),
            ("create or open state/journal", "empty"),
            ("read state/journal at 0", "what is found decides"),
            ("write state/journal at 0", "zeros up to the full size: no later write needs a block"),
            ("fdatasync state/journal", "so that a later sync has no size to write"),
            ("open state", "the journal's directory"),
            ("fsync state", "the journal's name: it is durable on return"),
        ],
    },
    Step { name: "record", calls: &[("write state/journal at 0", "by one write; no record waits for the disk")] },
    Step { name: "sync", calls: &[("fdatasync state/journal", "the newest record")] },
    Step { name: "sync what is synced", calls: &[] },
    Step {
        name: "record again",
        calls: &[("write state/journal at 8192", "neither the newest slot nor the synced one")],
    },
    Step { name: "and again", calls: &[("write state/journal at 16384", "the third one")] },
    Step {
        name: "and once more",
        calls: &[("write state/journal at 8192", "back to the second: the first is what a power loss must leave")],
    },
    Step { name: "clear", calls: &[("write state/journal at 16384", "that nothing is under way is a record too")] },
    Step { name: "sync the end", calls: &[("fdatasync state/journal", "as above")] },
    Step {
        name: "sync when the file is gone",
        calls: &[
            ("create or open state/journal", "a new one in its place"),
            ("read state/journal at 0", "as above"),
            ("write state/journal at 0", "as above"),
            ("fdatasync state/journal", "as above"),
            ("open state", "as above"),
            ("fsync state", "the new file's name"),
            ("write state/journal at 0", "the newest record"),
            ("fdatasync state/journal", "which was to be durable"),
        ],
    },
    Step {
        name: "open again",
        calls: &[
            ("create or open state/journal", "it is there"),
            ("read state/journal at 0", "all slots"),
            ("read state/journal at 24576", "and nothing behind them"),
            ("fdatasync state/journal", "what was found may not be on the disk yet, and is built upon"),
            ("open state", "as above"),
            ("fsync state", "nor its name"),
        ],
    },
    Step {
        name: "set aside what can't be read",
        calls: &[
            ("create or open state/journal", "as above"),
            ("read state/journal at 0", "what is no journal"),
            ("read state/journal at 10", "and that is all"),
            ("create only state/journal.unreadable-1", "reserves the name: a rename replaces what is there"),
            ("rename state/journal to state/journal.unreadable-1", "nothing of it is lost"),
            ("create or open state/journal", "as in a new directory"),
            ("read state/journal at 0", "as in a new directory"),
            ("write state/journal at 0", "as in a new directory"),
            ("fdatasync state/journal", "as in a new directory"),
            ("open state", "as in a new directory"),
            ("fsync state", "both names"),
        ],
    },
    Step {
        name: "write atomically",
        calls: &[
            ("create or open state/journal", "as of one that is opened"),
            ("read state/journal at 0", "as of one that is opened"),
            ("read state/journal at 24576", "as of one that is opened"),
            ("fdatasync state/journal", "as of one that is opened"),
            ("open state", "as of one that is opened"),
            ("fsync state", "as of one that is opened"),
            ("write state/journal at 0", "beside what was there"),
            ("fdatasync state/journal", "durable on return"),
        ],
    },
    Step {
        name: "delete",
        calls: &[
            ("unlink state/journal", "no handover is under way"),
            ("open state", "as above"),
            ("fsync state", "a power loss must not bring it back"),
        ],
    },
];

pub(crate) const HISTORY: &[Step] = &[
    Step {
        name: "append to a new one",
        calls: &[
            ("create or open history to append", "made when it is needed; nobody else's line is written over"),
            ("write history", "a line by one write"),
        ],
    },
    Step {
        name: "append",
        calls: &[
            ("create or open history to append", "as above"),
            ("read history at 5", "does what is there end with a line feed?"),
            ("write history", "behind whatever is there by now"),
        ],
    },
    Step {
        name: "append to a torn one",
        calls: &[
            ("create or open history to append", "as above"),
            ("read history at 3", "it does not"),
            ("write history", "a line feed and the line, by one write: the torn one costs itself alone"),
        ],
    },
    Step {
        name: "append to a full one",
        calls: &[
            ("create or open history to append", "as above"),
            ("rename history to history.1", "in the place of the older one: the newest entries are kept"),
            ("create or open history to append", "a new one"),
            ("write history", "its first line"),
        ],
    },
];
