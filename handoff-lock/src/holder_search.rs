//! Which process holds the lock, by what the kernel shows.
//!
//! Its table of locks says which pid took a lock. That process may be gone while the lock lives on in a descriptor that was
//! inherited or passed on, so a process counts by the descriptors that it has.
//!
//! The holder is who has the directory. Two have it in a handover: then it is the one that has the file too, else the lease's
//! owner. Who has the file alone counts only if nobody has the directory: it is a peer that knows only the file.

use std::cell::OnceCell;
use std::collections::BTreeSet;

use crate::holder::is_alive;
use crate::sys::{Carried, LockTable, Takers};

/// A process that holds the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) pid: u32,
    pub(crate) alive: bool,
    /// It has a descriptor with the lock, which it did not take, and it does not own the lease.
    pub(crate) inherited: bool,
}

/// The holder. All processes are looked at only if the lock is taken and neither who took it nor `owner`, the lease's, has it.
pub(crate) fn find(table: &LockTable, owner: Option<u32>) -> Option<Found> {
    let takers = table.takers();
    let likely: BTreeSet<u32> = takers.dir.iter().chain(&takers.file).copied().chain(owner).collect();
    let look = |pid: u32| is_alive(pid).then(|| Seen { pid, carried: table.carried_by(pid) });
    let search = Search {
        owner,
        likely: likely.into_iter().filter_map(look).collect(),
        hides_dead_takers: table.hides_dead_takers(),
        takers,
    };
    let all = OnceCell::new();
    search.holder(&|| all.get_or_init(|| table.carriers().into_iter().map(Seen::of).collect::<Vec<_>>()))
}

/// Who shares the lock with other readers: those that took it and have it still, else whoever has it by inheritance. `table` is
/// that of the shared locks.
pub(crate) fn find_readers(table: &LockTable) -> Vec<Found> {
    let takers = table.takers();
    let pids: BTreeSet<u32> = takers.dir.iter().chain(&takers.file).copied().collect();
    if pids.is_empty() && !table.hides_dead_takers() {
        return Vec::new();
    }
    let look = |pid: &u32| is_alive(*pid).then(|| Seen { pid: *pid, carried: table.carried_by(*pid) });
    readers(&pids, pids.iter().filter_map(look), || table.carriers())
}

fn readers(
    takers: &BTreeSet<u32>,
    living: impl Iterator<Item = Seen>,
    look_at_all: impl FnOnce() -> Vec<(u32, Carried)>,
) -> Vec<Found> {
    let found = |alive, inherited| move |pid| Found { pid, alive, inherited };
    // One whose descriptors can't be seen is believed.
    let reading = living.filter(|seen| seen.carried.is_none_or(|carried| carried.dir || carried.file));
    let reading: Vec<Found> = reading.map(|seen| seen.pid).map(found(true, false)).collect();
    if !reading.is_empty() {
        return reading;
    }
    let inherited: Vec<Found> = look_at_all().into_iter().map(|(pid, _)| pid).map(found(true, true)).collect();
    if inherited.is_empty() { takers.iter().copied().map(found(false, false)).collect() } else { inherited }
}

/// One of the two inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inode {
    Directory,
    File,
}

/// A living process, and what its descriptors carry; `None` if they can't be seen.
#[derive(Debug, Clone, Copy)]
struct Seen {
    pid: u32,
    carried: Option<Carried>,
}

impl Seen {
    fn of((pid, carried): (u32, Carried)) -> Self {
        Self { pid, carried: Some(carried) }
    }

    fn has(self, inode: Inode) -> bool {
        self.carried.is_some_and(|carried| match inode {
            Inode::Directory => carried.dir,
            Inode::File => carried.file,
        })
    }
}

/// What is known without a look at every process.
#[derive(Debug)]
struct Search {
    owner: Option<u32>,
    takers: Takers,
    /// Who took a lock, and the lease's owner.
    likely: Vec<Seen>,
    hides_dead_takers: bool,
}

impl Search {
    fn holder<'a>(&self, look_at_all: &dyn Fn() -> &'a Vec<Seen>) -> Option<Found> {
        self.holder_of(Inode::Directory, look_at_all).or_else(|| self.holder_of(Inode::File, look_at_all))
    }

    fn holder_of<'a>(&self, inode: Inode, look_at_all: &dyn Fn() -> &'a Vec<Seen>) -> Option<Found> {
        if let Some(pid) = self.first(&self.likely, inode) {
            return Some(Found { pid, alive: true, inherited: false });
        }
        let takers = match inode {
            Inode::Directory => &self.takers.dir,
            Inode::File => &self.takers.file,
        };
        if takers.is_empty() && !self.hides_dead_takers {
            return None;
        }
        if let Some(pid) = self.first(look_at_all(), inode) {
            return Some(Found { pid, alive: true, inherited: true });
        }
        // The taker is gone, and its lock is in flight, or with a process that can't be seen.
        let dead = || takers.first().map(|pid| Found { pid: *pid, alive: false, inherited: false });
        self.believed(takers).map(|pid| Found { pid, alive: true, inherited: false }).or_else(dead)
    }

    /// Of those that have the inode, the one that is the holder before the others.
    fn first(&self, seen: &[Seen], inode: Inode) -> Option<u32> {
        let having = seen.iter().filter(|seen| seen.has(inode));
        having.max_by_key(|seen| (seen.has(Inode::File), Some(seen.pid) == self.owner)).map(|seen| seen.pid)
    }

    /// A taker whose descriptors can't be seen is believed; first one that took the file, which nobody touches who has not got
    /// the directory.
    fn believed(&self, takers: &[u32]) -> Option<u32> {
        let unseen = |of: &[u32]| {
            let is_one = |seen: &&Seen| seen.carried.is_none() && of.contains(&seen.pid);
            self.likely.iter().find(is_one).map(|seen| seen.pid)
        };
        unseen(&self.takers.file).or_else(|| unseen(takers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Option<Carried> = Some(Carried { dir: true, file: true });
    const DIR: Option<Carried> = Some(Carried { dir: true, file: false });
    const FILE: Option<Carried> = Some(Carried { dir: false, file: true });
    const NOTHING: Option<Carried> = Some(Carried { dir: false, file: false });
    const UNSEEN: Option<Carried> = None;

    fn search(dir: &[u32], file: &[u32], likely: &[(u32, Option<Carried>)]) -> Search {
        Search {
            owner: Some(1),
            takers: Takers { dir: dir.to_vec(), file: file.to_vec() },
            likely: likely.iter().map(|(pid, carried)| Seen { pid: *pid, carried: *carried }).collect(),
            hides_dead_takers: false,
        }
    }

    fn holder(search: &Search, all: &[(u32, Carried)]) -> Option<(u32, bool, bool)> {
        let all = all.iter().copied().map(Seen::of).collect();
        let found = search.holder(&|| &all);
        found.map(|found| (found.pid, found.alive, found.inherited))
    }

    fn of_likely(dir: &[u32], file: &[u32], likely: &[(u32, Option<Carried>)]) -> Option<(u32, bool, bool)> {
        let search = search(dir, file, likely);
        search.holder(&|| panic!("all processes are looked at")).map(|found| (found.pid, found.alive, found.inherited))
    }

    #[test]
    fn of_those_with_the_directory_the_one_with_the_file_comes_first_and_then_the_owner() {
        assert_eq!(of_likely(&[1], &[2], &[(1, DIR), (2, BOTH), (3, DIR)]), Some((2, true, false)));
        assert_eq!(of_likely(&[3], &[], &[(1, DIR), (3, DIR)]), Some((1, true, false)));
        assert_eq!(of_likely(&[3], &[2], &[(1, NOTHING), (2, FILE), (3, DIR)]), Some((3, true, false)));
        assert_eq!(of_likely(&[], &[2], &[(1, NOTHING), (2, FILE)]), Some((2, true, false)));
        assert_eq!(of_likely(&[], &[], &[(1, NOTHING)]), None);
    }

    #[test]
    fn who_has_it_without_having_taken_it_is_searched_for() {
        let all = [(7, DIR.unwrap()), (8, BOTH.unwrap()), (9, FILE.unwrap())];
        assert_eq!(holder(&search(&[4], &[4], &[]), &all), Some((8, true, true)));
        // A later process of the taker's pid has nothing.
        assert_eq!(holder(&search(&[4], &[], &[(4, NOTHING)]), &all[..1]), Some((7, true, true)));
        assert_eq!(holder(&search(&[], &[4], &[]), &all[2..]), Some((9, true, true)));
        let hidden = Search { hides_dead_takers: true, ..search(&[], &[], &[]) };
        assert_eq!(holder(&hidden, &all[..1]), Some((7, true, true)));
        assert_eq!(holder(&hidden, &[]), None);
    }

    #[test]
    fn a_taker_that_can_not_be_seen_is_believed_unless_another_is_seen_to_have_it() {
        assert_eq!(holder(&search(&[4], &[], &[(4, UNSEEN)]), &[]), Some((4, true, false)));
        assert_eq!(holder(&search(&[4], &[], &[(4, UNSEEN)]), &[(7, DIR.unwrap())]), Some((7, true, true)));
        // The one that took the directory long ago has passed it on.
        assert_eq!(holder(&search(&[4], &[5], &[(4, UNSEEN), (5, UNSEEN)]), &[]), Some((5, true, false)));
        // The lease's owner took nothing.
        assert_eq!(holder(&search(&[4], &[], &[(1, UNSEEN)]), &[]), Some((4, false, false)));
    }

    #[test]
    fn readers_are_those_who_have_it_and_only_without_one_somebody_else() {
        let readers = |living: &[(u32, Option<Carried>)], all: &[(u32, Carried)]| {
            let living = living.iter().map(|(pid, carried)| Seen { pid: *pid, carried: *carried });
            let readers = readers(&BTreeSet::from([4, 5, 6]), living, || all.to_vec());
            readers.into_iter().map(|found| (found.pid, found.alive, found.inherited)).collect::<Vec<_>>()
        };
        let taken = [(4, DIR), (5, NOTHING), (6, UNSEEN)];
        assert_eq!(readers(&taken, &[]), [(4, true, false), (6, true, false)]);
        assert_eq!(readers(&taken[1..2], &[(7, BOTH.unwrap())]), [(7, true, true)]);
        assert_eq!(readers(&[], &[]), [(4, false, false), (5, false, false), (6, false, false)]);
    }

    #[test]
    fn a_lock_that_nobody_has_is_still_its_dead_takers() {
        assert_eq!(holder(&search(&[4], &[5], &[]), &[]), Some((4, false, false)));
        assert_eq!(holder(&search(&[], &[5], &[]), &[]), Some((5, false, false)));
    }
}
