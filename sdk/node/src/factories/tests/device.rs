//! A wallet's rooms on a directory and a backup in memory, up to the engine; every durable write
//! leaves pictures of what a crash just before and just after it would leave.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bitcoin::{Amount, FeeRate, Network, ScriptBuf, Transaction};
use lightning::chain::Listen;
use lightning::chain::chaininterface::{
    BroadcasterInterface, ConfirmationTarget, FeeEstimator, TransactionType,
};
use lightning::sign::ChangeDestinationSourceSync;
use lightning::util::persist::KVStoreSync as _;
use lightning::util::ser::{Readable as _, Writeable as _};
use superscalar_factory::codec::Encode as _;
use superscalar_factory::exit::bump::FeeCaps;
use superscalar_factory::terms::TimeoutPolicy;
use tempfile::TempDir;
use tokio::sync::mpsc::UnboundedReceiver;

use super::super::bridge;
use super::super::engine::{Engine, EngineParts};
use super::super::epochs::Epochs;
use super::super::exits::Exits;
use super::super::patience::Patience;
use super::super::sales::Sales;
use super::ceremony::{self, Ours, US};
use super::net::Net;
use crate::backup::{Begin, Creation, RESTORED, RemoteError, RemoteStore};
use crate::chain::{Chain, ChainSource};
use crate::event::EventLog;
use crate::hosting::{
    ChainFollower, Host, HostConfig, HostEvent, LoadedHost, Role, Slot, SlotPhase, event_queue,
};
use crate::keys::{Mnemonic, WalletKeys};
use crate::onchain::OnchainWallet;
use crate::payments::Payments;
use crate::store::{Backing, DATABASE_FILE, Store};

const WORDS: &str = "abandon abandon abandon abandon abandon abandon abandon abandon abandon \
                     abandon abandon about";
/// The member's only coin.
pub(super) const COIN: Amount = Amount::from_sat(150_000);
/// What the channel's last commitment pays the member.
pub(super) const BALANCE_MSAT: u64 = 200_000_000;

type Objects = BTreeMap<String, Vec<u8>>;

/// What a crash leaves: the directory, the backup, and the world outside.
pub(super) struct Picture {
    pub(super) files: TempDir,
    pub(super) objects: Objects,
    pub(super) net: Arc<Net>,
}

/// A backup in memory.
#[derive(Default)]
pub(super) struct Remote(Mutex<Inside>);

#[derive(Default)]
struct Inside {
    objects: Objects,
    /// Refuses everything.
    is_away: bool,
    /// Where the files are, and what has been seen of them.
    album: Option<(PathBuf, Arc<Net>, Vec<Picture>)>,
}

impl Inside {
    fn picture(&mut self) {
        let Some((directory, net, pictures)) = &mut self.album else {
            return;
        };
        let files = tempfile::tempdir().unwrap();
        for name in [DATABASE_FILE.to_owned(), format!("{DATABASE_FILE}-wal")] {
            if directory.join(&name).exists() {
                std::fs::copy(directory.join(&name), files.path().join(name)).unwrap();
            }
        }
        pictures.push(Picture {
            files,
            objects: self.objects.clone(),
            net: net.copy(),
        });
    }
}

impl Remote {
    pub(super) fn of(objects: &Objects) -> Arc<Remote> {
        let remote = Remote::default();
        remote.0.lock().unwrap().objects = objects.clone();
        Arc::new(remote)
    }

    pub(super) fn set_away(&self, is_away: bool) {
        self.0.lock().unwrap().is_away = is_away;
    }

    /// Takes two pictures of every write from now on.
    pub(super) fn watch(&self, directory: &Path, net: &Arc<Net>) {
        let album = (directory.to_owned(), Arc::clone(net), Vec::new());
        self.0.lock().unwrap().album = Some(album);
    }

    pub(super) fn pictures(&self) -> Vec<Picture> {
        let album = self.0.lock().unwrap().album.take();
        album.map_or(Vec::new(), |(_, _, pictures)| pictures)
    }
}

impl RemoteStore for Remote {
    fn create(&self, name: &str, bytes: &[u8]) -> Result<Creation, RemoteError> {
        let mut inside = self.0.lock().unwrap();
        if inside.is_away {
            return Err(RemoteError::new("away".to_owned()));
        }
        if inside.objects.contains_key(name) {
            return Ok(Creation::Exists);
        }
        inside.picture();
        inside.objects.insert(name.to_owned(), bytes.to_vec());
        // The entry is there, its commit is not: the next start makes up for it.
        inside.picture();
        Ok(Creation::Created)
    }

    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, RemoteError> {
        Ok(self.0.lock().unwrap().objects.get(name).cloned())
    }

    fn list(&self) -> Result<Vec<String>, RemoteError> {
        Ok(self.0.lock().unwrap().objects.keys().cloned().collect())
    }

    fn delete(&self, name: &str) -> Result<(), RemoteError> {
        self.0.lock().unwrap().objects.remove(name);
        Ok(())
    }

    fn describe(&self) -> String {
        "memory".into()
    }
}

struct Outside;

impl FeeEstimator for Outside {
    fn get_est_sat_per_1000_weight(&self, _: ConfirmationTarget) -> u32 {
        2_500
    }
}

impl BroadcasterInterface for Outside {
    fn broadcast_transactions(&self, _: &[(&Transaction, TransactionType)]) {}
}

impl ChangeDestinationSourceSync for Outside {
    fn get_change_destination_script(&self) -> Result<ScriptBuf, ()> {
        Ok(ScriptBuf::new_p2tr_tweaked(
            bitcoin::key::UntweakedPublicKey::from_slice(&[2; 32])
                .map(bitcoin::key::TapTweak::dangerous_assume_tweaked)
                .map_err(drop)?,
        ))
    }
}

/// Every room below the engine, shown every block there is.
pub(super) struct Rooms {
    pub(super) store: Arc<Store>,
    pub(super) onchain: Arc<OnchainWallet>,
    pub(super) host: Arc<Host>,
    pub(super) net: Arc<Net>,
    keys: Arc<WalletKeys>,
    chain: Arc<Chain>,
    follower: ChainFollower,
    inbox: UnboundedReceiver<HostEvent>,
}

impl Rooms {
    pub(super) async fn open(directory: &Path, remote: &Arc<Remote>, net: &Arc<Net>) -> Rooms {
        let keys = WalletKeys::new(&Mnemonic::parse(WORDS).unwrap(), "", Network::Regtest);
        let keys = Arc::new(keys.unwrap());
        let backing = Backing {
            remote: Arc::clone(remote) as Arc<dyn RemoteStore>,
            key: keys.backup_key().unwrap(),
            begin: Begin::Continue,
        };
        let store = Store::open_with(directory, &keys.identity().unwrap(), Some(&backing));
        let store = Arc::new(store.unwrap());
        let source = Arc::clone(net) as Arc<dyn ChainSource>;
        let start = Net::default().locator();
        let chain = Chain::open(
            Arc::clone(&source),
            Network::Regtest,
            Arc::clone(&store),
            &start,
            FeeRate::BROADCAST_MIN,
        );
        let chain = chain.unwrap();
        let onchain = OnchainWallet::open(Arc::clone(&store), Arc::clone(&keys), source, &start);
        let onchain = Arc::new(onchain.unwrap());
        let (sink, inbox) = event_queue();
        let loaded = LoadedHost::load(HostConfig {
            network: Network::Regtest,
            role: Role::Member,
            node_seed: *keys.lightning_seed().unwrap().expose(),
            listen: None,
            store: Arc::clone(&store) as crate::hosting::Store,
            start_block: start,
            fees: Arc::new(Outside),
            broadcaster: Arc::new(Outside),
            destination: Arc::new(Outside),
            events: sink,
            guards: None,
        });
        let loaded = loaded.unwrap();
        catch_up(net, &chain, &onchain, &loaded);
        let host = loaded.start().await.unwrap();
        Rooms {
            follower: host.follower(),
            net: Arc::clone(net),
            keys,
            store,
            chain,
            onchain,
            host,
            inbox,
        }
    }

    /// The jobs on disk, as they are written there.
    pub(super) fn jobs(&self) -> serde_json::Value {
        let bytes = self.store.setting("exits").unwrap();
        bytes.map_or(serde_json::Value::Null, |it| {
            serde_json::from_slice(&it).unwrap()
        })
    }

    pub(super) fn slot(&self) -> Slot {
        self.host.slot(&bridge::slot_id(&US)).unwrap()
    }

    pub(super) async fn close(self) {
        self.host.stop().await;
        self.store.close();
    }

    /// With the engine, which does what this tip asks for.
    pub(super) async fn run(self) -> Device {
        let exits = Exits::load(&self.store).unwrap();
        let tip = self.net.tip();
        let mut engine = Engine {
            parts: EngineParts {
                network: Network::Regtest,
                is_lsp: false,
                factory_seed: self.keys.factory_seed().unwrap(),
                store: Arc::clone(&self.store),
                chain: Arc::clone(&self.chain),
                onchain: Arc::clone(&self.onchain),
                host: Arc::clone(&self.host),
                events: Arc::new(EventLog::new(Arc::clone(&self.store))),
                fee_caps: FeeCaps::default(),
                payments: Arc::new(Payments::new(Arc::clone(&self.store))),
                sales: None,
                towers: None,
                looked: tip.height,
            },
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
            consents: Default::default(),
            silent: Default::default(),
            guarding: Default::default(),
            others: Default::default(),
            untold: Default::default(),
            damaged: BTreeMap::new(),
            tip: tip.height,
        };
        let fees = self.chain.fees();
        fees.refresh(&*self.net).await.unwrap();
        engine.replay_all().unwrap();
        engine.settle().await;
        engine.block(tip).await;
        Device {
            rooms: self,
            engine,
        }
    }
}

/// Shows each room the blocks it has not seen.
fn catch_up(net: &Net, chain: &Chain, onchain: &OnchainWallet, loaded: &LoadedHost) {
    let watcher = chain.watcher();
    let mut listeners = vec![(watcher.locator().unwrap(), &**watcher as &dyn Listen)];
    listeners.push((onchain.locator(), onchain));
    for (at, listener) in loaded.listeners() {
        listeners.push((at, listener));
    }
    for (at, listener) in listeners {
        for (block, height) in net.above(at.height) {
            listener.block_connected(&block, height);
        }
    }
}

/// A running wallet, but for its connections.
pub(super) struct Device {
    pub(super) rooms: Rooms,
    pub(super) engine: Engine,
}

impl Device {
    /// A block with what the mempool holds.
    pub(super) async fn block(&mut self) {
        let before = self.rooms.net.tip().height;
        self.rooms.net.mine(&[]);
        self.see(before).await;
    }

    pub(super) async fn blocks_to(&mut self, height: u32) {
        while self.rooms.net.tip().height < height {
            self.block().await;
        }
    }

    async fn see(&mut self, before: u32) {
        for (block, height) in self.rooms.net.above(before) {
            self.rooms.chain.watcher().block_connected(&block, height);
            self.rooms.follower.block_connected(&block, height);
            self.rooms.onchain.block_connected(&block, height);
        }
        while let Ok(event) = self.rooms.inbox.try_recv() {
            self.engine.host_event(event).await;
        }
        self.engine.block(self.rooms.net.tip()).await;
    }

    pub(super) fn has_job(&self) -> bool {
        self.engine
            .exits
            .jobs
            .contains_key(&bridge::name(&US.attempt))
    }
}

/// A wallet on disk: in a complete factory, with one coin.
pub(super) struct Member {
    pub(super) directory: TempDir,
    pub(super) remote: Arc<Remote>,
    pub(super) net: Arc<Net>,
}

impl Member {
    /// Its channel stands as `phase` says and its last commitment pays [`BALANCE_MSAT`]. The
    /// factory is funded unless the channel is only held.
    pub(super) async fn new(policy: TimeoutPolicy, phase: SlotPhase) -> Member {
        let member = Member {
            directory: tempfile::tempdir().unwrap(),
            remote: Arc::new(Remote::default()),
            net: Arc::new(Net::default()),
        };
        let rooms = member.rooms().await;
        let seed = rooms.keys.factory_seed().unwrap();
        let complete = ceremony::run(
            policy,
            &Ours {
                seed: seed.expose(),
                payout: rooms.onchain.address().unwrap().script_pubkey(),
                funding_key: rooms.host.funding_pubkey(&bridge::slot_id(&US)),
            },
        );
        let stream = bridge::stream(&US.attempt, false);
        for record in &complete.records {
            rooms.store.append(&stream, &record.to_bytes()).unwrap();
        }
        let mut coin = complete.funding.clone();
        coin.input[0].previous_output.vout = 1;
        coin.output[0].value = COIN;
        coin.output[0].script_pubkey = rooms.onchain.address().unwrap().script_pubkey();
        let mut device = rooms.run().await;
        let before = member.net.tip().height;
        match phase {
            SlotPhase::Held => member.net.mine(&[coin]),
            _ => member.net.mine(&[coin, complete.funding]),
        }
        device.see(before).await;
        device.rooms.close().await;
        let rooms = member.rooms().await;
        let slot = Slot {
            phase,
            last_balance_msat: BALANCE_MSAT,
            ..rooms.slot()
        };
        let store = &rooms.store;
        let key = store.list("superscalar", "slots").unwrap().remove(0);
        let stored = store.read("superscalar", "slots", &key).unwrap();
        let stored = Slot::read(&mut std::io::Cursor::new(stored)).unwrap();
        assert_eq!(stored, rooms.slot());
        store
            .write("superscalar", "slots", &key, slot.encode())
            .unwrap();
        rooms.close().await;
        member
    }

    /// As if it had been restored from its backup.
    pub(super) async fn restored(self) -> Member {
        let rooms = self.rooms().await;
        let (primary, secondary, key) = RESTORED;
        rooms.store.write(primary, secondary, key, vec![1]).unwrap();
        rooms.close().await;
        self
    }

    pub(super) async fn rooms(&self) -> Rooms {
        Rooms::open(self.directory.path(), &self.remote, &self.net).await
    }

    pub(super) async fn run(&self) -> Device {
        self.rooms().await.run().await
    }
}
