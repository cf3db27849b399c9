//! Many factories that one tower is to look after, made up for a bench: each is signed by all who
//! own it, none is funded. They are handed over the way wallets do it, over BOLT8.

use std::net::SocketAddr;
use std::time::Duration;

use bitcoin::hashes::{Hash as _, sha256};
use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey};
use bitcoin::{Amount, Network, OutPoint, ScriptBuf, Txid, WPubkeyHash};
use superscalar_factory::exit::SignedPath;
use superscalar_factory::shape::Shape;
use superscalar_factory::signing::{AggregateNonce, FactoryKey, NoncePool, SigningSession};
use superscalar_factory::terms::{
    FeeRules, Header, Instance, PROTOCOL_VERSION, SlotRecord, Terms, TimeoutPolicy,
};
use superscalar_factory::timing::Timing;
use superscalar_factory::tower::{Answer, Appointment, Ask, Ears, Request, pieces};
use superscalar_factory::tree::Blueprint;
use superscalar_regtest::RegtestNode;
use tokio::net::TcpStream;

use crate::processes::TowerProcess;
use crate::scale::processor_time;
use crate::tap::noise::{self, Reader, Writer};
use crate::tap::{INIT, Message, PING, PONG};

/// The message type of wallets and towers.
const TOWER_MESSAGE_TYPE: u16 = 33_003;
/// Members of each factory: the default of four in two leaves.
const MEMBERS: u16 = 4;

/// What looking costs.
#[derive(Debug)]
pub struct Watched {
    /// Outputs whose spenders matter.
    pub outpoints: usize,
    /// Processor time of the tower for a block.
    pub block: Duration,
    /// The same before it had anything to look after.
    pub block_without: Duration,
}

/// Lets a new `watchtower` look after `factories`, and measures what `blocks` blocks cost it before
/// and after.
///
/// # Panics
/// When anything goes wrong.
pub async fn watched(factories: u32, blocks: u32) -> Watched {
    let chain = RegtestNode::new().unwrap();
    chain.mine(10).unwrap();
    let limits = "[limits]\nrequests_per_minute = 1000000";
    let tower = TowerProcess::start(&chain, limits).unwrap();
    let block_without = cost_of(&chain, &tower, blocks);
    let mut client = Client::connect(&tower).await;
    let mut outpoints = 0;
    for number in 0..factories {
        let path = Box::new(path(number));
        let appointment = Appointment::Path {
            path,
            stale: Vec::new(),
            beside: Vec::new(),
        };
        outpoints += appointment.watched().len();
        let digest = appointment.digest();
        let kept = client.ask(number, appointment).await;
        assert_eq!(kept, Answer::Kept(digest), "factory {number}");
    }
    let kept = tower.status().unwrap().appointments;
    assert_eq!(kept, factories);
    Watched {
        outpoints,
        block: cost_of(&chain, &tower, blocks),
        block_without,
    }
}

fn cost_of(chain: &RegtestNode, tower: &TowerProcess, blocks: u32) -> Duration {
    tower.follow(chain);
    let before = processor_time(tower.id());
    for _ in 0..blocks {
        chain.mine(1).unwrap();
        tower.follow(chain);
    }
    (processor_time(tower.id()) - before) / blocks
}

/// A wallet, as far as a tower can tell.
struct Client {
    from: Reader,
    to: Writer,
    ears: Ears,
}

impl Client {
    async fn connect(tower: &TowerProcess) -> Client {
        let uri = tower.uri().to_string();
        let (theirs, address) = uri.split_once('@').unwrap();
        let address: SocketAddr = address.parse().unwrap();
        let socket = TcpStream::connect(address).await.unwrap();
        let ours = SecretKey::from_slice(&hash("client", 0)).unwrap();
        let theirs: PublicKey = theirs.parse().unwrap();
        let (from, mut to) = noise::initiate(socket, &ours, &theirs).await.unwrap();
        // No features, global or local (BOLT1).
        let init = Message {
            kind: INIT,
            body: vec![0; 4],
        };
        to.write(&init.bytes()).await.unwrap();
        Client {
            from,
            to,
            ears: Ears::default(),
        }
    }

    /// Asks the tower to look after it, and waits for the answer.
    async fn ask(&mut self, number: u32, appointment: Appointment) -> Answer {
        let ask = Ask::Keep {
            from_height: u32::MAX,
            appointment,
        };
        let request = Request { number, ask };
        for piece in pieces(&request.write()).unwrap() {
            self.say(TOWER_MESSAGE_TYPE, piece).await;
        }
        loop {
            let message = self.from.read().await.unwrap();
            let message = Message::read(message).unwrap();
            match message.kind {
                TOWER_MESSAGE_TYPE => {
                    if let Some(heard) = self.ears.hear(&message.body).unwrap() {
                        let (answered, answer) = Answer::read(&heard).unwrap();
                        assert_eq!(answered, number);
                        return answer;
                    }
                }
                // As many bytes as it asks for (BOLT1).
                PING => {
                    let asked = u16::from_be_bytes([message.body[0], message.body[1]]);
                    let mut body = asked.to_be_bytes().to_vec();
                    body.resize(2 + usize::from(asked), 0);
                    self.say(PONG, body).await;
                }
                _ => {}
            }
        }
    }

    async fn say(&mut self, kind: u16, body: Vec<u8>) {
        let message = Message { kind, body }.bytes();
        self.to.write(&message).await.unwrap();
    }
}

/// The first member's path of a factory nobody else knows.
fn path(number: u32) -> SignedPath {
    let keys: Vec<FactoryKey> = (0..=u32::from(MEMBERS))
        .map(|signer| FactoryKey::derive(&hash("seed", signer), &hash("salt", number)))
        .collect();
    let funding = OutPoint::new(Txid::from_byte_array(hash("funding", number)), 0);
    let tree = Blueprint::whole(&terms(number, &keys)).unwrap();
    let tree = tree.tree(funding).unwrap();
    let mut pools: Vec<NoncePool> = keys.iter().map(NoncePool::new).collect();
    let mut drawn = 0;
    let mut signatures = Vec::new();
    for tx in tree.transactions() {
        let slots = tree.topology().node(tx.name.node).slots.clone();
        let members = slots.map(|slot| usize::from(slot) + 1);
        let signers: Vec<usize> = [0].into_iter().chain(members).collect();
        let mut secrets = Vec::new();
        for signer in &signers {
            drawn += 1;
            let (pool, key) = (&mut pools[*signer], &keys[*signer]);
            pool.refill(key, &[hash("nonce", drawn)]).unwrap();
            secrets.push(pool.take().unwrap());
        }
        let publics: Vec<_> = secrets.iter().map(|secret| secret.public()).collect();
        let sum = AggregateNonce::sum(&publics).unwrap();
        let session = SigningSession::new(&tx.key, sum, tx.sighash);
        let partials = secrets.into_iter().zip(&signers);
        let partials: Vec<_> = partials
            .map(|(secret, signer)| session.partial_sign(secret, &keys[*signer]).unwrap())
            .collect();
        signatures.push((tx.name, session.aggregate(&publics, &partials).unwrap()));
    }
    SignedPath::new(&tree, 0, signatures).unwrap()
}

fn terms(number: u32, keys: &[FactoryKey]) -> Terms {
    let shape = Shape::two_layers(usize::from(MEMBERS));
    let slot = |slot: u16| SlotRecord {
        member_key: keys[usize::from(slot) + 1].public(),
        capacity: Amount::from_sat(500_000),
        push_msat: 0,
        stock: Amount::from_sat(100_000),
        payout: payout(u32::from(slot)),
        member_funding_key: key("member funding", u32::from(slot)),
        lsp_funding_key: key("lsp funding", u32::from(slot)),
        stock_hash: hash("stock hash", u32::from(slot)),
        member_revocation_key: key("revocation", u32::from(slot)).x_only_public_key().0,
    };
    Terms {
        header: Header {
            instance: Instance(hash("instance", number)),
            attempt: 0,
            version: PROTOCOL_VERSION,
            network: Network::Regtest,
            lsp_key: keys[0].public(),
            lsp_payout: payout(u32::MAX),
            timing: Timing::regtest(shape.layers()),
            shape,
            expiry: 6_000,
            tree_feerate: 10,
            policy: TimeoutPolicy::MembersReclaim,
            fee_rules: FeeRules::OperatorKeeps,
        },
        slots: (0..MEMBERS).map(slot).collect(),
    }
}

fn payout(number: u32) -> ScriptBuf {
    ScriptBuf::new_p2wpkh(&WPubkeyHash::hash(&hash("payout", number)))
}

fn key(label: &str, number: u32) -> PublicKey {
    let secret = SecretKey::from_slice(&hash(label, number)).unwrap();
    secret.public_key(&Secp256k1::new())
}

fn hash(label: &str, number: u32) -> [u8; 32] {
    sha256::Hash::hash(format!("{label} {number}").as_bytes()).to_byte_array()
}
