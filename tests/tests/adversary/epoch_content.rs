//! An LSP that says something else in a new epoch than what was, or may be, agreed: it is refused by
//! the name of what is wrong, nothing has changed, and the epoch is made when it is said right.

use bitcoin::Amount;
use bitcoin::secp256k1::schnorr;
use superscalar_factory::message::{CutOffer, EpochPropose, Message};
use superscalar_sdk::Event;
use superscalar_tests::tap::{self, FactoryRule, Side, cheating};

use super::epoch_silence::{Bench, STORED};

const SAT: Amount = Amount::ONE_SAT;

impl Bench {
    fn refused(&self, field: &str) -> usize {
        let refused = |event: &&Event| matches!(event, Event::FactoryRefused { field: of, .. } if of == field);
        let events = self.network.member_events(self.victim);
        events.iter().filter(refused).count()
    }

    async fn until_refused(&self, field: &str, before: usize) {
        self.network
            .wait(field, async || self.refused(field) > before)
            .await;
    }

    /// With this in the LSP's place an epoch comes to nothing, because of `field`.
    async fn is_refused(&self, field: &str, cheat: FactoryRule) {
        let (refused, ended) = (self.refused(field), self.ended());
        self.tap.set_rule(cheating(Side::Lsp, cheat));
        self.begin().await;
        self.until_refused(field, refused).await;
        self.network
            .wait("the epoch to end", async || self.ended() > ended)
            .await;
        self.tap.pass();
        self.goes_on().await;
    }

    /// What the LSP proposed last, and what it would be with another hash for the stock.
    fn proposed(&self) -> EpochPropose {
        let heard = self.tap.heard_of_factories(Side::Lsp).into_iter().rev();
        let mut proposals = heard.filter_map(|message| match message {
            Message::EpochPropose(propose) => Some(propose),
            _ => None,
        });
        let mut propose = proposals.next().unwrap();
        if let CutOffer::Channel { stock_hash, .. } = &mut propose.cut {
            stock_hash[0] ^= 1;
        }
        propose
    }

    async fn is_free(&self) -> bool {
        let seat = self.network.seat(self.victim, &self.factory).await;
        seat.moving.is_none()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_lsp_that_changes_what_is_agreed_is_refused_by_name() {
    let bench = Bench::set().await;
    // Less than the member's channels hold, which nobody was asked for.
    let less: FactoryRule = Box::new(|message| match message {
        Message::EpochPropose(mut propose) => {
            if let CutOffer::Channel {
                capacity, stock, ..
            } = &mut propose.cut
            {
                (*capacity, *stock) = (*capacity - SAT, *stock + SAT);
            }
            vec![propose.into()]
        }
        other => vec![other],
    });
    bench.is_refused("capacity", less).await;
    // A leaf in which the member's channel is not what was proposed.
    let other_leaf: FactoryRule = Box::new(|message| match message {
        Message::EpochTerms(mut terms) => {
            for output in &mut terms.leaf_outputs {
                output.value -= SAT;
            }
            vec![terms.into()]
        }
        other => vec![other],
    });
    bench.is_refused("leaf_outputs", other_leaf).await;

    // A try that has come as far as its channel is not made again with another content.
    bench.comes_to_nothing(Side::Member, STORED).await;
    let before = bench.refused("retry");
    let again = tap::Message::of_factory(&bench.proposed().into());
    assert!(bench.tap.say(Side::Lsp, again));
    bench.until_refused("retry", before).await;
    assert!(bench.is_free().await);
    bench.goes_on().await;

    // A final signature that is none leaves everything as it was until the right one is there.
    let before = bench.refused("signature");
    let invalid: FactoryRule = Box::new(|message| match message {
        Message::EpochSig(mut sig) => {
            let mut bytes = sig.signature.serialize();
            bytes[40] ^= 1;
            sig.signature = schnorr::Signature::from_slice(&bytes).unwrap();
            vec![sig.into()]
        }
        other => vec![other],
    });
    bench.tap.set_rule(cheating(Side::Lsp, invalid));
    bench.begin().await;
    bench.until_refused("signature", before).await;
    let seat = bench.network.seat(bench.victim, &bench.factory).await;
    assert_eq!(
        (seat.version, seat.moving.as_deref()),
        (0, Some("committed"))
    );
    bench.again();
    bench.until_moved(1).await;

    // Once it is signed for, nothing else is, and the user is told who wanted it.
    let network = &bench.network;
    let again = tap::Message::of_factory(&bench.proposed().into());
    assert!(bench.tap.say(Side::Lsp, again));
    network
        .wait("the user to be told", async || {
            let told = |event: &Event| matches!(event, Event::EpochEquivocation { .. });
            network.member_events(bench.victim).iter().any(told)
        })
        .await;
    assert!(bench.is_free().await);
    bench.goes_on().await;
    bench.network.stop().await;
}
