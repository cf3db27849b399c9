//! How a wallet's watchtowers are.

use superscalar_sdk as sdk;

/// Whether a tower can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum TowerState {
    /// It answers.
    Connected,
    /// It cannot be reached, or does not admit this wallet.
    Away,
    /// It answers, and refuses what it should look after.
    Refusing,
}

/// How one tower is, as far as this wallet knows.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct TowerHealth {
    /// The tower, `node_id@host:port`.
    pub uri: String,
    /// Who this wallet is to it, hex: what its operator admits.
    pub client_id: String,
    /// Whether it can be reached.
    pub state: TowerState,
    /// The last block it had looked at when it last answered.
    pub height: Option<u32>,
    /// When it last answered, in seconds since 1970.
    pub last_contact_secs: Option<u64>,
    /// What it has acknowledged.
    pub kept: u32,
    /// What it has not acknowledged yet.
    pub backlog: u32,
    /// Coins it has to pay fees with, in satoshi.
    pub coins_sat: Option<u64>,
    /// What it last refused, and why.
    pub refused: Option<String>,
}

impl From<sdk::TowerState> for TowerState {
    fn from(state: sdk::TowerState) -> TowerState {
        match state {
            sdk::TowerState::Connected => TowerState::Connected,
            sdk::TowerState::Refusing => TowerState::Refusing,
            _ => TowerState::Away,
        }
    }
}

impl From<sdk::TowerHealth> for TowerHealth {
    fn from(health: sdk::TowerHealth) -> TowerHealth {
        let sdk::TowerHealth {
            uri,
            client_id,
            state,
            height,
            last_contact_secs,
            kept,
            backlog,
            coins_sat,
            refused,
        } = health;
        TowerHealth {
            uri,
            client_id,
            state: state.into(),
            height,
            last_contact_secs,
            kept,
            backlog,
            coins_sat,
            refused,
        }
    }
}
