//! What the programs say about themselves: the figures the checker holds against the chain.
//!
//! Everything here comes from `lsp-node`'s API or a wallet's answers, nothing from bitcoind.

use bitcoin::{Amount, OutPoint, ScriptBuf, Txid};

/// One factory and one member's way out of it, as the programs tell it.
#[derive(Clone, Debug)]
pub struct Published {
    /// The factory's output on chain.
    pub funding: OutPoint,
    /// Its amount.
    pub funding_amount: Amount,
    /// What the LSP held on chain before it funded the factory.
    pub lsp_coins_before: Amount,
    /// What it held when the funding was in a block.
    pub lsp_coins_after: Amount,
    /// Where the LSP's change may go: any address of its wallet.
    pub lsp_scripts: Vec<ScriptBuf>,
    /// Feerate of every tree transaction, in sat/vB.
    pub tree_feerate: u64,
    /// The member's path, root kickoff first.
    pub path: Vec<PathTx>,
    /// The member's channel, an output of the last of the path.
    pub channel: OutPoint,
    /// Its amount.
    pub capacity: Amount,
    /// What the wallet said was the member's in it, in millisatoshi, before the LSP died.
    pub member_msat: u64,
    /// Part of that which the wallet said it could not spend there.
    pub reserve_msat: u64,
    /// HTLCs the LSP said were pending in it then.
    pub pending_htlcs: u32,
    /// Feerate of the commitment in sat per 1,000 weight units.
    pub commitment_feerate: u64,
    /// Blocks the member's own balance waits after the commitment.
    pub to_self_delay: u32,
    /// Every address the member's words give within the usual gap.
    pub member_scripts: Vec<ScriptBuf>,
    /// What the wallet said it had on chain before.
    pub member_coins_before: Amount,
    /// What the wallet says it has on chain after.
    pub member_coins_after: Amount,
    /// Every address of the members that stay, in the same way.
    pub staying_scripts: Vec<ScriptBuf>,
    /// What their wallets said they had on chain, all together.
    pub staying_coins: Amount,
}

/// One transaction of the path.
#[derive(Clone, Debug)]
pub struct PathTx {
    /// What it is, for people.
    pub name: String,
    /// Its id.
    pub txid: Txid,
    /// Virtual size.
    pub vsize: u64,
    /// The fee it brings along.
    pub fee: Amount,
    /// Blocks it waits after its parent.
    pub delay: u32,
    /// Its outputs, the anchor last.
    pub outputs: Vec<Amount>,
    /// Which of them the next of the path spends; for the last one the channel.
    pub onward: u32,
}
