//! One LSP and its wallets, each a process of its own, on a real chain: whoever is killed has no
//! say in it. Between each wallet and the LSP is a wire that a test can stop.

use std::str::FromStr;
use std::time::Instant;

use bitcoin::{Amount, OutPoint};
use superscalar_sdk::{BuildRequest, PaymentStatus};

use crate::network::{LIMIT, regtest_factory};
use crate::processes::{LspProcess, WalletProcess};
use crate::regtest::RegtestNode;
use crate::wire::Wire;

/// What the LSP starts with, in one coin.
pub const LSP_COIN_SAT: u64 = 1_000_000_000;

/// Waits for a condition; other tasks, which carry the wires' bytes, run meanwhile.
///
/// # Panics
/// When it does not come.
pub async fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + LIMIT;
    while !tokio::task::block_in_place(&mut condition) {
        assert!(Instant::now() < until, "waited in vain for {what}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Everybody. The chain is there as long as this.
pub struct Stage {
    /// The chain.
    pub chain: RegtestNode,
    /// The LSP.
    pub lsp: LspProcess,
    /// The members.
    pub wallets: Vec<WalletProcess>,
    /// What each of them reaches the LSP by.
    pub wires: Vec<Wire>,
}

impl Stage {
    /// Starts an LSP with one coin and this many wallets without.
    pub async fn set(members: usize) -> Stage {
        let chain = RegtestNode::new().unwrap();
        let lsp = tokio::task::block_in_place(|| LspProcess::start(&chain).unwrap());
        let address: bitcoin::Address<_> = lsp.address().unwrap().parse().unwrap();
        let script = address.assume_checked().script_pubkey();
        chain.fund(&script, Amount::from_sat(LSP_COIN_SAT)).unwrap();
        lsp.sync().unwrap();
        let uri = lsp.uri.clone();
        let (id, address) = uri.split_once('@').unwrap();
        let mut stage = Stage {
            wallets: Vec::new(),
            wires: Vec::new(),
            chain,
            lsp,
        };
        for _ in 0..members {
            let wire = Wire::to(address.parse().unwrap()).await;
            let uri = format!("{id}@{}", wire.address);
            let wallet = WalletProcess::start(&stage.chain, &uri);
            stage.wallets.push(wallet.unwrap());
            stage.wires.push(wire);
        }
        stage
    }

    /// Every wallet asks for a place until it has one to wait for.
    pub async fn all_waiting(&self) {
        for wallet in &self.wallets {
            wallet.join(500_000).unwrap();
        }
        wait("all wallets to wait for a place", || {
            self.lsp.waiting().unwrap().len() == self.wallets.len()
        })
        .await;
    }

    /// Begins a factory and stops where the next message of member 0 would end `phase`.
    pub async fn held_in(&self, phase: &str) -> String {
        self.all_waiting().await;
        let wire = &self.wires[0].to_lsp;
        wire.hold();
        let request = BuildRequest {
            round_seconds: 3,
            ..regtest_factory(self.wallets.len() as u16)
        };
        let factory = self.lsp.create_factory(&request).unwrap();
        wait(phase, || {
            let now = self.lsp.factory(&factory).unwrap().phase;
            assert_ne!(now, "published");
            if now != phase && wire.held_bytes() > 0 {
                wire.release();
            }
            now == phase
        })
        .await;
        factory
    }

    /// Builds a factory of all wallets, up to its published funding.
    pub async fn published(&self, request: &BuildRequest) -> String {
        self.all_waiting().await;
        let factory = self.lsp.create_factory(request).unwrap();
        self.until_published(&factory).await;
        factory
    }

    async fn until_published(&self, factory: &str) {
        wait("the funding to be published", || {
            let info = self.lsp.factory(factory).unwrap();
            assert_eq!(info.ended, None);
            info.phase == "published"
        })
        .await;
    }

    /// Waits for the funding, confirms it, and waits until everybody can pay in the factory.
    pub async fn finish(&self, factory: &str) {
        self.until_published(factory).await;
        self.chain.mine(1).unwrap();
        wait("everyone to be active", || {
            let of_wallets = self.wallets.iter().all(|it| it.is_active(factory).unwrap());
            of_wallets && self.lsp.factory(factory).unwrap().active
        })
        .await;
    }

    /// The LSP pays a member.
    pub async fn lsp_pays(&self, member: usize, amount_msat: u64) {
        let invoice = self.wallets[member].receive(amount_msat, "").unwrap();
        let hash = self.lsp.pay(&invoice).unwrap();
        wait("the LSP's payment", || {
            let arrived = |payment: superscalar_sdk::Payment| {
                assert_ne!(payment.status, PaymentStatus::Failed);
                payment.status == PaymentStatus::Succeeded
            };
            arrived(self.lsp.payment(&hash).unwrap())
                && arrived(self.wallets[member].payment(&hash).unwrap())
        })
        .await;
    }

    /// Waits until no commitment holds an HTLC any more.
    pub async fn quiet(&self) {
        wait("no HTLC to be pending", || {
            let channels = self.lsp.channels().unwrap();
            let mut pending = channels
                .iter()
                .map(|it| it.inbound_htlcs + it.outbound_htlcs);
            pending.all(|it| it == 0)
        })
        .await;
    }

    /// The output a factory stands on, by a wallet's books.
    pub fn funding(&self, wallet: usize, factory: &str) -> OutPoint {
        let infos = self.wallets[wallet].factories().unwrap();
        let info = infos.iter().find(|it| it.factory == factory).unwrap();
        OutPoint::from_str(info.funding.as_ref().unwrap()).unwrap()
    }
}
