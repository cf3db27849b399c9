//! A host with everything around it that a test needs.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bitcoin::hashes::{Hash, sha256};
use bitcoin::{Network, OutPoint, ScriptBuf, Transaction, TxOut, Txid};
use lightning::chain::chaininterface::{
    BroadcasterInterface, ConfirmationTarget, FeeEstimator, TransactionType,
};
use lightning::sign::ChangeDestinationSourceSync;
use superscalar_factory::scripts::channel_witness_script;
use superscalar_sdk::hosting::{
    Host, HostConfig, HostEvent, LoadedHost, LspPolicy, Role, SlotChannel, SlotId, SlotPhase,
    SlotRole, event_queue,
};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::chain::Chain;
use crate::store::History;

/// Nothing here takes long; a test that waits this long has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
pub(crate) const CAPACITY_SAT: u64 = 1_000_000;
pub(crate) const EXIT_DELAY: u16 = 324;

pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) host: Arc<Host>,
    pub(crate) published: Published,
    events: UnboundedReceiver<HostEvent>,
    skipped: VecDeque<HostEvent>,
    chain: Chain,
}

/// What a node gave to the network.
#[derive(Clone, Default)]
pub(crate) struct Published(Arc<Mutex<Vec<Transaction>>>);

impl Published {
    pub(crate) fn all(&self) -> Vec<Transaction> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn txids(&self) -> Vec<Txid> {
        self.all().iter().map(Transaction::compute_txid).collect()
    }
}

impl BroadcasterInterface for Published {
    fn broadcast_transactions(&self, txs: &[(&Transaction, TransactionType)]) {
        self.0
            .lock()
            .unwrap()
            .extend(txs.iter().map(|(tx, _)| (*tx).clone()));
    }
}

struct Fees;
impl FeeEstimator for Fees {
    fn get_est_sat_per_1000_weight(&self, _: ConfirmationTarget) -> u32 {
        1_000
    }
}

struct Wallet;
impl ChangeDestinationSourceSync for Wallet {
    fn get_change_destination_script(&self) -> Result<ScriptBuf, ()> {
        Ok(wallet_script())
    }
}

pub(crate) fn wallet_script() -> ScriptBuf {
    ScriptBuf::new_p2wpkh(&bitcoin::WPubkeyHash::from_byte_array([9; 20]))
}

pub(crate) fn lsp_role() -> Role {
    Role::Lsp(LspPolicy::default())
}

impl Node {
    /// Starts a node from what the history holds for it. Its seed is its name.
    pub(crate) async fn start(name: &str, role: Role, chain: &Chain, history: &History) -> Self {
        if std::env::var_os("RUST_LOG").is_some() {
            let filter = tracing_subscriber::EnvFilter::from_default_env();
            // Already set up by an earlier node.
            let _ = tracing_subscriber::fmt()
                .with_env_filter(filter)
                .with_test_writer()
                .try_init();
        }
        let (sink, events) = event_queue();
        let published = Published::default();
        let loaded = LoadedHost::load(HostConfig {
            network: Network::Regtest,
            role,
            node_seed: sha256::Hash::hash(name.as_bytes()).to_byte_array(),
            listen: Some("127.0.0.1:0".parse().unwrap()),
            store: history.store(name),
            start_block: chain.tip(),
            fees: Arc::new(Fees),
            broadcaster: Arc::new(published.clone()),
            destination: Arc::new(Wallet),
            events: sink,
            guards: None,
        })
        .unwrap();
        chain.catch_up(&loaded);
        let host = loaded.start().await.unwrap();
        chain.follow(name, host.follower());
        let skipped = VecDeque::new();
        Self {
            name: name.into(),
            host,
            published,
            events,
            skipped,
            chain: chain.clone(),
        }
    }

    pub(crate) async fn stop(self) {
        self.chain.unfollow(&self.name);
        self.host.stop().await;
    }

    pub(crate) async fn connect(&self, peer: &Node) {
        let address = peer.host.listen_address().unwrap();
        self.host
            .connect(peer.host.node_id(), address)
            .await
            .unwrap();
        let us = self.host.node_id();
        wait_until("the other side to be connected too", || {
            peer.host.is_connected(&us)
        })
        .await;
    }

    /// The next event that `wanted` makes something of; others wait for their turn.
    pub(crate) async fn expect<T>(&mut self, wanted: impl Fn(&HostEvent) -> Option<T>) -> T {
        if let Some(at) = self
            .skipped
            .iter()
            .position(|event| wanted(event).is_some())
        {
            return wanted(&self.skipped.remove(at).unwrap()).unwrap();
        }
        let search = async {
            loop {
                let event = self.events.recv().await.expect("host stopped");
                if let Some(found) = wanted(&event) {
                    return found;
                }
                self.skipped.push_back(event);
            }
        };
        match tokio::time::timeout(DEADLINE, search).await {
            Ok(found) => found,
            Err(_) => panic!(
                "{}: expected event never came; got {:?}",
                self.name, self.skipped
            ),
        }
    }

    /// What already happened and was not asked for.
    pub(crate) fn events_so_far(&mut self) -> Vec<HostEvent> {
        while let Ok(event) = self.events.try_recv() {
            self.skipped.push_back(event);
        }
        self.skipped.drain(..).collect()
    }

    pub(crate) fn phase(&self, slot: &SlotId) -> SlotPhase {
        self.host.slot(slot).unwrap().phase
    }

    pub(crate) fn balance_msat(&self, slot: &SlotId) -> u64 {
        self.host.channel_state(slot).unwrap().balance_msat
    }

    pub(crate) async fn received(&mut self) -> u64 {
        self.expect(|event| match event {
            HostEvent::PaymentReceived { amount_msat, .. } => Some(*amount_msat),
            _ => None,
        })
        .await
    }

    /// Pays and returns the fee, or the failure.
    pub(crate) async fn pay(&mut self, invoice: &str) -> Result<u64, String> {
        let hash = self
            .host
            .pay(invoice, None)
            .map_err(|error| error.to_string())?;
        self.expect(|event| match event {
            HostEvent::PaymentSent {
                payment_hash,
                fee_msat,
                ..
            } if *payment_hash == hash => Some(Ok(fee_msat.unwrap_or(0))),
            HostEvent::PaymentFailed {
                payment_hash,
                reason,
            } if *payment_hash == Some(hash) => Some(Err(reason.clone())),
            _ => None,
        })
        .await
    }

    pub(crate) async fn held(&mut self, slot: &SlotId) {
        self.expect(|event| match event {
            HostEvent::ChannelHeld { slot: held } if held == slot => Some(()),
            _ => None,
        })
        .await;
    }
}

/// Waits until `done`, with a deadline.
pub(crate) async fn wait_until(what: &str, done: impl Fn() -> bool) {
    let poll = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(
        tokio::time::timeout(DEADLINE, poll).await.is_ok(),
        "never: {what}"
    );
}

pub(crate) fn slot_id(slot: u16) -> SlotId {
    SlotId {
        instance: [1; 32],
        attempt: 0,
        slot,
        epoch: 0,
        seq: 0,
    }
}

/// What LSP and member agree about a slot, and the unsigned leaf it stands on.
pub(crate) struct Agreement {
    pub(crate) lsp: SlotChannel,
    pub(crate) member: SlotChannel,
    pub(crate) leaf: Transaction,
}

pub(crate) fn agreement(lsp: &Host, member: &Host, slot: SlotId, push_msat: u64) -> Agreement {
    let keys = [lsp, member].map(|node| node.funding_pubkey(&slot));
    let script = channel_witness_script(&keys[0], &keys[1]).to_p2wsh();
    let leaf = leaf(slot, script.clone());
    let channel = SlotChannel {
        slot,
        peer: member.node_id(),
        role: SlotRole::Funder,
        outpoint: OutPoint {
            txid: leaf.compute_txid(),
            vout: 0,
        },
        capacity_sat: CAPACITY_SAT,
        push_msat,
        funding_script: script,
        delay_on_us_blocks: 720,
        delay_on_peer_blocks: 144,
        exit_delay_blocks: EXIT_DELAY,
        blocks_early: EXIT_DELAY,
        last_htlc_expiry_height: 100_000,
    };
    let member = SlotChannel {
        peer: lsp.node_id(),
        role: SlotRole::Acceptor,
        delay_on_us_blocks: 144,
        delay_on_peer_blocks: 720,
        ..channel.clone()
    };
    Agreement {
        lsp: channel,
        member,
        leaf,
    }
}

fn leaf(slot: SlotId, script_pubkey: ScriptBuf) -> Transaction {
    funding(slot, script_pubkey, CAPACITY_SAT)
}

/// A transaction with one output, named after a slot.
pub(crate) fn funding(slot: SlotId, script_pubkey: ScriptBuf, value_sat: u64) -> Transaction {
    let parent = sha256::Hash::hash(slot.to_string().as_bytes()).to_byte_array();
    let previous_output = OutPoint {
        txid: Txid::from_byte_array(parent),
        vout: 0,
    };
    Transaction {
        version: bitcoin::transaction::Version(3),
        lock_time: bitcoin::absolute::LockTime::ZERO,
        // LDK insists that what it funded cannot be malleated: it looks for a witness.
        input: vec![bitcoin::TxIn {
            previous_output,
            witness: bitcoin::Witness::from_slice(&[[0; 64]]),
            ..Default::default()
        }],
        output: vec![TxOut {
            value: bitcoin::Amount::from_sat(value_sat),
            script_pubkey,
        }],
    }
}

/// Agrees on both sides and says the path is stored.
pub(crate) fn agree(lsp: &Node, member: &Node, slot: SlotId, push_msat: u64) -> Agreement {
    let agreement = agreement(&lsp.host, &member.host, slot, push_msat);
    for (node, channel) in [(lsp, &agreement.lsp), (member, &agreement.member)] {
        node.host.agree_slot(channel.clone()).unwrap();
        node.host.allow_signing(&slot).unwrap();
    }
    agreement
}

/// Agrees, opens and activates a slot.
pub(crate) async fn open(
    lsp: &mut Node,
    member: &mut Node,
    slot: SlotId,
    push_msat: u64,
) -> Agreement {
    let agreement = agree(lsp, member, slot, push_msat);
    lsp.host.open_slot(&slot).unwrap();
    lsp.held(&slot).await;
    member.held(&slot).await;
    lsp.host.activate(&slot).unwrap();
    member.host.activate(&slot).unwrap();
    agreement
}

/// Opens a confirmed ordinary channel from `from` to `to`.
pub(crate) async fn open_ordinary(chain: &Chain, from: &mut Node, to: &mut Node, push_msat: u64) {
    let peer = to.host.node_id();
    from.host
        .open_ordinary_channel(peer, CAPACITY_SAT, push_msat)
        .unwrap();
    let (channel, script) = from
        .expect(|event| match event {
            HostEvent::OrdinaryFundingNeeded {
                channel, script, ..
            } => Some((*channel, script.clone())),
            _ => None,
        })
        .await;
    let funding = leaf(slot_id(u16::MAX), script);
    from.host
        .fund_ordinary_channel(channel, peer, funding.clone())
        .unwrap();
    let published = from.published.clone();
    wait_until("funding published", || {
        published.txids().contains(&funding.compute_txid())
    })
    .await;
    chain.mine(vec![funding]);
    chain.mine_empty(6);
    for node in [from, to] {
        node.expect(|event| match event {
            HostEvent::OrdinaryChannelReady { .. } => Some(()),
            _ => None,
        })
        .await;
    }
}

/// Makes an invoice once the LSP's terms for the hint have arrived.
pub(crate) async fn invoice(node: &Node, amount_msat: u64) -> String {
    wait_until("an invoice can be made", || {
        node.host.invoice(Some(amount_msat), "", 600).is_ok()
    })
    .await;
    node.host
        .invoice(Some(amount_msat), "test", 600)
        .unwrap()
        .to_string()
}
