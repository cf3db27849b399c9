//! A tower as it runs: requests in, acknowledgements out, and with every block a look at all that
//! somebody has begun to open.
//!
//! What always holds: an acknowledgement leaves after the appointment is on disk and its outpoints
//! are watched, blocks that came before included; one task owns the book, and no client's request
//! keeps a block from being looked at for longer than one request takes. Fees come from the tower's
//! own coins, within caps.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, FeeRate, Network, OutPoint, Txid};
use serde::{Deserialize, Serialize};
use superscalar_factory::codec::Encode as _;
use superscalar_factory::exit::SignedPath;
use superscalar_factory::exit::bump::FeeCaps;
use superscalar_factory::tower::{
    Answer, Appointment, Ask, RefusalCode, Report, Request, answer_to, due,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::book::{Book, Place};
use crate::chain::{BitcoindSource, Chain, ChainError, ChainSource, Follower, Listener, Tip};
use crate::factories::{EngineError, Payer, Purse, TARGET_BLOCKS, chain_facts};
use crate::keys::{KeysError, Mnemonic, WalletKeys};
use crate::onchain::{OnchainError, OnchainWallet};
use crate::store::{Store, StoreError};
use crate::towers::link::{Heard, Link};
use crate::wallet::ChainConfig;

/// How often to look for new blocks unless told otherwise.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// What feerate to assume where the chain source cannot estimate one: 10 sat/vB.
const FALLBACK_FEERATE: FeeRate = FeeRate::from_sat_per_kwu(2_500);

/// Who may be a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Those whose key is here; nobody else gets a word in.
    Listed(BTreeSet<PublicKey>),
    /// Whoever comes, as long as no more than this have something here.
    Anyone {
        /// Most clients with an appointment.
        at_most: u32,
    },
}

impl Clients {
    pub(super) fn admits(&self, client: &PublicKey) -> bool {
        match self {
            Clients::Listed(keys) => keys.contains(client),
            Clients::Anyone { .. } => true,
        }
    }
}

/// What one client may take of a tower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TowerLimits {
    /// Appointments kept at once: one for each place in a factory, and one for each payment in a
    /// channel that is still open. Default 20,000.
    pub appointments: u32,
    /// Bytes of all of them. Default 64 MiB.
    pub bytes: u64,
    /// Requests within a minute. Default 1,200.
    pub requests_per_minute: u32,
    /// How many old blocks it looks through for one appointment. Default 1,008.
    pub rescan_blocks: u32,
}

impl Default for TowerLimits {
    fn default() -> TowerLimits {
        TowerLimits {
            appointments: 20_000,
            bytes: 64 << 20,
            requests_per_minute: 1_200,
            rescan_blocks: 1_008,
        }
    }
}

/// Why a tower did not start or does not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TowerError {
    /// A setting is missing.
    #[error("{setting} is not set")]
    Incomplete {
        /// Its name.
        setting: &'static str,
    },
    /// The seed.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The chain source.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The fee wallet.
    #[error(transparent)]
    Onchain(#[from] OnchainError),
    /// The address to listen on is taken or not ours.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// It was stopped.
    #[error("the tower is stopped")]
    Stopped,
}

/// How a tower is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TowerStatus {
    /// The last block everything was looked at by.
    pub height: u32,
    /// Clients with something here.
    pub clients: u32,
    /// What is kept for them.
    pub appointments: u32,
    /// Of those, how many have something on chain that somebody opened or a cheat published.
    pub opened: u32,
    /// What was published at that block.
    pub published: Vec<String>,
    /// Coins to pay fees with, in satoshi.
    pub coins_sat: u64,
    /// Coins on their way or in a child that is not confirmed, in satoshi.
    pub coins_pending_sat: u64,
}

/// Puts a tower together.
pub struct TowerBuilder {
    network: Network,
    mnemonic: Mnemonic,
    storage_dir: Option<PathBuf>,
    chain: Option<ChainConfig>,
    listen: Option<SocketAddr>,
    clients: Clients,
    limits: TowerLimits,
    fee_caps: FeeCaps,
    poll_interval: Duration,
}

impl TowerBuilder {
    /// A tower whose identity and fee wallet are of this seed, which is nobody else's. It admits
    /// nobody until [`clients`](Self::clients) says whom.
    pub fn new(network: Network, mnemonic: Mnemonic) -> TowerBuilder {
        TowerBuilder {
            network,
            mnemonic,
            storage_dir: None,
            chain: None,
            listen: None,
            clients: Clients::Listed(BTreeSet::new()),
            limits: TowerLimits::default(),
            fee_caps: FeeCaps::default(),
            poll_interval: POLL_INTERVAL,
        }
    }

    /// Directory of the database.
    #[must_use]
    pub fn storage_dir(mut self, path: impl Into<PathBuf>) -> TowerBuilder {
        self.storage_dir = Some(path.into());
        self
    }

    /// Where blocks come from.
    #[must_use]
    pub fn chain_source(mut self, chain: ChainConfig) -> TowerBuilder {
        self.chain = Some(chain);
        self
    }

    /// Where clients connect.
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> TowerBuilder {
        self.listen = Some(address);
        self
    }

    /// Who may be a client.
    #[must_use]
    pub fn clients(mut self, clients: Clients) -> TowerBuilder {
        self.clients = clients;
        self
    }

    /// What each may take.
    #[must_use]
    pub fn limits(mut self, limits: TowerLimits) -> TowerBuilder {
        self.limits = limits;
        self
    }

    /// What own coins may be spent on one factory: shares of what the client's channels hold.
    #[must_use]
    pub fn fee_caps(mut self, caps: FeeCaps) -> TowerBuilder {
        self.fee_caps = caps;
        self
    }

    /// How often to look for new blocks; five seconds unless set.
    #[must_use]
    pub fn poll_interval(mut self, interval: Duration) -> TowerBuilder {
        self.poll_interval = interval;
        self
    }

    /// Starts it within the caller's tokio runtime.
    ///
    /// # Errors
    /// Nothing is left running then.
    pub async fn start(self) -> Result<Tower, TowerError> {
        let missing = |setting| TowerError::Incomplete { setting };
        let directory = self.storage_dir.ok_or(missing("storage_dir"))?;
        let chain_config = self.chain.ok_or(missing("chain_source"))?;
        let address = self.listen.ok_or(missing("listen"))?;
        let keys = Arc::new(WalletKeys::new(&self.mnemonic, "", self.network)?);
        let store = Arc::new(Store::open(&directory, &keys.identity()?)?);
        let bitcoind = BitcoindSource::new(chain_config.bitcoind());
        bitcoind.check_network(self.network).await?;
        let source: Arc<dyn ChainSource> = Arc::new(bitcoind);
        let best = Chain::best_block(&source).await?;
        let chain = Chain::open(
            Arc::clone(&source),
            self.network,
            Arc::clone(&store),
            &best,
            FALLBACK_FEERATE,
        )?;
        let onchain = Arc::new(OnchainWallet::open(
            Arc::clone(&store),
            Arc::clone(&keys),
            Arc::clone(&source),
            &best,
        )?);
        let book = Book::open(Arc::clone(&store))?;
        let listeners = vec![(onchain.locator(), &*onchain as _)];
        let synchronized = chain.synchronize(listeners).await?;
        let seed = *keys.lightning_seed()?.expose();
        let listed = self.clients.clone();
        let (link, heard) = Link::new(&seed, Box::new(move |client| listed.admits(client)));
        let tips = chain.tip();
        let mut watchman = Watchman::new(
            self.network,
            Arc::clone(&chain),
            Arc::clone(&onchain),
            book,
            Arc::clone(&link),
            self.clients,
            self.limits,
            self.fee_caps,
        );
        let status = watchman.status.subscribe();
        // Before anybody is heard: what happened while it was away.
        let tip = *tips.borrow();
        watchman.look(tip).await;
        let listening = link.listen(address).await;
        let address = listening.map_err(|source| TowerError::Listen { address, source })?;
        let follower = chain.follow(
            synchronized,
            vec![Arc::clone(&onchain) as Listener],
            self.poll_interval,
        );
        let task = tokio::spawn(watchman.run(heard, tips));
        Ok(Tower {
            node_id: crate::hosting::node_id(&seed),
            address,
            onchain,
            store,
            status,
            follower: tokio::sync::Mutex::new(Some(follower)),
            task: Mutex::new(Some(task)),
        })
    }
}

/// A running tower; ends when it is stopped or dropped.
pub struct Tower {
    node_id: PublicKey,
    address: SocketAddr,
    onchain: Arc<OnchainWallet>,
    store: Arc<Store>,
    status: watch::Receiver<TowerStatus>,
    follower: tokio::sync::Mutex<Option<Follower>>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Tower {
    /// Its node id, hex.
    pub fn node_id(&self) -> String {
        self.node_id.to_string()
    }

    /// Where it listens.
    pub fn listen_address(&self) -> SocketAddr {
        self.address
    }

    /// An address for coins to pay fees with.
    ///
    /// # Errors
    /// The database's.
    pub fn address(&self) -> Result<String, TowerError> {
        Ok(self.onchain.address()?.to_string())
    }

    /// How it is, as of the last look at everything.
    pub fn status(&self) -> TowerStatus {
        self.status.borrow().clone()
    }

    /// Tells of every change of [`status`](Self::status).
    pub fn changes(&self) -> watch::Receiver<TowerStatus> {
        self.status.clone()
    }

    /// Looks for new blocks now; returns the height when everything was looked at.
    ///
    /// # Errors
    /// The chain source's; [`TowerError::Stopped`].
    pub async fn sync(&self) -> Result<u32, TowerError> {
        let tip = {
            let follower = self.follower.lock().await;
            let follower = follower.as_ref().ok_or(TowerError::Stopped)?;
            follower.poll_now().await?
        };
        let mut status = self.status.clone();
        let looked = status.wait_for(|it| it.height >= tip.height).await;
        looked.map_err(|_| TowerError::Stopped)?;
        Ok(tip.height)
    }

    /// Ends everything and gives the directory up.
    pub async fn stop(&self) {
        let Some(follower) = self.follower.lock().await.take() else {
            return;
        };
        follower.stop().await;
        let task = self
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(task) = task {
            task.abort();
            // Ended by the abort, as it should be.
            let _ = task.await;
        }
        self.store.close();
    }
}

impl Drop for Tower {
    fn drop(&mut self) {
        let task = self.task.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = task.take() {
            task.abort();
        }
    }
}

type Refused = (RefusalCode, String);

/// Owns the book.
pub(super) struct Watchman {
    network: Network,
    chain: Arc<Chain>,
    onchain: Arc<OnchainWallet>,
    book: Book,
    link: Arc<Link>,
    clients: Clients,
    limits: TowerLimits,
    fee_caps: FeeCaps,
    /// Since when each connected client's requests are counted, and how many there were.
    paces: HashMap<PublicKey, (Instant, u32)>,
    status: watch::Sender<TowerStatus>,
}

impl Watchman {
    #[expect(clippy::too_many_arguments, reason = "each is a part of it")]
    pub(super) fn new(
        network: Network,
        chain: Arc<Chain>,
        onchain: Arc<OnchainWallet>,
        book: Book,
        link: Arc<Link>,
        clients: Clients,
        limits: TowerLimits,
        fee_caps: FeeCaps,
    ) -> Watchman {
        Watchman {
            network,
            chain,
            onchain,
            book,
            link,
            clients,
            limits,
            fee_caps,
            paces: HashMap::new(),
            status: watch::Sender::new(TowerStatus::default()),
        }
    }

    pub(super) async fn run(
        mut self,
        mut heard: mpsc::UnboundedReceiver<(PublicKey, Heard)>,
        mut tips: watch::Receiver<Tip>,
    ) {
        loop {
            tokio::select! {
                biased;
                changed = tips.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let tip = *tips.borrow_and_update();
                    self.look(tip).await;
                }
                heard = heard.recv() => match heard {
                    Some((client, Heard::Message(bytes, _place))) => {
                        self.request(client, &bytes).await;
                    }
                    Some(_) => {}
                    None => return,
                },
            }
        }
    }

    async fn request(&mut self, client: PublicKey, bytes: &[u8]) {
        let Some(number) = Request::number_of(bytes) else {
            // Whoever speaks something else cannot be told so.
            self.link.disconnect(&client);
            return;
        };
        let answer = match self.answer(client, bytes).await {
            Ok(answer) => answer,
            Err((code, detail)) => {
                tracing::info!(%client, ?code, detail, "refused");
                Answer::Refused { code, detail }
            }
        };
        // Not sent to one that is gone: it will ask again.
        let _ = self.link.send(client, &answer_to(number, &answer));
    }

    async fn answer(&mut self, client: PublicKey, bytes: &[u8]) -> Result<Answer, Refused> {
        // First: what comes after is work.
        self.pace(client)?;
        let request = Request::read(bytes);
        let request = request.map_err(|(_, why)| (RefusalCode::Malformed, why.to_string()))?;
        match request.ask {
            Ask::Keep {
                from_height,
                appointment,
            } => self.keep(client, from_height, &appointment).await,
            Ask::Forget(key) => self.forget(Place { client, key }),
            Ask::Report => Ok(Answer::Report(self.report(&client))),
            _ => Err((RefusalCode::Malformed, "a request of a newer kind".into())),
        }
    }

    fn pace(&mut self, client: PublicKey) -> Result<(), Refused> {
        let now = Instant::now();
        let minute = Duration::from_secs(60);
        self.paces
            .retain(|_, (since, _)| now.duration_since(*since) < minute);
        let (_, count) = self.paces.entry(client).or_insert((now, 0));
        *count = count.saturating_add(1);
        match *count <= self.limits.requests_per_minute {
            true => Ok(()),
            false => {
                let most = self.limits.requests_per_minute;
                let why = format!("more than {most} requests within a minute");
                Err((RefusalCode::TooMany, why))
            }
        }
    }

    async fn keep(
        &mut self,
        client: PublicKey,
        from_height: u32,
        appointment: &Appointment,
    ) -> Result<Answer, Refused> {
        let place = Place {
            client,
            key: appointment.key(),
        };
        let digest = appointment.digest();
        let known = self.book.entry(&place).map(|entry| entry.digest);
        if known == Some(digest) {
            return Ok(Answer::Kept(digest));
        }
        self.check(&place, known.is_none(), appointment)?;
        let watcher = self.chain.watcher();
        let tip = watcher.tip().map_err(unavailable)?.height;
        let watched = appointment.watched();
        let new: Vec<OutPoint> = watched
            .into_iter()
            .filter(|outpoint| !self.book.is_watched(outpoint))
            .collect();
        let behind = tip.saturating_sub(from_height);
        if behind > self.limits.rescan_blocks {
            let most = self.limits.rescan_blocks;
            let why = format!("{behind} old blocks to look through, {most} at most");
            return Err((RefusalCode::TooOld, why));
        }
        if !new.is_empty() {
            watcher.watch_outpoints(&new).map_err(unavailable)?;
            if from_height <= tip {
                let looked = self.chain.rescan(from_height.max(1)).await;
                looked.map_err(unavailable)?;
            }
        }
        let left = self.book.keep(client, appointment);
        let left = left.map_err(unavailable)?;
        self.unwatch(&left);
        // What was on chain before it came is answered now.
        if self.watched_spend(&place) {
            self.look_at(&place).await;
        }
        self.tell();
        Ok(Answer::Kept(digest))
    }

    fn check(&self, place: &Place, is_new: bool, appointment: &Appointment) -> Result<(), Refused> {
        if let Appointment::Path { path, .. } = appointment
            && path.header().network != self.network
        {
            let why = format!("this tower looks at {}", self.network);
            return Err((RefusalCode::Network, why));
        }
        let tally = self.book.tally(&place.client);
        let full = |what: String| Err((RefusalCode::Quota, what));
        if is_new && tally.appointments >= self.limits.appointments {
            return full(format!("{} appointments are kept", tally.appointments));
        }
        let bytes = tally.bytes + appointment.to_bytes().len() as u64;
        let bytes = bytes - self.book.bytes_of(place);
        if bytes > self.limits.bytes {
            let most = self.limits.bytes;
            return full(format!("it would be {bytes} bytes, {most} at most"));
        }
        match &self.clients {
            Clients::Anyone { at_most }
                if tally.appointments == 0 && self.book.clients() >= *at_most as usize =>
            {
                full(format!("{at_most} clients are looked after"))
            }
            _ => Ok(()),
        }
    }

    fn forget(&mut self, place: Place) -> Result<Answer, Refused> {
        let forgotten = self.book.forget(&place).map_err(unavailable)?;
        let unknown = || (RefusalCode::Unknown, "nothing under that key".to_owned());
        let left = forgotten.ok_or_else(unknown)?;
        self.unwatch(&left);
        self.tell();
        Ok(Answer::Forgotten)
    }

    fn unwatch(&self, outpoints: &[OutPoint]) {
        if let Err(error) = self.chain.watcher().unwatch(outpoints, &[]) {
            tracing::warn!(%error, "outpoints nobody needs are still watched");
        }
    }

    fn report(&self, client: &PublicKey) -> Report {
        let tally = self.book.tally(client);
        Report {
            height: self.status.borrow().height,
            coins_sat: self.onchain.balance().spendable.to_sat(),
            kept: tally.appointments,
            quota: self.limits.appointments,
            sum: tally.sum,
        }
    }

    /// Whether the chain shows what an appointment waits for.
    fn watched_spend(&self, place: &Place) -> bool {
        let Some(entry) = self.book.entry(place) else {
            return false;
        };
        let spend = self.chain.watcher().spend(&entry.trigger);
        spend.is_some_and(|spend| {
            let spender = entry.spender;
            spender.is_none_or(|it| it == spend.spender.compute_txid())
        })
    }

    /// Looks at everything that somebody has begun to open, and publishes what is due.
    async fn look(&mut self, tip: Tip) {
        let source = self.chain.source();
        if let Err(error) = self.chain.fees().refresh(&**source).await {
            tracing::debug!(%error, "feerates were not refreshed");
        }
        let places = self.book.entries().map(|(place, _)| *place);
        let opened: Vec<Place> = places.filter(|it| self.watched_spend(it)).collect();
        let mut running = BTreeSet::new();
        let mut published = Vec::new();
        for place in &opened {
            let txids = self.look_at(place).await;
            if !txids.is_empty() {
                running.insert(purse_name(place));
            }
            published.extend(txids.iter().map(Txid::to_string));
        }
        self.release_coins(&running);
        self.status.send_modify(|status| {
            status.height = tip.height;
            status.opened = opened.len() as u32;
            status.published = published;
        });
        self.tell();
    }

    /// Publishes what is due for one appointment; what that was.
    async fn look_at(&self, place: &Place) -> Vec<Txid> {
        match self.publish(place).await {
            Ok(txids) => txids,
            Err(error) => {
                tracing::warn!(client = %place.client, %error, "tried again with the next block");
                Vec::new()
            }
        }
    }

    async fn publish(&self, place: &Place) -> Result<Vec<Txid>, EngineError> {
        let Some(appointment) = self.book.read(place)? else {
            return Ok(Vec::new());
        };
        let (trigger, watched) = (appointment.trigger(), appointment.watched());
        let facts = chain_facts(&self.chain, trigger.txid, &watched).await?;
        let due = due(&appointment, &facts);
        let due = due.map_err(|error| EngineError::Exit(error.to_string()))?;
        let mut txids = Vec::new();
        for tx in &due.tree {
            let Appointment::Path { path, .. } = &appointment else {
                continue;
            };
            txids.push(tx.compute_txid());
            self.publish_tree(place, path, tx).await;
        }
        let market = self.chain.fees().known_within(TARGET_BLOCKS);
        for claim in &due.claims {
            let tx = claim.at(market);
            let txid = tx.compute_txid();
            txids.push(txid);
            match self.chain.source().broadcast(tx).await {
                Ok(_) => tracing::info!(%txid, output = %claim.outpoint(), "claimed"),
                Err(error) => tracing::info!(%txid, %error, "not claimed yet"),
            }
        }
        Ok(txids)
    }

    async fn publish_tree(&self, place: &Place, path: &SignedPath, tx: &bitcoin::Transaction) {
        let payer = Payer {
            chain: &self.chain,
            onchain: &self.onchain,
            caps: self.fee_caps,
        };
        let name = purse_name(place);
        if let Err(error) = payer.forget_displaced(&name).await {
            tracing::warn!(%error, "coins of a child that is gone stay reserved");
        }
        let purse = Purse {
            exit: &name,
            leaving: at_stake(path),
            feerate: None,
        };
        if let Err(error) = payer.publish_due(purse, path, tx).await {
            // Whatever keeps coins from helping does not keep the transaction from going.
            tracing::warn!(%error, "published alone");
            payer.publish_alone(tx).await;
        }
    }

    /// Frees the coins of everything that has nothing to publish any more.
    fn release_coins(&self, running: &BTreeSet<String>) {
        let released = self.onchain.exits_with_coins().and_then(|held| {
            let over = held.iter().filter(|name| !running.contains(*name));
            over.into_iter()
                .try_for_each(|name| self.onchain.release_exit(name))
        });
        if let Err(error) = released {
            tracing::warn!(%error, "coins stay reserved until the next block");
        }
    }

    fn tell(&self) {
        let coins = self.onchain.balance();
        self.status.send_modify(|status| {
            status.clients = self.book.clients() as u32;
            status.appointments = self.book.len() as u32;
            status.coins_sat = coins.spendable.to_sat();
            status.coins_pending_sat = (coins.total() - coins.spendable).to_sat();
        });
    }
}

fn unavailable(error: impl std::fmt::Display) -> Refused {
    (RefusalCode::Unavailable, error.to_string())
}

/// What the coins spent on a place's transactions are booked under.
fn purse_name(place: &Place) -> String {
    format!("{}-{}", place.client, hex::encode(place.key.0))
}

/// Capacity of all channels of the path's newest state: what may be lost.
fn at_stake(path: &SignedPath) -> Amount {
    let channels = path.channel_outpoints();
    let outputs = channels.iter().filter_map(|it| path.output(*it));
    outputs.map(|output| output.value).sum()
}
