//! The service's own files in its state directory: regular files, opened without waiting for a pipe's other end and without
//! following a link that somebody put there (open(2): O_NONBLOCK, O_NOFOLLOW).

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// Opens a regular file, with `options`.
///
/// # Errors
/// What is there is something else, which is named; or the system's.
pub(super) fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    // Opening a device may do harm, so a look comes first; what is put there after it shows in the second.
    if fs::symlink_metadata(path).is_ok_and(|there| !there.is_file()) {
        return Err(not_ours(path));
    }
    let careful = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = options.custom_flags(careful.bits() as i32).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(not_ours(path)) }
}

/// Makes a file that is to be renamed into its place, private, and empty whatever a process that died has left there.
///
/// # Errors
/// The system's; a directory of that name is left as it is.
pub(super) fn create_staging(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn not_ours(path: &Path) -> io::Error {
    io::Error::other(format!("{} is not a regular file (a link is none either); remove it", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_put_there_is_neither_waited_for_nor_followed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name| dir.path().join(name);
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
        fs::write(at("file"), "another's").unwrap();
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        for name in ["pipe", "link"] {
            for options in [OpenOptions::new().read(true), OpenOptions::new().append(true)] {
                let error = open(&at(name), options).unwrap_err().to_string();
                assert!(error.contains(&format!("{name} is not a regular file")), "{error}");
            }
            assert_eq!(create_staging(&at(name)).unwrap().metadata().unwrap().len(), 0);
        }
        assert_eq!(fs::read_to_string(at("file")).unwrap(), "another's");
        fs::create_dir(at("dir")).unwrap();
        create_staging(&at("dir")).unwrap_err();
    }
}
