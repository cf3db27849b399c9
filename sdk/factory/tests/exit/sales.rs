//! A path with sales: each is published when its parent is there, by whoever's leaf, again after a
//! reorg; and a path with sales as bytes.

use bitcoin::hashes::Hash as _;
use bitcoin::{Amount, OutPoint, Transaction, Txid};
use superscalar_factory::codec::{Decode, Encode};
use superscalar_factory::exit::package::{ExitPackage, PackagedPath};
use superscalar_factory::exit::{
    Goal, OnChain, Plan, Progress, SignedPath, SignedPathError, Spend, Waiting, plan,
};
use superscalar_factory::shape::Shape;
use superscalar_factory::stock::StockChain;
use superscalar_factory::terms::{Terms, TimeoutPolicy};
use superscalar_factory::tree::{Blueprint, Role, Tree};

use crate::epochs::{path_with_two_root_epochs, stored};
use crate::support::simulated_chain::SimulatedChain;
use crate::support::{Parties, core_script, funding, sell, terms};
use crate::{EXPIRY, LEAF, ROOT, START, follow_to_the_end, name, published, signed, step, waiting};

const SALES: [u64; 3] = [10_000, 5_000, 8_000];

pub(crate) struct Sold {
    terms: Terms,
    pub(crate) tree: Tree,
    pub(crate) path: SignedPath,
    pub(crate) links: Vec<Transaction>,
}

impl Sold {
    /// A factory of four; the first has bought three channels.
    pub(crate) fn new(policy: TimeoutPolicy) -> Sold {
        let parties = Parties::new(4);
        let terms = terms(&parties, Shape::two_layers(4), policy, EXPIRY);
        let tree = Blueprint::whole(&terms).unwrap().tree(funding()).unwrap();
        let chain = StockChain::of_slot(&tree, 0, &terms.slots[0]);
        let mut chain = chain.unwrap().unwrap();
        let links = SALES.map(|sat| sell(&parties, &mut chain, 0, sat)).into();
        let path = parties.signed_path(&tree, 0).with_sales(chain).unwrap();
        Sold {
            terms,
            tree,
            path,
            links,
        }
    }

    fn channels(&self) -> Vec<OutPoint> {
        let links = self.links.iter();
        let bought = links.map(|tx| OutPoint::new(tx.compute_txid(), 0));
        let own = self.tree.channel_outpoint(0).unwrap();
        std::iter::once(own).chain(bought).collect()
    }
}

fn on_chain(plan: &Plan) -> Vec<(OutPoint, OnChain)> {
    let channels = plan.status.channels.iter();
    channels.map(|it| (it.outpoint, it.on_chain)).collect()
}

fn all_confirmed(plan: &Plan) -> Vec<OutPoint> {
    let channels = on_chain(plan).into_iter();
    let there = channels.filter(|(_, state)| matches!(state, OnChain::Confirmed { .. }));
    there.map(|(outpoint, _)| outpoint).collect()
}

#[test]
fn sales_are_published_in_order_once_the_leaf_is_there() {
    let sold = Sold::new(TimeoutPolicy::MembersReclaim);
    let mut chain = SimulatedChain::new(funding(), START);
    let first = chain.follow(&sold.path, Goal::Leave);
    assert_eq!(
        step(&first),
        (1, 7),
        "four transactions of the tree, three sales"
    );
    let bought: u64 = SALES.iter().sum();
    assert_eq!(
        first.status.figures.arriving,
        Amount::from_sat(300_000 + bought)
    );
    assert_eq!(on_chain(&first), []);
    let Progress::Underway { blocks_left, .. } = first.status.progress else {
        panic!("underway");
    };
    let header = &sold.terms.header;
    assert!(blocks_left.worst <= header.timing.exit_delay(header.shape.layers()));
    let leaf = sold.tree.tx(name(LEAF, Role::State)).unwrap().txid();
    while !chain.is_confirmed(leaf) {
        chain.mine();
        chain.follow(&sold.path, Goal::Leave);
    }
    let leaf_height = chain.tip;
    for (link, tx) in sold.links.iter().enumerate() {
        let plan = chain.follow(&sold.path, Goal::Leave);
        assert_eq!(published(&plan), [name(LEAF, Role::Sale(link as u8))]);
        assert_eq!(
            (step(&plan), waiting(&plan)),
            ((5 + link as u32, 7), Waiting::Confirmation)
        );
        assert_eq!(all_confirmed(&plan), sold.channels()[..=link]);
        chain.mine();
        assert!(chain.is_confirmed(tx.compute_txid()));
    }
    assert_eq!(chain.tip, leaf_height + 3, "one block each");
    let end = chain.follow(&sold.path, Goal::Leave);
    let outpoint = sold.tree.channel_outpoint(0).unwrap();
    let height = leaf_height;
    assert_eq!(
        end.status.progress,
        Progress::LeafConfirmed { outpoint, height }
    );
    assert_eq!(all_confirmed(&end), sold.channels());
    assert_eq!(sold.path.channel_outpoints(), sold.channels());
    assert_eq!(chain.tip - START, blocks_left.best);
}

#[test]
fn a_reorg_takes_sales_away_and_they_are_published_again() {
    let sold = Sold::new(TimeoutPolicy::MembersReclaim);
    let mut chain = SimulatedChain::new(funding(), START);
    let (_, end) = follow_to_the_end(&mut chain, &sold.path, Goal::Leave);
    for depth in 1..=5 {
        chain.disconnect(depth);
        let after = chain.follow(&sold.path, Goal::Leave);
        // The fourth block back held the leaf's state: no channel of it is left then.
        let there = 4u32.saturating_sub(depth) as usize;
        assert_eq!(all_confirmed(&after), sold.channels()[..there]);
        assert_eq!(published(&after).len(), usize::from(depth < 5 || there > 0));
        let (_, again) = follow_to_the_end(&mut chain, &sold.path, Goal::Leave);
        assert_eq!(all_confirmed(&again), sold.channels());
        assert_eq!(again.status.channels.len(), end.status.channels.len());
    }
}

/// Whoever opened the leaf, whatever for: what was bought goes on chain at once.
#[test]
fn sales_follow_somebody_elses_leaf_whatever_the_goal() {
    for goal in [Goal::Leave, Goal::Defend, Goal::Reclaim] {
        let sold = Sold::new(TimeoutPolicy::MembersReclaim);
        let mut chain = SimulatedChain::new(funding(), START);
        for (node, role) in [
            (ROOT, Role::Kickoff),
            (ROOT, Role::State),
            (LEAF, Role::Kickoff),
            (LEAF, Role::State),
        ] {
            assert!(published(&chain.follow(&sold.path, goal)).len() <= 1);
            chain.mine_empty(10);
            chain.publish(&signed(&sold.tree, &sold.path, node, role));
            chain.mine();
        }
        for link in 0..3 {
            let plan = chain.follow(&sold.path, goal);
            assert_eq!(published(&plan), [name(LEAF, Role::Sale(link))], "{goal:?}");
            chain.mine();
        }
        let end = chain.follow(&sold.path, goal);
        assert_eq!(published(&end), []);
        assert_eq!(all_confirmed(&end), sold.channels(), "{goal:?}");
        assert!(matches!(
            end.status.progress,
            Progress::LeafConfirmed { .. }
        ));
    }
}

/// Below a stock output that something else has spent nothing can be published; what is there stays.
#[test]
fn stock_that_something_else_has_spent_ends_the_chain_there() {
    let sold = Sold::new(TimeoutPolicy::MembersReclaim);
    let mut chain = SimulatedChain::new(funding(), START);
    let second = sold.links[1].compute_txid();
    while !chain.is_confirmed(second) {
        chain.follow(&sold.path, Goal::Leave);
        chain.mine();
    }
    let mut facts = chain.facts(&sold.path);
    let by = Txid::from_byte_array([0xee; 32]);
    let stock = sold.links[2].input[0].previous_output;
    let mut spend = Spend {
        txid: by,
        height: None,
    };
    facts.spends.insert(stock, spend);
    let unconfirmed = plan(&sold.path, Goal::Leave, &facts).unwrap();
    assert_eq!(unconfirmed.status.rival, Some(by));
    assert_eq!(published(&unconfirmed), [name(LEAF, Role::Sale(2))]);
    let height = facts.tip;
    spend.height = Some(height);
    facts.spends.insert(stock, spend);
    let ended = plan(&sold.path, Goal::Leave, &facts).unwrap();
    assert_eq!(published(&ended), []);
    assert!(matches!(
        ended.status.progress,
        Progress::LeafConfirmed { .. }
    ));
    assert_eq!(all_confirmed(&ended), sold.channels()[..3]);
    assert_eq!(
        ended.status.channels[3].on_chain,
        OnChain::Lost { by, height }
    );
}

#[test]
fn sales_are_watched_bumped_and_known_by_their_money() {
    let sold = Sold::new(TimeoutPolicy::LspReclaims);
    let watched = sold.path.watched();
    for tx in &sold.links {
        let stock = tx.input[0].previous_output;
        assert!(watched.contains(&stock));
        assert!(watched.contains(&OutPoint::new(tx.compute_txid(), 0)));
        assert!(watched.contains(&OutPoint::new(tx.compute_txid(), 1)));
        let anchor = SignedPath::anchor(tx).unwrap();
        assert_eq!(anchor.vout as usize, tx.output.len() - 1);
        assert!(sold.path.anchors().contains(&anchor));
        let parent = sold.path.parent(tx);
        assert_eq!(parent.fee.to_sat(), parent.vsize_vb * 10);
        core_script::check(tx, sold.path.output(stock).unwrap())
            .expect("the path knows what it spends");
    }
}

#[test]
fn a_package_carries_sales_and_older_ones_are_read() {
    let sold = Sold::new(TimeoutPolicy::MembersReclaim);
    let parties = Parties::new(4);
    let bare = parties.signed_path(&sold.tree, 1);
    let packaged = |path: &SignedPath| PackagedPath {
        from_height: START,
        path: path.clone(),
    };
    let both = ExitPackage::new(vec![packaged(&sold.path), packaged(&bare)]).unwrap();
    let bytes = both.to_bytes();
    assert_eq!(bytes[..2], [0, 2]);
    let read = ExitPackage::from_bytes(&bytes, "package").unwrap();
    assert_eq!(read, both);
    assert_eq!(read.paths()[0].path.channel_outpoints(), sold.channels());
    // Without sales it is what it was before there were any.
    let old = ExitPackage::new(vec![packaged(&bare)]).unwrap();
    let bytes = old.to_bytes();
    assert_eq!(bytes[..2], [0, 1]);
    assert_eq!(ExitPackage::from_bytes(&bytes, "package"), Ok(old));
    // One value, one encoding.
    let mut relabelled = bytes;
    relabelled[1] = 2;
    relabelled.push(0);
    assert!(ExitPackage::from_bytes(&relabelled, "package").is_err());
}

/// Every byte of a stored sale counts: damaged it is refused, or is another sale that both signed,
/// which there is not.
#[test]
fn a_stored_sale_is_verified_to_the_last_signature() {
    let sold = Sold::new(TimeoutPolicy::MembersReclaim);
    let bytes = sold.path.to_bytes();
    assert_eq!(
        SignedPath::from_bytes(&bytes, "path"),
        Ok(sold.path.clone())
    );
    let tree = stored(&sold.path, sold.path.nodes().to_vec()).len() - 1;
    for position in tree..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[position] ^= 1 << (position % 8);
        assert!(
            SignedPath::from_bytes(&flipped, "path").is_err(),
            "byte {position}"
        );
        assert!(SignedPath::from_bytes(&bytes[..position], "path").is_err());
    }
}

#[test]
fn a_chain_of_another_path_is_refused() {
    let sold = Sold::new(TimeoutPolicy::MembersReclaim);
    let parties = Parties::new(4);
    let chain_of = |slot: u16| {
        let record = &sold.terms.slots[usize::from(slot)];
        let chain = StockChain::of_slot(&sold.tree, slot, record);
        let mut chain = chain.unwrap().unwrap();
        let tx = sell(&parties, &mut chain, usize::from(slot), 10_000);
        (chain, tx)
    };
    let (other_leaf, _) = chain_of(3);
    let stock = other_leaf.origin().outpoint;
    assert_eq!(
        sold.path.clone().with_sales(other_leaf),
        Err(SignedPathError::StrayChain { stock })
    );
    // A longer chain of the same stock takes the place of the one before, an empty one removes it.
    let (shorter, tx) = chain_of(0);
    let path = sold.path.clone().with_sales(shorter).unwrap();
    assert_eq!(path.sales().len(), 1);
    assert_eq!(path.channel_outpoints()[1].txid, tx.compute_txid());
    // Below the first root state's leaf it is still a part of the path with two of them, and not
    // of its newest leaf.
    let (_, two) = path_with_two_root_epochs();
    let (below_old, tx) = chain_of(0);
    let two = two.with_sales(below_old).unwrap();
    assert_eq!(two.channel_outpoints(), [two.channel_outpoint()]);
    assert!(two.watched().contains(&OutPoint::new(tx.compute_txid(), 0)));
    let again = SignedPath::from_bytes(&two.to_bytes(), "path");
    assert_eq!(again, Ok(two));
}
