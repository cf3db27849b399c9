//! After T a reorg puts a state in the place of a distribution, and the other way round: everybody
//! has what the chain says in the end, whichever of the two was there before.

use bitcoin::Transaction;
use superscalar_tests::ends::Ending;

use super::{DISTRIBUTION_BLOCKS, mainnet};

const BALANCE_SAT: u64 = 100_000;
/// Less than anybody takes for final.
const REPLACED_BLOCKS: u32 = 5;

/// The LSP comes back when state and distribution may be in the next block, so that whoever makes
/// blocks decides.
struct Contested {
    end: Ending,
    state: Transaction,
    distribution: Transaction,
    /// The height of that block.
    due: u32,
}

impl Contested {
    async fn start() -> Contested {
        let mut end = Ending::start(mainnet(2, &[2]), &[BALANCE_SAT, 0]).await;
        let path = end.path(0).await;
        let (_, newest) = path.nodes()[0].newest();
        let (state, distribution) = (newest.state.clone(), newest.distribution.clone().unwrap());
        end.network.lose_lsp().await;
        end.reclaim(0).await;
        end.network.rest_to(end.expiry, &[0]).await;
        let kickoff = end.paths[0].steps[0].txid;
        let opened = end.network.confirm(kickoff, &[0]).await;
        let due = opened + DISTRIBUTION_BLOCKS;
        end.network.rest_to(due - 1, &[0]).await;
        end.network.restart_lsp().await;
        Contested {
            end,
            state,
            distribution,
            due,
        }
    }

    /// A block with just this at the height that is due, on any tip; everybody follows.
    async fn mine(&self, tx: &Transaction) {
        let chain = &self.end.network.chain;
        let tip = chain.height().unwrap();
        if tip >= self.due {
            chain
                .invalidate(chain.block_hash(self.due).unwrap())
                .unwrap();
        }
        chain.mine_with(std::slice::from_ref(tx)).unwrap();
        // Longer than what it replaces.
        chain.mine_empty_to_height(tip + 1).unwrap();
        self.end.network.follow(&[0, 1]).await;
        let confirmed = chain.confirmed_at(tx.compute_txid()).unwrap();
        assert_eq!(confirmed, Some(self.due));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_in_the_place_of_a_distribution_pays_everybody_its_balance() {
    let contested = Contested::start().await;
    let end = &contested.end;
    let network = &end.network;
    contested.mine(&contested.distribution).await;
    network
        .wait("the member to be paid", async || {
            network.wallet(0).balance().unwrap().onchain_sat == 600_000
        })
        .await;
    network
        .step_to(contested.due + REPLACED_BLOCKS - 1, &[0, 1])
        .await;

    contested.mine(&contested.state).await;
    let distribution = contested.distribution.compute_txid();
    assert_eq!(network.chain.raw_tx(distribution).unwrap(), None);
    let path = &end.paths[0];
    let closed = network
        .close_with(0, path, BALANCE_SAT * 1_000, &[0, 1])
        .await;
    assert_eq!(closed.own_sat, BALANCE_SAT, "its own and no more");
    let home_sat = network.wallet(0).balance().unwrap().onchain_sat;
    assert!(home_sat < BALANCE_SAT, "net gain at most 0");
    assert_eq!(network.wallet(1).balance().unwrap().onchain_sat, 0);
    network.check_tree_tx(&path.steps[1]);
    contested.end.network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_distribution_in_the_place_of_a_state_pays_everybody_its_share() {
    let contested = Contested::start().await;
    let end = &contested.end;
    let network = &end.network;
    contested.mine(&contested.state).await;
    // The member's commitment, which the leaf takes with it.
    let commitment = network.spent(end.paths[0].channel).await;
    network.confirm(commitment, &[0, 1]).await;
    network
        .step_to(contested.due + REPLACED_BLOCKS - 1, &[0, 1])
        .await;

    contested.mine(&contested.distribution).await;
    let state = contested.state.compute_txid();
    assert_eq!(network.chain.raw_tx(state).unwrap(), None);
    assert_eq!(network.chain.raw_tx(commitment).unwrap(), None);
    let distribution = &end.paths[0].distributions[0];
    assert!(end.lsp_share_sat(distribution) <= end.lsp_entitled_sat(&[0, 1]));
    end.are_paid(&[0, 1]).await;
    assert_eq!(network.exit(0).await.stage, "paid_out");
    network
        .wait("the LSP's channels to be over", async || {
            network.lsp().channels().is_empty()
        })
        .await;
    contested.end.network.stop().await;
}
