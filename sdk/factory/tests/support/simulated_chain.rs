//! A chain small enough to look at: blocks of txids, a mempool, reorgs, and the locks that decide
//! what may be mined. (Real blocks pin those locks in `timelocks.rs`.)

use std::collections::BTreeMap;

use bitcoin::{OutPoint, Transaction, Txid};
use superscalar_factory::exit::{
    Action, ChainFacts, Goal, Plan, SignedPath, Spend, plan, timelock,
};

pub struct SimulatedChain {
    pub tip: u32,
    funding_height: u32,
    funding: OutPoint,
    /// Height of each confirmed transaction of the tree.
    confirmed: BTreeMap<Txid, (u32, Transaction)>,
    mempool: BTreeMap<Txid, Transaction>,
}

impl SimulatedChain {
    /// A chain whose tip holds the funding.
    pub fn new(funding: OutPoint, height: u32) -> SimulatedChain {
        SimulatedChain {
            tip: height,
            funding_height: height,
            funding,
            confirmed: BTreeMap::new(),
            mempool: BTreeMap::new(),
        }
    }

    /// Puts a transaction into the mempool, as Bitcoin Core would: its input must be confirmed and
    /// unspent, the next block must be allowed to hold it. Sending it again changes nothing.
    pub fn publish(&mut self, tx: &Transaction) {
        let txid = tx.compute_txid();
        if self.confirmed.contains_key(&txid) {
            return;
        }
        let spent = tx.input[0].previous_output;
        assert!(
            self.spender(spent).is_none_or(|(id, _)| id == txid),
            "double spend"
        );
        let parent = self.height_of(spent).expect("the input is confirmed");
        timelock::check(tx, &[parent], self.tip + 1).expect("no lock forbids the next block");
        self.mempool.insert(txid, tx.clone());
    }

    /// A block with everything in the mempool.
    pub fn mine(&mut self) {
        self.tip += 1;
        for (txid, tx) in std::mem::take(&mut self.mempool) {
            self.confirmed.insert(txid, (self.tip, tx));
        }
    }

    /// Blocks with nothing of the factory in them.
    pub fn mine_empty(&mut self, count: u32) {
        self.tip += count;
    }

    /// Takes away the last `depth` blocks; what was in them is forgotten, the mempool with it.
    pub fn disconnect(&mut self, depth: u32) {
        self.tip -= depth;
        let tip = self.tip;
        self.confirmed.retain(|_, (height, _)| *height <= tip);
        self.mempool.clear();
    }

    pub fn is_confirmed(&self, txid: Txid) -> bool {
        self.confirmed.contains_key(&txid)
    }

    pub fn facts(&self, path: &SignedPath) -> ChainFacts {
        self.facts_of(&path.watched())
    }

    pub fn facts_of(&self, watched: &[OutPoint]) -> ChainFacts {
        let spends = watched.iter().filter_map(|outpoint| {
            let (txid, height) = self.spender(*outpoint)?;
            Some((*outpoint, Spend { txid, height }))
        });
        ChainFacts {
            tip: self.tip,
            funding_height: (self.funding_height <= self.tip).then_some(self.funding_height),
            spends: spends.collect(),
        }
    }

    /// Plans and does what the plan says.
    pub fn follow(&mut self, path: &SignedPath, goal: Goal) -> Plan {
        let plan = plan(path, goal, &self.facts(path)).unwrap();
        for action in &plan.actions {
            match action {
                Action::Publish { transaction, .. } => self.publish(transaction),
                other => panic!("an action this test does not know: {other:?}"),
            }
        }
        plan
    }

    fn spender(&self, outpoint: OutPoint) -> Option<(Txid, Option<u32>)> {
        let spends = |tx: &Transaction| tx.input[0].previous_output == outpoint;
        let confirmed = self.confirmed.iter().find(|(_, (_, tx))| spends(tx));
        let pending = self.mempool.iter().find(|(_, tx)| spends(tx));
        match confirmed {
            Some((txid, (height, _))) => Some((*txid, Some(*height))),
            None => pending.map(|(txid, _)| (*txid, None)),
        }
    }

    fn height_of(&self, outpoint: OutPoint) -> Option<u32> {
        if outpoint == self.funding {
            return Some(self.funding_height);
        }
        self.confirmed
            .get(&outpoint.txid)
            .map(|(height, _)| *height)
    }
}
