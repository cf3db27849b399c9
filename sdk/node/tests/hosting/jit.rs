//! A channel bought with its payment, and crashes in the middle of it.

use std::time::Duration;

use superscalar_sdk::JitPolicy;
use superscalar_sdk::hosting::{HostEvent, LspPolicy, Role};

use crate::chain::Chain;
use crate::node::{Node, funding, open, slot_id};
use crate::store::History;

const AMOUNT_MSAT: u64 = 50_000_000;
const FEE_MSAT: u64 = 2_000_000;
const PAYER_MSAT: u64 = 400_000_000;
/// A sale that stands still after a crash is given up in a minute and a half.
const PATIENCE: Duration = Duration::from_secs(150);

fn seller() -> Role {
    Role::Lsp(LspPolicy {
        jit: Some(JitPolicy::default()),
        ..LspPolicy::default()
    })
}

/// What an engine does with coins.
fn give_coins(lsp: &mut Node) {
    for event in lsp.events_so_far() {
        if let HostEvent::SoldFundingNeeded {
            sale,
            channel,
            amount_sat,
            script,
        } = event
        {
            let tx = funding(slot_id(9), script, amount_sat);
            // An error says that it was given up meanwhile.
            let _ = lsp.host.fund_sold_channel(sale, channel, tx, 0);
        }
    }
}

/// Whoever claimed has its funding published, and nobody else; no payment is lost or paid twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sale_survives_a_crash_after_every_write() {
    const AT_ONCE: usize = 6;
    let (chain, history) = (Chain::new(), History::default());
    let mut lsp = Node::start("lsp", seller(), &chain, &history).await;
    let mut alice = Node::start("alice", Role::Member, &chain, &history).await;
    let bob = Node::start("bob", Role::Member, &chain, &history).await;
    alice.connect(&lsp).await;
    bob.connect(&lsp).await;
    let a = slot_id(1);
    open(&mut lsp, &mut alice, a, PAYER_MSAT).await;
    let seller_id = lsp.host.node_id();
    let bought = bob
        .host
        .jit_invoice(seller_id, AMOUNT_MSAT, "", 600, FEE_MSAT);
    let (invoice, quote) = bought.await.unwrap();
    assert_eq!(quote.fee_msat, FEE_MSAT);
    let begin = history.len();
    alice.host.pay(&invoice.to_string(), None).unwrap();
    let ended = until_over(&mut lsp, &alice, &bob, "no crash").await;
    assert_eq!(ended, Outcome::Paid);
    let end = history.len();
    for node in [alice, bob, lsp] {
        node.stop().await;
    }

    let crash_from = async |first: usize| {
        let chain = Chain::new();
        let mut paid = 0;
        for moment in (begin + first..=end).step_by(AT_ONCE) {
            let crashed = history.until(moment);
            let mut lsp = Node::start("lsp", seller(), &chain, &crashed).await;
            let alice = Node::start("alice", Role::Member, &chain, &crashed).await;
            let bob = Node::start("bob", Role::Member, &chain, &crashed).await;
            alice.connect(&lsp).await;
            bob.connect(&lsp).await;
            let after = history.change(moment - 1);
            if until_over(&mut lsp, &alice, &bob, &after).await == Outcome::Paid {
                paid += 1;
            }
            // A buyer whose channel the LSP lost closes it, which nobody can see: it has no funding.
            for node in [&alice, &lsp] {
                let nothing = node.published.all().is_empty();
                assert!(nothing, "{} published after {after}", node.name);
            }
            for node in [alice, bob, lsp] {
                node.stop().await;
            }
        }
        paid
    };
    let paid: usize = <[usize; AT_ONCE]>::from(tokio::join!(
        crash_from(0),
        crash_from(1),
        crash_from(2),
        crash_from(3),
        crash_from(4),
        crash_from(5)
    ))
    .iter()
    .sum();
    assert!(paid > 0, "no crash let the payment through");
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Paid,
    Failed,
    Wrong(String),
}

fn outcome(lsp: &Node, alice: &Node, bob: &Node) -> Outcome {
    let left = alice.balance_msat(&slot_id(1));
    let states = bob.host.channel_states();
    let arrived: u64 = states.iter().map(|state| state.balance_msat).sum();
    match (PAYER_MSAT - left, arrived, lsp.host.due_fundings().len()) {
        (AMOUNT_MSAT, arrived, 1) if arrived == AMOUNT_MSAT - FEE_MSAT => Outcome::Paid,
        (0, 0, 0) => Outcome::Failed,
        other => Outcome::Wrong(format!("{other:?}")),
    }
}

/// Waits until no HTLC is anywhere and all books agree; says how it ended.
async fn until_over(lsp: &mut Node, alice: &Node, bob: &Node, after: &str) -> Outcome {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        give_coins(lsp);
        let settled = |node: &Node| {
            let states = node.host.channel_states().into_iter();
            states
                .map(|it| it.inbound_htlcs + it.outbound_htlcs)
                .sum::<usize>()
                == 0
        };
        let payer = alice.host.channel_state(&slot_id(1));
        let idle = [&*lsp, alice, bob].into_iter().all(settled);
        let ended = outcome(lsp, alice, bob);
        if idle && payer.is_some_and(|it| it.is_usable) && !matches!(ended, Outcome::Wrong(_)) {
            return ended;
        }
        let in_time = tokio::time::Instant::now() < deadline;
        assert!(
            in_time,
            "{ended:?} with HTLCs settled: {idle}, after {after}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
