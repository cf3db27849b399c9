//! An LSP says that it never completes an epoch, completes it all the same, and publishes it: what
//! the member had when it signed is what it has, and the LSP nothing beyond its own.

use bitcoin::{OutPoint, Txid};
use superscalar_factory::message::{EpochEnd, Message, RefusalCode};
use superscalar_sdk::{Event, ExitMode, TreeEdition, TreeTxKind};
use superscalar_tests::tap::{self, Side};
use superscalar_tests::trail::{COMMITMENT_FEE_SAT, ExitPath, value_of};

use crate::epochs::until_left;

use super::epoch_silence::{Bench, END, REVEAL, SIG};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_completed_against_the_promise_pays_what_was_signed_for() {
    let bench = Bench::set().await;
    let (network, victim) = (&bench.network, bench.victim);
    let own_sat = network.at_rest(victim).await.0 / 1_000;
    let before = ExitPath::of(network.wallet(victim), &bench.factory).await;
    // The LSP has all signatures and says nothing of it to one of two.
    bench.withhold(Side::Lsp, &[SIG, REVEAL, END]);
    bench.begin().await;
    network
        .wait("the other to move", async || {
            let moved = |event: &Event| matches!(event, Event::EpochMoved { .. });
            network.member_events(bench.other).iter().any(moved)
        })
        .await;
    let heard = bench.tap.heard_of_factories(Side::Lsp).into_iter();
    let proposed = heard.rev().find_map(|message| match message {
        Message::EpochPropose(propose) => Some(propose),
        _ => None,
    });
    let proposed = proposed.unwrap();
    let end = EpochEnd {
        attempt: proposed.attempt,
        epoch: proposed.epoch,
        code: RefusalCode::Silence,
    };
    assert!(
        bench
            .tap
            .say(Side::Lsp, tap::Message::of_factory(&end.into()))
    );
    network
        .wait("the member to believe it", async || {
            let seat = network.seat(victim, &bench.factory).await;
            let capped = seat.most_msat.map(|msat| msat / 1_000) == Some(own_sat);
            seat.moving.is_none() && seat.version == 0 && capped
        })
        .await;

    // It opens the tree in the epoch that it had promised to forget.
    let lsp = network.lsp();
    let seat = network.seat(victim, &bench.factory).await;
    let place = format!("{}/{}", bench.factory, seat.slot);
    lsp.exit().start(&place, ExitMode::Leave).await.unwrap();
    // The root's kickoff and state, the leaf's kickoff: the same in both epochs of the leaf.
    for step in &before.steps[..3] {
        network.confirm(step.txid, &[victim]).await;
    }
    let kickoff = OutPoint::new(before.steps[2].txid, 0);
    network.mined_spend(kickoff, &[victim]).await;
    let leaf = network.confirmed_spender(kickoff).0.compute_txid();
    assert_ne!(leaf, before.channel.txid);
    let told = network.member_events(victim).into_iter();
    let told = told.filter_map(|event| match event {
        Event::TreeTransaction {
            txid,
            kind,
            edition,
            ..
        } => Some((txid.parse::<Txid>().unwrap(), kind, edition)),
        _ => None,
    });
    let told: Vec<_> = told.collect();
    assert!(
        told.contains(&(leaf, TreeTxKind::State, TreeEdition::Undecided)),
        "{told:?}"
    );

    // The member is out with what it had when it signed.
    network.leave(victim, &bench.factory).await;
    until_left(network, victim, &[victim]).await;
    let channel = OutPoint::new(leaf, before.channel.vout);
    let coins = network.wallet(victim).onchain().balance().unwrap();
    let own = [(channel, own_sat)];
    assert_eq!(coins.spendable_sat, network.came_home_sat(&own));
    assert_eq!(network.balance_msat(victim), 0);
    assert_eq!(
        network.chain.confirmed_at(before.channel.txid).unwrap(),
        None
    );
    // What else the commitment pays is the LSP's, less the fee.
    let (commitment, _) = network.confirmed_spender(channel);
    let whole_sat = network.value_sat(channel);
    // Fractions of a satoshi, of both, are the miner's.
    let paid_sat = value_of(&commitment);
    assert_eq!(paid_sat, whole_sat - COMMITMENT_FEE_SAT - 1);
    bench.network.stop().await;
}
