//! From the lock crate's lease to what the role machines see of it.

use handoff_lock::{Lease, LeaseState};
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
