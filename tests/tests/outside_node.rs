//! An ordinary Lightning wallet (`ldk-node`, another LDK generation) and a member pay each other
//! through the LSP, with the outside wallet's default route limits, on a real bitcoind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::hashes::{Hash, sha256};
use bitcoin::{Amount, FeeRate, Network, OutPoint, ScriptBuf, Transaction, Txid};
use ldk_node::lightning::ln::msgs::SocketAddress;
use ldk_node::lightning_invoice::{Bolt11Invoice, Bolt11InvoiceDescription, Description};
use ldk_node::payment::PaymentStatus;
use lightning::chain::chaininterface::{
    BroadcasterInterface, ConfirmationTarget, FeeEstimator, TransactionType,
};
use lightning::sign::ChangeDestinationSourceSync;
use superscalar_regtest::{RegtestNode, wait_until_async};
use superscalar_sdk::chain::{BitcoindAuth, BitcoindConfig, BitcoindSource, Chain, Follower};
use superscalar_sdk::hosting::{
    Host, HostConfig, HostEvent, LoadedHost, LspPolicy, Role, SlotChannel, SlotId, SlotRole,
    event_queue, funding_script,
};
use superscalar_sdk::keys::{Mnemonic, WalletKeys, WordCount};
use superscalar_sdk::store::Store;
use tokio::sync::mpsc::UnboundedReceiver;

const DEADLINE: Duration = Duration::from_secs(60);
const EXIT_DELAY: u16 = 324;

struct Running {
    host: Arc<Host>,
    events: UnboundedReceiver<HostEvent>,
    follower: Follower,
    _directory: tempfile::TempDir,
}

struct Publish(Arc<RegtestNode>);
impl BroadcasterInterface for Publish {
    fn broadcast_transactions(&self, txs: &[(&Transaction, TransactionType)]) {
        for (tx, _) in txs {
            // LDK repeats what is not confirmed; a refusal shows in what the test waits for.
            let _ = self.0.submit(tx);
        }
    }
}

struct Fees;
impl FeeEstimator for Fees {
    fn get_est_sat_per_1000_weight(&self, _: ConfirmationTarget) -> u32 {
        1_000
    }
}

struct Nowhere;
impl ChangeDestinationSourceSync for Nowhere {
    fn get_change_destination_script(&self) -> Result<ScriptBuf, ()> {
        Err(())
    }
}

impl Running {
    async fn start(node: &Arc<RegtestNode>, role: Role) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let words = Mnemonic::generate(WordCount::Twelve).unwrap();
        let keys = WalletKeys::new(&words, "", Network::Regtest).unwrap();
        let store = Store::open(directory.path(), &keys.identity().unwrap()).unwrap();
        let store = Arc::new(store);
        let source = BitcoindSource::new(BitcoindConfig {
            address: format!("{}:{}", node.rpc_host(), node.rpc_port()),
            auth: BitcoindAuth::UserPassword {
                user: node.rpc_user().to_owned(),
                password: node.rpc_password().to_owned(),
            },
        });
        let source: Arc<dyn superscalar_sdk::chain::ChainSource> = Arc::new(source);
        let start_block = Chain::best_block(&source).await.unwrap();
        let fallback = FeeRate::from_sat_per_vb(3).unwrap();
        let chain = Chain::open(
            source,
            Network::Regtest,
            Arc::clone(&store),
            &start_block,
            fallback,
        )
        .unwrap();
        let (sink, events) = event_queue();
        let loaded = LoadedHost::load(HostConfig {
            network: Network::Regtest,
            role,
            node_seed: *keys.lightning_seed().unwrap().expose(),
            listen: Some("127.0.0.1:0".parse().unwrap()),
            store,
            start_block,
            fees: Arc::new(Fees),
            broadcaster: Arc::new(Publish(Arc::clone(node))),
            destination: Arc::new(Nowhere),
            events: sink,
        })
        .unwrap();
        let synced = chain.synchronize(loaded.listeners()).await.unwrap();
        let host = loaded.start().await.unwrap();
        let follower = chain.follow(
            synced,
            vec![Arc::new(host.follower())],
            Duration::from_millis(100),
        );
        Self {
            host,
            events,
            follower,
            _directory: directory,
        }
    }

    async fn expect<T>(&mut self, wanted: impl Fn(&HostEvent) -> Option<T>) -> T {
        let search = async {
            loop {
                let event = self.events.recv().await.expect("the host runs");
                if let Some(found) = wanted(&event) {
                    return found;
                }
            }
        };
        tokio::time::timeout(DEADLINE, search)
            .await
            .expect("the event comes in time")
    }

    async fn stop(self) {
        self.follower.stop().await;
        self.host.stop().await;
    }
}

async fn until(what: &str, done: impl Fn() -> bool) {
    wait_until_async(what, DEADLINE, || async { done() })
        .await
        .unwrap();
}

/// A channel on a leaf that is never published.
async fn open_slot(lsp: &mut Running, member: &mut Running) -> SlotId {
    let slot = SlotId {
        instance: [3; 32],
        attempt: 0,
        slot: 1,
        epoch: 0,
        seq: 0,
    };
    let script = funding_script(
        &lsp.host.funding_pubkey(&slot),
        &member.host.funding_pubkey(&slot),
    );
    let txid = Txid::from_byte_array(sha256::Hash::hash(b"a leaf").to_byte_array());
    let agreed = SlotChannel {
        slot,
        peer: member.host.node_id(),
        role: SlotRole::Funder,
        outpoint: OutPoint { txid, vout: 0 },
        capacity_sat: 1_000_000,
        push_msat: 0,
        funding_script: script,
        delay_on_us_blocks: 720,
        delay_on_peer_blocks: 144,
        exit_delay_blocks: EXIT_DELAY,
        blocks_early: EXIT_DELAY,
        last_htlc_expiry_height: 100_000,
    };
    let theirs = SlotChannel {
        peer: lsp.host.node_id(),
        role: SlotRole::Acceptor,
        delay_on_us_blocks: 144,
        delay_on_peer_blocks: 720,
        ..agreed.clone()
    };
    lsp.host.agree_slot(agreed).unwrap();
    member.host.agree_slot(theirs).unwrap();
    for node in [&*lsp, &*member] {
        node.host.allow_signing(&slot).unwrap();
    }
    lsp.host.open_slot(&slot).unwrap();
    for node in [lsp, member] {
        node.expect(|event| matches!(event, HostEvent::ChannelHeld { .. }).then_some(()))
            .await;
        node.host.activate(&slot).unwrap();
    }
    slot
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_outside_wallet_pays_a_member_under_its_default_limits() {
    let bitcoind = Arc::new(RegtestNode::new().unwrap());
    let lsp_role = Role::Lsp(LspPolicy::default());
    let mut lsp = Running::start(&bitcoind, lsp_role).await;
    let mut member = Running::start(&bitcoind, Role::Member).await;
    let address = lsp.host.listen_address().unwrap();
    member
        .host
        .connect(lsp.host.node_id(), address)
        .await
        .unwrap();
    let slot = open_slot(&mut lsp, &mut member).await;

    let directory = tempfile::tempdir().unwrap();
    let mut builder = ldk_node::Builder::new();
    builder
        .set_network(Network::Regtest)
        .set_storage_dir_path(directory.path().to_str().unwrap().to_owned())
        .set_entropy_seed_bytes([5; 64])
        .set_chain_source_bitcoind_rpc(
            bitcoind.rpc_host().to_owned(),
            bitcoind.rpc_port(),
            bitcoind.rpc_user().to_owned(),
            bitcoind.rpc_password().to_owned(),
        );
    let outside = Arc::new(builder.build().unwrap());
    outside.start().unwrap();
    let coins = outside
        .onchain_payment()
        .new_address()
        .unwrap()
        .script_pubkey();
    bitcoind.fund(&coins, Amount::from_sat(1_000_000)).unwrap();
    until("the outside wallet has its coin", || {
        outside.list_balances().spendable_onchain_balance_sats > 900_000
    })
    .await;
    let lsp_address = SocketAddress::from_str(&address.to_string()).unwrap();
    let peer = lsp.host.node_id();
    outside
        .open_channel(peer, lsp_address, 500_000, Some(200_000_000), None)
        .unwrap();
    until("the funding is in the mempool", || {
        !bitcoind.mempool().unwrap().is_empty()
    })
    .await;
    bitcoind.mine(6).unwrap();
    until("the ordinary channel is usable", || {
        outside
            .list_channels()
            .iter()
            .any(|channel| channel.is_usable)
    })
    .await;
    until("an invoice can be made", || {
        member.host.invoice(Some(1), "", 600).is_ok()
    })
    .await;

    let invoice = member
        .host
        .invoice(Some(50_000_000), "coffee", 600)
        .unwrap()
        .to_string();
    let parsed = Bolt11Invoice::from_str(&invoice).unwrap();
    let hint = parsed.route_hints()[0].0[0].clone();
    assert_eq!(hint.cltv_expiry_delta, 372);
    assert_eq!(parsed.min_final_cltv_expiry_delta(), 369);
    let id = outside.bolt11_payment().send(&parsed, None).unwrap();
    let received = member
        .expect(|event| match event {
            HostEvent::PaymentReceived { amount_msat, .. } => Some(*amount_msat),
            _ => None,
        })
        .await;
    assert_eq!(received, 50_000_000);
    until("the payer knows", || {
        outside.payment(&id).unwrap().status == PaymentStatus::Succeeded
    })
    .await;
    let fee = outside.payment(&id).unwrap().fee_paid_msat.unwrap();
    assert_eq!(fee, 1_000 + 50_000_000 * 100 / 1_000_000);

    // And back: the member adds the LSP's time to its first hop.
    let text = Bolt11InvoiceDescription::Direct(Description::new("bread".into()).unwrap());
    let invoice = outside
        .bolt11_payment()
        .receive(20_000_000, &text, 600)
        .unwrap();
    let hash = member.host.pay(&invoice.to_string(), None).unwrap();
    let fee = member
        .expect(|event| match event {
            HostEvent::PaymentSent {
                payment_hash,
                fee_msat,
                ..
            } => {
                assert_eq!(*payment_hash, hash);
                Some(fee_msat.unwrap())
            }
            HostEvent::PaymentFailed { reason, .. } => panic!("{reason}"),
            _ => None,
        })
        .await;
    until("settled", || {
        let state = member.host.channel_state(&slot).unwrap();
        state.outbound_htlcs == 0 && state.balance_msat == 50_000_000 - 20_000_000 - fee
    })
    .await;

    let stopping = Arc::clone(&outside);
    tokio::task::spawn_blocking(move || stopping.stop())
        .await
        .unwrap()
        .unwrap();
    member.stop().await;
    lsp.stop().await;
}
