//! A data directory whose name can come to mean another one, and what must not be written there.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use super::besides::Moved;

/// A directory behind a link.
#[derive(Debug)]
pub(super) struct Place {
    room: tempfile::TempDir,
    moved: Option<(Moved, Contents)>,
}

/// Every file of a directory, byte for byte.
type Contents = BTreeMap<OsString, Vec<u8>>;

impl Place {
    pub(super) fn new() -> io::Result<Self> {
        let place = Self { room: tempfile::tempdir()?, moved: None };
        for name in ["data", "other"] {
            fs::DirBuilder::new().mode(0o700).create(place.at(name))?;
        }
        place.lead_to("data")?;
        Ok(place)
    }

    /// What is configured.
    pub(super) fn name(&self) -> PathBuf {
        self.at("link")
    }

    /// Where the directory is that the service began with.
    pub(super) fn held(&self) -> PathBuf {
        match self.moved {
            Some((Moved::Renamed | Moved::Copied, _)) => self.at("away"),
            Some((Moved::LinkSwitched, _)) | None => self.at("data"),
        }
    }

    pub(super) fn is_moved(&self) -> bool {
        self.moved.is_some()
    }

    pub(super) fn displace(&mut self, moved: Moved) -> io::Result<()> {
        match moved {
            Moved::LinkSwitched => self.lead_to("other")?,
            Moved::Renamed => fs::rename(self.at("data"), self.at("away"))?,
            Moved::Copied => {
                copy(&self.at("data"), &self.at("copy"))?;
                fs::rename(self.at("data"), self.at("away"))?;
                fs::rename(self.at("copy"), self.at("data"))?;
            }
        }
        self.moved = Some((moved, contents(&self.in_its_place(moved))?));
        Ok(())
    }

    /// The name means what it meant. Gives what was done to the directory that was there instead, a line each.
    pub(super) fn put_back(&mut self) -> io::Result<Vec<String>> {
        let Some((moved, before)) = self.moved.take() else { return Ok(Vec::new()) };
        let after = contents(&self.in_its_place(moved))?;
        match moved {
            Moved::LinkSwitched => self.lead_to("data")?,
            Moved::Renamed | Moved::Copied => {
                if self.at("data").exists() {
                    fs::remove_dir_all(self.at("data"))?;
                }
                fs::rename(self.at("away"), self.at("data"))?;
            }
        }
        let files: BTreeSet<_> = before.keys().chain(after.keys()).collect();
        let differs = files.into_iter().filter(|file| before.get(*file) != after.get(*file));
        Ok(differs.map(|file| format!("{} of the wrong directory was written to", file.display())).collect())
    }

    fn in_its_place(&self, moved: Moved) -> PathBuf {
        match moved {
            Moved::LinkSwitched => self.at("other"),
            Moved::Renamed | Moved::Copied => self.at("data"),
        }
    }

    /// In one step, as those do it who switch between two states.
    fn lead_to(&self, name: &str) -> io::Result<()> {
        symlink(self.at(name), self.at("next"))?;
        fs::rename(self.at("next"), self.at("link"))
    }

    fn at(&self, name: &str) -> PathBuf {
        self.room.path().join(name)
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        // What comes and goes meanwhile need not be in it.
        match fs::copy(entry.path(), to.join(entry.file_name())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// None of a directory that is not there.
fn contents(dir: &Path) -> io::Result<Contents> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Contents::new()),
        entries => entries?,
    };
    entries.map(|entry| entry.and_then(|entry| Ok((entry.file_name(), fs::read(entry.path())?)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_in_the_wrong_place_is_told_and_the_right_one_comes_back() {
        for moved in Moved::ALL {
            for writes in [false, true] {
                let mut place = Place::new().expect("a place");
                fs::write(place.name().join("log"), "1").expect("written");
                place.displace(moved).expect("displaced");
                assert!(place.is_moved());
                assert_eq!(fs::read(place.held().join("log")).expect("it is held"), b"1");
                if writes {
                    let _ = fs::create_dir(place.room.path().join("data"));
                    fs::write(place.name().join("log"), "2").expect("written");
                }
                assert_eq!(place.put_back().expect("put back").len(), usize::from(writes), "{moved:?}");
                assert_eq!(fs::read(place.name().join("log")).expect("it is back"), b"1");
            }
        }
    }
}
