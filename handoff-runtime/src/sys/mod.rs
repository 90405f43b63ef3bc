//! The system calls that have no safe wrapper elsewhere. The only `unsafe` of this crate.
//!
//! Everything here takes owned or borrowed descriptors and gives [`std::io::Result`]; nothing here knows the protocol.

pub(crate) mod clock;
pub(crate) mod counter;
pub(crate) mod fd;
pub(crate) mod fork;
#[cfg(test)]
pub(crate) mod held_up;
pub(crate) mod poll;
#[cfg(feature = "crash-points")]
pub(crate) mod process;
pub(crate) mod signals;
pub(crate) mod socket;
pub(crate) mod spawn;
