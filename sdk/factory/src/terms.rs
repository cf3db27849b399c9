//! What the parties of a factory agree on, and the ids that bind every signature to it.
//!
//! `terms_id` is a hash over the header and a Merkle root over one record per slot; it tweaks the
//! funding output. `factory_id` adds the funding outpoint and tweaks every output below. Partial
//! signatures made under different terms therefore do not aggregate.

mod merkle;

use bitcoin::hashes::{Hash as _, sha256};
use bitcoin::secp256k1::{PublicKey, XOnlyPublicKey};
use bitcoin::{Amount, Network, OutPoint, ScriptBuf, TxOut};

use crate::codec::{Decode, DecodeError, Encode, Reader, fields};
use crate::scripts::{self, MIN_OUTPUT, tagged_hash};
use crate::shape::{Shape, ShapeError, Topology};
use crate::timing::{MAX_ROUTE_CLTV_BLOCKS, Timing};

pub use merkle::RecordProof;

/// The protocol version this crate speaks.
pub const PROTOCOL_VERSION: u16 = 1;
/// The least tree feerate a member signs for, in sat/vB.
pub const MIN_TREE_FEERATE: u32 = 5;
/// The greatest tree feerate anyone signs for, in sat/vB.
pub const MAX_TREE_FEERATE: u32 = 1_000;

/// Names a factory from the invitation on: 32 random bytes chosen by the LSP.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance(pub [u8; 32]);

/// Hash of the terms: what every signature above the leaves commits to.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TermsId(pub [u8; 32]);

/// Hash of the terms and the funding outpoint.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FactoryId(pub [u8; 32]);

macro_rules! hash_type {
    ($($name:ident),*) => {$(
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                use bitcoin::hex::DisplayHex as _;
                write!(f, "{}", self.0.as_hex())
            }
        }
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
        impl Encode for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                self.0.encode(out);
            }
        }
        impl Decode for $name {
            fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
                Ok($name(r.array(field)?))
            }
        }
    )*};
}
hash_type!(Instance, TermsId, FactoryId);
pub(crate) use hash_type;

/// What happens at the end if the parties do nothing together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TimeoutPolicy {
    /// After expiry pre-signed distributions pay every member; the LSP has no path of its own.
    MembersReclaim,
    /// After expiry the LSP alone can spend every tree output but the channels.
    LspReclaims,
}

impl Encode for TimeoutPolicy {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(match self {
            TimeoutPolicy::MembersReclaim => 0,
            TimeoutPolicy::LspReclaims => 1,
        });
    }
}
impl Decode for TimeoutPolicy {
    fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        match u8::decode(r, field)? {
            0 => Ok(TimeoutPolicy::MembersReclaim),
            1 => Ok(TimeoutPolicy::LspReclaims),
            _ => Err(DecodeError::Invalid { field }),
        }
    }
}

/// How routing fees are shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FeeRules {
    /// The LSP fronted the capital and keeps what it earns.
    OperatorKeeps,
}

impl Encode for FeeRules {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(0);
    }
}
impl Decode for FeeRules {
    fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        match u8::decode(r, field)? {
            0 => Ok(FeeRules::OperatorKeeps),
            _ => Err(DecodeError::Invalid { field }),
        }
    }
}

/// What holds for all slots of a factory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The factory's name.
    pub instance: Instance,
    /// How many times this instance's ceremony was started before with other members.
    pub attempt: u16,
    /// Protocol version, [`PROTOCOL_VERSION`].
    pub version: u16,
    /// The chain the factory lives on.
    pub network: Network,
    /// The LSP's factory key.
    pub lsp_key: PublicKey,
    /// Where the LSP is paid what no member is owed.
    pub lsp_payout: ScriptBuf,
    /// How members are divided over nodes.
    pub shape: Shape,
    /// All delays.
    pub timing: Timing,
    /// Absolute height T at which the factory ends.
    pub expiry: u32,
    /// Feerate of every tree transaction, in sat/vB.
    pub tree_feerate: u32,
    /// What happens at expiry.
    pub policy: TimeoutPolicy,
    /// How routing fees are shared.
    pub fee_rules: FeeRules,
}

fields!(Header {
    instance,
    attempt,
    version,
    network,
    lsp_key,
    lsp_payout,
    shape,
    timing,
    expiry,
    tree_feerate,
    policy,
    fee_rules,
});

/// One member's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotRecord {
    /// The member's factory key.
    pub member_key: PublicKey,
    /// Amount of the channel.
    pub capacity: Amount,
    /// Millisatoshi of the channel that are the member's from the start.
    pub push_msat: u64,
    /// LSP money beside the channel, to be sold to this member; zero for none.
    pub stock: Amount,
    /// Where distributions pay the member.
    pub payout: ScriptBuf,
    /// The member's key in the channel's 2-of-2.
    pub member_funding_key: PublicKey,
    /// The LSP's key in the channel's 2-of-2.
    pub lsp_funding_key: PublicKey,
    /// SHA256 of the preimage that revokes this stock output.
    pub stock_hash: [u8; 32],
    /// The member's key on the revocation leaf of its stock.
    pub member_revocation_key: XOnlyPublicKey,
}

fields!(SlotRecord {
    member_key,
    capacity,
    push_msat,
    stock,
    payout,
    member_funding_key,
    lsp_funding_key,
    stock_hash,
    member_revocation_key,
});

impl SlotRecord {
    /// What every distribution above pays the member: capacity and unsold stock.
    pub fn entitlement(&self) -> Amount {
        self.capacity + self.stock
    }

    /// The 2-of-2 script LDK funds the channel with.
    pub fn channel_script(&self) -> ScriptBuf {
        scripts::channel_witness_script(&self.member_funding_key, &self.lsp_funding_key)
    }

    /// The channel's output in the leaf.
    pub fn channel_output(&self) -> TxOut {
        TxOut {
            value: self.capacity,
            script_pubkey: self.channel_script().to_p2wsh(),
        }
    }
}

/// A whole factory's terms, as the LSP (and every member of a pool) knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// What holds for all.
    pub header: Header,
    /// One record per slot, slot 0 first.
    pub slots: Vec<SlotRecord>,
}

fields!(Terms { header, slots });

/// Why terms are refused; `field` names what was wrong in every variant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TermsError {
    /// The shape does not carry the members.
    #[error("shape: {0}")]
    Shape(#[from] ShapeError),
    /// A value outside its range.
    #[error("{field} is {value}, allowed is {allowed}")]
    Range {
        /// Field of header or record.
        field: &'static str,
        /// What was given.
        value: u64,
        /// The allowed range, in words.
        allowed: &'static str,
    },
    /// A payout script that is no v0 or v1 witness program of a defined kind.
    #[error("{field} is not a standard witness program")]
    Payout {
        /// Field of header or record.
        field: &'static str,
    },
    /// The same factory key twice.
    #[error("the factory key of slot {slot} is used before it in this factory")]
    RepeatedKey {
        /// The later slot.
        slot: u16,
    },
    /// The sum of all amounts is more money than can exist.
    #[error("the amounts of all slots overflow")]
    Overflow,
}

impl TermsError {
    /// The field that was wrong.
    pub fn field(&self) -> &'static str {
        match self {
            TermsError::Shape(_) => "shape",
            TermsError::Range { field, .. } | TermsError::Payout { field } => field,
            TermsError::RepeatedKey { .. } => "member_key",
            TermsError::Overflow => "capacity",
        }
    }
}

impl Header {
    /// The height from which a wallet with something in the factory leaves by itself: under
    /// `LspReclaims`, `T − exit_delay − safety`. Under `MembersReclaim` there is none.
    pub fn leave_by(&self) -> Option<u32> {
        let exit_delay = self.timing.exit_delay(self.shape.layers());
        let before = exit_delay + self.timing.safety();
        match self.policy {
            TimeoutPolicy::MembersReclaim => None,
            TimeoutPolicy::LspReclaims => Some(self.expiry.saturating_sub(before)),
        }
    }

    /// Checks everything about the header that does not depend on records, for `members` slots,
    /// and gives the nodes of the tree.
    pub fn validate(&self, members: usize) -> Result<Topology, TermsError> {
        let range = |ok: bool, field, value: u64, allowed| match ok {
            true => Ok(()),
            false => Err(TermsError::Range {
                field,
                value,
                allowed,
            }),
        };
        let topology = self.shape.topology(members)?;
        let t = &self.timing;
        let version = u64::from(self.version);
        range(self.version == PROTOCOL_VERSION, "version", version, "1")?;
        range(t.states >= 1, "states", u64::from(t.states), "at least 1")?;
        range(t.step >= 1, "step", u64::from(t.step), "at least 1 block")?;
        range(
            t.distribution_margin >= 1,
            "distribution_margin",
            u64::from(t.distribution_margin),
            "at least 1 block",
        )?;
        range(
            t.distribution_delay() <= u32::from(u16::MAX),
            "distribution_margin",
            u64::from(t.distribution_delay()),
            "a relative delay of at most 65,535 blocks",
        )?;
        for (field, blocks) in [
            ("lsp_to_self_delay", t.lsp_to_self_delay),
            ("member_to_self_delay", t.member_to_self_delay),
            ("stock_csv", t.stock_csv),
        ] {
            let value = u64::from(blocks);
            range(
                (144..=2016).contains(&blocks),
                field,
                value,
                "144 to 2016 blocks",
            )?;
        }
        let depth = u64::from(t.min_depth);
        range(
            (1..=144).contains(&t.min_depth),
            "min_depth",
            depth,
            "1 to 144 blocks",
        )?;
        let layers = self.shape.layers();
        let budget = t.route_budget(layers);
        range(
            budget <= MAX_ROUTE_CLTV_BLOCKS,
            "timing",
            u64::from(budget),
            "exit_delay + blocks_early + 200 of at most 2016 blocks",
        )?;
        range(
            u32::from(t.blocks_early) >= t.exit_delay(layers),
            "blocks_early",
            u64::from(t.blocks_early),
            "at least exit_delay",
        )?;
        let latest = bitcoin::absolute::LOCK_TIME_THRESHOLD;
        let expiry = u64::from(self.expiry);
        range(
            (1..latest).contains(&self.expiry),
            "expiry",
            expiry,
            "a block height",
        )?;
        range(
            (MIN_TREE_FEERATE..=MAX_TREE_FEERATE).contains(&self.tree_feerate),
            "tree_feerate",
            u64::from(self.tree_feerate),
            "5 to 1000 sat/vB",
        )?;
        payout(&self.lsp_payout, "lsp_payout")?;
        Ok(topology)
    }
}

impl SlotRecord {
    /// Checks everything about one record alone.
    pub fn validate(&self) -> Result<(), TermsError> {
        Self::validate_amounts(self.capacity, self.push_msat, self.stock)?;
        payout(&self.payout, "payout")
    }

    /// Checks the amounts of a place before its keys are known.
    pub(crate) fn validate_amounts(
        capacity: Amount,
        push_msat: u64,
        stock: Amount,
    ) -> Result<(), TermsError> {
        let range = |ok: bool, field, value: u64, allowed| match ok {
            true => Ok(()),
            false => Err(TermsError::Range {
                field,
                value,
                allowed,
            }),
        };
        range(
            (MIN_OUTPUT..=Amount::MAX_MONEY).contains(&capacity),
            "capacity",
            capacity.to_sat(),
            "1,000 sat or more",
        )?;
        range(
            stock == Amount::ZERO || (MIN_OUTPUT..=Amount::MAX_MONEY).contains(&stock),
            "stock",
            stock.to_sat(),
            "none, or 1,000 sat or more",
        )?;
        range(
            push_msat <= capacity.to_sat() * 1_000,
            "push_msat",
            push_msat,
            "at most the capacity",
        )
    }
}

fn payout(script: &ScriptBuf, field: &'static str) -> Result<(), TermsError> {
    match scripts::is_payout(script) {
        true => Ok(()),
        false => Err(TermsError::Payout { field }),
    }
}

/// Refuses a factory key that occurs twice among the LSP's and the members'.
pub fn distinct_keys(lsp: &PublicKey, members: &[PublicKey]) -> Result<(), TermsError> {
    // Compared without the sign: BIP340 keys that differ only in it are the same secret.
    let mut seen = std::collections::BTreeSet::from([lsp.x_only_public_key().0]);
    for (slot, key) in members.iter().enumerate() {
        if !seen.insert(key.x_only_public_key().0) {
            return Err(TermsError::RepeatedKey { slot: slot as u16 });
        }
    }
    Ok(())
}

impl Terms {
    /// Checks everything and gives the nodes of the tree.
    pub fn validate(&self) -> Result<Topology, TermsError> {
        let topology = self.header.validate(self.slots.len())?;
        let mut total = Amount::ZERO;
        for slot in &self.slots {
            slot.validate()?;
            total = total
                .checked_add(slot.entitlement())
                .filter(|total| *total <= Amount::MAX_MONEY)
                .ok_or(TermsError::Overflow)?;
        }
        distinct_keys(&self.header.lsp_key, &self.keys())?;
        Ok(topology)
    }

    /// The members' factory keys in slot order.
    pub fn keys(&self) -> Vec<PublicKey> {
        self.slots.iter().map(|slot| slot.member_key).collect()
    }

    /// The hash everyone signs under.
    pub fn terms_id(&self) -> TermsId {
        terms_id(&self.header, self.slots.len(), merkle::root(&self.slots))
    }

    /// Proof that `slot` is part of these terms; `None` if there is no such slot.
    pub fn proof(&self, slot: u16) -> Option<RecordProof> {
        merkle::prove(&self.slots, slot)
    }
}

/// The hash of a header and the Merkle root over its `slots` records.
pub fn terms_id(header: &Header, slots: usize, records_root: [u8; 32]) -> TermsId {
    let count = (slots as u16).to_be_bytes();
    TermsId(tagged_hash(
        "superscalar/terms",
        &[&header.to_bytes(), &count, &records_root],
    ))
}

impl FactoryId {
    /// The id of the factory with these terms at this outpoint.
    pub fn new(terms: TermsId, funding: OutPoint) -> FactoryId {
        FactoryId(tagged_hash(
            "superscalar/factory",
            &[&terms.0, &funding.to_bytes()],
        ))
    }
}

impl Encode for Network {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.magic().to_bytes());
    }
}
impl Decode for Network {
    fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        let magic = bitcoin::p2p::Magic::from_bytes(r.array(field)?);
        Network::try_from(magic).map_err(|_| DecodeError::Invalid { field })
    }
}

/// SHA256 of a stock output's revocation preimage.
pub fn stock_hash(preimage: &[u8; 32]) -> [u8; 32] {
    sha256::Hash::hash(preimage).to_byte_array()
}
