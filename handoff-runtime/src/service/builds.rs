//! Which builds a service has run, and what to start when the one that serves dies: pure choice, and the files that make it
//! possible.
//!
//! Invariants:
//!
//! * A build that served is kept, by a hard link or a copy under `<state-dir>/builds`, as long as it may be started again: a
//!   file that is replaced or deleted does not matter.
//! * At most [`KEPT_MAX`] are kept.
//! * A build that was never given the data is never started without a handover.

use std::fs::{self, File, FileTimes, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::StatVfsMountFlags;
use serde::{Deserialize, Serialize};

use super::own_file;
use crate::events::{debug, warn};

/// The one that serves, the one before it, one that may be the only one that can read the data, and one that is about to
/// take over.
#[cfg(test)]
const KEPT_MAX: usize = 4;

/// One build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Build {
    /// Where it was found.
    pub(super) path: PathBuf,
    /// Its name on the shelf.
    kept: u64,
}

/// The builds of a service.
///
/// ```text
///             ordered                 committed
///   serving ──────────► + candidate ────────────► serving = candidate, previous = serving, on probation
///                           │ aborted                │ dies on probation
///                           ▼                        ▼
///               it had begun: alternative      serving = previous, alternative = what died
///                                                    │ can't read the data
///                                                    ▼
///                                              serving and alternative change places
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lineage {
    serving: Build,
    /// What served before, and handed over in good order.
    previous: Option<Build>,
    /// What had the data last, while an older one is to take them back.
    alternative: Option<Build>,
    /// What a handover under way is to lead to.
    candidate: Option<Build>,
    /// CLOCK_MONOTONIC.
    probation_until_ns: Option<u64>,
    /// A name is never used again: a copy that comes late must not pass for another build.
    next: u64,
}

/// Whether a successor that was not committed may have written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aborted {
    /// It was never told to begin, or the old process says that it serves again.
    Settled,
    /// It had begun, and nobody has said yet that the data can be read.
    Unsettled,
}

impl Lineage {
    /// Of a service that runs this file and has run no other.
    pub(super) fn new(path: PathBuf) -> Self {
        let serving = Build { path, kept: 0 };
        Self { serving, previous: None, alternative: None, candidate: None, probation_until_ns: None, next: 1 }
    }

    /// What serves, or is to be started.
    pub(super) fn serving(&self) -> &Build {
        &self.serving
    }

    /// What a rollback leads to.
    pub(super) fn previous(&self) -> Option<&Build> {
        self.previous.as_ref()
    }

    /// When the probation of what serves ends, if it is on probation.
    pub(super) fn probation_until_ns(&self) -> Option<u64> {
        self.probation_until_ns
    }

    /// A handover to this file begins; a file that is kept already is not kept again.
    pub(super) fn ordered(&mut self, path: &Path, shelf: &Shelf) {
        let known = self.all().find(|build| build.path == path && shelf.holds(build)).cloned();
        let build = known.unwrap_or_else(|| Build { path: path.to_owned(), kept: self.next });
        self.next = self.next.max(build.kept + 1);
        self.candidate = Some(build);
    }

    /// What the handover under way leads to.
    pub(super) fn candidate(&self) -> Option<&Build> {
        self.candidate.as_ref()
    }

    /// A handover to the build before this one begins.
    pub(super) fn ordered_back(&mut self) {
        self.candidate.clone_from(&self.previous);
    }

    /// The handover was committed.
    pub(super) fn committed(&mut self, probation_until_ns: u64) {
        if let Some(candidate) = self.candidate.take() {
            self.previous = Some(std::mem::replace(&mut self.serving, candidate));
            self.alternative = None;
            self.probation_until_ns = Some(probation_until_ns);
        }
    }

    /// It was not.
    pub(super) fn aborted(&mut self, how: Aborted) {
        let candidate = self.candidate.take();
        if how == Aborted::Unsettled && candidate.is_some() {
            self.alternative = candidate;
        }
    }

    /// A handover is under way, as far as is known.
    pub(super) fn is_handing_over(&self) -> bool {
        self.candidate.is_some()
    }

    /// What serves has stood its probation.
    pub(super) fn proved(&mut self) {
        self.probation_until_ns = None;
    }

    /// What serves can read the data.
    pub(super) fn heard(&mut self) {
        self.alternative = None;
    }

    /// What serves has died. True if it was on probation, and the build before it is to be started.
    pub(super) fn failed_at(&mut self, now_ns: u64) -> bool {
        let on_probation = self.probation_until_ns.take().is_some_and(|until| now_ns < until);
        match self.previous.take_if(|_| on_probation) {
            Some(previous) => {
                let died = std::mem::replace(&mut self.serving, previous);
                // A successor that had begun after it had the data last.
                self.alternative.get_or_insert(died);
                true
            }
            None => false,
        }
    }

    /// What should serve can't read the data. True if there is another one that had them last, which is to be started.
    pub(super) fn not_readable(&mut self) -> bool {
        match &mut self.alternative {
            Some(alternative) => {
                std::mem::swap(&mut self.serving, alternative);
                true
            }
            None => false,
        }
    }

    fn all(&self) -> impl Iterator<Item = &Build> {
        [Some(&self.serving), self.previous.as_ref(), self.alternative.as_ref(), self.candidate.as_ref()]
            .into_iter()
            .flatten()
    }
}

/// The directory of kept builds.
#[derive(Debug)]
pub(super) struct Shelf {
    /// None: nothing that is kept there could be executed.
    dir: Option<PathBuf>,
}

impl Shelf {
    /// In this state directory.
    pub(super) fn new(state_dir: &Path) -> Self {
        let noexec = rustix::fs::statvfs(state_dir).is_ok_and(|fs| fs.f_flag.contains(StatVfsMountFlags::NOEXEC));
        Self { dir: (!noexec).then(|| state_dir.join("builds")) }
    }

    /// Keeps this build from now on. A file that can't be linked is copied, on a thread of its own.
    pub(super) fn keep(&self, build: &Build) {
        let noexec = || Err(io::Error::other("the state directory is mounted noexec"));
        if let Err(error) = self.dir.as_ref().map_or_else(noexec, |dir| keep(dir, build)) {
            not_kept(&build.path, &error);
        }
    }

    /// The file to start: the one at its own path if it is still the same, else the kept one.
    pub(super) fn to_start(&self, build: &Build) -> PathBuf {
        match self.kept(build) {
            Some(kept) if !is_same(&build.path, &kept) => kept,
            Some(_) | None => build.path.clone(),
        }
    }

    /// Removes whatever is not of this lineage.
    pub(super) fn tidy(&self, lineage: &Lineage) {
        let Some(dir) = &self.dir else { return };
        for entry in dir.read_dir().into_iter().flatten().flatten() {
            let number = entry.path().file_stem().and_then(|name| name.to_str()?.parse().ok());
            if !lineage.all().any(|build| Some(build.kept) == number)
                && let Err(error) = fs::remove_file(entry.path())
            {
                debug!(path = %entry.path().display(), %error, "a kept build could not be removed");
            }
        }
    }

    /// Removes everything.
    pub(super) fn clear(&self) {
        let Some(dir) = &self.dir else { return };
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                debug!(path = %dir.display(), %error, "the kept builds could not be removed");
            }
            _ => {}
        }
    }

    /// Whether what is kept of it is what is at its path now.
    fn holds(&self, build: &Build) -> bool {
        self.kept(build).is_some_and(|kept| is_same(&build.path, &kept))
    }

    fn kept(&self, build: &Build) -> Option<PathBuf> {
        let kept = self.dir.as_ref()?.join(build.kept.to_string());
        kept.exists().then_some(kept)
    }
}

fn keep(dir: &Path, build: &Build) -> io::Result<()> {
    let kept = dir.join(build.kept.to_string());
    // A name is never used again: whatever is now at its path, this is the build.
    if kept.exists() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    // A symbolic link is followed: what it leads to is what runs.
    let real = build.path.canonicalize()?;
    match fs::hard_link(&real, &kept) {
        Ok(()) => return Ok(()),
        Err(error) => debug!(path = %real.display(), %error, "a build is copied, because it can't be linked"),
    }
    // Opened here: what is copied is what is at the path now.
    let source = File::open(&real)?;
    let copying = move || {
        if let Err(error) = copy(&source, &kept) {
            not_kept(&real, &error);
        }
    };
    thread::Builder::new().name("keep".to_owned()).spawn(copying).map(drop)
}

/// With its mode, and with its time, by which a copy is known.
fn copy(mut source: &File, kept: &Path) -> io::Result<()> {
    let part = kept.with_extension("part");
    let result = (|| {
        let mut copy = own_file::create_staging(&part)?;
        io::copy(&mut source, &mut copy)?;
        let metadata = source.metadata()?;
        copy.set_permissions(Permissions::from_mode(metadata.mode() & 0o777))?;
        copy.set_times(FileTimes::new().set_modified(metadata.modified()?))?;
        fs::rename(&part, kept)
    })();
    result.inspect_err(|_| drop(fs::remove_file(&part)))
}

fn not_kept(path: &Path, error: &io::Error) {
    warn!(path = %path.display(), %error, "this build can't be kept; a rollback to it will start what is at its path then");
}

/// Whether two paths lead to one file, or one to a copy of the other.
fn is_same(path: &Path, kept: &Path) -> bool {
    let (Ok(path), Ok(kept)) = (path.metadata(), kept.metadata()) else { return false };
    let inode = |file: &fs::Metadata| (file.dev(), file.ino());
    let look = |file: &fs::Metadata| (file.len(), file.mtime(), file.mtime_nsec());
    inode(&path) == inode(&kept) || look(&path) == look(&kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scene {
        dir: tempfile::TempDir,
        shelf: Shelf,
        lineage: Lineage,
    }

    impl Scene {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let first = dir.path().join("a");
            fs::write(&first, "a").unwrap();
            let shelf = Shelf::new(dir.path());
            let lineage = Lineage::new(first);
            shelf.keep(lineage.serving());
            Self { dir, shelf, lineage }
        }

        fn order(&mut self, name: &str) {
            let path = self.dir.path().join(name);
            if !path.exists() {
                fs::write(&path, name).unwrap();
            }
            self.lineage.ordered(&path, &self.shelf);
            self.shelf.keep(self.lineage.candidate.as_ref().unwrap());
        }

        fn commit(&mut self, name: &str) {
            self.order(name);
            self.lineage.committed(100);
            self.shelf.tidy(&self.lineage);
        }

        fn starts(&self) -> String {
            fs::read_to_string(self.shelf.to_start(&self.lineage.serving)).unwrap()
        }

        fn kept(&self) -> usize {
            self.dir.path().join("builds").read_dir().unwrap().count()
        }
    }

    #[test]
    fn who_dies_on_probation_is_followed_by_the_build_before_it() {
        let mut scene = Scene::new();
        scene.commit("b");
        assert_eq!(scene.starts(), "b");
        assert!(scene.lineage.failed_at(99));
        assert_eq!(scene.starts(), "a");
        assert!(!scene.lineage.failed_at(99), "the build before is on no probation");
        assert!(scene.lineage.not_readable(), "it can't read what b wrote");
        assert_eq!(scene.starts(), "b");
        assert!(scene.lineage.not_readable(), "b can't read it either, after all");
        scene.lineage.heard();
        assert!(!scene.lineage.not_readable());
        assert_eq!(scene.starts(), "a");
    }

    #[test]
    fn who_has_stood_its_probation_is_started_again() {
        for prove in [
            |_: &mut Lineage| 100,
            |lineage: &mut Lineage| {
                lineage.proved();
                50
            },
        ] {
            let mut scene = Scene::new();
            scene.commit("b");
            let now_ns = prove(&mut scene.lineage);
            assert!(!scene.lineage.failed_at(now_ns));
            assert_eq!(scene.starts(), "b");
        }
    }

    #[test]
    fn what_is_replaced_or_deleted_is_still_there() {
        let mut scene = Scene::new();
        let first = scene.dir.path().join("a");
        assert_eq!(scene.shelf.to_start(scene.lineage.serving()), first, "its own path, while it is the same");
        fs::write(scene.dir.path().join("new"), "other").unwrap();
        fs::rename(scene.dir.path().join("new"), &first).unwrap();
        assert_eq!(scene.starts(), "a");
        fs::remove_file(&first).unwrap();
        assert_eq!(scene.starts(), "a");
        scene.commit("b");
        scene.lineage.ordered_back();
        scene.lineage.committed(100);
        assert_eq!(scene.starts(), "a");
        assert_eq!(scene.lineage.previous().unwrap().path, scene.dir.path().join("b"));
    }

    #[test]
    fn a_copy_is_known_and_executable() {
        let scene = Scene::new();
        let (from, to) = (scene.dir.path().join("a"), scene.dir.path().join("copy"));
        fs::set_permissions(&from, Permissions::from_mode(0o751)).unwrap();
        copy(&File::open(&from).unwrap(), &to).unwrap();
        assert!(is_same(&from, &to));
        assert_eq!(to.metadata().unwrap().permissions().mode() & 0o777, 0o751);
        fs::write(&from, "longer").unwrap();
        assert!(!is_same(&from, &to));
    }

    #[test]
    fn few_are_kept_and_the_same_one_once() {
        let mut scene = Scene::new();
        for name in ["b", "c", "d", "e", "f"] {
            scene.commit(name);
            assert_eq!(scene.kept(), 2);
        }
        for _ in 0..5 {
            scene.commit("f");
        }
        assert_eq!(scene.kept(), 1);
        scene.commit("g");
        scene.order("h");
        scene.lineage.aborted(Aborted::Unsettled);
        scene.order("i");
        scene.shelf.tidy(&scene.lineage);
        assert_eq!(scene.kept(), KEPT_MAX);
        scene.lineage.aborted(Aborted::Settled);
        assert_eq!(scene.lineage.alternative.as_ref().unwrap().path, scene.dir.path().join("h"));
        scene.shelf.clear();
        assert!(!scene.dir.path().join("builds").exists());
    }
}
