//! Sees when the control path no longer leads to our socket, without looking at intervals (inotify(7)).
//!
//! The watch is on the socket's inode, not on its directory: unlinking it, renaming it, or renaming another over it shows
//! there, and nothing that happens beside it wakes the loop.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

use crate::events;

const EVENTS_BYTES: usize = 1024;

/// A watch of one path. Without one (no inotify instance is left) a removed path is published again after the next handover.
#[derive(Debug)]
pub(super) struct PathWatch {
    inotify: Option<Arc<OwnedFd>>,
}

impl PathWatch {
    /// Watches what `path` leads to.
    pub(super) fn new(path: &Path) -> Self {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK);
        if let Err(error) = &inotify {
            events::warn!(%error, "the control path can't be watched");
        }
        let watch = Self { inotify: inotify.ok().map(Arc::new) };
        watch.again(path);
        watch
    }

    /// Watches what `path` leads to now. Ask afterwards whether that is still our socket.
    pub(super) fn again(&self, path: &Path) {
        let flags = WatchFlags::ATTRIB | WatchFlags::MOVE_SELF | WatchFlags::DELETE_SELF | WatchFlags::DONT_FOLLOW;
        if let Some(fd) = &self.inotify
            && let Err(error) = inotify::add_watch(&**fd, path, flags)
        {
            events::warn!(path = %path.display(), %error, "the control path can't be watched");
        }
    }

    /// Forgets what has happened so far.
    pub(super) fn drain(&self) {
        let Some(fd) = &self.inotify else { return };
        let mut buffer = [MaybeUninit::uninit(); EVENTS_BYTES];
        let mut events = Reader::new(fd, &mut buffer);
        while let Ok(event) = events.next() {
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                events::debug!("too many changes of the control path");
            }
        }
    }

    /// What becomes readable when something has happened.
    pub(super) fn polled(&self) -> Option<Arc<OwnedFd>> {
        self.inotify.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags};

    use super::*;
    use crate::sys::poll;

    fn has_seen(watch: &PathWatch) -> bool {
        let fd = watch.polled().unwrap();
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        poll::wait(&mut fds, Some(Duration::ZERO)).unwrap();
        !fds[0].revents().is_empty()
    }

    #[test]
    fn sees_the_path_go_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("control"), dir.path().join("other"));
        let _first = UnixListener::bind(&path).unwrap();
        let watch = PathWatch::new(&path);
        fs::write(&other, "x").unwrap();
        fs::remove_file(&other).unwrap();
        assert!(!has_seen(&watch));

        let _second = UnixListener::bind(&other).unwrap();
        fs::rename(&other, &path).unwrap();
        assert!(has_seen(&watch), "renamed over");
        watch.drain();
        assert!(!has_seen(&watch));

        watch.again(&path);
        fs::rename(&path, &other).unwrap();
        assert!(has_seen(&watch), "renamed away");
        watch.drain();
        fs::remove_file(&other).unwrap();
        assert!(has_seen(&watch), "removed");
    }
}
