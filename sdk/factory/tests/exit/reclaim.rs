//! What the LSP takes alone: exactly what nobody has opened before T and the stock of open leaves,
//! in the first block that allows it, by Bitcoin Core's script rules; never a channel.

use std::collections::BTreeMap;

use bitcoin::{FeeRate, OutPoint, Transaction};
use superscalar_factory::exit::bump::FeeCaps;
use superscalar_factory::exit::reclaim::{Reclaim, reclaims, stock_outpoints};
use superscalar_factory::exit::{ChainFacts, Spend, timelock};
use superscalar_factory::scripts;
use superscalar_factory::shape::{NodeId, Shape};
use superscalar_factory::stock::StockChain;
use superscalar_factory::terms::{Terms, TimeoutPolicy};
use superscalar_factory::tree::{Blueprint, Role, Tree};

use super::support::{Parties, core_script, funding, sell, terms};
use super::{EXPIRY, LEAF, ROOT, START, name};

const STOCK_CSV: u32 = 144;

struct Four {
    parties: Parties,
    terms: Terms,
    tree: Tree,
    facts: ChainFacts,
    /// The stock of all slots, and what was sold of it.
    chains: Vec<StockChain>,
}

impl Four {
    fn new(policy: TimeoutPolicy) -> Four {
        let parties = Parties::new(4);
        let terms = terms(&parties, Shape::two_layers(4), policy, EXPIRY);
        let tree = Blueprint::whole(&terms).unwrap().tree(funding()).unwrap();
        let facts = ChainFacts {
            tip: START,
            funding_height: Some(START),
            spends: BTreeMap::new(),
        };
        let chain = |slot: u16| {
            let record = &terms.slots[usize::from(slot)];
            StockChain::of_slot(&tree, slot, record).unwrap().unwrap()
        };
        Four {
            chains: (0..4).map(chain).collect(),
            parties,
            terms,
            tree,
            facts,
        }
    }

    /// A transaction of the tree, confirmed at `height` or waiting in the mempool.
    fn publish(&mut self, node: NodeId, role: Role, height: Option<u32>) {
        let tx = self.tree.tx(name(node, role)).unwrap();
        let txid = tx.txid();
        let spent = tx.tx.input[0].previous_output;
        self.facts.spends.insert(spent, Spend { txid, height });
    }

    /// Root and first leaf open, the leaf's state confirmed at `height`.
    fn open_first_leaf(&mut self, height: u32) {
        for (before, node, role) in [
            (14, ROOT, Role::Kickoff),
            (8, ROOT, Role::State),
            (6, LEAF, Role::Kickoff),
            (0, LEAF, Role::State),
        ] {
            self.publish(node, role, Some(height - before));
        }
        self.facts.tip = height;
    }

    fn found(&self) -> Vec<Reclaim> {
        reclaims(&self.tree, &self.chains, &self.facts)
    }

    /// The spend of what was found: valid by Core's rules as it stands and in no other way, and in
    /// no block before the first allowed.
    fn spend(&self, reclaim: &Reclaim, created: u32) -> Transaction {
        let feerate = FeeRate::from_sat_per_vb(3).unwrap();
        let tx = reclaim.spend(self.parties.lsp(), feerate).unwrap();
        core_script::check(&tx, &reclaim.output).expect("the LSP alone");
        let mut redirected = tx.clone();
        redirected.output[0].value -= bitcoin::Amount::ONE_SAT;
        core_script::check(&redirected, &reclaim.output).expect_err("signed for one output");
        let mut hasty = tx.clone();
        hasty.lock_time = bitcoin::absolute::LockTime::ZERO;
        hasty.input[0].sequence = bitcoin::Sequence::MAX;
        core_script::check(&hasty, &reclaim.output).expect_err("the lock is in the script");
        assert_eq!(
            timelock::earliest_height(&tx, &[created]),
            Ok(reclaim.allowed)
        );
        let fee = reclaim.output.value - tx.output[0].value;
        assert_eq!(fee, feerate.fee_vb(tx.vsize() as u64).unwrap());
        assert_eq!(
            tx.output[0].script_pubkey, self.terms.header.lsp_payout,
            "where the terms pay the LSP"
        );
        tx
    }
}

#[test]
fn what_nobody_opened_is_the_lsps_in_the_first_block_after_t() {
    let mut four = Four::new(TimeoutPolicy::LspReclaims);
    for (tip, due) in [(START, false), (EXPIRY - 1, false), (EXPIRY, true)] {
        four.facts.tip = tip;
        let [reclaim] = <[Reclaim; 1]>::try_from(four.found()).unwrap();
        assert_eq!(reclaim.outpoint, funding());
        assert_eq!(reclaim.output, four.tree.funding_output);
        assert_eq!(
            (reclaim.allowed, reclaim.is_due(&four.facts)),
            (EXPIRY + 1, due)
        );
        four.spend(&reclaim, START);
    }
}

#[test]
fn of_an_opened_tree_it_takes_other_branches_and_stock_and_no_channel() {
    let mut four = Four::new(TimeoutPolicy::LspReclaims);
    let leaf_height = EXPIRY - 50;
    four.open_first_leaf(leaf_height);
    let found = four.found();
    let root = four.tree.tx(name(ROOT, Role::State)).unwrap().txid();
    let leaf = four.tree.tx(name(LEAF, Role::State)).unwrap().txid();
    let taken: Vec<(OutPoint, u32)> = found.iter().map(|it| (it.outpoint, it.allowed)).collect();
    let stock = leaf_height + STOCK_CSV;
    let wanted = [
        (OutPoint::new(root, 1), EXPIRY + 1),
        (OutPoint::new(leaf, 2), stock),
        (OutPoint::new(leaf, 3), stock),
    ];
    assert!(wanted.iter().all(|it| taken.contains(it)), "{taken:?}");
    assert_eq!(taken.len(), wanted.len());
    for reclaim in &found {
        four.spend(reclaim, leaf_height);
        assert!(reclaim.output.script_pubkey.is_p2tr());
    }
    let channels = (0..4).map(|slot| four.tree.channel_outpoint(slot).unwrap());
    for channel in channels {
        assert!(taken.iter().all(|(outpoint, _)| *outpoint != channel));
    }
    // What is spent is not taken again.
    let by = Spend {
        txid: funding().txid,
        height: Some(leaf_height),
    };
    four.facts.spends.insert(OutPoint::new(leaf, 2), by);
    assert_eq!(four.found().len(), 2);
    // All stock, the closed leaf's too, is watched for.
    let watched = stock_outpoints(&four.chains);
    assert_eq!(watched.len(), 4);
    assert_eq!(
        watched[..2],
        [OutPoint::new(leaf, 2), OutPoint::new(leaf, 3)]
    );
}

#[test]
fn whoever_has_begun_to_leave_is_let_pass() {
    let mut four = Four::new(TimeoutPolicy::LspReclaims);
    four.facts.tip = EXPIRY + 3;
    four.publish(ROOT, Role::Kickoff, None);
    assert_eq!(four.found(), [], "a kickoff in the mempool");
    four.publish(ROOT, Role::Kickoff, Some(EXPIRY + 3));
    assert_eq!(four.found(), [], "its state is next");
    four.publish(ROOT, Role::State, Some(EXPIRY + 9));
    assert_eq!(four.found().len(), 2, "both leaves are closed");
    four.publish(LEAF, Role::Kickoff, None);
    assert_eq!(four.found().len(), 1);
    four.facts.funding_height = None;
    assert_eq!(four.found(), [], "no funding, nothing to take");
}

#[test]
fn under_members_reclaim_there_is_only_stock() {
    let mut four = Four::new(TimeoutPolicy::MembersReclaim);
    four.facts.tip = EXPIRY + 3;
    assert_eq!(four.found(), []);
    assert_eq!(four.terms.header.leave_by(), None);
    four.open_first_leaf(EXPIRY + 30);
    let found = four.found();
    let leaf = four.tree.tx(name(LEAF, Role::State)).unwrap().txid();
    assert!(found.iter().all(|it| it.outpoint.txid == leaf));
    assert_eq!(found.len(), 2);
}

#[test]
fn less_than_an_output_holds_is_left_and_only_the_lsps_key_signs() {
    let four = Four::new(TimeoutPolicy::LspReclaims);
    let [reclaim] = <[Reclaim; 1]>::try_from(four.found()).unwrap();
    let vsize = four.spend(&reclaim, START).vsize() as u64;
    let value = reclaim.output.value;
    let most = (value - scripts::MIN_OUTPUT).to_sat() / vsize;
    let spend = |sat| reclaim.spend(four.parties.lsp(), FeeRate::from_sat_per_vb(sat).unwrap());
    assert!(spend(most).is_some());
    assert_eq!(spend(most + 1), None);
    let stranger = Parties::new(5);
    let key = stranger.signers(&four.tree, four.tree.tx(name(ROOT, Role::Kickoff)).unwrap())[1];
    let feerate = FeeRate::BROADCAST_MIN;
    let tx = reclaim.spend(key, feerate).unwrap();
    core_script::check(&tx, &reclaim.output).expect_err("a member's key");
}

/// A market that asks more than the caps allow is served with what they do allow, and with nothing
/// once that would not relay.
#[test]
fn the_lsp_alone_pays_no_more_than_its_caps() {
    let mut four = Four::new(TimeoutPolicy::MembersReclaim);
    four.open_first_leaf(START + 100);
    let reclaim = four.found().remove(0);
    let value = reclaim.output.value;
    let fee = |market: u64, caps: &FeeCaps| {
        let market = FeeRate::from_sat_per_vb(market).unwrap();
        let tx = reclaim.spend_within(four.parties.lsp(), market, caps)?;
        core_script::check(&tx, &reclaim.output).unwrap();
        Some(((value - tx.output[0].value).to_sat(), tx.vsize() as u64))
    };
    let mut caps = FeeCaps::default();
    let (paid, vsize) = fee(2, &caps).unwrap();
    assert_eq!(paid, 2 * vsize);
    let tenth = value.to_sat() / 10;
    let (paid, _) = fee(1_000_000, &caps).unwrap();
    assert!(paid <= tenth && paid > tenth - vsize, "{paid} of {tenth}");
    caps.max_sat_per_vb = 5;
    assert_eq!(fee(1_000_000, &caps).unwrap().0, 5 * vsize);
    caps.percent_per_transaction = 0;
    assert_eq!(fee(1, &caps), None);
    assert_eq!(fee(1_000_000, &caps), None);
}

#[test]
fn a_wallet_leaves_an_exit_and_a_margin_before_t() {
    let four = Four::new(TimeoutPolicy::LspReclaims);
    // Regtest: 2·6 + 2·(4 + 4) + 36 to leave, six steps of 6 to notice.
    assert_eq!(four.terms.header.leave_by(), Some(EXPIRY - 64 - 36));
}

/// What was sold from is the buyer's whether or not the sale is on chain, however long that takes;
/// what is left after the last sale is the LSP's, a whole delay after that one.
#[test]
fn stock_that_was_sold_from_is_never_taken() {
    let mut four = Four::new(TimeoutPolicy::MembersReclaim);
    let sold = [10_000, 5_000].map(|sat| sell(&four.parties, &mut four.chains[0], 0, sat));
    let leaf_height = EXPIRY - 500;
    four.open_first_leaf(leaf_height);
    four.facts.tip = leaf_height + 5 * STOCK_CSV;
    let first = four.chains[0].first().outpoint();
    let all: Vec<OutPoint> = four.chains[0].stocks().map(|it| it.outpoint()).collect();
    let watched = stock_outpoints(&four.chains);
    assert!(all.len() == 3 && all.iter().all(|it| watched.contains(it)));
    let taken = |four: &Four| -> Vec<(OutPoint, u32)> {
        let found = four.found().into_iter();
        let mine = found.filter(|it| all.contains(&it.outpoint));
        mine.map(|it| (it.outpoint, it.allowed)).collect()
    };
    // The neighbour's, of which nothing was sold, is due; this one's is not, with no sale on chain,
    // with the first in the mempool, with the first confirmed.
    assert_eq!(four.found().len(), 1);
    assert_eq!(taken(&four), []);
    let spend = |tx: &Transaction, height| Spend {
        txid: tx.compute_txid(),
        height,
    };
    four.facts.spends.insert(first, spend(&sold[0], None));
    assert_eq!(taken(&four), []);
    let height = Some(leaf_height + 2);
    four.facts.spends.insert(first, spend(&sold[0], height));
    assert_eq!(taken(&four), [], "the second sale is not on chain");
    let height = Some(leaf_height + 9);
    four.facts.spends.insert(all[1], spend(&sold[1], height));
    let due = leaf_height + 9 + STOCK_CSV;
    assert_eq!(taken(&four), [(all[2], due)]);
    let reclaim = four.found().into_iter().find(|it| it.outpoint == all[2]);
    let tx = four.spend(&reclaim.unwrap(), leaf_height + 9);
    assert!(!sold.iter().any(|sale| {
        let channel = OutPoint::new(sale.compute_txid(), 0);
        tx.input[0].previous_output == channel
    }));
    // Nor is anything left to take where something else has spent the stock, or the rest.
    let height = Some(leaf_height + 11);
    four.facts.spends.insert(all[2], spend(&tx, height));
    assert_eq!(taken(&four), []);
    four.facts.spends.remove(&all[2]);
    assert_eq!(taken(&four).len(), 1);
    four.facts.spends.insert(first, spend(&tx, height));
    assert_eq!(taken(&four), []);
}
