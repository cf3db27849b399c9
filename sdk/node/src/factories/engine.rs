//! The task that owns all roles, and the handle to it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, FeeRate, Network, OutPoint, Txid};
use superscalar_factory::coordinator::{Coordinator, FactoryPlan};
use superscalar_factory::effect::Effect;
use superscalar_factory::exit::bump::FeeCaps;
use superscalar_factory::exit::package::PackagedPath;
use superscalar_factory::member::{Member, WalletLimits};
use superscalar_factory::message::Attempt;
use superscalar_factory::sale::SalePolicy;
use superscalar_factory::terms::Instance;
use superscalar_factory::wire::Assembler;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::consents::Consents;
use super::epochs::{EpochCommand, Epochs};
use super::error::EngineError;
use super::exits::Exits;
use super::guarding::Guarding;
use super::info::{BuildRequest, ExitInfo, ExitMode, ExitPlan, FactoryInfo, TreeNodeInfo};
use super::others::Others;
use super::patience::Patience;
use super::sales::{PriceAnswer, Sales};
use super::silence::Silent;
use super::telling::Untold;
use crate::chain::{Chain, Tip};
use crate::event::EventLog;
use crate::hosting::{Host, HostEvent};
use crate::keys::Secret32;
use crate::onchain::{OnchainError, OnchainWallet};
use crate::payments::Payments;
use crate::store::Store;
use crate::towers::Towers;

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
    pub(crate) payments: Arc<Payments>,
    /// What an LSP sells stock for; `None` if it does not.
    pub(crate) sales: Option<SalePolicy>,
    /// Who looks after a member's factories beside itself; `None` where nobody does.
    pub(crate) towers: Option<Arc<Towers>>,
    /// The last block this node had looked at before it was started.
    pub(crate) looked: u32,
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
    AskPrice {
        factory: String,
        amount: Amount,
        max_price_msat: u64,
        answer: PriceAnswer,
    },
    Buy {
        factory: String,
        quote: String,
        answer: oneshot::Sender<Result<(), EngineError>>,
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
    Epoch(EpochCommand),
    AcceptState(oneshot::Sender<Result<(), EngineError>>),
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
    /// The attempt in which a place was accepted.
    pub(super) seated: Option<Attempt>,
}

impl Seeking {
    /// Nothing comes of an attempt: the place in it is free for another.
    pub(super) fn leave(&mut self, attempt: Attempt) {
        if self.seated == Some(attempt) {
            self.seated = None;
        }
    }
}

/// An attempt of the LSP's that is not published.
pub(super) struct Begun {
    pub(super) plan: FactoryPlan,
    /// The least capacity that each of its members had asked for.
    pub(super) wanted: BTreeMap<PublicKey, Amount>,
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
    pub(super) plans: BTreeMap<Attempt, Begun>,
    pub(super) waiting: BTreeMap<PublicKey, Amount>,
    pub(super) seeking: Option<Seeking>,
    pub(super) assemblers: HashMap<PublicKey, Assembler>,
    pub(super) watched: BTreeMap<Attempt, Watched>,
    /// The phase each attempt is in, and until when a round may last.
    pub(super) rounds: BTreeMap<Attempt, (&'static str, Instant)>,
    pub(super) publishing: Vec<bitcoin::Transaction>,
    /// A coin of each factory's last funding that was given up: the next attempt spends it, so
    /// that not both can confirm.
    pub(super) given_up: BTreeMap<Instance, OutPoint>,
    pub(super) exits: Exits,
    pub(super) sales: Sales,
    pub(super) epochs: Epochs,
    pub(super) consents: Consents,
    pub(super) silent: Silent,
    pub(super) guarding: Guarding,
    pub(super) others: Others,
    pub(super) untold: Untold,
    /// Factories whose journal cannot be read, and what is wrong with it.
    pub(super) damaged: BTreeMap<Attempt, String>,
    pub(super) tip: u32,
}

impl Engine {
    /// Reads all journals, does what they leave to be done, and runs from then on.
    ///
    /// # Errors
    /// The database's, of journals or of coins.
    pub(crate) async fn start(
        parts: EngineParts,
        inbox: mpsc::UnboundedReceiver<HostEvent>,
    ) -> Result<(EngineHandle, JoinHandle<()>), OnchainError> {
        let tips = parts.chain.tip();
        let tip = *tips.borrow();
        let exits = Exits::load(&parts.store)?;
        let consents = Consents::load(&parts.store)?;
        let guarding = Guarding::since(parts.looked);
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
            given_up: BTreeMap::new(),
            exits,
            sales: Sales::default(),
            epochs: Epochs::default(),
            consents,
            silent: Silent::default(),
            guarding,
            others: Others::default(),
            untold: Untold::default(),
            damaged: BTreeMap::new(),
            tip: tip.height,
        };
        engine.replay_all()?;
        engine.free_unnamed_fundings()?;
        engine.look_for_openings();
        engine.settle().await;
        engine.drop_unnamed_channels();
        engine.block(tip).await;
        engine.resume_channels().await;
        engine.resume_sales().await;
        engine.settle().await;
        engine.suspend_unburied();
        engine.see_towers().await;
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
        let towers = self.parts.towers.as_ref();
        // Without towers there is nothing to be told of.
        let (_quiet, nothing) = watch::channel(0);
        let mut acknowledged = towers.map_or(nothing, |towers| towers.acknowledged());
        loop {
            let mut next_round = self.rounds.values().map(|(_, until)| *until).min();
            let looks = [self.epochs.next_look(), self.sales.next_look()];
            next_round = next_round
                .into_iter()
                .chain(looks.into_iter().flatten())
                .min();
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
                    // What was told of this block, and why, comes before what follows from it. What
                    // arrives meanwhile does not: no peer can keep a block from being looked at.
                    for _ in 0..inbox.len() {
                        let Ok(event) = inbox.try_recv() else { break };
                        self.host_event(event).await;
                    }
                    self.block(tip).await;
                    done.send_replace(tip.height);
                }
                // Who does not know yet what is kept asks below.
                _ = acknowledged.changed() => {}
                () = tokio::time::sleep_until(next_round.unwrap_or(idle)) => {
                    self.rounds_over().await;
                }
            }
            self.see_towers().await;
        }
    }
}
