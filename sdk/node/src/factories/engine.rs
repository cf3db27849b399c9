//! The task that owns all roles, and the handle to it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, FeeRate, Network, Txid};
use superscalar_factory::coordinator::{Coordinator, FactoryPlan};
use superscalar_factory::effect::Effect;
use superscalar_factory::exit::bump::FeeCaps;
use superscalar_factory::exit::package::PackagedPath;
use superscalar_factory::journal::Record;
use superscalar_factory::member::{Member, WalletLimits};
use superscalar_factory::message::Attempt;
use superscalar_factory::wire::Assembler;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::bridge;
use super::exits::Exits;
use super::info::{
    BuildRequest, EngineError, ExitInfo, ExitMode, ExitPlan, FactoryInfo, TreeNodeInfo,
};
use super::patience::Patience;
use crate::chain::{Chain, Tip};
use crate::event::EventLog;
use crate::hosting::{Host, HostEvent};
use crate::keys::Secret32;
use crate::node::StartError;
use crate::onchain::OnchainWallet;
use crate::store::Store;
use superscalar_factory::codec::Decode as _;

/// How long the store is left alone after it could not write.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What the engine works with.
pub(crate) struct EngineParts {
    pub(crate) network: Network,
    pub(crate) is_lsp: bool,
    pub(crate) factory_seed: Secret32,
    pub(crate) store: Arc<Store>,
    pub(crate) chain: Arc<Chain>,
    pub(crate) onchain: Arc<OnchainWallet>,
    pub(crate) host: Arc<Host>,
    pub(crate) events: Arc<EventLog>,
    pub(crate) fee_caps: FeeCaps,
}

/// What the application asks for.
#[cfg_attr(
    not(feature = "lsp"),
    allow(dead_code, reason = "some only an LSP asks for")
)]
pub(crate) enum Command {
    Seek {
        lsp: PublicKey,
        capacity: Amount,
        limits: Box<WalletLimits>,
        answer: oneshot::Sender<Result<(), EngineError>>,
    },
    Build {
        request: BuildRequest,
        answer: oneshot::Sender<Result<String, EngineError>>,
    },
    Waiting(oneshot::Sender<Vec<PublicKey>>),
    List(oneshot::Sender<Vec<FactoryInfo>>),
    Tree {
        factory: String,
        answer: oneshot::Sender<Result<Vec<TreeNodeInfo>, EngineError>>,
    },
    PlanExit {
        factory: String,
        answer: oneshot::Sender<Result<ExitPlan, EngineError>>,
    },
    StartExit {
        factory: String,
        reason: String,
        mode: ExitMode,
        answer: oneshot::Sender<Result<(), EngineError>>,
    },
    ExportPaths(oneshot::Sender<Result<Vec<PackagedPath>, EngineError>>),
    SpeedUpExit {
        factory: String,
        feerate: FeeRate,
        answer: oneshot::Sender<Result<(), EngineError>>,
    },
    Exits(oneshot::Sender<Result<Vec<ExitInfo>, EngineError>>),
}

/// Talks to the engine.
#[derive(Clone)]
pub(crate) struct EngineHandle {
    commands: mpsc::UnboundedSender<Command>,
    settled: watch::Receiver<u32>,
}

impl EngineHandle {
    /// Sends a command and waits for its answer.
    pub(crate) async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, EngineError> {
        let (answer, answered) = oneshot::channel();
        self.commands
            .send(command(answer))
            .map_err(|_| EngineError::Stopped)?;
        answered.await.map_err(|_| EngineError::Stopped)
    }

    /// Returns when all effects of the block at `height` are carried out.
    pub(crate) async fn settled(&self, height: u32) {
        let mut settled = self.settled.clone();
        // An error means that the engine has stopped: nothing will happen any more.
        let _ = settled.wait_for(|done| *done >= height).await;
    }
}

/// What a wallet is looking for.
pub(super) struct Seeking {
    pub(super) lsp: PublicKey,
    pub(super) capacity: Amount,
    pub(super) limits: WalletLimits,
    /// Whether a place was accepted.
    pub(super) seated: bool,
}

/// The funding output of an attempt, as last told to its role.
#[derive(Clone, Copy)]
pub(super) struct Watched {
    pub(super) txid: Txid,
    pub(super) told: Option<u32>,
}

/// Owns all roles.
pub(crate) struct Engine {
    pub(super) parts: EngineParts,
    pub(super) members: BTreeMap<Attempt, Member>,
    pub(super) coordinators: BTreeMap<Attempt, Coordinator>,
    /// What is left to do, in order, and for which attempt.
    pub(super) due: VecDeque<(Attempt, Effect)>,
    /// What the store refused, with all that follows it in the same attempt.
    pub(super) stalled: VecDeque<(Attempt, Effect)>,
    pub(super) patience: Patience,
    pub(super) plans: BTreeMap<Attempt, FactoryPlan>,
    pub(super) waiting: BTreeMap<PublicKey, Amount>,
    pub(super) seeking: Option<Seeking>,
    pub(super) assemblers: HashMap<PublicKey, Assembler>,
    pub(super) watched: BTreeMap<Attempt, Watched>,
    /// The phase each attempt is in, and until when a round may last.
    pub(super) rounds: BTreeMap<Attempt, (&'static str, Instant)>,
    pub(super) publishing: Vec<bitcoin::Transaction>,
    pub(super) exits: Exits,
    pub(super) tip: u32,
}

impl Engine {
    /// Reads all journals, does what they leave to be done, and runs from then on.
    pub(crate) async fn start(
        parts: EngineParts,
        inbox: mpsc::UnboundedReceiver<HostEvent>,
    ) -> Result<(EngineHandle, JoinHandle<()>), StartError> {
        let tips = parts.chain.tip();
        let tip = *tips.borrow();
        let exits = Exits::load(&parts.store)?;
        let mut engine = Engine {
            parts,
            members: BTreeMap::new(),
            coordinators: BTreeMap::new(),
            due: VecDeque::new(),
            stalled: VecDeque::new(),
            patience: Patience::default(),
            plans: BTreeMap::new(),
            waiting: BTreeMap::new(),
            seeking: None,
            assemblers: HashMap::new(),
            watched: BTreeMap::new(),
            rounds: BTreeMap::new(),
            publishing: Vec::new(),
            exits,
            tip: tip.height,
        };
        engine.replay()?;
        engine.free_unnamed_fundings()?;
        engine.settle().await;
        engine.block(tip).await;
        engine.suspend_unburied();
        engine.begin_missed_exits().await;
        let (commands, orders) = mpsc::unbounded_channel();
        let (done, settled) = watch::channel(tip.height);
        let task = tokio::spawn(engine.run(inbox, orders, tips, done));
        Ok((EngineHandle { commands, settled }, task))
    }

    async fn run(
        mut self,
        mut inbox: mpsc::UnboundedReceiver<HostEvent>,
        mut orders: mpsc::UnboundedReceiver<Command>,
        mut tips: watch::Receiver<Tip>,
        done: watch::Sender<u32>,
    ) {
        loop {
            let mut next_round = self.rounds.values().map(|(_, until)| *until).min();
            if !self.stalled.is_empty() {
                next_round = Some(Instant::now() + RETRY_AFTER);
            }
            let idle = Instant::now() + Duration::from_secs(3_600);
            tokio::select! {
                event = inbox.recv() => match event {
                    Some(event) => self.host_event(event).await,
                    None => return,
                },
                order = orders.recv() => match order {
                    Some(order) => self.command(order).await,
                    None => return,
                },
                changed = tips.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let tip = *tips.borrow_and_update();
                    self.block(tip).await;
                    done.send_replace(tip.height);
                }
                () = tokio::time::sleep_until(next_round.unwrap_or(idle)) => {
                    self.rounds_over().await;
                }
            }
        }
    }

    /// A funding may have left the chain while we were away: its channels were open then.
    fn suspend_unburied(&self) {
        for slot in self.parts.host.slots() {
            let open = slot.phase == crate::hosting::SlotPhase::Active;
            let Some(place) = bridge::slot_ref(&slot.channel.slot).filter(|_| open) else {
                continue;
            };
            let member = self.members.get(&place.attempt).map(Member::is_active);
            let lsp = self
                .coordinators
                .get(&place.attempt)
                .map(Coordinator::is_active);
            if member.or(lsp) == Some(false)
                && let Err(error) = self.parts.host.freeze(&slot.channel.slot)
            {
                tracing::warn!(%error, "a channel without a funding was not frozen");
            }
        }
    }

    /// A crash between reserving a funding's coins and its record leaves a reservation that no
    /// journal names: nobody was told of that funding, so its coins are free. Ordinary channels'
    /// fundings (P2WSH) are LDK's business.
    fn free_unnamed_fundings(&self) -> Result<(), StartError> {
        let named: Vec<Txid> = self
            .coordinators
            .values()
            .filter_map(Coordinator::built)
            .map(|built| built.tree.funding.txid)
            .collect();
        for tx in self.parts.onchain.reserved()? {
            let txid = tx.compute_txid();
            let is_factory = tx
                .output
                .first()
                .is_some_and(|out| out.script_pubkey.is_p2tr());
            if is_factory
                && !named.contains(&txid)
                && let Err(error) = self.parts.onchain.release(txid)
            {
                tracing::info!(%txid, %error, "a reservation stays");
            }
        }
        Ok(())
    }

    fn replay(&mut self) -> Result<(), StartError> {
        let damaged = |detail: String| StartError::Journal { detail };
        for stream in self.parts.store.streams()? {
            let is_lsp = match stream.first() {
                Some(b'l') => true,
                Some(b'm') => false,
                _ => continue,
            };
            let records = self.parts.store.records(&stream)?;
            let records: Vec<Record> = records
                .iter()
                .map(|stored| Record::from_bytes(&stored.record, "record"))
                .collect::<Result<_, _>>()
                .map_err(|error| damaged(error.to_string()))?;
            let seed = self.parts.factory_seed.expose();
            let (attempt, effects) = if is_lsp {
                let (role, effects) = Coordinator::replay(seed, &records, self.tip)
                    .map_err(|error| damaged(error.to_string()))?;
                let attempt = role.attempt();
                self.coordinators.insert(attempt, role);
                (attempt, effects)
            } else {
                let (role, effects) = Member::replay(seed, &records, self.tip)
                    .map_err(|error| damaged(error.to_string()))?;
                let attempt = role.attempt();
                self.members.insert(attempt, role);
                (attempt, effects)
            };
            tracing::info!(factory = bridge::name(&attempt), "replayed");
            self.due
                .extend(effects.into_iter().map(|effect| (attempt, effect)));
        }
        Ok(())
    }
}
