//! Who looks: requests in, acknowledgements out, and with every block a look at all that somebody
//! has begun to open.
//!
//! What always holds: an acknowledgement leaves after the appointment is on disk and its outpoints
//! are watched, blocks that came before included; one task owns the book, and no client's request
//! keeps a block from being looked at for longer than one request takes. Fees come from the tower's
//! own coins, within caps.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, Network, OutPoint, Txid};
use superscalar_factory::codec::Encode as _;
use superscalar_factory::exit::SignedPath;
use superscalar_factory::exit::bump::FeeCaps;
use superscalar_factory::tower::{
    Answer, Appointment, Ask, RefusalCode, Report, Request, answer_to, due,
};
use tokio::sync::{mpsc, watch};

use super::book::{Book, Place};
use super::service::{Clients, TowerLimits, TowerStatus};
use crate::chain::{Chain, Tip};
use crate::factories::{EngineError, Payer, Purse, TARGET_BLOCKS, chain_facts, publish_cheapest};
use crate::onchain::OnchainWallet;
use crate::towers::link::{Heard, Link};

/// Looking through so many old blocks counts as another request.
const BLOCKS_PER_REQUEST: u32 = 10;

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
    pub(super) status: watch::Sender<TowerStatus>,
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
        self.pace(client, 1)?;
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

    fn pace(&mut self, client: PublicKey, requests: u32) -> Result<(), Refused> {
        let now = Instant::now();
        let minute = Duration::from_secs(60);
        self.paces
            .retain(|_, (since, _)| now.duration_since(*since) < minute);
        let (_, count) = self.paces.entry(client).or_insert((now, 0));
        *count = count.saturating_add(requests);
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
        self.watch(client, from_height, appointment).await?;
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

    /// Looks at everything of an appointment, in blocks that came before as well.
    async fn watch(
        &mut self,
        client: PublicKey,
        from_height: u32,
        appointment: &Appointment,
    ) -> Result<(), Refused> {
        let watcher = Arc::clone(self.chain.watcher());
        let tip = watcher.tip().map_err(unavailable)?.height;
        let trigger = appointment.trigger();
        // Below what is watched and unspent there can be nothing yet.
        let from_height = match self.book.is_watched_by(&client, &trigger) {
            true => watcher.spend(&trigger).map(|it| it.confirmation.height),
            false => Some(from_height),
        };
        let mut new = appointment.watched();
        new.retain(|outpoint| !self.book.is_watched(outpoint));
        let behind = from_height.map_or(0, |from| (tip + 1).saturating_sub(from));
        if behind > self.limits.rescan_blocks {
            let most = self.limits.rescan_blocks;
            let why = format!("{behind} old blocks to look through, {most} at most");
            return Err((RefusalCode::TooOld, why));
        }
        self.pace(client, behind / BLOCKS_PER_REQUEST)?;
        watcher.watch_outpoints(&new).map_err(unavailable)?;
        if let Some(from_height) = from_height.filter(|_| behind > 0) {
            let looked = self.chain.rescan(from_height.max(1)).await;
            looked.map_err(unavailable)?;
        }
        Ok(())
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
    pub(super) async fn look(&mut self, tip: Tip) {
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
            txids.extend(publish_cheapest(&self.chain, claim.at(market)).await);
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
