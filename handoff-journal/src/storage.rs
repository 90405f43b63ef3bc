//! The few operations that journal and history ask of a file: the seam at which tests tear writes and make calls fail.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// A file by position. Each function is one system call, which may be interrupted or do a part of the work.
pub(crate) trait Storage {
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// pread(2).
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize>;
    /// pwrite(2).
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    /// write(2) on a descriptor that was opened to append: behind all that is there, whoever else appends.
    fn append(&self, bytes: &[u8]) -> io::Result<usize>;
    /// fdatasync(2): what was written before is on the disk on return.
    fn sync_data(&self) -> io::Result<()>;
    /// Whether this path still names it: a file that was removed, replaced or moved away takes writes that nobody will look
    /// for. Where the path can't be looked at (EACCES), it counts as unchanged.
    fn is_at(&self, path: &Path) -> io::Result<bool>;
}

impl Storage for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, out, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(self, bytes, offset)
    }

    fn append(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut file = self;
        file.write(bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        Self::sync_data(self)
    }

    fn is_at(&self, path: &Path) -> io::Result<bool> {
        match fs::symlink_metadata(path) {
            Ok(there) => Ok(inode(&there) == inode(&self.metadata()?)),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// What tells a file from every other one that lives at the same time: its device and inode.
pub(crate) fn inode(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// The path names a directory, a pipe, a device, a socket or a link.
#[derive(Debug, thiserror::Error)]
#[error("it is not a regular file")]
pub(crate) struct NotAFile;

impl NotAFile {
    /// Whether this is why opening failed.
    pub(crate) fn is_why(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|error| error.is::<Self>())
    }
}

/// Opens a regular file, with `options`. A pipe is not waited for, a device not opened, and a link that somebody put there not
/// followed (open(2): O_NONBLOCK, O_NOFOLLOW).
///
/// # Errors
/// [`NotAFile`], or the system's.
pub(crate) fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    // Opening a device may do harm, so a look comes first; what is put there after it shows in the second.
    if fs::symlink_metadata(path).is_ok_and(|there| !there.is_file()) {
        return Err(io::Error::other(NotAFile));
    }
    let careful = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = options.custom_flags(careful.bits() as i32).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other(NotAFile)) }
}

/// Reads from the start until `out` is full or the file ends; gives how much it was.
pub(crate) fn read_front(storage: &impl Storage, out: &mut [u8]) -> io::Result<usize> {
    let mut have = 0;
    while have < out.len() {
        match storage.read_at(&mut out[have..], have as u64) {
            Ok(0) => break,
            Ok(read) => have += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(have)
}

/// Writes all of `bytes`.
pub(crate) fn write_all(storage: &impl Storage, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match storage.write_at(bytes, offset) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = &bytes[written..];
                offset += written as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Makes what was written durable.
pub(crate) fn sync(storage: &impl Storage) -> io::Result<()> {
    loop {
        match storage.sync_data() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// A disk in memory that tears writes and fails calls.
#[cfg(test)]
pub(crate) mod fake {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::rc::Rc;

    use super::*;

    /// What a disk writes whole or not at all.
    pub(crate) const SECTOR_BYTES: usize = 512;

    /// How a call goes wrong.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Fault {
        /// The call does nothing and returns this error number.
        Error(i32),
        /// A write writes only this many bytes; the next call fails with ENOSPC.
        ShortWrite(usize),
    }

    /// The operations asked for, in order.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Call {
        Len,
        Read,
        Write,
        Append,
        Sync,
    }

    /// Clones share the disk.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct FakeDisk(Rc<RefCell<Inner>>);

    #[derive(Debug, Default)]
    struct Inner {
        /// What the process sees.
        cache: Vec<u8>,
        /// What a power loss leaves for sure.
        durable: Vec<u8>,
        /// Each sector written since the last sync, with all its contents since then.
        dirty: BTreeMap<usize, Vec<[u8; SECTOR_BYTES]>>,
        calls: Vec<Call>,
        /// The fault of the n-th call from now on.
        fault: Option<(usize, Fault)>,
    }

    impl FakeDisk {
        pub(crate) fn with_content(content: &[u8]) -> Self {
            let inner = Inner { cache: content.to_vec(), durable: content.to_vec(), ..Inner::default() };
            Self(Rc::new(RefCell::new(inner)))
        }

        /// Lets the n-th call from now on (0: the next one) go wrong, once.
        pub(crate) fn fail(&self, nth: usize, fault: Fault) {
            self.0.borrow_mut().fault = Some((nth, fault));
        }

        /// Takes a fault back that did not happen yet.
        pub(crate) fn heal(&self) {
            self.0.borrow_mut().fault = None;
        }

        /// Takes the calls made so far.
        pub(crate) fn take_calls(&self) -> Vec<Call> {
            std::mem::take(&mut self.0.borrow_mut().calls)
        }

        /// What is left when the process dies.
        pub(crate) fn after_kill(&self) -> Vec<u8> {
            self.0.borrow().cache.clone()
        }

        /// How many versions each dirty sector may have after a power loss, the durable one included.
        pub(crate) fn versions(&self) -> Vec<usize> {
            self.0.borrow().dirty.values().map(|versions| versions.len() + 1).collect()
        }

        /// What is left after a power loss: of each dirty sector the chosen version, 0 being the durable one.
        pub(crate) fn after_power_loss(&self, chosen: &[usize]) -> Vec<u8> {
            let inner = self.0.borrow();
            let mut image = inner.durable.clone();
            image.resize(inner.cache.len(), 0);
            for ((sector, versions), choice) in inner.dirty.iter().zip(chosen) {
                if let Some(version) = choice.checked_sub(1).map(|at| versions[at]) {
                    let start = sector * SECTOR_BYTES;
                    let end = image.len().min(start + SECTOR_BYTES);
                    image[start..end].copy_from_slice(&version[..end - start]);
                }
            }
            image
        }
    }

    impl Inner {
        fn call(&mut self, call: Call) -> io::Result<usize> {
            self.calls.push(call);
            match self.fault {
                Some((0, Fault::Error(errno))) => {
                    self.fault = None;
                    Err(io::Error::from_raw_os_error(errno))
                }
                Some((0, Fault::ShortWrite(bytes))) => {
                    self.fault = Some((0, Fault::Error(28)));
                    Ok(bytes)
                }
                Some((nth, fault)) => {
                    self.fault = Some((nth - 1, fault));
                    Ok(usize::MAX)
                }
                None => Ok(usize::MAX),
            }
        }

        fn write(&mut self, bytes: &[u8], offset: usize) {
            let end = offset + bytes.len();
            if self.cache.len() < end {
                self.cache.resize(end, 0);
            }
            self.cache[offset..end].copy_from_slice(bytes);
            for sector in offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES) {
                let start = sector * SECTOR_BYTES;
                let stop = self.cache.len().min(start + SECTOR_BYTES);
                let mut version = [0; SECTOR_BYTES];
                version[..stop - start].copy_from_slice(&self.cache[start..stop]);
                self.dirty.entry(sector).or_default().push(version);
            }
        }
    }

    impl Storage for FakeDisk {
        fn len(&self) -> io::Result<u64> {
            let mut inner = self.0.borrow_mut();
            inner.call(Call::Len)?;
            Ok(inner.cache.len() as u64)
        }

        fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
            let mut inner = self.0.borrow_mut();
            inner.call(Call::Read)?;
            let there = inner.cache.get(offset as usize..).unwrap_or_default();
            let length = there.len().min(out.len());
            out[..length].copy_from_slice(&there[..length]);
            Ok(length)
        }

        fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
            let mut inner = self.0.borrow_mut();
            let length = inner.call(Call::Write)?.min(bytes.len());
            inner.write(&bytes[..length], offset as usize);
            Ok(length)
        }

        fn append(&self, bytes: &[u8]) -> io::Result<usize> {
            let mut inner = self.0.borrow_mut();
            let length = inner.call(Call::Append)?.min(bytes.len());
            let end = inner.cache.len();
            inner.write(&bytes[..length], end);
            Ok(length)
        }

        /// A failed sync drops what was dirty: the process still sees it, and a later sync believes it clean (fsync(2)).
        fn sync_data(&self) -> io::Result<()> {
            let mut inner = self.0.borrow_mut();
            let outcome = inner.call(Call::Sync);
            if outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::Interrupted) {
                return outcome.map(drop);
            }
            let dirty = std::mem::take(&mut inner.dirty);
            outcome?;
            let length = inner.cache.len();
            inner.durable.resize(length, 0);
            for (sector, versions) in dirty {
                let start = sector * SECTOR_BYTES;
                let end = length.min(start + SECTOR_BYTES);
                if let Some(version) = versions.last() {
                    inner.durable[start..end].copy_from_slice(&version[..end - start]);
                }
            }
            Ok(())
        }

        fn is_at(&self, _: &Path) -> io::Result<bool> {
            Ok(true)
        }
    }
}
