//! Three nodes with ordinary channels on chain, to compare factory channels with.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bitcoin::{Amount, Network};
use superscalar_regtest::RegtestNode;
use superscalar_sdk::{Lsp, LspBuilder, LspUri, Mnemonic, PaymentStatus, WordCount};
use tempfile::TempDir;

use crate::network::{LIMIT, chain_config};

/// Payer, hub and payee; the hub has an ordinary channel with each.
pub struct Ordinary {
    chain: RegtestNode,
    nodes: Vec<(Arc<Lsp>, TempDir)>,
}

impl Ordinary {
    /// Starts the nodes and opens the channels.
    pub async fn start() -> Ordinary {
        let chain = RegtestNode::new().unwrap();
        let mut nodes = Vec::new();
        for _ in 0..3 {
            let directory = TempDir::new().unwrap();
            let mnemonic = Mnemonic::generate(WordCount::Twelve).unwrap();
            let node = LspBuilder::new(Network::Regtest, mnemonic)
                .storage_dir(directory.path().into())
                .chain_source(chain_config(&chain))
                .listen("127.0.0.1:0".parse().unwrap())
                .poll_interval(Duration::from_millis(200))
                .start()
                .await
                .unwrap();
            nodes.push((node, directory));
        }
        let ordinary = Ordinary { chain, nodes };
        let hub = ordinary.node(1);
        let address: bitcoin::Address<_> = hub.onchain().address().unwrap().parse().unwrap();
        let script = address.assume_checked().script_pubkey();
        for _ in 0..2 {
            let coin = Amount::from_sat(10_000_000);
            ordinary.chain.fund(&script, coin).unwrap();
        }
        hub.sync().await.unwrap();
        for peer in [0, 2] {
            let uri: LspUri = ordinary.node(peer).uri().unwrap().parse().unwrap();
            hub.open_channel(&uri, 1_000_000, 500_000_000)
                .await
                .unwrap();
        }
        ordinary
            .wait("the fundings in the mempool", || {
                ordinary.chain.mempool().unwrap().len() == 2
            })
            .await;
        ordinary.chain.mine(6).unwrap();
        for peer in 0..3 {
            ordinary.node(peer).sync().await.unwrap();
        }
        ordinary
            .wait("the channels to be usable", || {
                let usable = |node: usize| {
                    let channels = ordinary.node(node).channels();
                    channels.iter().filter(|channel| channel.usable).count()
                };
                usable(0) == 1 && usable(1) == 2 && usable(2) == 1
            })
            .await;
        ordinary
    }

    /// Pays from the first to the last over the hub and waits until both sides say so.
    pub async fn pay(&self, amount_msat: u64) {
        let invoice = self
            .node(2)
            .lightning()
            .receive(Some(amount_msat), "test", 3_600)
            .await
            .unwrap();
        let hash = self.node(0).lightning().send(&invoice, None).await.unwrap();
        for end in [0, 2] {
            self.wait("a payment to succeed", || {
                let payment = self.node(end).lightning().payment(&hash).unwrap();
                let status = payment.map(|payment| payment.status);
                assert_ne!(status, Some(PaymentStatus::Failed), "payment {hash} failed");
                status == Some(PaymentStatus::Succeeded)
            })
            .await;
        }
    }

    fn node(&self, number: usize) -> &Lsp {
        &self.nodes[number].0
    }

    async fn wait(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let until = Instant::now() + LIMIT;
        while !condition() {
            assert!(Instant::now() < until, "waited in vain for {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
