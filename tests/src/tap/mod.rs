//! A tap on the connection between a wallet and its LSP by somebody who has both nodes' keys: it
//! reads every Lightning message, and may change it, keep it, or say others in its place. So either
//! side can be made to cheat while the program that ships stays as it is.
//!
//! What always holds: messages of one direction are seen in their order, one at a time; what the
//! rule returns is what the other side gets, and both are on record.

mod factory;
pub(crate) mod noise;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bitcoin::secp256k1::{Secp256k1, SecretKey};
use superscalar_factory::message::Message as FactoryMessage;
use superscalar_sdk::hosting::FACTORY_MESSAGE_TYPE;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use crate::network::{TestNetwork, node_secret};

pub use factory::{FactoryRule, cheating};

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The wallet, to the LSP.
    Member,
    /// The LSP, to the wallet.
    Lsp,
}

/// Makes of a message what is said in its place: a type (BOLT1) and the bytes after it.
pub type Rule = Box<dyn FnMut(Side, Message) -> Vec<Message> + Send>;

/// A Lightning message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// BOLT1's type.
    pub kind: u16,
    /// What follows the type.
    pub body: Vec<u8>,
}

/// `init` (BOLT1).
pub const INIT: u16 = 16;
/// `error` (BOLT1).
pub const ERROR: u16 = 17;
/// `ping` (BOLT1).
pub const PING: u16 = 18;
/// `pong` (BOLT1).
pub const PONG: u16 = 19;
/// `funding_created` (BOLT2).
pub const FUNDING_CREATED: u16 = 34;
/// `funding_signed` (BOLT2).
pub const FUNDING_SIGNED: u16 = 35;
/// `update_add_htlc` (BOLT2).
pub const UPDATE_ADD_HTLC: u16 = 128;
/// `update_fulfill_htlc` (BOLT2): channel id, HTLC id, preimage.
pub const UPDATE_FULFILL_HTLC: u16 = 130;
/// `update_fail_htlc` (BOLT2).
pub const UPDATE_FAIL_HTLC: u16 = 131;
/// `commitment_signed` (BOLT2).
pub const COMMITMENT_SIGNED: u16 = 132;
/// `revoke_and_ack` (BOLT2).
pub const REVOKE_AND_ACK: u16 = 133;

/// The tap. Gone when dropped.
pub struct Tap {
    /// Where the wallet connects to.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    accepting: tokio::task::AbortHandle,
}

struct Shared {
    rule: Mutex<Rule>,
    heard: Mutex<Vec<(Side, Message)>>,
    said: Mutex<Vec<(Side, Message)>>,
    /// Where to put in messages of one's own, while a connection stands.
    lines: Mutex<Option<[UnboundedSender<Message>; 2]>>,
}

impl Tap {
    /// Takes connections of the owner of `member` for the LSP at `target`, whose key is `lsp`.
    pub async fn between(member: SecretKey, lsp: SecretKey, target: SocketAddr) -> Tap {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            rule: Mutex::new(Box::new(|_, message| vec![message])),
            heard: Mutex::default(),
            said: Mutex::default(),
            lines: Mutex::default(),
        });
        let ours = Arc::clone(&shared);
        let accepting = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                // An error is a connection that one of them broke.
                let _ = ours.serve(socket, &member, &lsp, target).await;
            }
        });
        Tap {
            address,
            shared,
            accepting: accepting.abort_handle(),
        }
    }

    /// From now on `rule` says what passes.
    pub fn set_rule(&self, rule: Rule) {
        *self.shared.rule() = rule;
    }

    /// Everything passes again.
    pub fn pass(&self) {
        self.set_rule(Box::new(|_, message| vec![message]));
    }

    /// What `who` said of type `kind`, whatever became of it.
    pub fn heard(&self, who: Side, kind: u16) -> Vec<Message> {
        of(&self.shared.heard, who, kind)
    }

    /// What the other side was told of type `kind` in the name of `who`.
    pub fn said(&self, who: Side, kind: u16) -> Vec<Message> {
        of(&self.shared.said, who, kind)
    }

    /// The same of factory messages, all numbers in their order.
    pub fn heard_of_factories(&self, who: Side) -> Vec<FactoryMessage> {
        let heard = self.heard(who, FACTORY_MESSAGE_TYPE);
        heard.iter().filter_map(Message::factory).collect()
    }

    /// Says something in the name of `who`; false without a connection.
    pub fn say(&self, who: Side, message: Message) -> bool {
        let lines = self.shared.lines.lock();
        let lines = lines.unwrap_or_else(PoisonError::into_inner);
        let line = lines.as_ref().map(|lines| &lines[who as usize]);
        line.is_some_and(|line| line.send(message).is_ok())
    }
}

fn of(log: &Mutex<Vec<(Side, Message)>>, who: Side, kind: u16) -> Vec<Message> {
    let log = log.lock().unwrap_or_else(PoisonError::into_inner);
    let wanted = log.iter().filter(|it| it.0 == who && it.1.kind == kind);
    wanted.map(|(_, message)| message.clone()).collect()
}

impl TestNetwork {
    /// Lets a tap stand on a member's connection, and waits until the channels work over it.
    pub async fn tap(&self, member: usize) -> Tap {
        let lsp = node_secret(&self.lsp_mnemonic);
        let seat = &self.members[member];
        let tap = Tap::between(node_secret(&seat.mnemonic), lsp, self.lsp_address()).await;
        seat.wire.lead_to(tap.address);
        seat.wire.hang_up();
        self.wait("the member to be back over the tap", async || {
            tap.heard(Side::Member, INIT).len() == 1 && tap.heard(Side::Lsp, INIT).len() == 1
        })
        .await;
        tap
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Shared {
    async fn serve(
        &self,
        socket: TcpStream,
        member: &SecretKey,
        lsp: &SecretKey,
        target: SocketAddr,
    ) -> Result<(), noise::Broken> {
        let (from_member, to_member, who) = noise::respond(socket, lsp).await?;
        let expected = member.public_key(&Secp256k1::new());
        assert_eq!(who, expected, "another member than the one tapped");
        let target = TcpStream::connect(target).await?;
        let key = lsp.public_key(&Secp256k1::new());
        let (from_lsp, to_lsp) = noise::initiate(target, member, &key).await?;
        let (forth, put_in_forth) = mpsc::unbounded_channel();
        let (back, put_in_back) = mpsc::unbounded_channel();
        *self.lines() = Some([forth, back]);
        // When one side hangs up, the other is hung up too.
        let ended = tokio::select! {
            ended = self.carry(Side::Member, from_member, to_lsp, put_in_forth) => ended,
            ended = self.carry(Side::Lsp, from_lsp, to_member, put_in_back) => ended,
        };
        *self.lines() = None;
        ended
    }

    async fn carry(
        &self,
        who: Side,
        mut from: noise::Reader,
        mut to: noise::Writer,
        mut put_in: UnboundedReceiver<Message>,
    ) -> Result<(), noise::Broken> {
        // A read that is given up half-way would lose what it had: it has a task of its own.
        let (line, mut messages) = mpsc::unbounded_channel();
        let reading = tokio::spawn(async move {
            while let Ok(message) = from.read().await {
                if line.send(message).is_err() {
                    return;
                }
            }
        });
        let _stop = Stop(reading.abort_handle());
        loop {
            let say = tokio::select! {
                message = messages.recv() => {
                    let message = Message::read(message.ok_or(noise::Broken)?)?;
                    log(&self.heard, who, &message);
                    (self.rule())(who, message)
                }
                Some(message) = put_in.recv() => vec![message],
            };
            for message in say {
                log(&self.said, who, &message);
                to.write(&message.bytes()).await?;
            }
        }
    }

    fn rule(&self) -> std::sync::MutexGuard<'_, Rule> {
        self.rule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lines(&self) -> std::sync::MutexGuard<'_, Option<[UnboundedSender<Message>; 2]>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn log(log: &Mutex<Vec<(Side, Message)>>, who: Side, message: &Message) {
    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
    log.push((who, message.clone()));
}

struct Stop(tokio::task::AbortHandle);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Message {
    /// When an offered HTLC expires (BOLT2): after channel id, HTLC id, amount and hash.
    pub fn htlc_expiry(&self) -> u32 {
        const AT: usize = 32 + 8 + 8 + 32;
        assert_eq!(self.kind, UPDATE_ADD_HTLC);
        u32::from_be_bytes(self.body[AT..AT + 4].try_into().unwrap())
    }

    pub(crate) fn read(bytes: Vec<u8>) -> Result<Message, noise::Broken> {
        let [high, low, body @ ..] = bytes.as_slice() else {
            return Err(noise::Broken);
        };
        Ok(Message {
            kind: u16::from_be_bytes([*high, *low]),
            body: body.to_vec(),
        })
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        [&self.kind.to_be_bytes()[..], &self.body].concat()
    }
}
