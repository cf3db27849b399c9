//! Opening a slot's channel: only what was agreed, and across disconnects and crashes.

use bitcoin::OutPoint;
use superscalar_sdk::hosting::{
    ChannelError, HostEvent, OpenRefusal, Role, SlotChannel, SlotError, SlotId, SlotPhase,
};

use crate::chain::Chain;
use crate::node::{
    CAPACITY_SAT, Node, agree, agreement, invoice, lsp_role, open, slot_id, wait_until,
};
use crate::store::History;

async fn pair(chain: &Chain, history: &History) -> (Node, Node) {
    let lsp = Node::start("lsp", lsp_role(), chain, history).await;
    let member = Node::start("member", Role::Member, chain, history).await;
    member.connect(&lsp).await;
    (lsp, member)
}

/// What the member answers when the LSP opens something else than was agreed.
async fn refusal(change: impl Fn(&mut SlotChannel)) -> OpenRefusal {
    let (chain, history) = (Chain::new(), History::default());
    let (lsp, mut member) = pair(&chain, &history).await;
    let slot = slot_id(1);
    let agreed = agreement(&lsp.host, &member.host, slot, 1_000_000);
    member.host.agree_slot(agreed.member).unwrap();
    member.host.allow_signing(&slot).unwrap();
    let mut other = agreed.lsp;
    change(&mut other);
    lsp.host.agree_slot(other).unwrap();
    lsp.host.allow_signing(&slot).unwrap();
    lsp.host.open_slot(&slot).unwrap();
    let reason = member
        .expect(|event| match event {
            HostEvent::OpenRefused { reason, .. } => Some(reason.clone()),
            _ => None,
        })
        .await;
    wait_until("the LSP forgets it", || {
        lsp.host.channel_states().is_empty()
    })
    .await;
    assert_eq!(member.phase(&slot), SlotPhase::Signable, "state unchanged");
    assert!(member.host.channel_states().is_empty());
    member.stop().await;
    lsp.stop().await;
    reason
}

fn mismatch(field: &'static str) -> OpenRefusal {
    OpenRefusal::Mismatch {
        slot: slot_id(1),
        field,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opens_other_than_agreed_are_refused() {
    let refused = refusal(|channel| channel.capacity_sat -= 1).await;
    assert_eq!(refused, mismatch("capacity_sat"));
    let refused = refusal(|channel| channel.push_msat += 1).await;
    assert_eq!(refused, mismatch("push_msat"));
    let refused = refusal(|channel| channel.delay_on_peer_blocks += 1).await;
    assert_eq!(refused, mismatch("delay_on_us_blocks"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opens_without_an_agreed_slot_are_refused() {
    let (chain, history) = (Chain::new(), History::default());
    let (lsp, mut member) = pair(&chain, &history).await;
    lsp.host
        .open_ordinary_channel(member.host.node_id(), 100_000, 0)
        .unwrap();
    let reason = member
        .expect(|event| match event {
            HostEvent::OpenRefused { reason, .. } => Some(reason.clone()),
            _ => None,
        })
        .await;
    assert_eq!(reason, OpenRefusal::NoAgreedSlot);

    // Agreed, but the path is not stored yet.
    let slot = slot_id(1);
    let agreed = agreement(&lsp.host, &member.host, slot, 0);
    member.host.agree_slot(agreed.member).unwrap();
    lsp.host.agree_slot(agreed.lsp).unwrap();
    let error = lsp.host.open_slot(&slot).unwrap_err();
    assert!(
        matches!(error, ChannelError::Slot(SlotError::WrongPhase { .. })),
        "{error}"
    );
    lsp.host.allow_signing(&slot).unwrap();
    lsp.host.open_slot(&slot).unwrap();
    let reason = member
        .expect(|event| match event {
            HostEvent::OpenRefused { reason, .. } => Some(reason.clone()),
            _ => None,
        })
        .await;
    assert_eq!(
        reason,
        OpenRefusal::NotSignable {
            slot,
            phase: SlotPhase::Agreed
        }
    );
    member.stop().await;
    lsp.stop().await;
}

/// `open_channel` says nothing of the outpoint: the signer sees it in `funding_created`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_outpoint_gets_no_signature() {
    let (chain, history) = (Chain::new(), History::default());
    let (mut lsp, mut member) = pair(&chain, &history).await;
    let slot = slot_id(1);
    let agreed = agreement(&lsp.host, &member.host, slot, 0);
    member.host.agree_slot(agreed.member).unwrap();
    member.host.allow_signing(&slot).unwrap();
    let outpoint = OutPoint {
        vout: 1,
        ..agreed.lsp.outpoint
    };
    lsp.host
        .agree_slot(SlotChannel {
            outpoint,
            ..agreed.lsp
        })
        .unwrap();
    lsp.host.allow_signing(&slot).unwrap();
    lsp.host.open_slot(&slot).unwrap();
    member
        .expect(|event| match event {
            HostEvent::OpenFailed { slot: failed, .. } => (*failed == slot).then_some(()),
            _ => None,
        })
        .await;
    assert_eq!(
        member.phase(&slot),
        SlotPhase::Signable,
        "nothing was signed"
    );
    // LDK answers under an id its peer has already replaced: the funder waits in vain.
    lsp.host.disconnect(&member.host.node_id());
    lsp.expect(|event| match event {
        HostEvent::SlotClosed { slot: closed, .. } => (*closed == slot).then_some(()),
        _ => None,
    })
    .await;
    assert!(member.published.all().is_empty() && lsp.published.all().is_empty());
    member.stop().await;
    lsp.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_agrees_once_and_with_sane_terms() {
    let (chain, history) = (Chain::new(), History::default());
    let (lsp, member) = pair(&chain, &history).await;
    let agreed = agree(&lsp, &member, slot_id(1), 0).lsp;
    lsp.host.agree_slot(agreed.clone()).unwrap();
    let changed = SlotChannel {
        push_msat: 1,
        ..agreed.clone()
    };
    assert!(matches!(
        lsp.host.agree_slot(changed),
        Err(SlotError::Conflict { .. })
    ));
    let same_leaf = SlotChannel {
        slot: slot_id(2),
        ..agreed.clone()
    };
    assert!(matches!(
        lsp.host.agree_slot(same_leaf),
        Err(SlotError::Conflict { .. })
    ));
    let field = |channel: SlotChannel| match lsp.host.agree_slot(channel) {
        Err(SlotError::Invalid { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    let fresh = SlotChannel {
        slot: slot_id(3),
        ..agreed
    };
    let too_much = CAPACITY_SAT * 1_000 + 1;
    assert_eq!(
        field(SlotChannel {
            push_msat: too_much,
            ..fresh.clone()
        }),
        "push_msat"
    );
    assert_eq!(
        field(SlotChannel {
            capacity_sat: 999,
            ..fresh.clone()
        }),
        "capacity_sat"
    );
    assert_eq!(
        field(SlotChannel {
            blocks_early: 323,
            ..fresh.clone()
        }),
        "blocks_early"
    );
    assert_eq!(
        field(SlotChannel {
            exit_delay_blocks: 909,
            ..fresh.clone()
        }),
        "exit_delay_blocks"
    );
    assert_eq!(
        field(SlotChannel {
            delay_on_us_blocks: 143,
            ..fresh
        }),
        "delay_on_us_blocks"
    );
    assert!(lsp.host.slot(&slot_id(3)).is_none());
    member.stop().await;
    lsp.stop().await;
}

/// What both sides are left with after an interrupted opening: one working channel, or a slot
/// that can be opened again, or one that is over on both sides with nothing published.
async fn settle(lsp: &mut Node, member: &mut Node, slot: SlotId) -> SlotPhase {
    let phases = |lsp: &Node, member: &Node| (lsp.phase(&slot), member.phase(&slot));
    let settled = |(lsp, member)| {
        use SlotPhase::*;
        let over = |phase| matches!(phase, Closed | Signable);
        (lsp, member) == (Held, Held) || (over(lsp) && over(member))
    };
    wait_until("both sides settle", || settled(phases(lsp, member))).await;
    if phases(lsp, member) == (SlotPhase::Signable, SlotPhase::Signable) {
        lsp.host.open_slot(&slot).unwrap();
        lsp.held(&slot).await;
        member.held(&slot).await;
    }
    if phases(lsp, member) == (SlotPhase::Held, SlotPhase::Held) {
        lsp.host.activate(&slot).unwrap();
        member.host.activate(&slot).unwrap();
        let to_lsp = invoice(lsp, 5_000_000).await;
        wait_until("usable", || {
            member.host.channel_state(&slot).unwrap().is_usable
        })
        .await;
        member.pay(&to_lsp).await.unwrap();
        return SlotPhase::Held;
    }
    for node in [&*lsp, &*member] {
        assert!(node.published.all().is_empty(), "{} published", node.name);
    }
    SlotPhase::Closed
}

/// Both sides lose power after any durable write of the opening; each time they come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opening_survives_a_crash_after_every_write() {
    let (chain, history) = (Chain::new(), History::default());
    let (mut lsp, mut member) = pair(&chain, &history).await;
    let slot = slot_id(1);
    agree(&lsp, &member, slot, 400_000_000);
    wait_until("stored", || history.len() >= 4).await;
    let begin = history.len();
    lsp.host.open_slot(&slot).unwrap();
    lsp.held(&slot).await;
    member.held(&slot).await;
    let end = history.len();
    member.stop().await;
    lsp.stop().await;

    let mut outcomes = Vec::new();
    for moment in begin..=end {
        let crashed = history.until(moment);
        let (mut lsp, mut member) = pair(&chain, &crashed).await;
        let outcome = settle(&mut lsp, &mut member, slot).await;
        outcomes.push((history.change(moment - 1), outcome));
        member.stop().await;
        lsp.stop().await;
    }
    for (change, outcome) in &outcomes {
        println!("{outcome:?} after {change}");
    }
    assert_eq!(
        outcomes.first().unwrap().1,
        SlotPhase::Held,
        "nothing was signed: reopened"
    );
    assert_eq!(
        outcomes.last().unwrap().1,
        SlotPhase::Held,
        "everything was stored: kept"
    );
}

/// The connection breaks while the channel is being opened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opening_survives_a_disconnect() {
    let (chain, history) = (Chain::new(), History::default());
    let (mut lsp, mut member) = pair(&chain, &history).await;
    for number in 1..=6 {
        let slot = slot_id(number);
        agree(&lsp, &member, slot, 400_000_000);
        let before = history.len();
        lsp.host.open_slot(&slot).unwrap();
        // Each round breaks one write later.
        wait_until("progress", || {
            history.len() >= before + usize::from(number) - 1
        })
        .await;
        lsp.host.disconnect(&member.host.node_id());
        wait_until("disconnected", || {
            !member.host.is_connected(&lsp.host.node_id())
        })
        .await;
        member.connect(&lsp).await;
        let outcome = settle(&mut lsp, &mut member, slot).await;
        println!("{outcome:?} when cut after {} writes", number - 1);
    }
    open(&mut lsp, &mut member, slot_id(9), 0).await;
    member.stop().await;
    lsp.stop().await;
}
