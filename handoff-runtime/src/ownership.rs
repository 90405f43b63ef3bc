//! From the lock crate's lease to what the role machines see of it.

use std::path::Path;

use handoff_lock::{Lease, LeaseState, LockError};
use handoff_proto::{HandoffId, LeaseState as StateView, LeaseView, ProcessId};

/// The machines' view of a lease. `None` for one of an earlier boot: its owner is nobody.
pub(crate) fn view(lease: &Lease) -> Option<LeaseView> {
    lease.of_this_boot().then(|| LeaseView {
        epoch: lease.epoch,
        owner: ProcessId { pid: lease.owner.pid, start_time: lease.owner.start_time },
        state: match lease.state {
            LeaseState::Opening => StateView::Opening,
            LeaseState::Active => StateView::Active,
            LeaseState::Sealed => StateView::Sealed,
        },
        handoff_id: lease.handoff_id.map(HandoffId::from_bytes),
    })
}

/// The pid of who keeps a data dir from being locked, if the system shows it: its holder, else one that only reads. A successor that
/// owns the data would be its holder, so a reader is always somebody else.
pub(crate) fn in_the_way(data_dir: &Path) -> Result<Option<u32>, LockError> {
    if let Some(pid) = handoff_lock::look(data_dir)?.locked_by {
        return Ok(Some(pid));
    }
    Ok(handoff_lock::readers(data_dir)?.first().map(|reader| reader.pid))
}

#[cfg(test)]
mod tests {
    use handoff_lock::DataDirLock;

    use super::*;

    #[test]
    fn an_owner_and_a_reader_are_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(in_the_way(dir.path()).unwrap(), None);
        let owner = DataDirLock::acquire(dir.path()).unwrap();
        assert_eq!(in_the_way(dir.path()).unwrap(), Some(std::process::id()));
        owner.release().unwrap();
        let _reader = DataDirLock::acquire_shared(dir.path()).unwrap();
        assert_eq!(in_the_way(dir.path()).unwrap(), Some(std::process::id()));
    }
}
