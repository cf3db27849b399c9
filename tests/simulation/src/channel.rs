//! The model of a Lightning channel: what LDK would hold on disk, and how it changes.
//!
//! The LSP proposes every change, the member accepts it once it is durable: from then on the
//! commitment before it is revoked. A proposal is durable before it leaves and is repeated after a
//! reconnect, so both ends are at most one change apart. What is not modelled is said in the
//! crate's documentation.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::hashes::{Hash as _, sha256};
use superscalar_factory::effect::{ChannelRef, SlotChannel};

/// Most HTLCs at a time.
pub(crate) const MAX_HTLCS: usize = 4;
/// Weight of a commitment without HTLCs, and what each adds (BOLT3).
const COMMITMENT_WEIGHT: u64 = 724;
const HTLC_WEIGHT: u64 = 172;
/// The pinned feerate of commitments, in sat/kw.
const COMMITMENT_SAT_PER_KW: u64 = 2_500;
/// The part of the capacity either side leaves with itself.
const RESERVE_DIVISOR: u64 = 100;

/// Whom an HTLC pays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Toward {
    Member,
    Lsp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Htlc {
    pub(crate) toward: Toward,
    pub(crate) amount_msat: u64,
    pub(crate) hash: [u8; 32],
    pub(crate) expiry: u32,
}

/// One change of a channel. An HTLC is known by its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Add(Htlc),
    /// With the preimage.
    Settle([u8; 32]),
    Cancel([u8; 32]),
}

/// What a commitment pays whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Balances {
    pub(crate) number: u64,
    pub(crate) member_msat: u64,
    pub(crate) lsp_msat: u64,
    pub(crate) htlcs: Vec<Htlc>,
}

impl Balances {
    fn open(channel: &SlotChannel) -> Balances {
        let all = channel.capacity.to_sat() * 1_000;
        Balances {
            number: 0,
            member_msat: channel.push_msat,
            lsp_msat: all - channel.push_msat,
            htlcs: Vec::new(),
        }
    }

    pub(crate) fn total_msat(&self) -> u64 {
        let htlcs: u64 = self.htlcs.iter().map(|htlc| htlc.amount_msat).sum();
        self.member_msat + self.lsp_msat + htlcs
    }

    pub(crate) fn htlc(&self, hash: &[u8; 32]) -> Option<&Htlc> {
        self.htlcs.iter().find(|htlc| htlc.hash == *hash)
    }

    /// What is the member's, or will be if it claims all it can.
    pub(crate) fn most_msat(&self) -> u64 {
        let htlcs = self.htlcs.iter();
        let inbound = htlcs.filter(|htlc| htlc.toward == Toward::Member);
        self.member_msat + inbound.map(|htlc| htlc.amount_msat).sum::<u64>()
    }

    /// The same, with what it has sent and may get back.
    pub(crate) fn back_msat(&self) -> u64 {
        self.total_msat() - self.lsp_msat
    }

    /// The fee the LSP pays for this commitment, in sat.
    pub(crate) fn fee_sat(&self) -> u64 {
        fee_sat(self.htlcs.len())
    }

    /// What either side can still send, in msat: all but its reserve and, on the LSP's side, the
    /// fee of the largest commitment.
    pub(crate) fn spendable_msat(&self, from: Toward) -> u64 {
        let reserve = self.total_msat() / RESERVE_DIVISOR;
        match from {
            Toward::Member => self
                .lsp_msat
                .saturating_sub(reserve + fee_sat(MAX_HTLCS) * 1_000),
            Toward::Lsp => self.member_msat.saturating_sub(reserve),
        }
    }

    /// The state after a change; `None` if it cannot follow.
    pub(crate) fn after(&self, change: &Change) -> Option<Balances> {
        let mut next = self.clone();
        next.number += 1;
        match change {
            Change::Add(htlc) => {
                let fits = self.htlcs.len() < MAX_HTLCS
                    && self.htlc(&htlc.hash).is_none()
                    && htlc.amount_msat <= self.spendable_msat(htlc.toward);
                if !fits {
                    return None;
                }
                match htlc.toward {
                    Toward::Member => next.lsp_msat -= htlc.amount_msat,
                    Toward::Lsp => next.member_msat -= htlc.amount_msat,
                }
                next.htlcs.push(htlc.clone());
            }
            Change::Settle(preimage) => {
                let htlc = next.take(&hash(preimage))?;
                match htlc.toward {
                    Toward::Member => next.member_msat += htlc.amount_msat,
                    Toward::Lsp => next.lsp_msat += htlc.amount_msat,
                }
            }
            Change::Cancel(hash) => {
                let htlc = next.take(hash)?;
                match htlc.toward {
                    Toward::Member => next.lsp_msat += htlc.amount_msat,
                    Toward::Lsp => next.member_msat += htlc.amount_msat,
                }
            }
        }
        Some(next)
    }

    fn take(&mut self, hash: &[u8; 32]) -> Option<Htlc> {
        let index = self.htlcs.iter().position(|htlc| htlc.hash == *hash)?;
        Some(self.htlcs.remove(index))
    }
}

fn fee_sat(htlcs: usize) -> u64 {
    (COMMITMENT_WEIGHT + HTLC_WEIGHT * htlcs as u64) * COMMITMENT_SAT_PER_KW / 1_000
}

pub(crate) fn hash(preimage: &[u8; 32]) -> [u8; 32] {
    sha256::Hash::hash(preimage).to_byte_array()
}

/// How far a channel has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The slot may be opened.
    Agreed,
    /// LSP: `funding_created` is about to leave, there is no second one.
    Committed,
    /// The other side's commitment signature is durable.
    Held,
    /// Its leaf is of an older epoch: nothing is paid in it any more.
    Retired,
    /// Closed or given up.
    Over,
}

/// One end's record of a slot's channel.
#[derive(Debug, Clone)]
pub(crate) struct Channel {
    pub(crate) agreed: SlotChannel,
    pub(crate) stage: Stage,
    pub(crate) balances: Balances,
    /// LSP: the change that is under way.
    pub(crate) proposed: Option<Change>,
    /// Preimages this end knows, by hash: a member's own invoices, an LSP's payments elsewhere.
    pub(crate) preimages: BTreeMap<[u8; 32], [u8; 32]>,
    /// Member: preimages that left. LSP: those that arrived.
    pub(crate) revealed: BTreeSet<[u8; 32]>,
    /// Member: payments it asked for.
    pub(crate) asked: BTreeSet<[u8; 32]>,
    /// Member: a commitment with the LSP's signature was ever durable.
    pub(crate) signed: bool,
}

impl Channel {
    pub(crate) fn new(agreed: SlotChannel) -> Channel {
        Channel {
            balances: Balances::open(&agreed),
            agreed,
            stage: Stage::Agreed,
            proposed: None,
            preimages: BTreeMap::new(),
            revealed: BTreeSet::new(),
            asked: BTreeSet::new(),
            signed: false,
        }
    }

    /// How many HTLCs of the commitment have a preimage that is known.
    pub(crate) fn claimable(&self) -> usize {
        let htlcs = self.balances.htlcs.iter();
        htlcs
            .filter(|htlc| self.preimages.contains_key(&htlc.hash))
            .count()
    }

    /// Whether the other end says it is the same channel.
    pub(crate) fn matches(&self, other: &SlotChannel) -> bool {
        self.agreed.outpoint == other.outpoint
            && self.agreed.capacity == other.capacity
            && self.agreed.push_msat == other.push_msat
            && self.agreed.script_pubkey == other.script_pubkey
    }
}

/// Which of a place's channels one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The leaf's own in the first epoch.
    First,
    /// The leaf's own in a later one.
    Moved,
    /// Bought out of stock.
    Bought,
}

impl Kind {
    pub(crate) fn of(id: &ChannelRef) -> Kind {
        match (id.version, id.seq & 0xffff) {
            (0, 0) => Kind::First,
            (_, 0) => Kind::Moved,
            _ => Kind::Bought,
        }
    }
}

/// What the two ends say to each other; in reality these are Lightning's own messages.
#[derive(Debug, Clone)]
pub(crate) enum Talk {
    /// LSP: `funding_created`.
    Created(Box<SlotChannel>),
    /// Member: `funding_signed`; the commitment is durable.
    Signed,
    /// Either: no such channel, or not any more.
    Gone,
    /// LSP: a commitment with this change.
    Propose { number: u64, change: Change },
    /// Member: that commitment is durable, the one before revoked.
    Accept { number: u64 },
    /// Member: not now, or not this.
    Decline { number: u64 },
    /// Member: an HTLC's preimage.
    Reveal([u8; 32]),
    /// Member: pay this.
    Pay { amount_msat: u64, hash: [u8; 32] },
}
