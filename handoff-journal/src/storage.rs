//! The few operations that the journal asks of a file: the seam at which tests tear writes and make calls fail.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};

/// A file by position. Each function is one system call, which may be interrupted or do a part of the work.
pub(crate) trait Storage {
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// pread(2).
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize>;
    /// pwrite(2).
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    /// fdatasync(2): what was written before is on the disk on return.
    fn sync_data(&self) -> io::Result<()>;
    /// Whether a path still leads to it: a removed or replaced file takes writes that nobody will ever read.
    fn is_linked(&self) -> io::Result<bool>;
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

    fn sync_data(&self) -> io::Result<()> {
        Self::sync_data(self)
    }

    fn is_linked(&self) -> io::Result<bool> {
        Ok(self.metadata()?.nlink() > 0)
    }
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
