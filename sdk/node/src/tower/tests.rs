//! Wallets and towers over real sockets: what is refused and what that changes, lies, losses, and
//! what is found on disk again.

mod damaged;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bitcoin::absolute::LockTime;
use bitcoin::hashes::Hash as _;
use bitcoin::secp256k1::PublicKey;
use bitcoin::transaction::Version;
use bitcoin::{BlockHash, FeeRate, Network, OutPoint, Transaction, TxIn, Txid};
use lightning::chain::BlockLocator;
use lightning_block_sync::{BlockData, BlockHeaderData};
use superscalar_factory::codec::Encode as _;
use superscalar_factory::exit::bump::FeeCaps;
use superscalar_factory::tower::{
    Answer, Appointment, Ask, Claim, Digest, RefusalCode, Report, Request, Try, answer_to,
};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};

use super::book::Book;
use super::watchman::Watchman;
use super::{Clients, TowerLimits};
use crate::chain::{
    Accepted, BroadcastError, Chain, ChainError, ChainSource, ChainWatcher, MempoolEntry,
    SourceFuture,
};
use crate::keys::{Mnemonic, WalletKeys, WordCount};
use crate::onchain::OnchainWallet;
use crate::store::Store;
use crate::towers::link::{Heard, Link};
use crate::towers::{TowerAddress, TowerState, Towers, identity};

const TIP: u32 = 100;
const SEED: [u8; 32] = [7; 32];

/// A source nobody can ask for a block.
struct Silent;

fn no_answer<T: Send + 'static>() -> SourceFuture<'static, T> {
    let detail = "there is no chain".to_owned();
    Box::pin(async { Err(ChainError::Unexpected { detail }) })
}

impl ChainSource for Silent {
    fn best_block(&self) -> SourceFuture<'_, (BlockHash, Option<u32>)> {
        no_answer()
    }
    fn header(&self, _: BlockHash, _: Option<u32>) -> SourceFuture<'_, BlockHeaderData> {
        no_answer()
    }
    fn block(&self, _: BlockHash) -> SourceFuture<'_, BlockData> {
        no_answer()
    }
    fn block_hash(&self, _: u32) -> SourceFuture<'_, BlockHash> {
        no_answer()
    }
    fn broadcast<'a>(&'a self, _: &'a Transaction) -> SourceFuture<'a, Accepted, BroadcastError> {
        Box::pin(async { Ok(Accepted::Mempool) })
    }
    fn broadcast_package<'a>(
        &'a self,
        _: &'a [Transaction],
    ) -> SourceFuture<'a, Accepted, BroadcastError> {
        Box::pin(async { Ok(Accepted::Mempool) })
    }
    fn estimate_feerate(&self, _: u16) -> SourceFuture<'_, Option<FeeRate>> {
        Box::pin(async { Ok(None) })
    }
    fn mempool_minimum(&self) -> SourceFuture<'_, FeeRate> {
        Box::pin(async { Ok(FeeRate::BROADCAST_MIN) })
    }
    fn mempool_entry(&self, _: Txid) -> SourceFuture<'_, Option<MempoolEntry>> {
        Box::pin(async { Ok(None) })
    }
    fn mempool_spender(&self, _: OutPoint) -> SourceFuture<'_, Option<Txid>> {
        Box::pin(async { Ok(None) })
    }
}

/// A tower on a chain that stands still.
struct Standing {
    directory: TempDir,
    mnemonic: String,
    address: TowerAddress,
    link: Arc<Link>,
    task: tokio::task::JoinHandle<()>,
    store: Arc<Store>,
    _tips: watch::Sender<crate::chain::Tip>,
}

impl Standing {
    async fn new(clients: Clients, limits: TowerLimits) -> Standing {
        let words = Mnemonic::generate(WordCount::Twelve).unwrap();
        let phrase = words.phrase().to_string();
        Standing::on(TempDir::new().unwrap(), phrase, clients, limits).await
    }

    async fn on(
        directory: TempDir,
        mnemonic: String,
        clients: Clients,
        limits: TowerLimits,
    ) -> Standing {
        let words = Mnemonic::parse(&mnemonic).unwrap();
        let keys = Arc::new(WalletKeys::new(&words, "", Network::Regtest).unwrap());
        let store = Store::open(directory.path(), &keys.identity().unwrap());
        let store = Arc::new(store.unwrap());
        let source: Arc<dyn ChainSource> = Arc::new(Silent);
        let start = BlockLocator::new(BlockHash::from_byte_array([9; 32]), TIP);
        let fallback = FeeRate::BROADCAST_MIN;
        let chain = Chain::open(
            Arc::clone(&source),
            Network::Regtest,
            Arc::clone(&store),
            &start,
            fallback,
        );
        let chain = chain.unwrap();
        let onchain = OnchainWallet::open(Arc::clone(&store), keys, source, &start);
        let admit = clients.clone();
        let (link, heard) = Link::new(&SEED, Box::new(move |client| admit.admits(client)));
        let address = link.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let tip = *chain.tip().borrow();
        let (tips, told) = watch::channel(tip);
        let watchman = Watchman::new(
            Network::Regtest,
            chain,
            Arc::new(onchain.unwrap()),
            Book::open(Arc::clone(&store)).unwrap(),
            Arc::clone(&link),
            clients,
            limits,
            FeeCaps::default(),
        );
        Standing {
            directory,
            mnemonic,
            address: TowerAddress {
                node_id: crate::hosting::node_id(&SEED),
                address: address.to_string(),
            },
            link,
            task: tokio::spawn(watchman.run(heard, told)),
            store,
            _tips: tips,
        }
    }

    /// The same directory, opened again.
    async fn restarted(self, clients: Clients, limits: TowerLimits) -> Standing {
        self.task.abort();
        let _ = self.task.await;
        self.store.close();
        Standing::on(self.directory, self.mnemonic, clients, limits).await
    }

    async fn client(&self, seed: u8) -> Client {
        let (link, heard) = Link::new(&[seed; 32], Box::new(|_| true));
        let address = self.address.address.parse().unwrap();
        let connected = link.connect(self.address.node_id, address).await;
        Client {
            link,
            heard,
            tower: self.address.node_id,
            connected,
        }
    }
}

/// Somebody who says what a test wants it to say.
struct Client {
    link: Arc<Link>,
    heard: mpsc::UnboundedReceiver<(PublicKey, Heard)>,
    tower: PublicKey,
    connected: bool,
}

impl Client {
    async fn say(&mut self, bytes: &[u8]) -> (u32, Answer) {
        assert!(self.link.send(self.tower, bytes));
        loop {
            match self.heard.recv().await.unwrap().1 {
                Heard::Message(bytes, _) => return Answer::read(&bytes).unwrap(),
                Heard::Connected => {}
                Heard::Gone => panic!("hung up"),
            }
        }
    }

    async fn ask(&mut self, ask: Ask) -> Answer {
        let number = 4_711;
        let (answered, answer) = self.say(&Request { number, ask }.write()).await;
        assert_eq!(answered, number);
        answer
    }

    async fn keep(&mut self, appointment: Appointment) -> Answer {
        let from_height = TIP + 1;
        let ask = Ask::Keep {
            from_height,
            appointment,
        };
        self.ask(ask).await
    }

    async fn report(&mut self) -> Report {
        match self.ask(Ask::Report).await {
            Answer::Report(report) => report,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the tower has hung up.
    async fn hung_up(&mut self) {
        loop {
            match self.heard.recv().await.unwrap().1 {
                Heard::Gone => return,
                Heard::Connected => {}
                Heard::Message(..) => panic!("answered"),
            }
        }
    }
}

fn revoked(number: u8) -> Appointment {
    let outpoint = OutPoint::new(Txid::from_byte_array([number; 32]), 0);
    let transaction = Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: outpoint,
            ..TxIn::default()
        }],
        output: Vec::new(),
    };
    let tries = vec![Try {
        feerate_sat_per_kwu: 500,
        transaction,
    }];
    Appointment::Revoked {
        channel: OutPoint::new(Txid::from_byte_array([200; 32]), 1),
        claim: Claim::new(outpoint, tries).unwrap(),
    }
}

fn anyone() -> Clients {
    Clients::Anyone { at_most: 10 }
}

fn code(answer: &Answer) -> RefusalCode {
    match answer {
        Answer::Refused { code, .. } => *code,
        other => panic!("not refused: {other:?}"),
    }
}

fn sum(of: &[Appointment]) -> Digest {
    let mut sum = Digest::default();
    of.iter().for_each(|it| sum.toggle(it.digest()));
    sum
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_there_after_a_restart() {
    let tower = Standing::new(anyone(), TowerLimits::default()).await;
    let mut client = tower.client(1).await;
    for number in [1, 2, 2] {
        let it = revoked(number);
        assert_eq!(client.keep(it.clone()).await, Answer::Kept(it.digest()));
    }
    let before = client.report().await;
    assert_eq!((before.kept, before.height), (2, 0));
    assert_eq!(before.sum, sum(&[revoked(1), revoked(2)]));
    // Somebody else's are not ours.
    let mut other = tower.client(2).await;
    assert_eq!(other.report().await.kept, 0);
    let key = revoked(1).key();
    assert_eq!(
        code(&other.ask(Ask::Forget(key)).await),
        RefusalCode::Unknown
    );
    drop((client, other));

    let tower = tower.restarted(anyone(), TowerLimits::default()).await;
    let mut client = tower.client(1).await;
    assert_eq!(client.report().await, before);
    assert_eq!(client.ask(Ask::Forget(key)).await, Answer::Forgotten);
    assert_eq!(
        code(&client.ask(Ask::Forget(key)).await),
        RefusalCode::Unknown
    );
    let after = client.report().await;
    assert_eq!((after.kept, after.sum), (1, sum(&[revoked(2)])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_exceeds_a_quota_is_refused_and_drops_nothing() {
    let limits = TowerLimits {
        appointments: 1,
        ..TowerLimits::default()
    };
    let tower = Standing::new(Clients::Anyone { at_most: 1 }, limits).await;
    let mut client = tower.client(1).await;
    client.keep(revoked(1)).await;
    assert_eq!(code(&client.keep(revoked(2)).await), RefusalCode::Quota);
    let report = client.report().await;
    assert_eq!((report.kept, report.quota), (1, 1));
    assert_eq!(report.sum, sum(&[revoked(1)]));
    let mut second = tower.client(2).await;
    assert_eq!(code(&second.keep(revoked(3)).await), RefusalCode::Quota);
    // Room again.
    client.ask(Ask::Forget(revoked(1).key())).await;
    let third = revoked(3);
    assert_eq!(
        second.keep(third.clone()).await,
        Answer::Kept(third.digest())
    );
    drop((client, second));

    let bytes = third.to_bytes().len() as u64;
    let limits = TowerLimits {
        bytes: bytes * 2 - 1,
        ..TowerLimits::default()
    };
    let tower = tower.restarted(anyone(), limits).await;
    let mut second = tower.client(2).await;
    assert_eq!(code(&second.keep(revoked(4)).await), RefusalCode::Quota);
    assert_eq!(second.report().await.sum, sum(&[third]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_requests_and_too_old_heights_are_refused() {
    let limits = TowerLimits {
        requests_per_minute: 4,
        rescan_blocks: 10,
        ..TowerLimits::default()
    };
    let tower = Standing::new(anyone(), limits).await;
    let mut client = tower.client(1).await;
    let keep = |from_height| Ask::Keep {
        from_height,
        appointment: revoked(1),
    };
    assert_eq!(code(&client.ask(keep(TIP - 10)).await), RefusalCode::TooOld);
    // These blocks would be looked through, and nobody has them: nothing is acknowledged.
    let unavailable = code(&client.ask(keep(TIP - 9)).await);
    assert_eq!(unavailable, RefusalCode::Unavailable);
    assert!(unavailable.is_temporary());
    assert_eq!(client.report().await.kept, 0);
    let refused = code(&client.keep(revoked(1)).await);
    assert_eq!(refused, RefusalCode::TooMany);
    // It is about each client.
    let mut other = tower.client(2).await;
    assert_eq!(other.report().await.kept, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_bytes_are_answered_or_hung_up_on_and_change_nothing() {
    let tower = Standing::new(anyone(), TowerLimits::default()).await;
    let mut client = tower.client(1).await;
    let ask = Ask::Keep {
        from_height: TIP + 1,
        appointment: revoked(1),
    };
    let good = Request { number: 9, ask }.write();
    for end in 5..good.len() {
        let (number, answer) = client.say(&good[..end]).await;
        assert_eq!(
            (number, code(&answer)),
            (9, RefusalCode::Malformed),
            "{end}"
        );
    }
    assert_eq!(client.report().await.kept, 0);
    // Another version, and what has no number, cannot be answered.
    for bytes in [&[2, 0, 0, 0, 1, 2][..], &[1, 0]] {
        let mut client = tower.client(2).await;
        assert!(client.link.send(client.tower, bytes));
        client.hung_up().await;
    }
    assert_eq!(client.report().await.kept, 0, "others go on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_a_word_in_who_is_not_listed() {
    let listed = BTreeSet::from([crate::hosting::node_id(&[1; 32])]);
    let tower = Standing::new(Clients::Listed(listed), TowerLimits::default()).await;
    let mut listed = tower.client(1).await;
    assert!(listed.connected);
    assert_eq!(listed.report().await.kept, 0);
    let mut other = tower.client(2).await;
    // It may take a moment until the end is heard of.
    if other.connected {
        other.hung_up().await;
    }
    assert!(!tower.link.is_connected(&crate::hosting::node_id(&[2; 32])));
}

fn started(store: Arc<Store>, seed: &[u8; 32], addresses: &[TowerAddress]) -> Arc<Towers> {
    let start = BlockLocator::new(BlockHash::from_byte_array([9; 32]), TIP);
    let watcher = ChainWatcher::open(Arc::clone(&store), &start).unwrap();
    let towers = Towers::open(store, Arc::new(watcher), seed, addresses).unwrap();
    towers.speak(seed);
    towers
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), waiting).await;
    assert!(waited.is_ok(), "waited in vain for {what}");
}

fn wallet_store(directory: &TempDir) -> Arc<Store> {
    let identity = crate::store::Identity {
        network: Network::Regtest,
        seed_tag: [3; 32],
    };
    Arc::new(Store::open(directory.path(), &identity).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_tower_that_is_there_is_enough_and_the_other_one_catches_up() {
    let directory = TempDir::new().unwrap();
    let store = wallet_store(&directory);
    let tower = Standing::new(anyone(), TowerLimits::default()).await;
    let away = TowerAddress {
        node_id: crate::hosting::node_id(&[5; 32]),
        address: "127.0.0.1:1".to_owned(),
    };
    let addresses = [away.clone(), tower.address.clone()];
    assert_ne!(
        identity(&SEED, &away.node_id),
        identity(&SEED, &tower.address.node_id)
    );
    let towers = started(Arc::clone(&store), &SEED, &addresses);
    let (one, two) = (revoked(1), revoked(2));
    for it in [&one, &two] {
        towers.keep(TIP + 1, it).unwrap();
    }
    let kept = |it: &Appointment| towers.is_kept(it.key(), it.digest());
    until("both to be kept", || kept(&one) && kept(&two)).await;
    assert!(
        !towers.is_kept(one.key(), two.digest()),
        "this content only"
    );
    let health = towers.health();
    assert_eq!((health[0].state, health[0].backlog), (TowerState::Away, 2));
    assert_eq!(
        (health[1].state, health[1].backlog),
        (TowerState::Connected, 0)
    );
    assert_eq!(health[1].kept, 2);
    towers.forget(one.key()).unwrap();
    until("it to be forgotten", || towers.health()[1].kept == 1).await;
    towers.stop().await;

    // What is to be looked after and what is kept was on disk.
    let towers = started(store, &SEED, std::slice::from_ref(&tower.address));
    assert!(towers.is_kept(two.key(), two.digest()));
    assert!(!towers.is_kept(one.key(), one.digest()));
    towers.stop().await;
}

/// A tower that answers with whatever the test says.
struct Liar {
    address: TowerAddress,
    _link: Arc<Link>,
}

impl Liar {
    async fn new(mut answer: impl FnMut(Request) -> Answer + Send + 'static) -> Liar {
        let (link, mut heard) = Link::new(&SEED, Box::new(|_| true));
        let address = link.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let saying = Arc::clone(&link);
        tokio::spawn(async move {
            while let Some((peer, heard)) = heard.recv().await {
                if let Heard::Message(bytes, _) = heard {
                    let request = Request::read(&bytes).unwrap();
                    let number = request.number;
                    saying.send(peer, &answer_to(number, &answer(request)));
                }
            }
        });
        Liar {
            address: TowerAddress {
                node_id: crate::hosting::node_id(&SEED),
                address: address.to_string(),
            },
            _link: link,
        }
    }
}

/// A wallet whose one tower is this, and what it wants kept.
fn one_to_keep(directory: &TempDir, liar: &Liar) -> (Arc<Towers>, Appointment) {
    let store = wallet_store(directory);
    let towers = started(store, &SEED, std::slice::from_ref(&liar.address));
    let it = revoked(1);
    towers.keep(TIP + 1, &it).unwrap();
    (towers, it)
}

fn empty_report() -> Answer {
    Answer::Report(Report {
        height: TIP,
        coins_sat: 0,
        kept: 0,
        quota: 1,
        sum: Digest::default(),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledgement_of_something_else_counts_for_nothing() {
    let liar = Liar::new(|request| match request.ask {
        Ask::Keep { .. } => Answer::Kept(Digest([1; 32])),
        _ => empty_report(),
    });
    let liar = liar.await;
    let directory = TempDir::new().unwrap();
    let (towers, it) = one_to_keep(&directory, &liar);
    let said = || towers.health()[0].refused.clone().unwrap_or_default();
    until("the lie", || said().contains("something else")).await;
    assert!(!towers.is_kept(it.key(), it.digest()));
    assert_eq!(towers.health()[0].backlog, 1);
    towers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_tower_cannot_take_for_a_moment_is_no_refusal() {
    let sees = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&sees);
    let liar = Liar::new(move |request| match request.ask {
        Ask::Keep { appointment, .. } => match seen.load(Ordering::SeqCst) {
            true => Answer::Kept(appointment.digest()),
            false => Answer::Refused {
                code: RefusalCode::Unavailable,
                detail: "the chain cannot be seen".to_owned(),
            },
        },
        _ => empty_report(),
    });
    let liar = liar.await;
    let directory = TempDir::new().unwrap();
    let (towers, it) = one_to_keep(&directory, &liar);
    until("the refusal", || towers.health()[0].refused.is_some()).await;
    assert!(!towers.have_room());
    sees.store(true, Ordering::SeqCst);
    until("it to be kept", || towers.is_kept(it.key(), it.digest())).await;
    until("room", || towers.have_room()).await;
    assert_eq!(towers.health()[0].refused, None);
    towers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tower_that_has_lost_something_is_given_all_again() {
    let (told, mut heard) = mpsc::unbounded_channel();
    let liar = Liar::new(move |request| match request.ask {
        Ask::Keep { appointment, .. } => {
            let digest = appointment.digest();
            told.send(digest).unwrap();
            Answer::Kept(digest)
        }
        // It keeps nothing, whatever it says.
        _ => empty_report(),
    });
    let liar = liar.await;
    let directory = TempDir::new().unwrap();
    let store = wallet_store(&directory);
    let address = [liar.address.clone()];
    let towers = started(Arc::clone(&store), &SEED, &address);
    let it = revoked(1);
    towers.keep(TIP + 1, &it).unwrap();
    assert_eq!(heard.recv().await, Some(it.digest()));
    until("the first time", || towers.is_kept(it.key(), it.digest())).await;
    towers.stop().await;
    let towers = started(store, &SEED, &address);
    assert_eq!(heard.recv().await, Some(it.digest()), "once more");
    towers.stop().await;
}
