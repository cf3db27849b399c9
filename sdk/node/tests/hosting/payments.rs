//! Payments through the LSP.

use crate::chain::Chain;
use crate::node::{Node, invoice, lsp_role, open, slot_id, wait_until};
use crate::store::History;
use superscalar_sdk::hosting::{InvoiceError, Role};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_and_lsp_pay_each_other() {
    let (chain, history) = (Chain::new(), History::default());
    let mut lsp = Node::start("lsp", lsp_role(), &chain, &history).await;
    let mut alice = Node::start("alice", Role::Member, &chain, &history).await;
    let mut bob = Node::start("bob", Role::Member, &chain, &history).await;
    alice.connect(&lsp).await;
    bob.connect(&lsp).await;
    let (a, b) = (slot_id(1), slot_id(2));
    open(&mut lsp, &mut alice, a, 400_000_000).await;
    open(&mut lsp, &mut bob, b, 0).await;

    let to_bob = invoice(&bob, 50_000_000).await;
    let fee = alice.pay(&to_bob).await.unwrap();
    assert_eq!(fee, 1_000 + 50_000_000 * 100 / 1_000_000);
    assert_eq!(bob.received().await, 50_000_000);

    let to_lsp = invoice(&lsp, 10_000_000).await;
    assert_eq!(bob.pay(&to_lsp).await.unwrap(), 0);
    assert_eq!(lsp.received().await, 10_000_000);

    let to_alice = invoice(&alice, 7_000_000).await;
    assert_eq!(lsp.pay(&to_alice).await.unwrap(), 0);
    assert_eq!(alice.received().await, 7_000_000);

    let settled = |node: &Node, slot, msat| {
        let state = node.host.channel_state(slot).unwrap();
        state.inbound_htlcs + state.outbound_htlcs == 0 && state.balance_msat == msat
    };
    let alice_msat = 400_000_000 - 50_000_000 - fee + 7_000_000;
    wait_until("alice settles", || settled(&alice, &a, alice_msat)).await;
    wait_until("bob settles", || settled(&bob, &b, 40_000_000)).await;
    for node in [&lsp, &alice, &bob] {
        assert!(node.published.all().is_empty(), "{} published", node.name);
    }
    for node in [alice, bob, lsp] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_received_before_active() {
    let (chain, history) = (Chain::new(), History::default());
    let mut lsp = Node::start("lsp", lsp_role(), &chain, &history).await;
    let mut alice = Node::start("alice", Role::Member, &chain, &history).await;
    alice.connect(&lsp).await;
    let a = slot_id(1);
    open(&mut lsp, &mut alice, a, 0).await;
    let early = invoice(&alice, 5_000_000).await;
    // The member's own gate, with an LSP that forwards although it should not.
    alice.host.freeze(&a).unwrap();
    let refused = alice.host.invoice(Some(1_000), "", 600).unwrap_err();
    assert!(matches!(refused, InvoiceError::NoActiveChannel));
    assert!(lsp.pay(&early).await.is_err());
    assert_eq!(alice.balance_msat(&a), 0);
    alice.host.activate(&a).unwrap();
    let later = invoice(&alice, 5_000_000).await;
    lsp.pay(&later).await.unwrap();
    assert_eq!(alice.received().await, 5_000_000);
    alice.stop().await;
    lsp.stop().await;
}
