//! Room for the listeners' descriptors: many systems start a program with a soft limit of 1,024 open files.
//!
//! The soft limit is raised only when the listeners need it, and then the daemon inherits it: it gets the same listeners. A
//! daemon that still uses select(2) is thus left as it was (setrlimit(2), systemd.exec(5) on LimitNOFILE=).

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::error::ServiceError;
use crate::Error;

/// The service's own socket, the supervisor's duplicate, and one that is being given back or passed on.
const FDS_PER_LISTENER: u64 = 3;

/// What both need besides: the admin's clients, the handover, the daemon's own clients to begin with.
const FDS_BESIDES: u64 = 256;

/// Raises the soft limit as far as these listeners need it.
///
/// # Errors
/// [`ServiceError::OpenFiles`] when the hard limit is below that; the system's.
pub(super) fn make_room(listeners: usize) -> Result<(), ServiceError> {
    let limit = getrlimit(Resource::Nofile);
    let Some(current) = soft_limit_for(listeners, limit)? else { return Ok(()) };
    setrlimit(Resource::Nofile, Rlimit { current: Some(current), ..limit })
        .map_err(|error| Error::io("raise the limit of open files (RLIMIT_NOFILE)", error).into())
}

/// The soft limit to set; `None`: the one there is will do.
fn soft_limit_for(listeners: usize, limit: Rlimit) -> Result<Option<u64>, ServiceError> {
    let needed = (listeners as u64).saturating_mul(FDS_PER_LISTENER).saturating_add(FDS_BESIDES);
    if listeners == 0 || limit.current.is_none_or(|current| current >= needed) {
        return Ok(None);
    }
    match limit.maximum {
        Some(hard) if hard < needed => Err(ServiceError::OpenFiles { listeners, needed, hard }),
        _ => Ok(Some(needed)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(current: u64, maximum: Option<u64>) -> Rlimit {
        Rlimit { current: Some(current), maximum }
    }

    #[test]
    fn few_listeners_leave_the_limit_as_it_is() {
        for listeners in [0, 1, 256] {
            assert_eq!(soft_limit_for(listeners, limit(1024, Some(4096))).unwrap(), None);
        }
        assert_eq!(soft_limit_for(0, limit(16, Some(16))).unwrap(), None);
        assert_eq!(soft_limit_for(5000, Rlimit { current: None, maximum: None }).unwrap(), None);
    }

    #[test]
    fn many_raise_it_within_the_hard_limit() {
        assert_eq!(soft_limit_for(1200, limit(1024, Some(4096))).unwrap(), Some(3856));
        assert_eq!(soft_limit_for(1200, limit(1024, None)).unwrap(), Some(3856));
    }

    #[test]
    fn too_many_for_the_hard_limit_is_one_line_with_both_figures() {
        let error = soft_limit_for(1200, limit(1024, Some(2000))).unwrap_err().to_string();
        for part in ["1200", "3856", "2000", "LimitNOFILE"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
