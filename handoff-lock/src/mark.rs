//! The epoch high-water mark: which epoch comes next, and what must be on the disk before it is used.
//!
//! The mark is reserved ahead: no epoch above it was ever used. It is kept twice, in the lock file and in a file beside it, so
//! that neither a torn sector nor a removed lock file makes an epoch go back.
//!
//! Invariants: an epoch is used only up to the mark of the lock file, and a mark gets there only after the second copy has it
//! durably, so the higher one of the readable marks bounds all epochs ever used; while one copy can be torn, the other one is
//! durable, so one is always readable. A mark whose sync failed is written again before it counts, whatever a later sync says.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::{Errno, pread, pwrite, retry_on_intr};

use crate::durable::{sync_bytes, sync_names};
use crate::error::LockError;
use crate::lease::{Numbered, are_boots_known};
use crate::lock_file::{Contents, Found, MARK_BYTES, encode_mark, parse_mark};

/// The second copy's name in the data dir.
pub(crate) const SECOND_COPY: &str = ".handoff.epoch";
const STAGING: &str = ".handoff.epoch.new";

/// How many epochs are reserved with one sync, where the last lease can be told from one of an earlier boot.
pub(crate) const RESERVED_AHEAD: u64 = 1024;

/// How many epochs to reserve ahead. Where boots have no names, no lease is certain to be the last one, and each acquisition
/// goes on above the mark: it would skip all that was reserved ahead. So nothing is, and each one syncs.
pub(crate) fn ahead() -> u64 {
    if are_boots_known() { RESERVED_AHEAD } else { 0 }
}

/// The epoch of an acquisition, and the mark that must be durable before it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NextEpoch {
    pub(crate) epoch: u64,
    pub(crate) mark: u64,
}

/// Why there is no next epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoEpoch {
    /// Something is there, but no mark can be read: any number could be one that was used.
    MarkLost,
    Exhausted,
}

/// The next epoch if the lock file alone, which has the inode number `file`, is certain about it: the last lease is known, and
/// its mark, which is durable, has room. A lease in a copy that was put back is not the last one. (One whose bytes were written
/// over the newer ones can't be told.)
pub(crate) fn next_if_reserved(contents: &Contents, file: u64) -> Option<NextEpoch> {
    let Found::Mark(mark) = contents.mark else { return None };
    let is_last = |newest: &&Numbered| newest.file == file && newest.lease.is_certainly_last();
    let last = contents.newest.as_ref().filter(is_last)?.lease.epoch;
    (last < mark).then(|| NextEpoch { epoch: last + 1, mark })
}

/// The next epoch in all other cases; its mark, `ahead` of it, has yet to be reserved. It may skip epochs, and never goes back.
pub(crate) fn next_above_all(contents: &Contents, second_copy: Found, ahead: u64) -> Result<NextEpoch, NoEpoch> {
    let marks = [contents.mark, second_copy];
    let mark =
        marks.into_iter().filter_map(|found| if let Found::Mark(mark) = found { Some(mark) } else { None }).max();
    if mark.is_none() && marks.contains(&Found::Unreadable) {
        return Err(NoEpoch::MarkLost);
    }
    let last = contents.newest.as_ref().map_or(0, |newest| newest.lease.epoch);
    let epoch = last.max(mark.unwrap_or(0));
    let epoch = epoch.checked_add(1).ok_or(NoEpoch::Exhausted)?;
    let mark = epoch.checked_add(ahead).ok_or(NoEpoch::Exhausted)?;
    Ok(NextEpoch { epoch, mark })
}

/// Whether the second copy is as high as the mark of the lock file.
pub(crate) fn covers(second_copy: Found, mark: u64) -> bool {
    matches!(second_copy, Found::Mark(second) if second >= mark)
}

/// How the second copy is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// In place, once the lock file's mark is durable. Needs no new file.
    Overwrite,
    /// By rename: a power failure must not tear it, as the lock file has no mark to fall back on.
    Replace,
}

/// One durable step of a reservation. Each is on the disk before the next one begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// What the lock file holds already, and its name.
    SyncFirst,
    OverwriteSecond,
    ReplaceSecond,
    WriteFirst,
}

/// Whether the marks that are there may be fallen back on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marks {
    Trusted,
    /// A write or a sync of one of them failed. A later sync that succeeds proves nothing.
    Doubtful,
}

impl Method {
    /// By what the lock file and the second copy hold. A lower mark in the lock file is none to fall back on: epochs above it may
    /// have been used, by a reservation that came no further than the second copy before the power failed.
    pub(crate) fn of(first: Found, second: Found) -> Self {
        match (first, second) {
            (Found::Mark(first), Found::Mark(second)) if first >= second => Self::Overwrite,
            _ => Self::Replace,
        }
    }

    /// The second copy first, as who reads a mark in the lock file uses it at once. While it is overwritten it can be torn, so the
    /// mark of the lock file that is fallen back on then is synced before.
    pub(crate) fn steps(self) -> &'static [Step] {
        match self {
            Self::Overwrite => &[Step::SyncFirst, Step::OverwriteSecond, Step::WriteFirst],
            Self::Replace => &[Step::ReplaceSecond, Step::WriteFirst],
        }
    }
}

/// Reads the second copy.
pub(crate) fn read_second_copy(dir: BorrowedFd<'_>, data_dir: &Path) -> Result<Found, LockError> {
    let path = data_dir.join(SECOND_COPY);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match retry_on_intr(|| openat(dir, SECOND_COPY, flags, Mode::empty())) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(Found::Nothing),
        // A link (FreeBSD says EMLINK) or a socket.
        Err(Errno::LOOP | Errno::MLINK | Errno::NXIO) => return Ok(Found::Unreadable),
        Err(error) => return Err(LockError::io(path, error)),
    };
    let mut bytes = [0; MARK_BYTES];
    match retry_on_intr(|| pread(&file, &mut bytes, 0)) {
        Ok(len) => parse_mark(&bytes[..len]).map_err(|newer| newer.at(path)),
        Err(Errno::ISDIR | Errno::SPIPE) => Ok(Found::Unreadable),
        Err(error) => Err(LockError::io(path, error)),
    }
}

/// Writes the second copy in place; it is durable on return. It may be torn by a power failure, so the lock file's mark must be
/// durable. Needs no new file.
pub(crate) fn overwrite_second_copy(dir: BorrowedFd<'_>, data_dir: &Path, mark: u64) -> Result<(), LockError> {
    let written = write_mark_file(dir, SECOND_COPY, mark).and_then(|file| sync_bytes(file.as_fd()));
    written.map_err(|error| LockError::io(data_dir.join(SECOND_COPY), error))
}

/// Puts a new second copy in the place of what is there; it is durable on return, and a power failure leaves the old one or
/// the new one.
pub(crate) fn replace_second_copy(dir: BorrowedFd<'_>, data_dir: &Path, mark: u64) -> Result<(), LockError> {
    let failed = |name: &str, error: Errno| {
        let _ = unlinkat(dir, STAGING, AtFlags::empty());
        LockError::io(data_dir.join(name), error)
    };
    let write = || write_mark_file(dir, STAGING, mark);
    // What is in the way may be no file at all.
    let file = write().or_else(|_| unlinkat(dir, STAGING, AtFlags::empty()).and_then(|()| write()));
    file.and_then(|file| sync_bytes(file.as_fd())).map_err(|error| failed(STAGING, error))?;
    renameat(dir, STAGING, dir, SECOND_COPY).map_err(|error| failed(SECOND_COPY, error))?;
    sync_names(dir).map_err(|error| LockError::io(data_dir, error))
}

fn write_mark_file(dir: BorrowedFd<'_>, name: &str, mark: u64) -> Result<OwnedFd, Errno> {
    // NONBLOCK: who opens a FIFO for writing would wait for a reader, open(2). It has no offset to write at, so that fails.
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = retry_on_intr(|| openat(dir, name, flags, Mode::RUSR | Mode::WUSR))?;
    match retry_on_intr(|| pwrite(&file, &encode_mark(mark), 0))? {
        MARK_BYTES => Ok(file),
        _ => Err(Errno::NOSPC),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::lease::tests::lease;

    fn contents(epoch: Option<u64>, mark: Found) -> Contents {
        Contents {
            newest: epoch.map(|epoch| Numbered { sequence: 1, file: 7, released: false, lease: lease(epoch) }),
            mark,
        }
    }

    fn of_another_boot(mut contents: Contents) -> Contents {
        if let Some(newest) = &mut contents.newest {
            newest.lease.owner.boot_id[0] ^= 1;
        }
        contents
    }

    #[test]
    fn within_the_reserve_the_epoch_goes_up_by_one_without_a_sync() {
        assert_eq!(next_if_reserved(&contents(Some(7), Found::Mark(9)), 7), Some(NextEpoch { epoch: 8, mark: 9 }));
        assert_eq!(next_if_reserved(&contents(Some(8), Found::Mark(9)), 7), Some(NextEpoch { epoch: 9, mark: 9 }));
    }

    #[test]
    fn without_certainty_nothing_is_used_unreserved() {
        assert_eq!(next_if_reserved(&contents(Some(9), Found::Mark(9)), 7), None);
        assert_eq!(next_if_reserved(&contents(None, Found::Mark(9)), 7), None);
        assert_eq!(next_if_reserved(&contents(Some(7), Found::Unreadable), 7), None);
        assert_eq!(next_if_reserved(&of_another_boot(contents(Some(7), Found::Mark(9))), 7), None);
        assert_eq!(next_if_reserved(&contents(Some(7), Found::Mark(9)), 8), None, "a copy of the file");
    }

    #[test]
    fn the_first_epoch_is_one() {
        let next = next_above_all(&contents(None, Found::Nothing), Found::Nothing, RESERVED_AHEAD);
        assert_eq!(next, Ok(NextEpoch { epoch: 1, mark: 1 + RESERVED_AHEAD }));
    }

    #[test]
    fn the_highest_of_all_counts() {
        let next =
            |contents: &Contents, second| next_above_all(contents, second, RESERVED_AHEAD).map(|next| next.epoch);
        assert_eq!(next(&contents(Some(9), Found::Mark(9)), Found::Mark(9)), Ok(10));
        assert_eq!(next(&contents(None, Found::Nothing), Found::Mark(1000)), Ok(1001));
        assert_eq!(next(&contents(None, Found::Unreadable), Found::Mark(1000)), Ok(1001));
        assert_eq!(next(&of_another_boot(contents(Some(5), Found::Mark(1000))), Found::Unreadable), Ok(1001));
        assert_eq!(next(&of_another_boot(contents(Some(2000), Found::Mark(1000))), Found::Nothing), Ok(2001));
    }

    #[test]
    fn where_nothing_is_reserved_ahead_no_epoch_is_skipped() {
        let next = next_above_all(&contents(Some(7), Found::Mark(7)), Found::Mark(7), 0);
        assert_eq!(next, Ok(NextEpoch { epoch: 8, mark: 8 }));
    }

    #[test]
    fn a_lost_mark_is_refused() {
        for (first, second) in [
            (Found::Unreadable, Found::Nothing),
            (Found::Unreadable, Found::Unreadable),
            (Found::Nothing, Found::Unreadable),
        ] {
            assert_eq!(next_above_all(&contents(None, first), second, RESERVED_AHEAD), Err(NoEpoch::MarkLost));
        }
    }

    #[test]
    fn the_last_epoch_is_not_followed_by_the_first() {
        assert_eq!(
            next_above_all(&contents(Some(u64::MAX), Found::Nothing), Found::Nothing, RESERVED_AHEAD),
            Err(NoEpoch::Exhausted)
        );
    }

    /// Of the writes and syncs.
    const ALL: u8 = u8::MAX;
    /// So few that they are used up again and again.
    const AHEAD: u64 = 3;

    /// A file that holds a mark: what a reader sees now, and what outlives a power failure.
    #[derive(Debug, Clone, Copy)]
    struct Copy {
        seen: Found,
        durable: Found,
        /// Whether the last write went over the bytes of the one before, and so can be torn.
        in_place: bool,
    }

    #[derive(Debug, Clone)]
    enum Event {
        /// One that may die after this many of its writes and syncs.
        Claim(u8),
        /// Likewise.
        Reserve(u8),
        /// Which unsynced writes reach the disk, and which of those are torn.
        PowerFailure {
            lease: bool,
            first: Fate,
            second: Fate,
        },
        LoseLockFile,
    }

    #[derive(Debug, Clone, std::marker::Copy)]
    enum Fate {
        Lost,
        Torn,
        Written,
    }

    fn event() -> impl Strategy<Value = Event> {
        let fate = || prop_oneof![Just(Fate::Lost), Just(Fate::Torn), Just(Fate::Written)];
        prop_oneof![
            8 => Just(Event::Claim(ALL)),
            2 => (0..8_u8).prop_map(Event::Claim),
            2 => prop_oneof![Just(ALL), 0..8_u8].prop_map(Event::Reserve),
            2 => (any::<bool>(), fate(), fate())
                .prop_map(|(lease, first, second)| Event::PowerFailure { lease, first, second }),
            1 => Just(Event::LoseLockFile),
        ]
    }

    impl Copy {
        const NOTHING: Self = Self { seen: Found::Nothing, durable: Found::Nothing, in_place: true };

        fn fail(&mut self, fate: Fate) {
            let unsynced = self.seen != self.durable;
            self.durable = match fate {
                Fate::Torn if unsynced && self.in_place => Found::Unreadable,
                Fate::Written => self.seen,
                _ => self.durable,
            };
            self.seen = self.durable;
        }
    }

    /// The disk. The order of writes and syncs is the real one.
    #[derive(Debug)]
    struct Disk {
        lease: Option<u64>,
        /// The mark that a living owner knows.
        owner: Option<u64>,
        this_boot: bool,
        durable_lease: Option<u64>,
        first: Copy,
        second: Copy,
    }

    impl Copy {
        fn write(&mut self, mark: u64, in_place: bool) {
            (self.seen, self.in_place) = (Found::Mark(mark), in_place);
        }

        fn sync(&mut self) {
            self.durable = self.seen;
        }
    }

    impl Disk {
        fn contents(&self) -> Contents {
            let contents = contents(self.lease, self.first.seen);
            if self.this_boot { contents } else { of_another_boot(contents) }
        }

        /// Reserves, unless it dies after so many writes and syncs; whether it did not.
        fn reserve(&mut self, mark: u64, mut left: u8) -> bool {
            for step in Method::of(self.first.seen, self.second.seen).steps() {
                // What a step writes, and what it syncs then.
                for is_sync in [false, true] {
                    if left == 0 {
                        return false;
                    }
                    left -= 1;
                    match (step, is_sync) {
                        (Step::SyncFirst, false) => {}
                        (Step::OverwriteSecond, false) => self.second.write(mark, true),
                        (Step::ReplaceSecond, false) => self.second.write(mark, false),
                        (Step::WriteFirst, false) => self.first.write(mark, true),
                        (Step::SyncFirst | Step::WriteFirst, true) => self.first.sync(),
                        (Step::OverwriteSecond | Step::ReplaceSecond, true) => self.second.sync(),
                    }
                }
            }
            left > 0
        }

        /// `None`: it died before it had its epoch.
        fn claim(&mut self, steps: u8) -> Option<u64> {
            let contents = self.contents();
            // The owner before has left.
            self.owner = None;
            let next = match next_if_reserved(&contents, 7) {
                Some(next) if steps > 0 => next,
                Some(_) => return None,
                None => {
                    let next = next_above_all(&contents, self.second.seen, AHEAD).expect("one copy is always whole");
                    self.reserve(next.mark, steps).then_some(next)?
                }
            };
            (self.lease, self.owner, self.this_boot) = (Some(next.epoch), Some(next.mark), true);
            Some(next.epoch)
        }

        /// What an owner of the epoch `last` does.
        fn reserve_epochs(&mut self, last: u64, steps: u8) {
            if let Some(known) = self.owner.take() {
                let mark = known.max(last + AHEAD);
                self.owner = self.reserve(mark, steps).then_some(mark);
            }
        }
    }

    fn no_epoch_is_used_twice(events: &[Event]) -> Result<(), String> {
        let mut disk = Disk {
            lease: None,
            owner: None,
            this_boot: true,
            durable_lease: None,
            first: Copy::NOTHING,
            second: Copy::NOTHING,
        };
        let mut last = 0;
        for event in events {
            match *event {
                Event::Claim(steps) => match disk.claim(steps) {
                    Some(epoch) if epoch <= last => return Err(format!("epoch {epoch} after {last}")),
                    Some(epoch) => last = epoch,
                    None => {}
                },
                Event::Reserve(steps) => disk.reserve_epochs(last, steps),
                Event::PowerFailure { lease, first, second } => {
                    if lease {
                        disk.durable_lease = disk.lease;
                    }
                    (disk.lease, disk.owner, disk.this_boot) = (disk.durable_lease, None, false);
                    disk.first.fail(first);
                    disk.second.fail(second);
                }
                // Not while the second copy is on its way to the disk, or torn: that would be two faults at a time.
                Event::LoseLockFile
                    if disk.second.durable == disk.second.seen && disk.second.seen != Found::Unreadable =>
                {
                    (disk.lease, disk.owner, disk.durable_lease, disk.first) = (None, None, None, Copy::NOTHING);
                }
                Event::LoseLockFile => {}
            }
        }
        Ok(())
    }

    #[test]
    fn no_epoch_is_used_twice_wherever_two_reservations_die() {
        const FATES: [Fate; 3] = [Fate::Lost, Fate::Torn, Fate::Written];
        let combinations = (0..8).flat_map(|first| (0..8).map(move |second| (first, second)));
        for (dies, dies_again) in combinations {
            for (first, second) in FATES.into_iter().flat_map(|first| FATES.map(|second| (first, second))) {
                let claims = vec![Event::Claim(ALL); AHEAD as usize];
                let died = [Event::Reserve(dies)];
                let lost = [Event::Reserve(dies_again), Event::PowerFailure { lease: false, first, second }];
                let events = [&claims[..], &died, &claims, &lost, &claims].concat();
                assert_eq!(no_epoch_is_used_twice(&events), Ok(()), "{events:?}");
            }
        }
    }

    #[test]
    fn no_epoch_is_used_twice_where_the_lock_file_lost_its_mark_and_the_second_copy_is_torn() {
        let (lost, torn) = ([Fate::Lost; 2], [Fate::Lost, Fate::Torn]);
        let power_failure = |[first, second]: [Fate; 2]| Event::PowerFailure { lease: false, first, second };
        for (dies, dies_again) in (0..8).flat_map(|first| (0..8).map(move |second| (first, second))) {
            let claims = vec![Event::Claim(ALL); AHEAD as usize + 1];
            let events = [Event::Claim(dies), Event::Claim(ALL), power_failure(lost)];
            let again = [Event::Claim(dies_again), power_failure(torn), Event::Claim(ALL)];
            let events = [&claims[..], &events, &again].concat();
            assert_eq!(no_epoch_is_used_twice(&events), Ok(()), "{events:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]
        #[test]
        fn no_epoch_is_used_twice_whatever_one_fault_at_a_time_does(events in proptest::collection::vec(event(), 1..60)) {
            prop_assert_eq!(no_epoch_is_used_twice(&events), Ok(()));
        }
    }
}
