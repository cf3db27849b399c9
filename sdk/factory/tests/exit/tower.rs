//! What a tower publishes for a path and for what a cheat put on chain; what it says and hears.

use bitcoin::absolute::LockTime;
use bitcoin::hashes::Hash as _;
use bitcoin::transaction::Version;
use bitcoin::{Amount, FeeRate, OutPoint, ScriptBuf, Transaction, TxIn, TxOut, Txid};
use proptest::prelude::*;
use superscalar_factory::codec::{Decode, DecodeError, Encode};
use superscalar_factory::exit::{ChainFacts, Spend};
use superscalar_factory::shape::Shape;
use superscalar_factory::terms::TimeoutPolicy;
use superscalar_factory::tower::{
    Answer, Appointment, Ask, Claim, Digest, Ears, MAX_MESSAGE, MAX_TRIES, RefusalCode, Report,
    Request, Try, answer_to, due, pieces,
};
use superscalar_factory::tree::{Blueprint, Role};

use crate::epochs::path_with_two_root_epochs;
use crate::sales::Sold;
use crate::support::simulated_chain::SimulatedChain;
use crate::support::{Parties, funding, path_of_four, terms};
use crate::{EXPIRY, LEAF, ROOT, START, STATE_DELAY, signed};

fn spending(outpoint: OutPoint, sat: u64) -> Transaction {
    Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: outpoint,
            ..TxIn::default()
        }],
        output: vec![TxOut {
            value: Amount::from_sat(sat),
            script_pubkey: ScriptBuf::new(),
        }],
    }
}

fn outpoint(byte: u8) -> OutPoint {
    OutPoint::new(Txid::from_byte_array([byte; 32]), 1)
}

fn tries(outpoint: OutPoint, rates: &[u32]) -> Vec<Try> {
    let each = rates.iter().map(|rate| Try {
        feerate_sat_per_kwu: *rate,
        transaction: spending(outpoint, 100_000 - u64::from(*rate)),
    });
    each.collect()
}

fn claim(outpoint: OutPoint) -> Claim {
    Claim::new(outpoint, tries(outpoint, &[253, 2_500, 25_000])).unwrap()
}

fn path_appointment() -> Appointment {
    let (_, path) = path_of_four(TimeoutPolicy::MembersReclaim);
    Appointment::Path {
        path: Box::new(path),
        stale: vec![claim(outpoint(1)), claim(outpoint(2))],
        beside: vec![outpoint(3)],
    }
}

fn revoked() -> Appointment {
    Appointment::Revoked {
        channel: outpoint(7),
        claim: claim(outpoint(8)),
    }
}

fn facts(chain: &SimulatedChain, appointment: &Appointment) -> ChainFacts {
    chain.facts_of(&appointment.watched())
}

#[test]
fn nothing_is_due_before_somebody_opens_and_then_the_newest_state_is() {
    let (tree, path) = path_with_two_root_epochs();
    let root_state = path.nodes()[0].newest().1.state.clone();
    let kickoff = path.nodes()[0].kickoff.clone();
    let appointment = Appointment::Path {
        path: Box::new(path),
        stale: Vec::new(),
        beside: Vec::new(),
    };
    let mut chain = SimulatedChain::new(funding(), START);
    let now = due(&appointment, &facts(&chain, &appointment)).unwrap();
    assert_eq!((now.tree.len(), now.claims.len()), (0, 0));
    assert_eq!(appointment.trigger(), funding());
    chain.publish(&kickoff);
    chain.mine();
    // The older state would have to wait; the newest does not.
    let seen = facts(&chain, &appointment);
    let now = due(&appointment, &seen).unwrap();
    assert_eq!(now.tree, std::slice::from_ref(&root_state));
    assert_ne!(
        root_state,
        signed(
            &tree,
            &path_of_four(TimeoutPolicy::MembersReclaim).1,
            ROOT,
            Role::State
        )
    );
    chain.publish(&root_state);
    chain.mine();
    // Answered: the leaf stays closed.
    let seen = facts(&chain, &appointment);
    assert_eq!(due(&appointment, &seen).unwrap().tree, []);
    // A reorg is other facts.
    chain.disconnect(1);
    let seen = facts(&chain, &appointment);
    assert_eq!(due(&appointment, &seen).unwrap().tree, [root_state]);
}

/// A chain on which somebody has opened the leaf.
fn opened(sold: &Sold) -> SimulatedChain {
    let mut chain = SimulatedChain::new(funding(), START);
    for (node, role) in [
        (ROOT, Role::Kickoff),
        (ROOT, Role::State),
        (LEAF, Role::Kickoff),
        (LEAF, Role::State),
    ] {
        if role == Role::State {
            chain.mine_empty(STATE_DELAY);
        }
        chain.publish(&signed(&sold.tree, &sold.path, node, role));
        chain.mine();
    }
    chain
}

#[test]
fn every_sale_follows_its_leaf_whoever_opened_it() {
    let sold = Sold::new(TimeoutPolicy::MembersReclaim);
    let appointment = Appointment::Path {
        path: Box::new(sold.path.clone()),
        stale: Vec::new(),
        beside: Vec::new(),
    };
    let mut chain = opened(&sold);
    for link in &sold.links {
        let seen = facts(&chain, &appointment);
        let now = due(&appointment, &seen).unwrap();
        assert_eq!(now.tree, std::slice::from_ref(link));
        chain.publish(link);
        chain.mine();
    }
    let seen = facts(&chain, &appointment);
    assert_eq!(due(&appointment, &seen).unwrap().tree, []);
}

/// What an epoch has retired is the client's as a whole: a sale of then would give the LSP its side.
#[test]
fn stock_that_was_revoked_is_taken_and_not_sold() {
    let sold = Sold::new(TimeoutPolicy::MembersReclaim);
    let chains = sold.path.sales().iter();
    let stocks = chains.flat_map(|chain| chain.stocks().map(|it| it.outpoint()));
    let appointment = Appointment::Path {
        path: Box::new(sold.path.clone()),
        stale: stocks.map(claim).collect(),
        beside: Vec::new(),
    };
    let Appointment::Path { stale, .. } = &appointment else {
        unreachable!("made above")
    };
    assert_eq!(stale.len(), sold.links.len() + 1);
    let mut chain = opened(&sold);
    // Only what somebody else has published comes to the next link.
    for (link, claim) in sold.links.iter().zip(stale) {
        let seen = facts(&chain, &appointment);
        let now = due(&appointment, &seen).unwrap();
        assert_eq!((now.tree, now.claims), (Vec::new(), vec![claim]));
        chain.publish(link);
        chain.mine();
    }
    let seen = facts(&chain, &appointment);
    let now = due(&appointment, &seen).unwrap();
    assert_eq!((now.tree, now.claims), (Vec::new(), vec![&stale[3]]));
}

#[test]
fn what_is_below_an_epoch_that_was_not_completed_is_claimed_as_well() {
    let appointment = path_appointment();
    let Appointment::Path { stale, beside, .. } = &appointment else {
        unreachable!("made above")
    };
    let spend = Spend {
        txid: stale[1].outpoint().txid,
        height: Some(200),
    };
    assert!(appointment.watched().contains(&beside[0]));
    let facts = ChainFacts {
        tip: 300,
        funding_height: Some(100),
        spends: [(beside[0], spend)].into(),
    };
    assert_eq!(due(&appointment, &facts).unwrap().claims, [&stale[1]]);
}

#[test]
fn a_claim_is_due_while_its_output_is_on_chain_and_unspent() {
    let appointment = revoked();
    let Appointment::Revoked { channel, claim } = &appointment else {
        unreachable!("made above")
    };
    let cheat = claim.outpoint().txid;
    let spend = |txid, height| Spend { txid, height };
    let is_due = |spends: &[(OutPoint, Spend)]| {
        let facts = ChainFacts {
            tip: 300,
            funding_height: None,
            spends: spends.iter().copied().collect(),
        };
        due(&appointment, &facts).unwrap().claims.len() == 1
    };
    assert!(!is_due(&[]));
    assert!(!is_due(&[(*channel, spend(cheat, None))]), "not confirmed");
    let newest = Txid::from_byte_array([9; 32]);
    assert!(
        !is_due(&[(*channel, spend(newest, Some(200)))]),
        "another commitment"
    );
    let confirmed = (*channel, spend(cheat, Some(200)));
    assert!(is_due(&[confirmed]));
    let taken = |height| (claim.outpoint(), spend(newest, height));
    assert!(is_due(&[confirmed, taken(None)]), "may be replaced");
    assert!(!is_due(&[confirmed, taken(Some(201))]));
}

#[test]
fn each_place_of_a_factory_has_an_appointment_of_its_own() {
    let parties = Parties::new(2);
    let terms = terms(
        &parties,
        Shape::two_layers(2),
        TimeoutPolicy::MembersReclaim,
        EXPIRY,
    );
    let tree = Blueprint::whole(&terms).unwrap().tree(funding()).unwrap();
    let key = |slot| {
        let appointment = Appointment::Path {
            path: Box::new(parties.signed_path(&tree, slot)),
            stale: Vec::new(),
            beside: Vec::new(),
        };
        appointment.key()
    };
    assert_ne!(key(0), key(1));
    assert_eq!(key(0), key(0));
}

#[test]
fn a_claim_pays_what_the_market_asks_or_the_most_there_is() {
    let claim = claim(outpoint(1));
    let at = |sat_per_kwu| {
        let tries = claim.at(FeeRate::from_sat_per_kwu(sat_per_kwu));
        tries.map(|tx| tx.output[0].value).collect::<Vec<_>>()
    };
    let expected = |rates: &[u64]| {
        let left = rates.iter().map(|rate| Amount::from_sat(100_000 - rate));
        left.collect::<Vec<_>>()
    };
    // What is dearer may be needed to replace somebody else's.
    assert_eq!(at(0), expected(&[253, 2_500, 25_000]));
    assert_eq!(at(253), expected(&[253, 2_500, 25_000]));
    assert_eq!(at(254), expected(&[2_500, 25_000]));
    assert_eq!(at(25_000), expected(&[25_000]));
    assert_eq!(at(1_000_000), expected(&[25_000]));
}

#[test]
fn what_is_no_claim_is_refused() {
    let at = outpoint(1);
    assert!(Claim::new(at, tries(at, &[1, 2, 3])).is_some());
    assert!(Claim::new(at, Vec::new()).is_none());
    assert!(Claim::new(at, tries(at, &[1, 2, 3, 4, 5])).is_none());
    assert_eq!(MAX_TRIES, 4);
    assert!(Claim::new(at, tries(at, &[2, 1])).is_none());
    assert!(Claim::new(at, tries(at, &[1, 1])).is_none());
    assert!(Claim::new(outpoint(2), tries(at, &[1])).is_none());
    let mut large = tries(at, &[1]);
    large[0].transaction.output[0].script_pubkey = ScriptBuf::from_bytes(vec![0; 1_000]);
    assert!(Claim::new(at, large).is_none());
    let mut joined = tries(at, &[1]);
    joined[0].transaction.input.push(TxIn::default());
    assert!(Claim::new(at, joined).is_none());
}

#[test]
fn names_and_digests_tell_contents_apart() {
    let (one, other) = (path_appointment(), revoked());
    assert_ne!(one.key(), other.key());
    let Appointment::Path { path, .. } = one.clone() else {
        unreachable!("made above")
    };
    let less = Appointment::Path {
        path,
        stale: Vec::new(),
        beside: Vec::new(),
    };
    assert_eq!(one.key(), less.key());
    assert_ne!(one.digest(), less.digest());
    let mut sum = Digest::default();
    for it in [&one, &other, &one] {
        sum.toggle(it.digest());
    }
    assert_eq!(sum, other.digest());
}

#[test]
fn requests_and_answers_come_back_as_they_were() {
    let keep = |appointment| Ask::Keep {
        from_height: 77,
        appointment,
    };
    let asks = [
        keep(path_appointment()),
        keep(revoked()),
        Ask::Forget(revoked().key()),
        Ask::Report,
    ];
    for (number, ask) in (1..).zip(asks) {
        let request = Request { number, ask };
        assert_eq!(Request::read(&request.write()), Ok(request));
    }
    let report = Report {
        height: 9,
        coins_sat: 8,
        kept: 7,
        quota: 6,
        sum: revoked().digest(),
    };
    let refused = |code| Answer::Refused {
        code,
        detail: "why".into(),
    };
    let answers = [
        Answer::Kept(revoked().digest()),
        Answer::Forgotten,
        Answer::Report(report),
        refused(RefusalCode::Quota),
        refused(RefusalCode::Unavailable),
    ];
    for (number, answer) in (1..).zip(answers) {
        let bytes = answer_to(number, &answer);
        assert_eq!(Answer::read(&bytes), Ok((number, answer)));
    }
}

/// A request whose number can be read is answered: what is wrong with the rest names its field.
#[test]
fn a_damaged_request_keeps_its_number() {
    let ask = Ask::Keep {
        from_height: 1,
        appointment: path_appointment(),
    };
    let good = Request { number: 5, ask }.write();
    let refused = |bytes: &[u8]| Request::read(bytes).unwrap_err();
    assert_eq!(refused(&[]).0, None);
    assert_eq!(refused(&good[..4]).0, None);
    let mut newer = good.clone();
    newer[0] = 2;
    let version = DecodeError::UnknownType {
        what: "version",
        typ: 2,
    };
    assert_eq!(refused(&newer), (None, version));
    // Every signature was verified, so no byte of the path can be another.
    for at in (5..good.len()).step_by(61) {
        let cut = &good[..at];
        assert_eq!(refused(cut).0, Some(5), "{at}");
        let mut changed = good.clone();
        changed[at] ^= 1;
        if let Err((number, _)) = Request::read(&changed) {
            assert_eq!(number, Some(5), "{at}");
        }
    }
    let trailing = [good, vec![0]].concat();
    assert_eq!(refused(&trailing).0, Some(5));
}

#[test]
fn pieces_are_put_together_in_order_and_within_bounds() {
    let message: Vec<u8> = (0..150_000_u32).map(|it| it as u8).collect();
    let sent = pieces(&message).unwrap();
    assert_eq!(sent.len(), 3);
    let mut ears = Ears::default();
    assert_eq!(ears.hear(&sent[0]), Ok(None));
    assert_eq!(ears.hear(&sent[1]), Ok(None));
    assert_eq!(ears.hear(&sent[2]), Ok(Some(message)));
    // Out of order: forgotten.
    assert_eq!(ears.hear(&sent[0]), Ok(None));
    assert!(ears.hear(&sent[2]).is_err());
    assert!(ears.hear(&sent[1]).is_err());
    assert_eq!(ears.hear(&sent[0]), Ok(None));
    assert!(pieces(&vec![0; MAX_MESSAGE + 1]).is_none());
    assert!(pieces(&vec![0; MAX_MESSAGE]).is_some());
    // Never more than one message is held.
    let count = u16::MAX;
    let endless =
        |index: u16| [&index.to_be_bytes()[..], &count.to_be_bytes(), &[0; 60_000]].concat();
    assert!(ears.hear(&endless(0)).is_err());
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), at in 0..300_usize) {
        let _ = Request::read(&bytes);
        let _ = Answer::read(&bytes);
        let mut ears = Ears::default();
        let _ = ears.hear(&bytes);
        let mut good = revoked().to_bytes();
        let at = at % good.len();
        good.splice(at..at, bytes);
        if let Ok(read) = Appointment::from_bytes(&good, "appointment") {
            prop_assert_eq!(read.to_bytes(), good);
        }
    }
}
