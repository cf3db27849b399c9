//! What the chain says of some paths, read from its blocks and kept in memory only.
//!
//! What always holds: the facts are those of the blocks from the first height to the last one
//! looked at, each checked against its header; a reorganisation drops what was above the fork.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bitcoin::{Block, BlockHash, OutPoint, Txid};
use superscalar_factory::exit::{ChainFacts, SignedPath, Spend};
use superscalar_sdk::chain::{BlockData, ChainError, ChainSource};

/// How many blocks pass between two words on a long search.
const WORD_BLOCKS: u32 = 500;

/// See the module's first lines.
pub(crate) struct Scan {
    source: Arc<dyn ChainSource>,
    from_height: u32,
    fundings: BTreeSet<Txid>,
    watched: BTreeSet<OutPoint>,
    blocks: BTreeMap<u32, BlockHash>,
    confirmed: BTreeMap<Txid, u32>,
    spent: BTreeMap<OutPoint, (Txid, u32)>,
}

impl Scan {
    pub(crate) fn new<'a>(
        source: Arc<dyn ChainSource>,
        from_height: u32,
        paths: impl Iterator<Item = &'a SignedPath> + Clone,
    ) -> Scan {
        Scan {
            source,
            from_height,
            fundings: paths.clone().map(|path| path.funding().txid).collect(),
            watched: paths.flat_map(SignedPath::watched).collect(),
            blocks: BTreeMap::new(),
            confirmed: BTreeMap::new(),
            spent: BTreeMap::new(),
        }
    }

    /// Looks at all blocks that are new; gives the tip's height.
    pub(crate) async fn follow(&mut self) -> Result<u32, ChainError> {
        loop {
            let (best, height) = self.source.best_block().await?;
            let height = match height {
                Some(height) => height,
                None => return Err(unexpected("a best block without a height")),
            };
            self.step_back(height).await?;
            let next = match self.blocks.last_key_value() {
                Some((last, _)) => last + 1,
                None => self.from_height.min(height),
            };
            for at in next..=height {
                if at > next && (at - next).is_multiple_of(WORD_BLOCKS) {
                    tracing::warn!(at, height, "searching blocks");
                }
                if !self.look_at(at).await? {
                    break;
                }
            }
            // Else the chain moved meanwhile: once more.
            if self.blocks.get(&height) == Some(&best) {
                return Ok(height);
            }
        }
    }

    /// What is known of a path, the mempool included.
    pub(crate) async fn facts(&self, path: &SignedPath) -> Result<ChainFacts, ChainError> {
        let tip = self.blocks.last_key_value();
        let mut facts = ChainFacts {
            tip: tip.map_or(0, |(height, _)| *height),
            funding_height: self.confirmed.get(&path.funding().txid).copied(),
            spends: BTreeMap::new(),
        };
        for outpoint in path.watched() {
            let spend = match self.spent.get(&outpoint) {
                Some((txid, height)) => Some(Spend {
                    txid: *txid,
                    height: Some(*height),
                }),
                None => {
                    let pending = self.source.mempool_spender(outpoint).await?;
                    pending.map(|txid| Spend { txid, height: None })
                }
            };
            facts.spends.extend(spend.map(|spend| (outpoint, spend)));
        }
        Ok(facts)
    }

    /// Forgets blocks that are no longer in the best chain.
    async fn step_back(&mut self, height: u32) -> Result<(), ChainError> {
        while let Some((&last, hash)) = self.blocks.last_key_value() {
            if last <= height && self.source.block_hash(last).await? == *hash {
                return Ok(());
            }
            self.forget(last);
        }
        Ok(())
    }

    /// Forgets the last block, which is at `height`.
    fn forget(&mut self, height: u32) {
        self.blocks.remove(&height);
        self.confirmed.retain(|_, at| *at < height);
        self.spent.retain(|_, (_, at)| *at < height);
    }

    /// Takes the block at `height` in; `false` if it does not follow the one before it.
    async fn look_at(&mut self, height: u32) -> Result<bool, ChainError> {
        let hash = self.source.block_hash(height).await?;
        let BlockData::FullBlock(block) = self.source.block(hash).await? else {
            return Err(unexpected("a header where a block was needed"));
        };
        check(&block, hash)?;
        Ok(self.take(height, hash, &block))
    }

    fn take(&mut self, height: u32, hash: BlockHash, block: &Block) -> bool {
        let before = height.checked_sub(1).and_then(|it| self.blocks.get(&it));
        if before.is_some_and(|before| *before != block.header.prev_blockhash) {
            return false;
        }
        for tx in &block.txdata {
            let spends = tx.input.iter().map(|input| input.previous_output);
            let found: Vec<OutPoint> = spends.filter(|it| self.watched.contains(it)).collect();
            let txid = tx.compute_txid();
            self.spent
                .extend(found.into_iter().map(|outpoint| (outpoint, (txid, height))));
            if self.fundings.contains(&txid) {
                self.confirmed.insert(txid, height);
            }
        }
        self.blocks.insert(height, hash);
        true
    }
}

/// The source is trusted for which chain is the best, not for what is in a block.
fn check(block: &Block, hash: BlockHash) -> Result<(), ChainError> {
    let target = block.header.target();
    let worked = block.header.validate_pow(target).is_ok_and(|it| it == hash);
    match worked && block.check_merkle_root() {
        true => Ok(()),
        false => Err(unexpected("a block that is not what its hash says")),
    }
}

fn unexpected(detail: &str) -> ChainError {
    ChainError::Unexpected {
        detail: detail.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::absolute::LockTime;
    use bitcoin::constants::genesis_block;
    use bitcoin::hashes::Hash as _;
    use bitcoin::transaction::Version;
    use bitcoin::{Network, Transaction, TxIn};
    use superscalar_sdk::chain::{BitcoindAuth, BitcoindConfig, BitcoindSource};

    use super::*;

    fn spend(previous_output: OutPoint) -> Transaction {
        Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: vec![TxIn {
                previous_output,
                ..TxIn::default()
            }],
            output: Vec::new(),
        }
    }

    fn after(before: BlockHash, txdata: Vec<Transaction>) -> Block {
        let mut block = genesis_block(Network::Regtest);
        block.header.prev_blockhash = before;
        block.txdata = txdata;
        block
    }

    #[test]
    fn what_left_the_chain_is_not_there_any_more() {
        let funding = spend(OutPoint::new(Txid::from_byte_array([1; 32]), 0));
        let output = OutPoint::new(funding.compute_txid(), 0);
        let kickoff = spend(output);
        // Nobody is asked.
        let source = BitcoindSource::new(BitcoindConfig {
            address: "127.0.0.1:1".to_owned(),
            auth: BitcoindAuth::UserPassword {
                user: String::new(),
                password: String::new(),
            },
        });
        let mut scan = Scan {
            source: Arc::new(source),
            from_height: 0,
            fundings: BTreeSet::from([output.txid]),
            watched: BTreeSet::from([output]),
            blocks: BTreeMap::new(),
            confirmed: BTreeMap::new(),
            spent: BTreeMap::new(),
        };
        let mut before = BlockHash::all_zeros();
        for (height, tx) in [(7, &funding), (8, &kickoff)] {
            let block = after(before, vec![tx.clone()]);
            before = block.block_hash();
            assert!(scan.take(height, before, &block));
        }
        let spent = BTreeMap::from([(output, (kickoff.compute_txid(), 8))]);
        assert_eq!(scan.spent, spent);
        scan.forget(8);
        assert_eq!(scan.spent, BTreeMap::new());
        assert_eq!(scan.confirmed, BTreeMap::from([(output.txid, 7)]));

        // Of another branch nothing is taken in before what it stands on.
        let stranger = after(BlockHash::all_zeros(), vec![kickoff]);
        assert!(!scan.take(8, stranger.block_hash(), &stranger));
        assert_eq!(scan.spent, BTreeMap::new());
        scan.forget(7);
        assert_eq!(scan.confirmed, BTreeMap::new());
        assert!(scan.blocks.is_empty());
    }

    #[test]
    fn a_source_cannot_put_into_a_block_what_is_not_there() {
        let genuine = genesis_block(Network::Regtest);
        let hash = genuine.block_hash();
        assert!(check(&genuine, hash).is_ok());
        assert!(check(&genuine, BlockHash::all_zeros()).is_err());
        let mut invented = genuine;
        let output = OutPoint::new(Txid::from_byte_array([1; 32]), 0);
        invented.txdata.push(spend(output));
        assert!(check(&invented, hash).is_err());
    }
}
