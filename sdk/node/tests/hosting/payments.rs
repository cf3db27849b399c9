//! Payments through the LSP.

use crate::chain::Chain;
use crate::node::{
    CAPACITY_SAT, Node, agree, agreement, invoice, lsp_role, open, open_ordinary, slot_id,
    wait_until,
};
use crate::store::History;
use superscalar_sdk::hosting::{
    FactoryMessage, HostEvent, InvoiceError, MAX_PAYLOAD_BYTES, PayError, Role, SendError,
    SlotChannel, SlotPhase,
};

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

/// The member's own gate, with an LSP that pays over a channel whose factory is not there yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_received_before_active() {
    const FIRST_MSAT: u64 = 920_000_000;
    let (chain, history) = (Chain::new(), History::default());
    let mut lsp = Node::start("lsp", lsp_role(), &chain, &history).await;
    let mut alice = Node::start("alice", Role::Member, &chain, &history).await;
    alice.connect(&lsp).await;
    let (a, b) = (slot_id(1), slot_id(2));
    open(&mut lsp, &mut alice, a, 0).await;
    agree(&lsp, &alice, b, 0);
    lsp.host.open_slot(&b).unwrap();
    lsp.held(&b).await;
    alice.held(&b).await;
    // Nothing can be asked for over the new channel. What was asked for over the other one comes over
    // it, because the other has no room for so much any more.
    let early = invoice(&alice, 100_000_000).await;
    let first = invoice(&alice, FIRST_MSAT).await;
    lsp.pay(&first).await.unwrap();
    assert_eq!(alice.received().await, FIRST_MSAT);
    lsp.host.activate(&b).unwrap();
    wait_until("the new channel to be usable", || {
        [&lsp, &alice].iter().all(|node| {
            let state = node.host.channel_state(&b);
            state.is_some_and(|state| state.is_usable)
        })
    })
    .await;
    assert_eq!(alice.phase(&b), SlotPhase::Held);
    let refused = lsp.pay(&early).await.unwrap_err();
    assert_eq!(refused, "RecipientRejected");
    wait_until("failed back", || {
        let state = lsp.host.channel_state(&b).unwrap();
        state.outbound_htlcs == 0 && state.balance_msat == CAPACITY_SAT * 1_000
    })
    .await;
    let balances = (alice.balance_msat(&a), alice.balance_msat(&b));
    assert_eq!(balances, (FIRST_MSAT, 0));

    alice.host.activate(&b).unwrap();
    let later = invoice(&alice, 100_000_000).await;
    lsp.pay(&later).await.unwrap();
    assert_eq!(alice.received().await, 100_000_000);
    wait_until("settled", || alice.balance_msat(&b) == 100_000_000).await;
    assert_eq!(alice.balance_msat(&a), FIRST_MSAT);
    for node in [alice, lsp] {
        assert!(node.published.all().is_empty());
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_received_while_frozen() {
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

/// LDK lets 49 HTLCs pend in each direction of a channel that accepts 50.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ninety_payments_at_once_conserve_every_msat() {
    const EACH_WAY: usize = 45;
    let (chain, history) = (Chain::new(), History::default());
    let mut lsp = Node::start("lsp", lsp_role(), &chain, &history).await;
    let mut alice = Node::start("alice", Role::Member, &chain, &history).await;
    let mut bob = Node::start("bob", Role::Member, &chain, &history).await;
    alice.connect(&lsp).await;
    bob.connect(&lsp).await;
    let (a, b) = (slot_id(1), slot_id(2));
    open(&mut lsp, &mut alice, a, 400_000_000).await;
    open(&mut lsp, &mut bob, b, 400_000_000).await;
    let (each, fee) = (2_000_000, 1_000 + 2_000_000 * 100 / 1_000_000);
    invoice(&alice, 1).await;
    invoice(&bob, 1).await;
    for _ in 0..EACH_WAY {
        for (payer, payee) in [(&alice, &bob), (&bob, &alice)] {
            let invoice = payee.host.invoice(Some(each), "", 600).unwrap();
            payer.host.pay(&invoice.to_string(), None).unwrap();
        }
    }
    let mut peak = 0;
    for node in [&mut alice, &mut bob] {
        for _ in 0..EACH_WAY {
            let pending = |slot| {
                let state = lsp.host.channel_state(slot).unwrap();
                state.inbound_htlcs + state.outbound_htlcs
            };
            peak = peak.max(pending(&a) + pending(&b));
            node.expect(|event| match event {
                HostEvent::PaymentSent { .. } => Some(()),
                HostEvent::PaymentFailed { reason, .. } => panic!("{reason}"),
                _ => None,
            })
            .await;
        }
    }
    assert!(peak >= 50, "only {peak} at once");
    let settled = |node: &Node, slot| {
        let state = node.host.channel_state(slot).unwrap();
        state.inbound_htlcs + state.outbound_htlcs == 0
            && state.balance_msat == 400_000_000 - EACH_WAY as u64 * fee
    };
    wait_until("settled", || settled(&alice, &a) && settled(&bob, &b)).await;
    for node in [alice, bob, lsp] {
        assert!(node.published.all().is_empty());
        node.stop().await;
    }
}

/// An ordinary node knows nothing of factories; the LSP's rule protects the LSP in both directions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordinary_node_pays_and_is_paid() {
    let (chain, history) = (Chain::new(), History::default());
    let mut lsp = Node::start("lsp", lsp_role(), &chain, &history).await;
    let mut outside = Node::start("outside", lsp_role(), &chain, &history).await;
    let mut alice = Node::start("alice", Role::Member, &chain, &history).await;
    alice.connect(&lsp).await;
    outside.connect(&lsp).await;
    let a = slot_id(1);
    open(&mut lsp, &mut alice, a, 400_000_000).await;
    open_ordinary(&chain, &mut outside, &mut lsp, 500_000_000).await;

    let to_alice = invoice(&alice, 20_000_000).await;
    outside.pay(&to_alice).await.unwrap();
    assert_eq!(alice.received().await, 20_000_000);
    let to_outside = invoice(&outside, 30_000_000).await;
    alice.pay(&to_outside).await.unwrap();
    assert_eq!(outside.received().await, 30_000_000);

    // The LSP lets nothing through a slot that is not active, whatever the member does.
    lsp.host.freeze(&a).unwrap();
    let to_outside = invoice(&outside, 1_000_000).await;
    assert!(alice.pay(&to_outside).await.is_err());
    let to_alice = invoice(&alice, 1_000_000).await;
    assert!(outside.pay(&to_alice).await.is_err());
    lsp.host.activate(&a).unwrap();
    for node in [alice, outside, lsp] {
        node.stop().await;
    }
}

/// A member that leaves the LSP only an ordinary channel's delta would let it lose the HTLC: the
/// LSP could not claim on the unpublished leaf in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_leaves_the_lsp_no_time_is_refused() {
    let (chain, history) = (Chain::new(), History::default());
    let mut lsp = Node::start("lsp", lsp_role(), &chain, &history).await;
    let mut outside = Node::start("outside", lsp_role(), &chain, &history).await;
    let mut mallory = Node::start("mallory", Role::Member, &chain, &history).await;
    mallory.connect(&lsp).await;
    outside.connect(&lsp).await;
    let slot = slot_id(1);
    let agreed = agreement(&lsp.host, &mallory.host, slot, 400_000_000);
    lsp.host.agree_slot(agreed.lsp).unwrap();
    let short = SlotChannel {
        exit_delay_blocks: 20,
        ..agreed.member
    };
    mallory.host.agree_slot(short).unwrap();
    for node in [&lsp, &mallory] {
        node.host.allow_signing(&slot).unwrap();
    }
    lsp.host.open_slot(&slot).unwrap();
    for node in [&mut lsp, &mut mallory] {
        node.held(&slot).await;
        node.host.activate(&slot).unwrap();
    }
    open_ordinary(&chain, &mut outside, &mut lsp, 500_000_000).await;
    let balance = lsp.balance_msat(&slot);

    // 72 blocks satisfy the ordinary channel and LDK, 371 would not satisfy the rule.
    let to_outside = invoice(&outside, 30_000_000).await;
    assert!(mallory.pay(&to_outside).await.is_err());
    wait_until("failed back", || {
        lsp.host.channel_state(&slot).unwrap().inbound_htlcs == 0
    })
    .await;
    assert_eq!(lsp.balance_msat(&slot), balance);
    let forwarded = |event: &HostEvent| matches!(event, HostEvent::PaymentForwarded { .. });
    assert!(!lsp.events_so_far().iter().any(forwarded));
    for node in [mallory, outside, lsp] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payments_survive_a_crash_after_every_write() {
    const AT_ONCE: usize = 4;
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
    let begin = history.len();
    let fee = alice.pay(&to_bob).await.unwrap();
    bob.received().await;
    let settled = |node: &Node, slot| {
        let state = node.host.channel_state(slot);
        state.is_some_and(|state| state.inbound_htlcs + state.outbound_htlcs == 0)
    };
    let all_settled = |lsp: &Node, alice: &Node, bob: &Node| {
        settled(alice, &a) && settled(bob, &b) && settled(lsp, &a) && settled(lsp, &b)
    };
    wait_until("settled", || all_settled(&lsp, &alice, &bob)).await;
    let end = history.len();
    for node in [alice, bob, lsp] {
        node.stop().await;
    }

    // Each of them stops and starts three nodes, which takes time and little else: several at once.
    let crash_from = async |first: usize| {
        // The same blocks for nodes that have nothing to do with the others.
        let chain = Chain::new();
        for moment in (begin + first..=end).step_by(AT_ONCE) {
            let crashed = history.until(moment);
            let lsp = Node::start("lsp", lsp_role(), &chain, &crashed).await;
            let alice = Node::start("alice", Role::Member, &chain, &crashed).await;
            let bob = Node::start("bob", Role::Member, &chain, &crashed).await;
            alice.connect(&lsp).await;
            bob.connect(&lsp).await;
            let usable = |node: &Node, slot| {
                node.host
                    .channel_state(slot)
                    .is_some_and(|state| state.is_usable)
            };
            wait_until("no channel was closed", || {
                usable(&alice, &a) && usable(&bob, &b) && usable(&lsp, &a) && usable(&lsp, &b)
            })
            .await;
            wait_until("settled", || all_settled(&lsp, &alice, &bob)).await;
            let moved = (400_000_000 - alice.balance_msat(&a), bob.balance_msat(&b));
            let whole = (50_000_000 + fee, 50_000_000);
            assert!(
                moved == whole || moved == (0, 0),
                "{moved:?} after {}",
                history.change(moment - 1)
            );
            for node in [alice, bob, lsp] {
                assert!(node.published.all().is_empty());
                node.stop().await;
            }
        }
    };
    let _: [(); AT_ONCE] =
        tokio::join!(crash_from(0), crash_from(1), crash_from(2), crash_from(3)).into();
}

/// A disk that is full for a moment in the middle of a payment: what is on it has no gap, so the
/// next start goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_monitor_that_could_not_be_written_none_is_and_the_next_start_goes_on() {
    let (chain, history) = (Chain::new(), History::default());
    let mut lsp = Node::start("lsp", lsp_role(), &chain, &history).await;
    let mut alice = Node::start("alice", Role::Member, &chain, &history).await;
    alice.connect(&lsp).await;
    let a = slot_id(1);
    open(&mut lsp, &mut alice, a, 400_000_000).await;
    let failed = alice.host.failed();
    let invoices = [
        invoice(&lsp, 50_000_000).await,
        invoice(&lsp, 60_000_000).await,
    ];
    history.fail_monitors_of(Some("alice"));
    alice.host.pay(&invoices[0], None).unwrap();
    wait_until("the failure is told", || *failed.borrow()).await;
    // The disk has room again, and LDK would write what comes now.
    history.fail_monitors_of(None);
    let _ = alice.host.pay(&invoices[1], None);
    chain.mine_empty(1);
    for node in [alice, lsp] {
        node.stop().await;
    }
    let lsp = Node::start("lsp", lsp_role(), &chain, &history).await;
    let alice = Node::start("alice", Role::Member, &chain, &history).await;
    alice.connect(&lsp).await;
    wait_until("both sides agree again", || {
        [&alice, &lsp].iter().all(|node| {
            let state = node.host.channel_state(&a);
            state.is_some_and(|it| it.is_usable && it.inbound_htlcs + it.outbound_htlcs == 0)
        }) && alice.balance_msat(&a) + lsp.balance_msat(&a) == 1_000_000_000
    })
    .await;
    for node in [alice, lsp] {
        assert!(node.published.all().is_empty());
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_arrive_whole_or_are_refused() {
    let (chain, history) = (Chain::new(), History::default());
    let lsp = Node::start("lsp", lsp_role(), &chain, &history).await;
    let mut alice = Node::start("alice", Role::Member, &chain, &history).await;
    let to_alice = alice.host.node_id();
    let message = |bytes| FactoryMessage {
        submessage: 7,
        payload: vec![5; bytes],
    };
    let refused = lsp.host.send_message(to_alice, message(1)).unwrap_err();
    assert_eq!(refused, SendError::NotConnected(to_alice));
    alice.connect(&lsp).await;
    let speaks = alice
        .expect(|event| match event {
            HostEvent::PeerConnected { speaks_factory, .. } => Some(*speaks_factory),
            _ => None,
        })
        .await;
    assert!(speaks);
    let refused = lsp
        .host
        .send_message(to_alice, message(MAX_PAYLOAD_BYTES + 1))
        .unwrap_err();
    assert_eq!(
        refused,
        SendError::TooLarge {
            bytes: MAX_PAYLOAD_BYTES + 1
        }
    );
    for bytes in [0, 1, MAX_PAYLOAD_BYTES] {
        lsp.host.send_message(to_alice, message(bytes)).unwrap();
        let received = alice
            .expect(|event| match event {
                HostEvent::Message { peer, message, .. } => Some((*peer, message.clone())),
                _ => None,
            })
            .await;
        assert_eq!(received, (lsp.host.node_id(), message(bytes)));
    }
    assert!(matches!(
        alice.host.pay("lnbcrt1nonsense", None),
        Err(PayError::InvalidInvoice(_))
    ));
    alice.stop().await;
    lsp.stop().await;
}
