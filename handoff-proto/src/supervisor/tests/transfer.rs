//! The direct channel goes to an incumbent and a successor that both take it, and to nobody else.

use super::*;

/// A Hello of version `max` that offers the channel.
fn offering(role: Side, pid: u32, max: u16) -> Message {
    let Message::Hello { build_id, proto_min, .. } = hello(role, pid, max) else { unreachable!("it is a Hello") };
    Message::Hello { role, pid, build_id, proto_min, proto_max: max, capabilities: Capabilities::OURS }
}

/// A handover up to its Prepare, between peers that greet so.
fn prepared(o: Message, n: Message) -> Desk {
    let mut desk = Desk::new(plan());
    desk.give(Input::Connected(O)).give(Input::FromIncumbent(o));
    desk.give(Input::Spawned(N)).give(Input::FromSuccessor(n)).give(Input::JournalSynced);
    if !desk.sent().contains(&"O:PrepareHandoff".to_owned()) {
        desk.give(Input::FromSuccessor(Message::Warmed { handoff_id: ID }));
    }
    assert!(desk.sent().contains(&"O:PrepareHandoff".to_owned()));
    desk
}

fn offered(desk: &Desk) -> Transfer {
    let spawned = |effect: &Effect| if let Effect::SpawnSuccessor(transfer) = effect { Some(*transfer) } else { None };
    desk.done.iter().find_map(spawned).unwrap()
}

fn passed(desk: &Desk) -> Option<usize> {
    let channel = Effect::PassTransfer(2, Message::TransferChannel { handoff_id: ID });
    desk.done.iter().position(|effect| *effect == channel)
}

#[test]
fn the_channel_is_passed_right_before_the_prepare() {
    let desk = prepared(offering(Side::Incumbent, O.pid, 2), offering(Side::Successor, N.pid, 2));
    assert_eq!(offered(&desk), Transfer::Offered);
    let at = passed(&desk).unwrap();
    assert!(matches!(&desk.done[at + 1], Effect::SendIncumbent(2, Message::PrepareHandoff { .. })));
}

#[test]
fn who_did_not_offer_it_gets_no_channel() {
    let (o, n) = (|max| offering(Side::Incumbent, O.pid, max), |max| offering(Side::Successor, N.pid, max));
    let without = [
        (hello(Side::Incumbent, O.pid, 2), n(2), Transfer::None),
        (o(1), n(2), Transfer::None),
        (o(2), hello(Side::Successor, N.pid, 2), Transfer::Offered),
        (o(2), n(1), Transfer::Offered),
    ];
    for (o, n, transfer) in without {
        let desk = prepared(o, n);
        assert_eq!((offered(&desk), passed(&desk)), (transfer, None));
    }
}

#[test]
fn a_successor_that_is_promoted_needs_none() {
    let mut desk = Desk::new(plan());
    desk.give(Input::Connected(O)).give(Input::FromIncumbent(offering(Side::Incumbent, O.pid, 2)));
    desk.give(Input::Spawned(N)).give(Input::FromSuccessor(offering(Side::Successor, N.pid, 2)));
    desk.give(Input::JournalSynced).give(Input::IncumbentGone);
    desk.give(Input::FromSuccessor(Message::Warmed { handoff_id: ID }));
    assert_eq!(passed(&desk), None);
}
