//! Blocks into the wallet.

use bitcoin::Block;
use bitcoin::block::Header;
use lightning::chain::transaction::TransactionData;
use lightning::chain::{BlockLocator, Listen};
use tracing::error;

use super::OnchainWallet;

impl Listen for OnchainWallet {
    fn filtered_block_connected(&self, header: &Header, txs: &TransactionData<'_>, height: u32) {
        // A block with the matching transactions only: the wallet checks no Merkle root.
        let block = Block {
            header: *header,
            txdata: txs.iter().map(|(_, tx)| (*tx).clone()).collect(),
        };
        self.block_connected(&block, height);
    }

    fn block_connected(&self, block: &Block, height: u32) {
        let mut state = self.state();
        if let Err(failure) = state.wallet.apply_block(block, height) {
            // The wallet's position stays where it was, so a restart shows the block again.
            error!(height, %failure, "the on-chain wallet could not take a block");
            return;
        }
        state.fork_height = None;
        let saved = self.save(&mut state).map_err(Into::into);
        if let Err(failure) = saved.and_then(|()| self.settle_reservations(&mut state)) {
            error!(height, %failure, "the on-chain wallet could not be written");
        }
    }

    fn blocks_disconnected(&self, fork_point: BlockLocator) {
        // `bdk_wallet` cannot be told to go back, it does so with the first block of the new
        // branch.
        self.state().fork_height = Some(fork_point.height);
    }
}
