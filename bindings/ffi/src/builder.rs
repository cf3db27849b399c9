//! Putting a wallet together.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use superscalar_sdk as sdk;
use zeroize::Zeroizing;

use crate::backup::Begin;
use crate::error::WalletError;
use crate::runtime;
use crate::wallet::Wallet;

/// A Bitcoin network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum Network {
    /// Mainnet: real money.
    Bitcoin,
    /// Testnet 3.
    Testnet,
    /// Testnet 4.
    Testnet4,
    /// The default signet.
    Signet,
    /// A local chain.
    Regtest,
}

impl From<Network> for bitcoin::Network {
    fn from(network: Network) -> bitcoin::Network {
        match network {
            Network::Bitcoin => bitcoin::Network::Bitcoin,
            Network::Testnet => bitcoin::Network::Testnet,
            Network::Testnet4 => bitcoin::Network::Testnet4,
            Network::Signet => bitcoin::Network::Signet,
            Network::Regtest => bitcoin::Network::Regtest,
        }
    }
}

/// Where blocks come from.
#[derive(Clone, uniffi::Enum)]
pub enum ChainSource {
    /// An own bitcoind's RPC server, version 28 or newer.
    Bitcoind {
        /// Host and port.
        address: String,
        /// How to log in.
        auth: BitcoindAuth,
    },
}

/// How to log in to a bitcoind.
#[derive(Clone, uniffi::Enum)]
pub enum BitcoindAuth {
    /// With the cookie file it writes.
    CookieFile {
        /// The file.
        path: String,
    },
    /// With a name and a password.
    UserPassword {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
}

impl From<ChainSource> for sdk::ChainConfig {
    fn from(source: ChainSource) -> sdk::ChainConfig {
        let ChainSource::Bitcoind { address, auth } = source;
        let auth = match auth {
            BitcoindAuth::CookieFile { path } => sdk::BitcoindAuth::CookieFile(path.into()),
            BitcoindAuth::UserPassword { user, password } => {
                sdk::BitcoindAuth::UserPassword { user, password }
            }
        };
        sdk::ChainConfig::Bitcoind { address, auth }
    }
}

/// How many words a new mnemonic gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum WordCount {
    /// 128 bits of entropy.
    Twelve,
    /// 256 bits of entropy.
    TwentyFour,
}

/// New words from the system's randomness. The application keeps them, in the platform's key store;
/// whoever has them has the money.
#[uniffi::export]
pub fn generate_mnemonic(words: WordCount) -> Result<String, WalletError> {
    let words = match words {
        WordCount::Twelve => sdk::WordCount::Twelve,
        WordCount::TwentyFour => sdk::WordCount::TwentyFour,
    };
    let mnemonic = sdk::Mnemonic::generate(words).map_err(WalletError::internal)?;
    Ok(mnemonic.phrase().to_string())
}

/// Puts a wallet together. Makes one: the builder forgets the seed with `build`.
#[derive(uniffi::Object)]
pub struct WalletBuilder {
    /// `None` once built.
    building: Mutex<Option<sdk::WalletBuilder>>,
}

#[uniffi::export]
impl WalletBuilder {
    /// A wallet of this seed, 12 or 24 BIP39 words. The application keeps the words; they are never
    /// stored here.
    #[uniffi::constructor]
    pub fn new(network: Network, mnemonic: String) -> Result<Arc<WalletBuilder>, WalletError> {
        let mnemonic = Zeroizing::new(mnemonic);
        let mnemonic = sdk::Mnemonic::parse(&mnemonic)
            .map_err(|error| sdk::WalletError::Start(error.into()))?;
        let building = sdk::WalletBuilder::new(network.into(), mnemonic);
        Ok(Arc::new(WalletBuilder {
            building: Mutex::new(Some(building)),
        }))
    }

    /// Directory of the database. One wallet per directory, one process at a time.
    pub fn storage_dir(self: Arc<Self>, path: String) -> Result<Arc<Self>, WalletError> {
        self.set(|builder| builder.storage_dir(path.into()))
    }

    /// Where blocks come from.
    pub fn chain_source(self: Arc<Self>, source: ChainSource) -> Result<Arc<Self>, WalletError> {
        self.set(|builder| builder.chain_source(source.into()))
    }

    /// The LSP to stay connected to, `node_id@host:port`.
    pub fn lsp(self: Arc<Self>, uri: String) -> Result<Arc<Self>, WalletError> {
        let uri = node_uri("lsp", &uri)?;
        self.set(|builder| builder.lsp(uri))
    }

    /// Height of a block from which on the seed may have coins: a new directory looks for them from
    /// there at its first start, which takes a while. Without it there are none before.
    pub fn birthday(self: Arc<Self>, height: u32) -> Result<Arc<Self>, WalletError> {
        self.set(|builder| builder.birthday(height))
    }

    /// One more watchtower, `node_id@host:port`, which should be run by somebody else than the LSP. It
    /// has to admit `tower_client_id`. What is bought, and a new epoch, counts when one of all towers
    /// has acknowledged it; payments wait for none.
    pub fn tower(self: Arc<Self>, uri: String) -> Result<Arc<Self>, WalletError> {
        let uri = node_uri("tower", &uri)?;
        self.set(|builder| builder.tower(uri))
    }

    /// An existing directory, on another disk or a mounted share, where everything the wallet holds
    /// is written before it counts.
    pub fn backup_directory(
        self: Arc<Self>,
        path: String,
        begin: Begin,
    ) -> Result<Arc<Self>, WalletError> {
        let remote = Arc::new(sdk::backup::Directory::new(path.into()));
        self.set(|builder| builder.backup(remote, begin.into()))
    }

    /// How often to look for new blocks, in milliseconds; 5,000 unless set.
    pub fn poll_interval_ms(self: Arc<Self>, interval_ms: u64) -> Result<Arc<Self>, WalletError> {
        if interval_ms == 0 {
            return Err(WalletError::argument("interval_ms", "must not be 0"));
        }
        self.set(|builder| builder.poll_interval(Duration::from_millis(interval_ms)))
    }

    /// The wallet, not yet started. The builder cannot be used again.
    pub async fn build(&self) -> Result<Arc<Wallet>, WalletError> {
        let builder = self.take().ok_or_else(used)?;
        let wallet = runtime::compute(move || builder.build()).await?;
        Ok(Wallet::new(wallet))
    }
}

impl WalletBuilder {
    fn set(
        self: Arc<Self>,
        change: impl FnOnce(sdk::WalletBuilder) -> sdk::WalletBuilder,
    ) -> Result<Arc<Self>, WalletError> {
        {
            let mut building = self.building.lock().unwrap_or_else(PoisonError::into_inner);
            let builder = building.take().ok_or_else(used)?;
            *building = Some(change(builder));
        }
        Ok(self)
    }

    fn take(&self) -> Option<sdk::WalletBuilder> {
        let mut building = self.building.lock().unwrap_or_else(PoisonError::into_inner);
        building.take()
    }
}

/// A node's address, or which argument is none.
pub(crate) fn node_uri(argument: &'static str, text: &str) -> Result<sdk::LspUri, WalletError> {
    let parsed = text.parse();
    parsed.map_err(|error: sdk::UriError| WalletError::argument(argument, error))
}

fn used() -> WalletError {
    WalletError::argument("builder", "has built its wallet already")
}
