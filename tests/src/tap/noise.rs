//! BOLT8's transport, both ends of it: `Noise_XK_secp256k1_ChaChaPoly_SHA256`.
//!
//! For tests that stand between two nodes whose keys they have. LDK's own is not public, and here
//! nothing is secret: no care is taken about time or memory.

use bitcoin::hashes::{Hash as _, sha256};
use bitcoin::secp256k1::ecdh::SharedSecret;
use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey, rand};
use chacha20poly1305::aead::{Aead, KeyInit as _, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};
use hkdf::Hkdf;
use sha2::Sha256;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

const PROTOCOL: &[u8] = b"Noise_XK_secp256k1_ChaChaPoly_SHA256";
const PROLOGUE: &[u8] = b"lightning";
/// Acts two and one; act three is 66 bytes.
const ACT_BYTES: usize = 50;
const TAG_BYTES: usize = 16;
/// Uses of a key before it is rotated.
const ROTATION: u64 = 1_000;

/// What reads messages.
pub(crate) struct Reader {
    socket: OwnedReadHalf,
    cipher: Cipher,
}

/// What writes messages.
pub(crate) struct Writer {
    socket: OwnedWriteHalf,
    cipher: Cipher,
}

/// The peer spoke another protocol, or not the key's owner.
#[derive(Debug)]
pub(crate) struct Broken;

impl From<std::io::Error> for Broken {
    fn from(_: std::io::Error) -> Self {
        Broken
    }
}

impl From<chacha20poly1305::Error> for Broken {
    fn from(_: chacha20poly1305::Error) -> Self {
        Broken
    }
}

impl From<bitcoin::secp256k1::Error> for Broken {
    fn from(_: bitcoin::secp256k1::Error) -> Self {
        Broken
    }
}

impl Reader {
    /// The next message.
    pub(crate) async fn read(&mut self) -> Result<Vec<u8>, Broken> {
        let mut length = [0; 2 + TAG_BYTES];
        self.socket.read_exact(&mut length).await?;
        let length = self.cipher.open(&length)?;
        let length = u16::from_be_bytes([length[0], length[1]]);
        let mut body = vec![0; usize::from(length) + TAG_BYTES];
        self.socket.read_exact(&mut body).await?;
        self.cipher.open(&body)
    }
}

impl Writer {
    /// Says a message of at most 65,535 bytes.
    pub(crate) async fn write(&mut self, message: &[u8]) -> Result<(), Broken> {
        let length = u16::try_from(message.len()).map_err(|_| Broken)?;
        let mut bytes = self.cipher.seal(&length.to_be_bytes())?;
        bytes.extend(self.cipher.seal(message)?);
        Ok(self.socket.write_all(&bytes).await?)
    }
}

/// Connects as the owner of `ours` to the owner of `theirs`.
pub(crate) async fn initiate(
    mut socket: TcpStream,
    ours: &SecretKey,
    theirs: &PublicKey,
) -> Result<(Reader, Writer), Broken> {
    let mut state = Handshake::new(theirs);
    let ephemeral = SecretKey::new(&mut rand::thread_rng());
    socket.write_all(&state.say(&ephemeral, theirs)?).await?;
    let mut act = [0; ACT_BYTES];
    socket.read_exact(&mut act).await?;
    let their_ephemeral = state.hear(&act, &ephemeral)?;
    let key = ours.public_key(&Secp256k1::new()).serialize();
    let mut act = vec![0];
    act.extend(state.seal(1, &key)?);
    state.mix(&their_ephemeral, ours);
    act.extend(state.seal(0, &[])?);
    socket.write_all(&act).await?;
    let (sending, receiving) = state.split();
    Ok(halves(socket, sending, receiving))
}

/// Answers as the owner of `ours`; tells who connected.
pub(crate) async fn respond(
    mut socket: TcpStream,
    ours: &SecretKey,
) -> Result<(Reader, Writer, PublicKey), Broken> {
    let mut state = Handshake::new(&ours.public_key(&Secp256k1::new()));
    let mut act = [0; ACT_BYTES];
    socket.read_exact(&mut act).await?;
    let their_ephemeral = state.hear(&act, ours)?;
    let ephemeral = SecretKey::new(&mut rand::thread_rng());
    socket
        .write_all(&state.say(&ephemeral, &their_ephemeral)?)
        .await?;
    let mut act = [0; 1 + 33 + 2 * TAG_BYTES];
    socket.read_exact(&mut act).await?;
    let (key, tag) = act[1..].split_at(33 + TAG_BYTES);
    let theirs = PublicKey::from_slice(&state.open(1, key)?)?;
    state.mix(&theirs, &ephemeral);
    state.open(0, tag)?;
    let (receiving, sending) = state.split();
    let (reader, writer) = halves(socket, sending, receiving);
    Ok((reader, writer, theirs))
}

fn halves(socket: TcpStream, sending: Cipher, receiving: Cipher) -> (Reader, Writer) {
    // LDK writes small messages and waits for the answer.
    let _ = socket.set_nodelay(true);
    let (read, write) = socket.into_split();
    let reader = Reader {
        socket: read,
        cipher: receiving,
    };
    let writer = Writer {
        socket: write,
        cipher: sending,
    };
    (reader, writer)
}

struct Handshake {
    hash: [u8; 32],
    chaining: [u8; 32],
    key: [u8; 32],
}

impl Handshake {
    fn new(responder: &PublicKey) -> Handshake {
        let chaining = sha256::Hash::hash(PROTOCOL).to_byte_array();
        let mut state = Handshake {
            hash: chaining,
            chaining,
            key: [0; 32],
        };
        state.absorb(PROLOGUE);
        state.absorb(&responder.serialize());
        state
    }

    /// Act one and two: a fresh key, and proof of knowing both.
    fn say(&mut self, ephemeral: &SecretKey, to: &PublicKey) -> Result<Vec<u8>, Broken> {
        let key = ephemeral.public_key(&Secp256k1::new()).serialize();
        self.absorb(&key);
        self.mix(to, ephemeral);
        let mut act = vec![0];
        act.extend(key);
        act.extend(self.seal(0, &[])?);
        Ok(act)
    }

    fn hear(&mut self, act: &[u8; ACT_BYTES], with: &SecretKey) -> Result<PublicKey, Broken> {
        let (key, tag) = act[1..].split_at(33);
        self.absorb(key);
        let key = PublicKey::from_slice(key)?;
        self.mix(&key, with);
        self.open(0, tag)?;
        Ok(key)
    }

    fn absorb(&mut self, data: &[u8]) {
        self.hash = sha256::Hash::hash(&[&self.hash[..], data].concat()).to_byte_array();
    }

    fn mix(&mut self, public: &PublicKey, secret: &SecretKey) {
        let shared = SharedSecret::new(public, secret).secret_bytes();
        (self.chaining, self.key) = derive(&self.chaining, &shared);
    }

    fn seal(&mut self, nonce: u64, plain: &[u8]) -> Result<Vec<u8>, Broken> {
        let sealed = seal(&self.key, nonce, plain, &self.hash)?;
        self.absorb(&sealed);
        Ok(sealed)
    }

    fn open(&mut self, nonce: u64, sealed: &[u8]) -> Result<Vec<u8>, Broken> {
        let plain = open(&self.key, nonce, sealed, &self.hash)?;
        self.absorb(sealed);
        Ok(plain)
    }

    /// The initiator's sending cipher first.
    fn split(self) -> (Cipher, Cipher) {
        let (first, second) = derive(&self.chaining, &[]);
        let cipher = |key| Cipher {
            chaining: self.chaining,
            key,
            nonce: 0,
        };
        (cipher(first), cipher(second))
    }
}

struct Cipher {
    chaining: [u8; 32],
    key: [u8; 32],
    nonce: u64,
}

impl Cipher {
    fn seal(&mut self, plain: &[u8]) -> Result<Vec<u8>, Broken> {
        let nonce = self.turn();
        Ok(seal(&self.key, nonce, plain, &[])?)
    }

    fn open(&mut self, sealed: &[u8]) -> Result<Vec<u8>, Broken> {
        let nonce = self.turn();
        Ok(open(&self.key, nonce, sealed, &[])?)
    }

    fn turn(&mut self) -> u64 {
        if self.nonce == ROTATION {
            (self.chaining, self.key) = derive(&self.chaining, &self.key);
            self.nonce = 0;
        }
        let nonce = self.nonce;
        self.nonce += 1;
        nonce
    }
}

fn derive(salt: &[u8; 32], input: &[u8]) -> ([u8; 32], [u8; 32]) {
    let mut both = [0; 64];
    Hkdf::<Sha256>::new(Some(salt), input)
        .expand(&[], &mut both)
        .expect("64 bytes are fewer than 255 hashes");
    let (mut first, mut second) = ([0; 32], [0; 32]);
    first.copy_from_slice(&both[..32]);
    second.copy_from_slice(&both[32..]);
    (first, second)
}

fn seal(
    key: &[u8; 32],
    nonce: u64,
    msg: &[u8],
    aad: &[u8],
) -> Result<Vec<u8>, chacha20poly1305::Error> {
    ChaCha20Poly1305::new(Key::from_slice(key)).encrypt(&numbered(nonce), Payload { msg, aad })
}

fn open(
    key: &[u8; 32],
    nonce: u64,
    msg: &[u8],
    aad: &[u8],
) -> Result<Vec<u8>, chacha20poly1305::Error> {
    ChaCha20Poly1305::new(Key::from_slice(key)).decrypt(&numbered(nonce), Payload { msg, aad })
}

fn numbered(nonce: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&nonce.to_le_bytes());
    bytes.into()
}
