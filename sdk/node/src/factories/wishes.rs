//! What an LSP wants of a new epoch, and what a wallet agrees to, in types an application can hold.

use bitcoin::Amount;
use serde::{Deserialize, Serialize};
use superscalar_factory::epoch::{self, EpochLimits, Wish};

/// A new epoch an LSP wants of one leaf. Where the leaf's epochs are used up, it is one of a node
/// above it, with every place below that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochRequest {
    /// A place of the leaf.
    pub slot: u16,
    /// How places are cut anew. In those that are not listed all channels are merged; one whose
    /// member has left stays as it is.
    #[serde(default)]
    pub places: Vec<PlaceRequest>,
}

/// What becomes of one place in a new epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlaceRequest {
    /// The place.
    pub slot: u16,
    /// How it is cut.
    pub wish: PlaceWish,
}

/// How a place is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PlaceWish {
    /// One channel of what all its channels hold; the rest is stock.
    Merge,
    /// A channel of so many satoshi; the rest is stock.
    CapacitySat(u64),
    /// Nothing: the member has asked to leave, and loses what is left in its channels.
    Depart,
}

impl From<PlaceWish> for Wish {
    fn from(wish: PlaceWish) -> Wish {
        match wish {
            PlaceWish::Merge => Wish::Merge,
            PlaceWish::CapacitySat(sat) => Wish::Capacity(Amount::from_sat(sat)),
            PlaceWish::Depart => Wish::Depart,
        }
    }
}

/// What a wallet agrees to when its LSP gives its place in a factory a new epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EpochConsent {
    /// Least capacity of the new channel in satoshi; `None` for what its channels hold together.
    pub min_capacity_sat: Option<u64>,
    /// Whether the LSP may have the place back. It is signed away only when no more of the wallet's
    /// is in its channels than `forgo_sat`.
    pub departure: Departure,
    /// The most the wallet loses by giving the place up, in satoshi: what is in a channel's reserve
    /// cannot be sent, and stays behind.
    pub forgo_sat: u64,
}

/// Whether a wallet gives its place up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Departure {
    /// It does not.
    #[default]
    Stays,
    /// It does.
    Leaves,
}

impl From<&EpochConsent> for EpochLimits {
    fn from(consent: &EpochConsent) -> EpochLimits {
        EpochLimits {
            min_capacity: consent.min_capacity_sat.map(Amount::from_sat),
            departure: match consent.departure {
                Departure::Stays => epoch::Departure::Stays,
                Departure::Leaves => epoch::Departure::Leaves,
            },
            forgo_msat: consent.forgo_sat.saturating_mul(1_000),
            ..EpochLimits::default()
        }
    }
}
