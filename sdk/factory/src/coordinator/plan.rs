//! What an LSP wants to build, and the secrets it builds with.

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, Network, ScriptBuf};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::epoch::StockName;
use crate::message::{Attempt, Invite, Join};
use crate::shape::Shape;
use crate::signing::{FactoryKey, ReservedNonces};
use crate::terms::{
    FeeRules, Header, Instance, PROTOCOL_VERSION, SlotRecord, Terms, TermsError, TimeoutPolicy,
    stock_hash,
};
use crate::timing::Timing;

/// One member's place in a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// The member's Lightning node.
    pub peer: PublicKey,
    /// Capacity of its channel.
    pub capacity: Amount,
    /// Millisatoshi of it that are the member's from the start.
    pub push_msat: u64,
    /// LSP money beside it.
    pub stock: Amount,
    /// What the place costs.
    pub price: Amount,
}

/// A factory to be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FactoryPlan {
    /// Name and attempt.
    pub attempt: Attempt,
    /// The chain.
    pub network: Network,
    /// How members are divided over nodes.
    pub shape: Shape,
    /// All delays.
    pub timing: Timing,
    /// Absolute height at which the factory ends.
    pub expiry: u32,
    /// Feerate of tree transactions, in sat/vB.
    pub tree_feerate: u32,
    /// What happens at expiry.
    pub policy: TimeoutPolicy,
    /// Where the LSP is paid what no member is owed.
    pub lsp_payout: ScriptBuf,
    /// Seconds to wait for each answer.
    pub round_seconds: u16,
    /// The members, in slot order.
    pub seats: Vec<Seat>,
}

/// How many members each factory gets when `members` are divided over factories of at most `most`:
/// as few factories as possible, of sizes as equal as possible, each with a funding output of its
/// own. Empty when there are fewer members, or room for fewer, than a factory needs.
pub fn group_sizes(members: usize, most: usize) -> Vec<usize> {
    let (least, most) = (
        crate::shape::MIN_MEMBERS,
        most.min(crate::shape::MAX_MEMBERS),
    );
    if members < least || most < least {
        return Vec::new();
    }
    let groups = members.div_ceil(most);
    let (each, larger) = (members / groups, members % groups);
    let sizes = (0..groups).map(|group| each + usize::from(group < larger));
    // Three over factories of two leave one alone: it waits for the next.
    sizes.filter(|size| *size >= least).collect()
}

/// Why a plan is no factory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Header or amounts are invalid.
    #[error(transparent)]
    Terms(#[from] TermsError),
    /// One Lightning node in two seats: it could not be told which one is meant.
    #[error("the node of seat {seat} already has a seat")]
    RepeatedPeer {
        /// The later seat.
        seat: u16,
    },
    /// Not one channel key per seat.
    #[error("{given} channel keys for {seats} seats")]
    FundingKeys {
        /// How many keys.
        given: usize,
        /// How many seats.
        seats: usize,
    },
}

impl FactoryPlan {
    /// The next attempt without the members at fault, in a shape that fits those who are left;
    /// `None` when fewer than two are.
    pub fn retry(&self, at_fault: &[u16]) -> Option<FactoryPlan> {
        let seats: Vec<Seat> = (0u16..)
            .zip(&self.seats)
            .filter(|(slot, _)| !at_fault.contains(slot))
            .map(|(_, seat)| seat.clone())
            .collect();
        if seats.len() < crate::shape::MIN_MEMBERS {
            return None;
        }
        let attempt = Attempt {
            instance: self.attempt.instance,
            number: self.attempt.number.checked_add(1)?,
        };
        Some(FactoryPlan {
            attempt,
            seats,
            ..self.clone()
        })
    }

    pub(super) fn invites(&self, secrets: &LspSecrets) -> Result<Vec<Invite>, PlanError> {
        let header = Header {
            instance: self.attempt.instance,
            attempt: self.attempt.number,
            version: PROTOCOL_VERSION,
            network: self.network,
            lsp_key: secrets.key().public(),
            lsp_payout: self.lsp_payout.clone(),
            shape: self.shape.clone(),
            timing: self.timing.clone(),
            expiry: self.expiry,
            tree_feerate: self.tree_feerate,
            policy: self.policy,
            fee_rules: FeeRules::OperatorKeeps,
        };
        header.validate(self.seats.len())?;
        let mut total = Amount::ZERO;
        for seat in &self.seats {
            SlotRecord::validate_amounts(seat.capacity, seat.push_msat, seat.stock)?;
            let place = seat.capacity.checked_add(seat.stock);
            total = place
                .and_then(|place| total.checked_add(place))
                .filter(|total| *total <= Amount::MAX_MONEY)
                .ok_or(TermsError::Overflow)?;
        }
        for (position, seat) in self.seats.iter().enumerate() {
            let before = &self.seats[..position];
            if before.iter().any(|other| other.peer == seat.peer) {
                let seat = position as u16;
                return Err(PlanError::RepeatedPeer { seat });
            }
        }
        let invite = |(slot, seat): (u16, &Seat)| Invite {
            header: header.clone(),
            members: self.seats.len() as u16,
            slot,
            capacity: seat.capacity,
            push_msat: seat.push_msat,
            stock: seat.stock,
            price: seat.price,
            round_seconds: self.round_seconds,
        };
        Ok((0u16..).zip(&self.seats).map(invite).collect())
    }
}

/// The LSP's secrets of one attempt.
pub struct LspSecrets {
    seed: Zeroizing<[u8; 32]>,
    salt: [u8; 32],
    nonce_randomness: Zeroizing<[u8; 32]>,
    key: FactoryKey,
}

impl LspSecrets {
    /// From the LSP's factory seed, a fresh salt and fresh randomness for nonces.
    pub fn new(seed: &[u8; 32], salt: [u8; 32], nonce_randomness: [u8; 32]) -> LspSecrets {
        LspSecrets {
            seed: Zeroizing::new(*seed),
            salt,
            nonce_randomness: Zeroizing::new(nonce_randomness),
            key: FactoryKey::derive(seed, &salt),
        }
    }

    /// After a restart: nothing is signed with it any more.
    pub(super) fn restored(seed: &[u8; 32], salt: [u8; 32]) -> LspSecrets {
        LspSecrets::new(seed, salt, [0; 32])
    }

    pub(super) fn salt(&self) -> [u8; 32] {
        self.salt
    }

    pub(super) fn key(&self) -> &FactoryKey {
        &self.key
    }

    /// The revocation hash of the stock output of a slot, after `link` sales.
    pub(super) fn stock_hash(&self, header: &Header, name: &StockName) -> [u8; 32] {
        stock_hash(&self.stock_preimage(header, name))
    }

    /// What revokes a stock output.
    pub(super) fn stock_preimage(&self, header: &Header, name: &StockName) -> Zeroizing<[u8; 32]> {
        let (slot, link) = (name.slot, name.link);
        match &name.made {
            None => stock_preimage(
                &self.seed,
                &StockOutput {
                    instance: header.instance,
                    attempt: header.attempt,
                    slot,
                    root_epoch: 0,
                    leaf_epoch: 0,
                    link,
                },
            ),
            Some((epochs, retry)) => epoch_stock_preimage(
                &self.seed,
                &EpochStockOutput {
                    attempt: header.attempt(),
                    slot,
                    epochs: epochs.clone(),
                    retry: *retry,
                    link,
                },
            ),
        }
    }

    /// Makes the nonces of the ceremony, once: the randomness is gone afterwards.
    pub(super) fn reserve(&mut self, count: usize) -> Option<ReservedNonces> {
        let randomness = std::mem::take(&mut *self.nonce_randomness);
        if randomness == [0; 32] {
            return None;
        }
        ReservedNonces::fresh(&self.key, count, &randomness)
    }
}

impl std::fmt::Debug for LspSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LspSecrets({})", self.key.public())
    }
}

/// The preimage that revokes one stock output, independent of every other's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StockOutput {
    /// The factory.
    pub instance: Instance,
    /// The building attempt or later ceremony.
    pub attempt: u16,
    /// The member's place.
    pub slot: u16,
    /// Epoch of the root.
    pub root_epoch: u8,
    /// Epoch of the leaf.
    pub leaf_epoch: u8,
    /// How many sales came before.
    pub link: u8,
}

/// The revocation preimage of a stock output: `HKDF(LSP seed, every coordinate of the output)`.
pub fn stock_preimage(seed: &[u8; 32], output: &StockOutput) -> Zeroizing<[u8; 32]> {
    let mut info = Vec::from(*b"superscalar/stock preimage");
    info.extend_from_slice(&output.instance.0);
    info.extend_from_slice(&output.attempt.to_be_bytes());
    info.extend_from_slice(&output.slot.to_be_bytes());
    info.extend_from_slice(&[output.root_epoch, output.leaf_epoch, output.link]);
    expand(seed, &info)
}

/// The same of a stock output that a new epoch made: the epochs of all layers name its leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochStockOutput {
    /// The building attempt.
    pub attempt: Attempt,
    /// The member's place.
    pub slot: u16,
    /// The epochs of its path, from the root to the leaf.
    pub epochs: Vec<u8>,
    /// How many tries at this epoch got as far as channels before the one that made it.
    pub retry: u16,
    /// How many sales came before.
    pub link: u8,
}

/// The revocation preimage of such an output, under a label of its own: no output of the first
/// edition has it.
pub fn epoch_stock_preimage(seed: &[u8; 32], output: &EpochStockOutput) -> Zeroizing<[u8; 32]> {
    let mut info = Vec::from(*b"superscalar/epoch stock preimage");
    info.extend_from_slice(&output.attempt.instance.0);
    info.extend_from_slice(&output.attempt.number.to_be_bytes());
    info.extend_from_slice(&output.slot.to_be_bytes());
    info.push(output.epochs.len() as u8);
    info.extend_from_slice(&output.epochs);
    info.extend_from_slice(&output.retry.to_be_bytes());
    info.push(output.link);
    expand(seed, &info)
}

fn expand(seed: &[u8; 32], info: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut preimage = Zeroizing::new([0; 32]);
    #[expect(
        clippy::expect_used,
        reason = "32 bytes are a legal HKDF-SHA256 length"
    )]
    Hkdf::<Sha256>::new(None, seed)
        .expand(info, preimage.as_mut())
        .expect("32 is at most 255 × 32");
    preimage
}

/// The terms everyone joined under.
pub(super) fn terms(
    invites: &[Invite],
    joins: &[Join],
    lsp_funding_keys: &[PublicKey],
    secrets: &LspSecrets,
) -> Terms {
    let header = invites[0].header.clone();
    let places = invites.iter().zip(joins).zip(lsp_funding_keys);
    let slots = places.map(|((invite, join), lsp_funding_key)| SlotRecord {
        member_key: join.member_key,
        capacity: invite.capacity,
        push_msat: invite.push_msat,
        stock: invite.stock,
        payout: join.payout.clone(),
        member_funding_key: join.funding_key,
        lsp_funding_key: *lsp_funding_key,
        stock_hash: secrets.stock_hash(
            &header,
            &StockName {
                slot: invite.slot,
                made: None,
                link: 0,
            },
        ),
        member_revocation_key: join.revocation_key,
    });
    let slots = slots.collect();
    Terms { header, slots }
}
