//! An ordinary Lightning wallet (`ldk-node`, another LDK generation) that knows nothing of
//! factories, with an ordinary channel to the LSP.

use std::str::FromStr;
use std::sync::Arc;

use bitcoin::{Amount, Network};
use ldk_node::NodeError;
use ldk_node::lightning::ln::channelmanager::PaymentId;
use ldk_node::lightning::ln::msgs::SocketAddress;
use ldk_node::lightning::routing::router::RouteParametersConfig;
use ldk_node::lightning_invoice::{Bolt11Invoice, Bolt11InvoiceDescription, Description};
use ldk_node::payment::PaymentStatus;
use superscalar_tests::network::TestNetwork;
use tempfile::TempDir;

/// What its channel is worth.
pub(crate) const CAPACITY_SAT: u64 = 2_000_000;

/// A running outside wallet.
pub(crate) struct Outside {
    /// The node.
    node: Arc<ldk_node::Node>,
    _directory: TempDir,
}

impl Outside {
    /// Starts a wallet without a coin or channel, which buys channels from the LSP.
    pub(crate) async fn buying(network: &TestNetwork) -> Outside {
        let uri = network.lsp().uri().unwrap();
        let (id, address) = uri.split_once('@').unwrap();
        let peer = ldk_node::bitcoin::secp256k1::PublicKey::from_str(id).unwrap();
        let address = SocketAddress::from_str(address).unwrap();
        Outside::launch(network, |builder| {
            builder.set_liquidity_source_lsps2(peer, address, None);
        })
    }

    fn launch(network: &TestNetwork, more: impl FnOnce(&mut ldk_node::Builder)) -> Outside {
        let directory = TempDir::new().unwrap();
        let chain = &network.chain;
        let mut builder = ldk_node::Builder::new();
        builder
            .set_network(Network::Regtest)
            .set_storage_dir_path(directory.path().to_str().unwrap().to_owned())
            .set_entropy_seed_bytes([5; 64])
            .set_chain_source_bitcoind_rpc(
                chain.rpc_host().to_owned(),
                chain.rpc_port(),
                chain.rpc_user().to_owned(),
                chain.rpc_password().to_owned(),
            );
        more(&mut builder);
        let node = Arc::new(builder.build().unwrap());
        node.start().unwrap();
        Outside {
            node,
            _directory: directory,
        }
    }

    /// Starts a wallet and opens a channel to the LSP, half of it on each side.
    pub(crate) async fn start(network: &TestNetwork) -> Outside {
        let outside = Outside::launch(network, |_| ());
        let (node, chain) = (&outside.node, &network.chain);
        let coins = node.onchain_payment().new_address().unwrap();
        let wanted = Amount::from_sat(2 * CAPACITY_SAT);
        chain.fund(&coins.script_pubkey(), wanted).unwrap();
        network
            .wait("the outside wallet to have its coin", async || {
                node.list_balances().spendable_onchain_balance_sats > CAPACITY_SAT
            })
            .await;
        network.sync().await;
        let uri = network.lsp().uri().unwrap();
        let (id, address) = uri.split_once('@').unwrap();
        let peer = ldk_node::bitcoin::secp256k1::PublicKey::from_str(id).unwrap();
        let address = SocketAddress::from_str(address).unwrap();
        let half_msat = CAPACITY_SAT * 1_000 / 2;
        node.open_channel(peer, address, CAPACITY_SAT, Some(half_msat), None)
            .unwrap();
        network
            .wait("its funding to be published", async || {
                !chain.mempool().unwrap().is_empty()
            })
            .await;
        network.mine(6).await;
        network
            .wait("its channel to be usable", async || {
                // Its invoices name the LSP's terms, which come in a message of their own.
                let usable = |ours: &ldk_node::ChannelDetails| {
                    ours.is_usable && ours.counterparty_forwarding_info_fee_base_msat.is_some()
                };
                let there = network.lsp().channels();
                node.list_channels().iter().any(usable)
                    && there.iter().any(|it| it.slot.is_none() && it.usable)
            })
            .await;
        outside
    }

    /// An invoice for which the LSP opens a channel and keeps at most `max_fee_msat`.
    pub(crate) fn invoice_jit(&self, amount_msat: u64, max_fee_msat: u64) -> String {
        let text = Bolt11InvoiceDescription::Direct(Description::new("bread".into()).unwrap());
        let payment = self.node.bolt11_payment();
        payment
            .receive_via_jit_channel(amount_msat, &text, 3_600, Some(max_fee_msat))
            .unwrap()
            .to_string()
    }

    /// Begins to pay an invoice; gives the payment's id.
    pub(crate) fn send(&self, invoice: &str) -> PaymentId {
        let invoice = Bolt11Invoice::from_str(invoice).unwrap();
        self.node.bolt11_payment().send(&invoice, None).unwrap()
    }

    /// Begins to pay an invoice over a route of at most so many blocks; gives the payment's id.
    ///
    /// # Errors
    /// There is no such route.
    pub(crate) fn send_within(
        &self,
        invoice: &str,
        route_limit_blocks: u32,
    ) -> Result<PaymentId, NodeError> {
        let invoice = Bolt11Invoice::from_str(invoice).unwrap();
        let limits = RouteParametersConfig {
            max_total_cltv_expiry_delta: route_limit_blocks,
            ..RouteParametersConfig::default()
        };
        self.node.bolt11_payment().send(&invoice, Some(limits))
    }

    /// The limit it has unless told otherwise.
    pub(crate) fn default_route_limit_blocks() -> u32 {
        RouteParametersConfig::default().max_total_cltv_expiry_delta
    }

    /// Pays an invoice and waits for the proof; gives the fee.
    pub(crate) async fn pay(&self, network: &TestNetwork, invoice: &str) -> u64 {
        let id = self.send(invoice);
        self.until_paid(network, &id).await
    }

    /// Waits until a payment has succeeded; gives its fee.
    pub(crate) async fn until_paid(&self, network: &TestNetwork, id: &PaymentId) -> u64 {
        network
            .wait("the outside wallet to have paid", async || {
                let status = self.node.payment(id).unwrap().status;
                assert_ne!(status, PaymentStatus::Failed);
                status == PaymentStatus::Succeeded
            })
            .await;
        self.node.payment(id).unwrap().fee_paid_msat.unwrap()
    }

    /// Waits until a payment has failed.
    pub(crate) async fn until_failed(&self, network: &TestNetwork, id: &PaymentId) {
        network
            .wait("the outside payment to fail", async || {
                let status = self.node.payment(id).unwrap().status;
                assert_ne!(status, PaymentStatus::Succeeded);
                status == PaymentStatus::Failed
            })
            .await;
    }

    /// An invoice of this wallet.
    pub(crate) fn invoice(&self, amount_msat: u64) -> String {
        let text = Bolt11InvoiceDescription::Direct(Description::new("bread".into()).unwrap());
        let payment = self.node.bolt11_payment();
        payment
            .receive(amount_msat, &text, 3_600)
            .unwrap()
            .to_string()
    }

    /// What this wallet holds in its channel, in msat.
    pub(crate) fn balance_msat(&self) -> u64 {
        let channels = self.node.list_channels();
        let ours = |it: &ldk_node::ChannelDetails| {
            it.outbound_capacity_msat + it.unspendable_punishment_reserve.unwrap_or(0) * 1_000
        };
        channels.iter().map(ours).sum()
    }

    /// Ends it.
    pub(crate) async fn stop(self) {
        let node = Arc::clone(&self.node);
        tokio::task::spawn_blocking(move || node.stop())
            .await
            .unwrap()
            .unwrap();
    }
}
