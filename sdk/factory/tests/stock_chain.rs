//! The stock chain of any factory: whatever is sold in whatever order, every sale is one Bitcoin
//! Core accepts in the next block, nothing is lost on the way, and no payout is ever too small.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "all of this program is tests and what they share"
)]

mod support;

use bitcoin::Amount;
use bitcoin::secp256k1::schnorr::Signature;
use proptest::prelude::*;
use superscalar_factory::exit::timelock;
use superscalar_factory::scripts::{ANCHOR_VALUE, MIN_OUTPUT, anchor};
use superscalar_factory::stock::{Link, LinkTerms, Sellable, StockChain, StockError, StockOrigin};
use superscalar_factory::terms::Terms;
use superscalar_factory::tree::{Blueprint, Role, Tree};
use support::{Parties, core_script, funding, generators, link_terms, sign_with};

/// Which amount of what can be sold.
#[derive(Debug, Clone)]
enum Choice {
    Part(u32),
    Most,
    Least,
    Whole,
}

fn choices() -> impl Strategy<Value = Vec<Choice>> {
    let one = prop_oneof![
        6 => (0u32..=1_000_000).prop_map(Choice::Part),
        1 => Just(Choice::Most),
        2 => Just(Choice::Least),
        1 => Just(Choice::Whole),
    ];
    prop::collection::vec(one, 0..6)
}

impl Choice {
    fn of(&self, sellable: &Sellable) -> Amount {
        let least = MIN_OUTPUT.to_sat();
        let up_to = sellable.up_to.to_sat();
        match self {
            _ if sellable.up_to == Amount::ZERO => sellable.whole,
            Choice::Part(ppm) => {
                let part = u128::from(up_to - least) * u128::from(*ppm) / 1_000_000;
                Amount::from_sat(least + part as u64)
            }
            Choice::Most => sellable.up_to,
            Choice::Least => MIN_OUTPUT,
            Choice::Whole => sellable.whole,
        }
    }
}

/// A place with stock, and the chain that begins there.
fn with_stock(mut terms: Terms, slot: prop::sample::Index, stock: u64) -> (Terms, Tree, u16) {
    let slot = slot.index(terms.slots.len());
    terms.slots[slot].stock = Amount::from_sat(stock);
    let tree = Blueprint::whole(&terms).unwrap().tree(funding()).unwrap();
    (terms, tree, slot as u16)
}

/// One sale as a transaction: form, money, locks and Core's verdict.
fn check_link(
    chain: &StockChain,
    link: &Link,
    terms: &LinkTerms,
    signature: &Signature,
    rate: u32,
) {
    let stock = chain.newest().unwrap();
    let signed = link.tx.signed(signature);
    assert_eq!((signed.version.0, signed.input.len()), (3, 1));
    assert_eq!(signed.input[0].previous_output, stock.outpoint());
    assert_eq!(link.tx.name.role, Role::Sale(stock.link()));
    assert_eq!(signed.output.last(), Some(&anchor()));
    assert_eq!(signed.output[0], terms.channel_output());
    assert_eq!(link.channel.txid, signed.compute_txid());
    assert_eq!(link.channel.vout, 0);
    assert_eq!(signed.output.len(), 2 + usize::from(link.next.is_some()));
    let outputs: Amount = signed.output.iter().map(|output| output.value).sum();
    let fee = stock.value() - outputs;
    assert_eq!(fee.to_sat(), signed.vsize() as u64 * u64::from(rate));
    if let Some(next) = &link.next {
        assert_eq!(signed.output[1], next.output());
        assert!(next.value() >= MIN_OUTPUT);
        assert_eq!(Some(next.hash()), terms.next_hash);
        assert_eq!(next.member_revocation_key(), stock.member_revocation_key());
    }
    core_script::accepts_only(&signed, &stock.output());
    // No lock: it may be in the block of its parent.
    assert_eq!(timelock::earliest_height(&signed, &[700]), Ok(700));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_sales_within_the_limits_are_valid_and_conserve_value(
        terms in (2usize..=5).prop_flat_map(generators::terms_of),
        slot in any::<prop::sample::Index>(),
        stock in prop_oneof![1_000u64..=20_000, 1_000u64..=10_000_000],
        choices in choices(),
    ) {
        let (terms, tree, slot) = with_stock(terms, slot, stock);
        let parties = Parties::new(terms.slots.len());
        let record = &terms.slots[usize::from(slot)];
        let (rate, max_sales) = (terms.header.tree_feerate, terms.header.timing.max_sales);
        let mut chain = StockChain::of_slot(&tree, slot, record).unwrap().unwrap();
        let leaf = tree.leaf(slot).unwrap();
        prop_assert_eq!(chain.first().outpoint().txid, leaf.state.txid());
        let mut paid = Amount::ZERO;
        for choice in choices {
            let sellable = chain.sellable();
            let amount = choice.of(&sellable);
            let wanted = link_terms(&chain, amount);
            if amount == Amount::ZERO {
                let used_up = chain.links().len() == usize::from(max_sales);
                let refused = match used_up && chain.newest().is_some() {
                    true => StockError::UsedUp { max_sales },
                    false => StockError::Amount { sellable },
                };
                prop_assert_eq!(chain.sell(&wanted).err(), Some(refused));
                prop_assert_eq!(sellable, Sellable::default());
                break;
            }
            let link = chain.sell(&wanted).unwrap();
            let signers = [parties.lsp(), parties.member(usize::from(slot))];
            let signature = sign_with(&signers, &link.tx);
            check_link(&chain, &link, &wanted, &signature, rate);
            paid += link.tx.fee() + ANCHOR_VALUE;
            chain.push(wanted, signature).unwrap();
        }
        let channels: Amount = chain.links().iter().map(|sold| sold.terms().amount).sum();
        let left = chain.newest().map_or(Amount::ZERO, |stock| stock.value());
        prop_assert_eq!(channels + left + paid, record.stock);
        // What a distribution pays covers everything the chain can carry, whatever was sold.
        prop_assert!(record.entitlement() >= record.capacity + channels + left);
        // What is written and read back is the same chain.
        let origin: StockOrigin = chain.origin().clone();
        let output = &leaf.state.tx.output[origin.outpoint.vout as usize];
        let mut again = StockChain::at_output(&terms.header, leaf.node.id, origin, output).unwrap();
        for sold in chain.links() {
            again.push(sold.terms().clone(), sold.signature()).unwrap();
        }
        prop_assert_eq!(again, chain);
    }

    /// The two ways to sell meet without a gap in what is said and with one in what is sold: no
    /// amount leaves what would be no output.
    #[test]
    fn what_can_be_sold_is_what_is_sold(
        stock in 1_000u64..=60_000,
        rate in 5u32..=200,
        asked in 0u64..=60_000,
    ) {
        let (chain, _) = chain_of(stock, rate);
        let sellable = chain.sellable();
        let near = [asked, sellable.up_to.to_sat(), sellable.whole.to_sat()];
        let near = near.iter().flat_map(|sat| [sat.saturating_sub(1), *sat, sat + 1]);
        for amount in near.map(Amount::from_sat) {
            let sold = chain.sell(&link_terms(&chain, amount));
            prop_assert_eq!(sold.is_ok(), sellable.allows(amount), "{}", amount);
            match sold {
                Err(error) => prop_assert_eq!(error, StockError::Amount { sellable }),
                Ok(link) => {
                    let outputs = &link.tx.tx.output;
                    prop_assert!(outputs.iter().all(|it| it.value >= MIN_OUTPUT || *it == anchor()));
                    prop_assert_eq!(link.tx.fee().to_sat(), link.tx.vsize() as u64 * u64::from(rate));
                }
            }
        }
    }
}

/// The stock of the first of four in a factory with this feerate.
fn chain_of(stock: u64, rate: u32) -> (StockChain, Parties) {
    let parties = Parties::new(4);
    let shape = superscalar_factory::shape::Shape::two_layers(4);
    let policy = superscalar_factory::terms::TimeoutPolicy::MembersReclaim;
    let mut terms = support::terms(&parties, shape, policy, 1_000);
    terms.header.tree_feerate = rate;
    terms.slots[0].stock = Amount::from_sat(stock);
    let tree = Blueprint::whole(&terms).unwrap().tree(funding()).unwrap();
    let chain = StockChain::of_slot(&tree, 0, &terms.slots[0]);
    (chain.unwrap().unwrap(), parties)
}

#[test]
fn a_sale_needs_both_signatures_and_a_hash_exactly_when_something_is_left() {
    let (mut chain, parties) = chain_of(50_000, 10);
    let honest = link_terms(&chain, Amount::from_sat(20_000));
    let link = chain.sell(&honest).unwrap();
    let signature = sign_with(&[parties.lsp(), parties.member(0)], &link.tx);
    let mut other = honest.clone();
    other.amount += Amount::ONE_SAT;
    assert_eq!(
        chain.push(other, signature).map(drop),
        Err(StockError::Signature)
    );
    let mut no_hash = honest.clone();
    no_hash.next_hash = None;
    assert_eq!(chain.sell(&no_hash).err(), Some(StockError::NextHash));
    let mut whole = link_terms(&chain, chain.sellable().whole);
    assert!(chain.sell(&whole).unwrap().next.is_none());
    whole.next_hash = Some([7; 32]);
    assert_eq!(chain.sell(&whole).err(), Some(StockError::NextHash));
    let mut same_key = honest.clone();
    same_key.lsp_funding_key = same_key.member_funding_key;
    assert_eq!(chain.sell(&same_key).err(), Some(StockError::FundingKey));
    assert!(chain.links().is_empty(), "nothing of that was added");
    chain.push(honest, signature).unwrap();
    assert_eq!(chain.links().len(), 1);
}

/// A neighbour of the leaf cannot sell or sign for somebody else's stock.
#[test]
fn a_chain_is_its_owners_alone() {
    let (chain, parties) = chain_of(50_000, 10);
    let terms = link_terms(&chain, Amount::from_sat(20_000));
    let link = chain.sell(&terms).unwrap();
    assert_eq!(link.tx.key.signers().count(), 2);
    assert_eq!(link.tx.key.signers().position(&parties.member_key(1)), None);
}
