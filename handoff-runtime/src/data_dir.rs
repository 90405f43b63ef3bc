//! The data directory as it was found, and whether its name still means it.
//!
//! A name may come to mean another directory while one is held: a link is switched, the directory is renamed and a copy is put
//! in its place, or something is mounted over it. Whoever then goes by the name alone opens a second store beside the one that
//! is held, and what was acknowledged since is gone. So a name is resolved once, the directory is known by its device and
//! inode, and they are compared before anybody is asked to stop for it.
//!
//! Nothing here locks, creates or opens what is in the directory.

use std::ffi::OsString;
use std::fmt;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags, Stat, fstat, stat};

use crate::error::{Error, Result};

/// What tells a directory from every other one that exists at the same time (stat(2): st_dev, st_ino).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

impl Identity {
    // The types of the two differ between systems.
    #[allow(clippy::unnecessary_cast)]
    fn of(found: &Stat) -> Self {
        Self { device: found.st_dev as u64, inode: found.st_ino as u64 }
    }
}

/// As it is told to a successor.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.device, self.inode)
    }
}

impl FromStr for Identity {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        let (device, inode) = text.split_once(':').ok_or(())?;
        Ok(Self { device: device.parse().map_err(drop)?, inode: inode.parse().map_err(drop)? })
    }
}

/// A data directory that is served, by its name and by what the name meant at the start.
#[derive(Debug)]
pub(crate) struct DataDir {
    /// As configured, absolute.
    name: PathBuf,
    /// The same without links.
    path: PathBuf,
    known: OnceLock<Known>,
}

#[derive(Debug)]
struct Known {
    identity: Identity,
    /// Keeps the inode's number from being given to another file.
    _held: Option<OwnedFd>,
}

impl DataDir {
    /// What this name means now. A directory that the daemon is yet to create is known once it is there.
    pub(crate) fn resolve(name: &Path) -> Self {
        let name = absolute(name);
        let path = without_links(&name);
        Self { name, path, known: OnceLock::new() }.at_first_sight()
    }

    /// The directory that a living daemon was given, whatever the name means now.
    #[cfg(feature = "service")]
    pub(crate) fn recorded(name: &Path, path: PathBuf, identity: Identity) -> Self {
        let held = open(&path).filter(|held| held.identity == identity);
        let known = held.unwrap_or(Known { identity, _held: None });
        Self { name: absolute(name), path, known: OnceLock::from(known) }
    }

    /// Its path without links, for everybody who opens it.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Which directory it is; none as long as nobody has created it.
    pub(crate) fn identity(&self) -> Option<Identity> {
        let known = self.known.get().or_else(|| open(&self.path).map(|known| self.known.get_or_init(|| known)));
        known.map(|known| known.identity)
    }

    /// Whether name and path still mean it, for who is about to stop the process that holds it. What can't be looked at, for
    /// want of the right to search a directory above it, counts as in its place.
    ///
    /// # Errors
    /// [`Error::DataDirElsewhere`].
    pub(crate) fn check(&self) -> Result<()> {
        if self.name != self.path {
            self.check_name(&self.name)?;
        }
        self.check_path()
    }

    /// Whether its path still means it, for who is about to start a process on it.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub(crate) fn check_path(&self) -> Result<()> {
        self.check_name(&self.path)
    }

    fn check_name(&self, name: &Path) -> Result<()> {
        let Some(identity) = self.identity() else { return Ok(()) };
        check(name, identity, || match name.canonicalize() {
            Ok(real) if real != self.path => {
                format!("it leads to {} now, and the service holds {}", real.display(), self.path.display())
            }
            _ => "it is another directory now than the one that the service holds: \
                  that one was renamed, replaced or mounted over"
                .to_owned(),
        })
    }

    fn at_first_sight(self) -> Self {
        self.identity();
        self
    }
}

/// What a supervisor has told its successor of the directory that it is about.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) identity: Identity,
    /// `HANDOFF_DATA_DIR`, where it is set.
    pub(crate) name: Option<OsString>,
}

impl Told {
    /// Whether this name means the same directory to us: in another mount namespace or root directory it need not.
    ///
    /// # Errors
    /// [`Error::DataDirElsewhere`].
    pub(crate) fn check(&self, name: &Path) -> Result<()> {
        check(name, self.identity, || {
            "it is not the directory that the supervisor hands over: a link was switched, \
             or it was replaced or mounted over"
                .to_owned()
        })
    }
}

fn check(name: &Path, identity: Identity, why: impl FnOnce() -> String) -> Result<()> {
    let elsewhere = |reason| Err(Error::DataDirElsewhere { path: name.to_owned(), reason });
    match stat(name) {
        Ok(found) if Identity::of(&found) == identity => Ok(()),
        Ok(_) => elsewhere(why()),
        Err(error) => match std::io::Error::from(error) {
            error if error.kind() == ErrorKind::PermissionDenied => Ok(()),
            error if error.kind() == ErrorKind::NotFound => elsewhere("it is gone".to_owned()),
            error => elsewhere(error.to_string()),
        },
    }
}

/// Without the right to search or read: the directory is to be known, and not to be used.
fn open(path: &Path) -> Option<Known> {
    let held = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    Some(Known { identity: Identity::of(&fstat(&held).ok()?), _held: Some(held) })
}

fn absolute(name: &Path) -> PathBuf {
    // An empty name, or no current directory: every use of it will say so.
    std::path::absolute(name).unwrap_or_else(|_| name.to_owned())
}

/// Of a name that is not there yet, what is there of it.
fn without_links(name: &Path) -> PathBuf {
    let real = name.ancestors().find_map(|above| Some((above, above.canonicalize().ok()?)));
    let Some((above, real)) = real else { return name.to_owned() };
    match name.strip_prefix(above) {
        Ok(rest) if rest != Path::new("") => real.join(rest),
        _ => real,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn reason(checked: Result<()>) -> String {
        let error = checked.unwrap_err();
        assert!(matches!(error, Error::DataDirElsewhere { .. }), "{error}");
        assert_eq!(error.to_string().lines().count(), 1);
        error.to_string()
    }

    #[test]
    fn a_name_is_resolved_once() {
        let room = tempfile::tempdir().unwrap();
        let at = |name| room.path().canonicalize().unwrap().join(name);
        fs::create_dir(at("a")).unwrap();
        fs::create_dir(at("b")).unwrap();
        symlink("a", at("link")).unwrap();
        let data_dir = DataDir::resolve(&at("link"));
        assert_eq!(data_dir.path(), at("a"));
        data_dir.check().unwrap();

        fs::remove_file(at("link")).unwrap();
        assert!(reason(data_dir.check()).contains("link: it is gone"));
        symlink("b", at("link")).unwrap();
        let said = reason(data_dir.check());
        assert!(said.contains(&format!("leads to {} now", at("b").display())), "{said}");
        data_dir.check_path().unwrap();
    }

    #[test]
    fn another_directory_of_its_name_is_another_directory() {
        let room = tempfile::tempdir().unwrap();
        let at = |name| room.path().canonicalize().unwrap().join(name);
        fs::create_dir(at("data")).unwrap();
        let data_dir = DataDir::resolve(&at("data"));
        let identity = data_dir.identity().unwrap();
        fs::rename(at("data"), at("away")).unwrap();
        fs::create_dir(at("data")).unwrap();
        assert!(reason(data_dir.check_path()).contains("another directory now"));
        let told = Told { identity, name: None };
        assert!(reason(told.check(&at("data"))).contains("not the directory that the supervisor hands over"));
        told.check(&at("away")).unwrap();
        fs::remove_dir(at("data")).unwrap();
        fs::rename(at("away"), at("data")).unwrap();
        data_dir.check().unwrap();
    }

    #[test]
    fn one_that_is_not_there_yet_is_known_when_it_is_first_seen() {
        let room = tempfile::tempdir().unwrap();
        let at = |name| room.path().canonicalize().unwrap().join(name);
        fs::create_dir(at("real")).unwrap();
        symlink("real", at("link")).unwrap();
        let data_dir = DataDir::resolve(&at("link/deep/data"));
        assert_eq!(data_dir.path(), at("real/deep/data"));
        data_dir.check().unwrap();
        fs::create_dir_all(at("real/deep/data")).unwrap();
        data_dir.check().unwrap();
        fs::rename(at("real/deep"), at("real/other")).unwrap();
        reason(data_dir.check());
    }

    #[test]
    fn a_relative_name_stays_where_it_was() {
        let data_dir = DataDir::resolve(Path::new("some/data"));
        assert_eq!(data_dir.path(), std::env::current_dir().unwrap().canonicalize().unwrap().join("some/data"));
    }

    #[test]
    fn an_identity_is_told_as_text() {
        let identity = Identity { device: 2049, inode: u64::MAX };
        assert_eq!(identity.to_string().parse(), Ok(identity));
        for wrong in ["", "1", "1:", ":1", "1:2:3", "a:b"] {
            assert_eq!(wrong.parse::<Identity>(), Err(()));
        }
    }
}
