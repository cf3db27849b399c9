//! Leaving alone: what is held, released, suppressed, and when it must begin.

use bitcoin::{OutPoint, Transaction};
use superscalar_sdk::hosting::{ExitReason, HostEvent, Role, SlotId, SlotPhase};

use crate::chain::Chain;
use crate::node::{
    Agreement, CAPACITY_SAT, EXIT_DELAY, Node, invoice, lsp_role, open, slot_id, wait_until,
    wallet_script,
};
use crate::store::History;

async fn opened(chain: &Chain, history: &History, push_msat: u64) -> (Node, Node, Agreement) {
    let mut lsp = Node::start("lsp", lsp_role(), chain, history).await;
    let mut member = Node::start("member", Role::Member, chain, history).await;
    member.connect(&lsp).await;
    let agreement = open(&mut lsp, &mut member, slot_id(1), push_msat).await;
    (lsp, member, agreement)
}

async fn closed(node: &mut Node, slot: SlotId) {
    node.expect(|event| match event {
        HostEvent::SlotClosed { slot: closed, .. } => (*closed == slot).then_some(()),
        _ => None,
    })
    .await;
}

fn spends(tx: &Transaction, outpoint: OutPoint) -> bool {
    tx.input
        .iter()
        .any(|input| input.previous_output == outpoint)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commitment_is_held_over_a_restart_and_released_with_its_leaf() {
    let (chain, history) = (Chain::new(), History::default());
    let (mut lsp, mut member, agreement) = opened(&chain, &history, 400_000_000).await;
    let (slot, outpoint) = (slot_id(1), agreement.member.outpoint);
    member.host.force_close(&slot).unwrap();
    closed(&mut member, slot).await;
    closed(&mut lsp, slot).await;
    wait_until("held", || member.host.held_transactions(&slot).len() == 1).await;
    let commitment = member.host.held_transactions(&slot).remove(0);
    assert!(spends(&commitment, outpoint));

    // LDK hands it out again with every block; it stays here.
    chain.mine_empty(3);
    member.stop().await;
    let mut member = Node::start("member", Role::Member, &chain, &history).await;
    chain.mine_empty(300);
    assert_eq!(
        member.host.held_transactions(&slot),
        vec![commitment.clone()]
    );
    assert!(member.published.all().is_empty() && lsp.published.all().is_empty());

    chain.mine(vec![agreement.leaf.clone()]);
    let height = member
        .expect(|event| match event {
            HostEvent::LeafConfirmed { height, .. } => Some(*height),
            _ => None,
        })
        .await;
    assert_eq!(height, chain.height());
    assert!(
        member
            .published
            .txids()
            .contains(&commitment.compute_txid())
    );

    // The member's coins come home after its delay of 144 blocks.
    let before = member.published.all().len();
    chain.mine(vec![commitment.clone()]);
    let to_member = 400_000;
    let home = |node: &Node| {
        let all = node.published.all();
        all.into_iter().find(|tx| {
            tx.output
                .iter()
                .any(|out| out.script_pubkey == wallet_script())
        })
    };
    chain.mine_empty(142);
    assert!(home(&member).is_none(), "{before}");
    chain.mine_empty(10);
    wait_until("swept", || home(&member).is_some()).await;
    let sweep = home(&member).unwrap();
    let swept: u64 = sweep.output.iter().map(|out| out.value.to_sat()).sum();
    assert!(swept < to_member && swept > to_member - 1_000, "{swept}");
    assert!(
        commitment
            .output
            .iter()
            .any(|out| out.value.to_sat() == to_member)
    );
    let total: u64 = commitment.output.iter().map(|out| out.value.to_sat()).sum();
    assert!(total < CAPACITY_SAT);
    member.stop().await;
    lsp.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reorg_of_the_leaf_holds_again() {
    let (chain, history) = (Chain::new(), History::default());
    let (lsp, member, agreement) = opened(&chain, &history, 400_000_000).await;
    let slot = slot_id(1);
    chain.mine(vec![agreement.leaf.clone()]);
    assert_eq!(
        member.host.slot(&slot).unwrap().leaf_height,
        Some(chain.height())
    );
    chain.disconnect(1);
    assert_eq!(member.host.slot(&slot).unwrap().leaf_height, None);
    member.host.force_close(&slot).unwrap();
    wait_until("held", || member.host.held_transactions(&slot).len() == 1).await;
    chain.mine_empty(1);
    assert!(member.published.all().is_empty());
    chain.mine(vec![agreement.leaf]);
    wait_until("released", || !member.published.all().is_empty()).await;
    member.stop().await;
    lsp.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retired_commitment_is_suppressed() {
    let (chain, history) = (Chain::new(), History::default());
    let (lsp, member, _) = opened(&chain, &history, 400_000_000).await;
    let slot = slot_id(1);
    for node in [&member, &lsp] {
        node.host.freeze(&slot).unwrap();
    }
    member.host.retire(&slot).unwrap();
    lsp.host.retire(&slot).unwrap();
    wait_until("closed", || {
        member.host.channel_states().is_empty() && lsp.host.channel_states().is_empty()
    })
    .await;
    chain.mine_empty(3);
    for node in [&member, &lsp] {
        assert_eq!(node.phase(&slot), SlotPhase::Retired);
        assert!(node.host.held_transactions(&slot).is_empty());
        assert!(node.published.all().is_empty());
    }
    member.stop().await;
    lsp.stop().await;
}

/// The member knows a preimage and the LSP is gone: it must exit `exit_delay` before the expiry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_known_preimage_calls_for_the_exit_in_time() {
    let (chain, history) = (Chain::new(), History::default());
    let (mut lsp, member, _) = opened(&chain, &history, 0).await;
    let slot = slot_id(1);
    let to_member = invoice(&member, 50_000_000).await;
    lsp.pay(&to_member).await.unwrap();
    member.stop().await;
    lsp.stop().await;

    // The same member, as it was when it had just decided to claim.
    let claimed = (0..history.len())
        .find(|at| {
            history
                .change(*at)
                .starts_with("member: superscalar/claimed_payments")
        })
        .unwrap();
    let crashed = history.until(claimed + 1);
    let mut member = Node::start("member", Role::Member, &chain, &crashed).await;
    let state = member.host.channel_state(&slot).unwrap();
    assert_eq!(state.inbound_htlcs, 1, "the HTLC is pending");
    let now = chain.height();
    // LDK's payers add up to 3 blocks and a random offset: the event tells the expiry.
    let mut reason = None;
    while reason.is_none() && chain.height() < now + 1_000 {
        chain.mine_empty(1);
        reason = member
            .events_so_far()
            .into_iter()
            .find_map(|event| match event {
                HostEvent::ExitNeeded {
                    slot: leaving,
                    reason,
                    at_stake_msat,
                } => Some((leaving, reason, at_stake_msat)),
                _ => None,
            });
    }
    let (leaving, reason, at_stake_msat) = reason.expect("never asked to exit");
    assert_eq!((leaving, at_stake_msat), (slot, 50_000_000));
    let ExitReason::ClaimDeadline { expiry_height } = reason else {
        panic!("{reason:?}")
    };
    assert_eq!(chain.height() + u32::from(EXIT_DELAY), expiry_height);
    assert_eq!(
        member.phase(&slot),
        SlotPhase::Active,
        "LDK itself waits far too long"
    );
    member.host.force_close(&slot).unwrap();
    wait_until("commitment and claim are held", || {
        member.host.held_transactions(&slot).len() == 2
    })
    .await;
    let held = member.host.held_transactions(&slot);
    assert!(spends(
        &held[1],
        OutPoint {
            txid: held[0].compute_txid(),
            vout: held[1].input[0].previous_output.vout
        }
    ));
    assert!(member.published.all().is_empty());
    member.stop().await;
}
