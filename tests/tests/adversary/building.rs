//! While a factory is built: whatever one side makes of its messages, the other says what was wrong
//! with it, no coin moves or stays locked, and the next honest try succeeds.

use std::collections::BTreeSet;

use bitcoin::hashes::Hash as _;
use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey};
use bitcoin::{Amount, Txid};
use superscalar_factory::message::RefusalCode::{self, *};
use superscalar_factory::message::{Message, Refusal};
use superscalar_factory::terms::TimeoutPolicy;
use superscalar_sdk::BuildRequest;
use superscalar_sdk::hosting::FACTORY_MESSAGE_TYPE;
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::tap::{self, Rule, Side, Tap, cheating};

/// Name, the change, and what the other side answers: code and field.
type Attack = (&'static str, Change, RefusalCode, &'static str);

/// What is changed in a message on its way.
type Change = fn(&mut Message);

/// The key of nobody here.
pub(crate) fn stranger() -> PublicKey {
    SecretKey::from_slice(&[7; 32])
        .unwrap()
        .public_key(&Secp256k1::new())
}

macro_rules! change {
    ($kind:ident, |$body:ident| $change:expr) => {
        |message| {
            if let Message::$kind($body) = message {
                $change;
            }
        }
    };
}

#[rustfmt::skip]
fn by_the_lsp() -> Vec<Attack> {
    vec![
        ("a feerate that will not relay", change!(Invite, |it| it.header.tree_feerate = 4), Terms, "tree_feerate"),
        ("a policy that gives it all after T",
            change!(Invite, |it| it.header.policy = TimeoutPolicy::LspReclaims), Limits, "policy"),
        ("less capacity than asked for", change!(Invite, |it| it.capacity -= Amount::ONE_SAT), Limits, "capacity"),
        ("a price nobody agreed to", change!(Invite, |it| it.price = Amount::ONE_SAT), Limits, "price"),
        ("less capacity in the terms", change!(Terms, |it| it.facts.record.capacity -= Amount::ONE_SAT), Terms, "capacity"),
        ("a shorter expiry", change!(Terms, |it| it.header.expiry -= 1), Terms, "expiry"),
        ("a swapped script", change!(Terms, |it| {
            let slot = usize::from(it.facts.slot);
            it.facts.payouts[slot].script_pubkey = it.header.lsp_payout.clone();
        }), Terms, "payouts"),
        ("a key in the member's place", change!(Terms, |it| {
            let slot = usize::from(it.facts.slot);
            it.facts.keys[slot] = stranger();
        }), Terms, "keys"),
        ("the member's key twice", change!(Terms, |it| {
            let slot = usize::from(it.facts.slot);
            it.facts.keys[1 - slot] = it.facts.keys[slot];
        }), Terms, "member_key"),
        ("a nonce left out", change!(Terms, |it| { it.nonces.pop(); }), Nonce, "nonces"),
        ("terms of another attempt", change!(Terms, |it| it.attempt.number += 1), Unknown, ""),
        ("a signature of another transaction",
            change!(NodeSigs, |it| it.signatures.swap(0, 1)), Signature, "signatures"),
        ("a signature left out", change!(NodeSigs, |it| { it.signatures.pop(); }), Signature, "signatures"),
        ("a channel for another place", change!(Identity, |it| it.slot ^= 1), Channel, "slot"),
        ("less time to reach the chain", change!(Identity, |it| it.blocks_early -= 1), Channel, "blocks_early"),
    ]
}

#[rustfmt::skip]
fn by_the_member() -> Vec<Attack> {
    vec![
        ("a nonce left out", change!(Join, |it| { it.nonces.pop(); }), Nonce, "nonces"),
        ("an anchor as payout", change!(Join, |it| it.payout = bitcoin::ScriptBuf::new_p2a()), Terms, "payout"),
        ("a bad partial signature", change!(PartialSigs, |it| it.partials[0][31] ^= 1), Signature, ""),
        ("a partial signature left out", change!(PartialSigs, |it| { it.partials.pop(); }), Signature, "partials"),
        ("a bad signature for the root", change!(RootPartial, |it| it.partial[31] ^= 1), Signature, ""),
    ]
}

/// Terms that a member cannot tell from the others' terms. They are worthless: what is signed under
/// them aggregates with nobody else's.
#[rustfmt::skip]
fn unseen() -> Vec<(&'static str, Change)> {
    vec![
        ("a neighbour's payout, told to one member only", change!(Terms, |it| {
            let other = usize::from(it.facts.slot ^ 1);
            it.facts.payouts[other].script_pubkey = it.header.lsp_payout.clone();
        })),
        ("a neighbour's key, told to one member only", change!(Terms, |it| {
            let other = usize::from(it.facts.slot ^ 1);
            it.facts.keys[other] = stranger();
        })),
        ("another funding", change!(Terms, |it| it.funding.txid = Txid::from_byte_array([3; 32]))),
        ("another proof", change!(Terms, |it| it.facts.proof.siblings[0][0] ^= 1)),
        ("a nonce of its own choice", change!(Terms, |it| it.nonces.swap(0, 1))),
    ]
}

/// `who` says something else than its program would.
fn changing(who: Side, change: Change) -> Rule {
    let cheats = move |mut message| {
        change(&mut message);
        vec![message]
    };
    cheating(who, Box::new(cheats))
}

/// Lets a ceremony of two fail, and gives what was refused and by whom.
pub(crate) async fn attempt(
    network: &TestNetwork,
    tap: &Tap,
    name: &str,
    rule: Rule,
) -> Vec<(Side, RefusalCode, String)> {
    network.all_waiting(2).await;
    let coins_sat = network.lsp().onchain().balance().unwrap().spendable_sat;
    let earlier = [Side::Member, Side::Lsp].map(|who| tap.heard_of_factories(who).len());
    tap.set_rule(rule);
    // What the LSP refuses it waits for until the round is over.
    let request = BuildRequest {
        round_seconds: 10,
        ..regtest_factory(2)
    };
    let factory = network.lsp().create_factory(request).await.unwrap();
    network
        .wait(name, async || {
            let infos = network.lsp().factories().await.unwrap();
            let ours = infos.iter().find(|it| it.factory == factory);
            ours.is_some_and(|it| it.phase == "ended")
        })
        .await;
    let mempool = network.chain.mempool().unwrap();
    assert!(mempool.is_empty(), "{name}: {mempool:?}");
    let after_sat = network.lsp().onchain().balance().unwrap().spendable_sat;
    assert_eq!(after_sat, coins_sat, "{name}: the LSP's coins");
    tap.pass();
    for member in &network.members {
        let infos = member.wallet.factories().list().await.unwrap();
        assert!(infos.iter().all(|it| !it.active), "{name}");
        member.wallet.factories().join(500_000).await.unwrap();
    }
    let mut refusals = Vec::new();
    for (who, earlier) in [Side::Member, Side::Lsp].into_iter().zip(earlier) {
        for message in tap.heard_of_factories(who).split_off(earlier) {
            if let Message::Refusal(Refusal { code, field, .. }) = message {
                refusals.push((who, code, field));
            }
        }
    }
    refusals
}

/// Nothing of all that is left: the honest try stands, with the same coin.
pub(crate) async fn honest(network: TestNetwork) {
    network.build(regtest_factory(2)).await;
    network.lsp_pays(0, 100_000_000).await;
    network.pay(0, 1, 10_000_000).await;
    network.settle().await;
    network.stop().await;
}

async fn all(cheat: Side, attacks: Vec<Attack>) {
    let network = TestNetwork::start(2).await;
    let tap = network.tap(0).await;
    let victim = match cheat {
        Side::Lsp => Side::Member,
        Side::Member => Side::Lsp,
    };
    for (name, change, code, field) in attacks {
        let refusals = attempt(&network, &tap, name, changing(cheat, change)).await;
        let mut answers = refusals.iter().filter(|it| it.0 == victim);
        let answer = answers.next().map(|it| (it.1, it.2.as_str()));
        assert_eq!(answer, Some((code, field)), "{name}");
    }
    honest(network).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_lsp_that_cheats_while_building_gets_no_signature_and_moves_no_coin() {
    all(Side::Lsp, by_the_lsp()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_cheats_while_joining_locks_no_coin() {
    all(Side::Member, by_the_member()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terms_that_differ_between_members_are_worth_nothing_to_the_lsp() {
    let network = TestNetwork::start(2).await;
    let tap = network.tap(0).await;
    for (name, change) in unseen() {
        let said = tap.said(Side::Lsp, FACTORY_MESSAGE_TYPE).len();
        let refusals = attempt(&network, &tap, name, changing(Side::Lsp, change)).await;
        // The LSP's own program finds that the member's signatures do not fit.
        let told = (Side::Lsp, RefusalCode::Signature, String::new());
        assert_eq!(refusals, [told], "{name}");
        let said = tap.said(Side::Lsp, FACTORY_MESSAGE_TYPE).split_off(said);
        let finals = |it: &Message| matches!(it, Message::NodeSigs(_) | Message::RootSig(_));
        let said = said.iter().filter_map(|it| it.factory());
        assert_eq!(said.filter(finals).count(), 0, "{name}");
    }
    honest(network).await;
}

/// Everything both sides said in one ceremony is said again in the next, before what belongs there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_said_in_an_earlier_ceremony_counts_in_no_other() {
    let network = TestNetwork::start(2).await;
    let tap = network.tap(0).await;
    let root = changing(Side::Member, change!(RootPartial, |it| it.partial[31] ^= 1));
    attempt(&network, &tap, "an attempt", root).await;
    let earlier = [Side::Member, Side::Lsp].map(|who| {
        let mut said = tap.heard_of_factories(who);
        said.retain(|it| {
            !matches!(
                it,
                Message::Refusal(_) | Message::Seek(_) | Message::Invite(_)
            )
        });
        said
    });
    assert_eq!(earlier.each_ref().map(Vec::len), [4, 3]);
    let replay = |who: Side, mut earlier: Vec<Message>| {
        move |speaker, message: tap::Message| {
            let mut all = Vec::new();
            if speaker == who && message.factory().is_some() {
                all.extend(earlier.drain(..).map(|it| tap::Message::of_factory(&it)));
            }
            all.push(message);
            all
        }
    };
    let [member, lsp] = earlier;
    let (mut first, mut second) = (replay(Side::Member, member), replay(Side::Lsp, lsp));
    tap.set_rule(Box::new(move |who, message| match who {
        Side::Member => first(who, message),
        Side::Lsp => second(who, message),
    }));
    let heard = tap.heard_of_factories(Side::Lsp).len();
    honest(network).await;
    let answers = tap.heard_of_factories(Side::Lsp).split_off(heard);
    let unknown = answers.iter().filter(|it| {
        matches!(
            it,
            Message::Refusal(Refusal {
                code: RefusalCode::Unknown,
                ..
            })
        )
    });
    assert_eq!(unknown.count(), 4, "{answers:?}");
}

/// What is revealed of a factory key when a place is given up would be known in another factory with
/// it: each is brought into one attempt, and refused in all others by whoever hears it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_factory_key_is_brought_into_one_attempt_only() {
    let mut network = TestNetwork::start(2).await;
    let tap = network.tap(0).await;
    let root = changing(Side::Member, change!(RootPartial, |it| it.partial[31] ^= 1));
    attempt(&network, &tap, "an attempt", root).await;
    let (member_key, lsp_key) = (
        keys_said(&tap, Side::Member)[0],
        keys_said(&tap, Side::Lsp)[0],
    );
    // What a wallet has met it knows after a restart, too.
    network.restart(0).await;
    network.wallet(0).factories().join(500_000).await.unwrap();
    let by_member = cheating(
        Side::Member,
        Box::new(move |mut message| {
            if let Message::Join(join) = &mut message {
                join.member_key = member_key;
            }
            vec![message]
        }),
    );
    let refusals = attempt(&network, &tap, "a member's key again", by_member).await;
    // Then it says that the member was silent: there was no Join.
    assert_eq!(refusals[0], (Side::Lsp, Key, "member_key".to_owned()));
    let by_lsp = cheating(
        Side::Lsp,
        Box::new(move |mut message| {
            if let Message::Invite(invite) = &mut message {
                invite.header.lsp_key = lsp_key;
            }
            vec![message]
        }),
    );
    let refusals = attempt(&network, &tap, "the LSP's key again", by_lsp).await;
    assert_eq!(refusals[0], (Side::Member, Key, "lsp_key".to_owned()));
    honest(network).await;
    for who in [Side::Member, Side::Lsp] {
        let keys = keys_said(&tap, who);
        let distinct: BTreeSet<_> = keys.iter().map(|key| key.x_only_public_key().0).collect();
        assert!(keys.len() >= 3, "{who:?}");
        assert_eq!(distinct.len(), keys.len(), "{who:?}");
    }
}

/// The factory keys that a side's program brought, one for each attempt.
fn keys_said(tap: &Tap, who: Side) -> Vec<PublicKey> {
    let said = tap.heard_of_factories(who).into_iter();
    let keys = said.filter_map(|message| match message {
        Message::Invite(invite) => Some((invite.header.attempt(), invite.header.lsp_key)),
        Message::Join(join) => Some((join.attempt, join.member_key)),
        _ => None,
    });
    let mut by_attempt = Vec::new();
    for (attempt, key) in keys {
        if !by_attempt.contains(&(attempt, key)) {
            by_attempt.push((attempt, key));
        }
    }
    by_attempt.into_iter().map(|(_, key)| key).collect()
}

/// Asked twice for signatures with the same nonces, a member gives them once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonces_are_answered_once() {
    let network = TestNetwork::start(2).await;
    let tap = network.tap(0).await;
    network.all_waiting(2).await;
    let coins_sat = network.lsp().onchain().balance().unwrap().spendable_sat;
    tap.set_rule(cheating(
        Side::Lsp,
        Box::new(|message| {
            let Message::Terms(terms) = &message else {
                return vec![message];
            };
            let mut again = terms.clone();
            again.nonces.swap(0, 1);
            vec![message, again.into()]
        }),
    ));
    let factory = network.lsp().create_factory(regtest_factory(2)).await;
    let factory = factory.unwrap();
    network
        .wait("the attempt to end", async || {
            let infos = network.lsp().factories().await.unwrap();
            let ours = infos.iter().find(|it| it.factory == factory);
            ours.is_some_and(|it| it.phase == "ended")
        })
        .await;
    let said = tap.heard_of_factories(Side::Member);
    let partials = said
        .iter()
        .filter(|it| matches!(it, Message::PartialSigs(_)));
    assert_eq!(partials.count(), 1);
    assert!(said.iter().any(|it| {
        matches!(
            it,
            Message::Refusal(Refusal {
                code: RefusalCode::Unexpected,
                ..
            })
        )
    }));
    assert!(network.chain.mempool().unwrap().is_empty());
    let after_sat = network.lsp().onchain().balance().unwrap().spendable_sat;
    assert_eq!(after_sat, coins_sat, "the LSP's coins");
    tap.pass();
    for member in &network.members {
        member.wallet.factories().join(500_000).await.unwrap();
    }
    honest(network).await;
}
