//! From twelve or twenty-four words to every secret a wallet or server needs.
//!
//! What always holds:
//! - The words and the seed live in memory only and are erased when dropped; nothing here writes
//!   them anywhere or shows them in `Debug`.
//! - Every secret is derived by a hardened path of its own, so that none of them reveals another
//!   or the words. They differ between mainnet and the test networks.
//! - The paths are part of the backup format: a change would lose money. Test vectors pin them.
//!
//! | secret | path |
//! |---|---|
//! | on-chain wallet | BIP86, `m/86'/coin'/0'` |
//! | LDK's `KeysManager` | `m/83696968'/1397965617'/coin'/0'`, BIP85 entropy |
//! | factory keys (HKDF input) | `…/1'` |
//! | backup encryption | `…/2'` |
//! | seed tag (not secret) | `…/3'` |
//!
//! `83696968'` is BIP85's purpose: the entropy is the first half of
//! `HMAC-SHA512("bip-entropy-from-k", k)` of the private key at the path. `1397965617` ("SSC1") is
//! our own application number, so that no other BIP85 program hands out the same bytes.

mod secret;
#[cfg(test)]
mod tests;

use bdk_wallet::KeychainKind;
use bdk_wallet::descriptor::ExtendedDescriptor;
use bdk_wallet::template::{Bip86, DescriptorTemplate};
use bip39::Language;
use bitcoin::bip32::{ChildNumber, DerivationPath, Xpriv};
use bitcoin::hashes::{Hash, HashEngine, Hmac, HmacEngine, sha512};
use bitcoin::key::Secp256k1;
use bitcoin::psbt::{Psbt, SigningErrors};
use bitcoin::{Network, NetworkKind};
use thiserror::Error;
use zeroize::Zeroizing;

pub use secret::Secret32;

/// BIP85's purpose.
const BIP85_PURPOSE: u32 = 83_696_968;
/// "SSC1": our BIP85 application.
const APPLICATION: u32 = 0x5353_4331;

/// The index of a secret below the application's path.
#[derive(Clone, Copy)]
enum Branch {
    Lightning = 0,
    Factory = 1,
    Backup = 2,
    SeedTag = 3,
}

/// A BIP39 mnemonic of 12 or 24 English words. Erased on drop.
#[derive(Clone, PartialEq, Eq)]
pub struct Mnemonic(bip39::Mnemonic);

/// How many words a new mnemonic gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WordCount {
    /// 128 bits of entropy.
    Twelve,
    /// 256 bits of entropy.
    TwentyFour,
}

/// A mnemonic, or what was derived from it, cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeysError {
    /// Neither 12 nor 24 words.
    #[error("a mnemonic has 12 or 24 words, not {words}")]
    WordCount {
        /// How many there were.
        words: usize,
    },
    /// A word is not in BIP39's English list.
    #[error("word {position} of the mnemonic is not in the BIP39 list")]
    UnknownWord {
        /// Counted from 1.
        position: usize,
    },
    /// All words are known, but together they fail the checksum: one is wrong or misplaced.
    #[error("the mnemonic's checksum is wrong: a word is mistyped or misplaced")]
    Checksum,
    /// The operating system gave no randomness.
    #[error("no randomness for a new mnemonic: {0}")]
    Randomness(String),
    /// The seed yields no valid key. The chance is below 2^-127.
    #[error("the seed yields no valid key at {path}")]
    Underivable {
        /// Where.
        path: String,
    },
}

impl Mnemonic {
    /// A fresh mnemonic from the operating system's randomness.
    pub fn generate(words: WordCount) -> Result<Self, KeysError> {
        let count = match words {
            WordCount::Twelve => 12,
            WordCount::TwentyFour => 24,
        };
        bip39::Mnemonic::generate(count)
            .map(Self)
            .map_err(|error| KeysError::Randomness(error.to_string()))
    }

    /// Reads a mnemonic. Case and spacing do not matter.
    pub fn parse(text: &str) -> Result<Self, KeysError> {
        let normal: Zeroizing<String> = Zeroizing::new(
            text.split_whitespace()
                .map(str::to_lowercase)
                .collect::<Vec<_>>()
                .join(" "),
        );
        let words = normal.split(' ').filter(|word| !word.is_empty()).count();
        if words != 12 && words != 24 {
            return Err(KeysError::WordCount { words });
        }
        bip39::Mnemonic::parse_in_normalized(Language::English, &normal)
            .map(Self)
            .map_err(|error| match error {
                bip39::Error::UnknownWord(index) => KeysError::UnknownWord {
                    position: index + 1,
                },
                bip39::Error::BadWordCount(words) => KeysError::WordCount { words },
                _ => KeysError::Checksum,
            })
    }

    /// The words, separated by single spaces, for the application to show or keep. Erased on drop.
    pub fn phrase(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.to_string())
    }
}

impl Drop for Mnemonic {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}

impl std::fmt::Debug for Mnemonic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mnemonic({} words)", self.0.word_count())
    }
}

/// All secrets of one wallet or server on one network.
pub struct WalletKeys {
    network: Network,
    /// Erased on drop, see `Drop`.
    master: Xpriv,
}

impl WalletKeys {
    /// Derives the keys of `mnemonic` with an optional BIP39 passphrase (empty for none).
    pub fn new(mnemonic: &Mnemonic, passphrase: &str, network: Network) -> Result<Self, KeysError> {
        let seed = Zeroizing::new(mnemonic.0.to_seed_normalized(passphrase));
        let master = Xpriv::new_master(network, seed.as_ref()).map_err(|_| underivable("m"))?;
        let keys = Self { network, master };
        // Derive each once, so that the accessors below cannot fail later.
        for branch in [
            Branch::Lightning,
            Branch::Factory,
            Branch::Backup,
            Branch::SeedTag,
        ] {
            keys.entropy(branch)?;
        }
        Ok(keys)
    }

    /// The network the keys are for.
    pub fn network(&self) -> Network {
        self.network
    }

    /// Seed of LDK's `KeysManager`.
    pub fn lightning_seed(&self) -> Result<Secret32, KeysError> {
        self.entropy(Branch::Lightning)
    }

    /// Input key of the HKDF that yields one fresh factory key per salt (protocol: "Keys").
    pub fn factory_seed(&self) -> Result<Secret32, KeysError> {
        self.entropy(Branch::Factory)
    }

    /// Key that encrypts backups and exit packages.
    pub fn backup_key(&self) -> Result<Secret32, KeysError> {
        self.entropy(Branch::Backup)
    }

    /// 32 bytes that name this seed on this kind of network and reveal nothing about it: what the
    /// store keeps to recognise its owner.
    pub fn seed_tag(&self) -> Result<[u8; 32], KeysError> {
        Ok(*self.entropy(Branch::SeedTag)?.expose())
    }

    /// The store's idea of who we are.
    pub fn identity(&self) -> Result<crate::store::Identity, KeysError> {
        Ok(crate::store::Identity {
            network: self.network,
            seed_tag: self.seed_tag()?,
        })
    }

    /// BIP86 descriptor of a keychain, without private keys but with their origin.
    pub(crate) fn onchain_descriptor(
        &self,
        keychain: KeychainKind,
    ) -> Result<ExtendedDescriptor, KeysError> {
        Bip86(self.master, keychain)
            .build(NetworkKind::from(self.network))
            .map(|(descriptor, _, _)| descriptor)
            .map_err(|_| underivable("m/86'"))
    }

    /// Signs every input of `psbt` whose key origin is ours. Those that are final need nothing.
    pub(crate) fn sign_onchain(&self, psbt: &mut Psbt) -> Result<(), SigningErrors> {
        let Err((_, mut errors)) = psbt.sign(&self.master, &Secp256k1::new()) else {
            return Ok(());
        };
        errors.retain(|index, _| {
            let input = psbt.inputs.get(*index);
            input.is_none_or(|input| input.final_script_witness.is_none())
        });
        match errors.is_empty() {
            true => Ok(()),
            false => Err(errors),
        }
    }

    fn entropy(&self, branch: Branch) -> Result<Secret32, KeysError> {
        bip85_entropy(&self.master, &path(self.network, branch))
    }
}

impl Drop for WalletKeys {
    fn drop(&mut self) {
        self.master.private_key.non_secure_erase();
    }
}

impl std::fmt::Debug for WalletKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WalletKeys")
            .field("network", &self.network)
            .finish_non_exhaustive()
    }
}

fn path(network: Network, branch: Branch) -> DerivationPath {
    // SLIP44, as BIP86 uses it: every test network shares coin type 1.
    let coin = match NetworkKind::from(network) {
        NetworkKind::Main => 0,
        NetworkKind::Test => 1,
    };
    [BIP85_PURPOSE, APPLICATION, coin, branch as u32]
        .map(|index| ChildNumber::Hardened { index })
        .as_slice()
        .into()
}

/// The first 32 of BIP85's 64 bytes.
fn bip85_entropy(master: &Xpriv, path: &DerivationPath) -> Result<Secret32, KeysError> {
    let mut child = master
        .derive_priv(&Secp256k1::signing_only(), path)
        .map_err(|_| underivable(path))?;
    let mut engine = HmacEngine::<sha512::Hash>::new(b"bip-entropy-from-k");
    engine.input(&Zeroizing::new(child.private_key.secret_bytes())[..]);
    child.private_key.non_secure_erase();
    let full = Zeroizing::new(Hmac::<sha512::Hash>::from_engine(engine).to_byte_array());
    let mut half = Zeroizing::new([0; 32]);
    half.copy_from_slice(&full[..32]);
    Ok(Secret32::new(*half))
}

fn underivable(path: impl ToString) -> KeysError {
    KeysError::Underivable {
        path: path.to_string(),
    }
}
