//! What honest parties have done so far, as far as a promise is about more than one moment: which
//! nonce signed what, what was said in which life, what a record must precede.
//!
//! It sees what a role asks for before a hostile world twists it, and what is really on disk.

mod later;

use std::collections::BTreeMap;

use bitcoin::{Amount, OutPoint, Transaction};
use superscalar_factory::effect::ChannelRef;
use superscalar_factory::journal::Record;
use superscalar_factory::message::{Attempt, Message, NonceBytes, PartialBytes, TermsMessage};
use superscalar_factory::scripts::ANCHOR_VALUE;
use superscalar_factory::signing::verify;
use superscalar_factory::tree::Role as TxRole;
use superscalar_factory::tree::Tree;

use crate::channel::{Channel, Stage};
use crate::invariants::{Invariant, Violation, ensure};
use crate::party::{Party, Place, Role, Who};

/// The memory of the checks.
#[derive(Debug, Default)]
pub(crate) struct Observer {
    /// Whose nonce it is.
    nonces: BTreeMap<NonceBytes, (Who, Place)>,
    /// What it signed.
    partials: BTreeMap<NonceBytes, PartialBytes>,
    joined: BTreeMap<(Who, Attempt), Joined>,
    terms: BTreeMap<Place, (TermsMessage, u32)>,
    published: BTreeMap<Attempt, OutPoint>,
    /// What nonces of sales and epochs were offered for.
    offered: BTreeMap<NonceBytes, later::Offer>,
    /// Nonces of the last epoch somebody was ready for.
    ready: BTreeMap<(Who, Attempt), Vec<NonceBytes>>,
    rounds: BTreeMap<(Who, [u8; 32]), NonceBytes>,
    /// What was signed for each stock output.
    sales: BTreeMap<(Who, OutPoint), Vec<u8>>,
    /// What was signed for each epoch of an output.
    states: BTreeMap<(Who, OutPoint, u8), [u8; 32]>,
    /// The channels of a place when it was last signed away.
    departing: BTreeMap<(Who, Attempt), Vec<ChannelRef>>,
}

#[derive(Debug)]
struct Joined {
    slot: u16,
    nonces: Vec<NonceBytes>,
    life: u32,
}

impl Observer {
    /// Whether an honest LSP has published the factory's funding.
    pub(crate) fn is_published(&self, attempt: &Attempt) -> bool {
        self.published.contains_key(attempt)
    }

    /// The channels that a member had when it last signed its place away.
    pub(crate) fn departing(&self, who: Who, attempt: &Attempt) -> Option<&[ChannelRef]> {
        self.departing.get(&(who, *attempt)).map(Vec::as_slice)
    }

    /// An honest party says something.
    pub(crate) fn says(
        &mut self,
        who: Who,
        party: &Party,
        to: u16,
        message: &Message,
    ) -> Result<(), Violation> {
        let Some(attempt) = message.attempt() else {
            return Ok(());
        };
        announced(who, party, &attempt, message)?;
        match message {
            Message::Join(join) => {
                let slot = match party.role(&attempt) {
                    Some(Role::Member(member)) => member.slot().slot,
                    _ => return Ok(()),
                };
                let (life, nonces) = (party.life, join.nonces.clone());
                for nonce in &nonces {
                    let owner = (who, (attempt, slot));
                    let first = *self.nonces.entry(*nonce).or_insert(owner);
                    ensure(first == owner, Invariant::Nonces, || {
                        format!("{who} offers a nonce of {:?} again", name(&first.1.0))
                    })?;
                }
                let joined = Joined { slot, nonces, life };
                let first = self.joined.entry((who, attempt)).or_insert(joined);
                ensure(
                    first.life == life && first.nonces == join.nonces,
                    Invariant::Nonces,
                    || format!("{who} joins {} twice", name(&attempt)),
                )
            }
            Message::PartialSigs(sigs) => self.signs(who, party, &attempt, &sigs.partials),
            Message::RootPartial(root) => {
                let Some(joined) = self.joined.get(&(who, attempt)) else {
                    return Ok(());
                };
                let nonce = joined.nonces.last().copied();
                nonce.map_or(Ok(()), |nonce| self.signed(who, nonce, root.partial))
            }
            Message::Terms(terms) => self.tells_terms(party, (attempt, to), terms),
            Message::NodeSigs(_) => {
                let life = self.terms.get(&(attempt, to)).map(|(_, life)| *life);
                ensure(life == Some(party.life), Invariant::Nonces, || {
                    format!("the LSP signs {} in another life", name(&attempt))
                })
            }
            _ => self.says_later(who, party, &attempt, message),
        }
    }

    fn signs(
        &mut self,
        who: Who,
        party: &Party,
        attempt: &Attempt,
        partials: &[PartialBytes],
    ) -> Result<(), Violation> {
        let Some(joined) = self.joined.get(&(who, *attempt)) else {
            return Ok(());
        };
        ensure(joined.life == party.life, Invariant::Nonces, || {
            format!(
                "{who} signs in its life {} what it joined as slot {} in {}",
                party.life, joined.slot, joined.life
            )
        })?;
        let pairs: Vec<_> = joined
            .nonces
            .iter()
            .copied()
            .zip(partials.iter().copied())
            .collect();
        pairs
            .into_iter()
            .try_for_each(|(nonce, partial)| self.signed(who, nonce, partial))
    }

    fn signed(
        &mut self,
        who: Who,
        nonce: NonceBytes,
        partial: PartialBytes,
    ) -> Result<(), Violation> {
        let first = *self.partials.entry(nonce).or_insert(partial);
        ensure(first == partial, Invariant::Nonces, || {
            format!("a nonce of {who} signed twice")
        })
    }

    fn tells_terms(
        &mut self,
        party: &Party,
        place: Place,
        terms: &TermsMessage,
    ) -> Result<(), Violation> {
        let life = party.life;
        let first = self.terms.entry(place).or_insert((terms.clone(), life));
        ensure(
            first.0 == *terms && first.1 == life,
            Invariant::NoEquivocation,
            || format!("other terms of {} for slot {}", name(&place.0), place.1),
        )
    }

    /// An honest LSP publishes a funding.
    pub(crate) fn publishes(
        &mut self,
        party: &Party,
        attempt: &Attempt,
        tx: &Transaction,
    ) -> Result<(), Violation> {
        let records = party.records(attempt);
        let last = |record: &Record| matches!(record, Record::LspPublished(_));
        ensure(records.iter().any(last), Invariant::FundedLast, || {
            format!("{} is published before the record of it", name(attempt))
        })?;
        let txid = tx.compute_txid();
        let outpoint = OutPoint { txid, vout: 0 };
        let first = *self.published.entry(*attempt).or_insert(outpoint);
        ensure(first == outpoint, Invariant::NoEquivocation, || {
            format!("{} has two fundings", name(attempt))
        })
    }
}

/// The records that must be on disk before `message` leaves.
fn announced(
    who: Who,
    party: &Party,
    attempt: &Attempt,
    message: &Message,
) -> Result<(), Violation> {
    let records = party.records(attempt);
    let has = |wanted: fn(&Record) -> bool| records.iter().any(wanted);
    let durable = match message {
        Message::Join(_) => has(|record| matches!(record, Record::MemberJoined(_))),
        Message::PartialSigs(_) => has(|record| matches!(record, Record::MemberSigned(_))),
        Message::PathAck(_) => has(|record| matches!(record, Record::MemberPath(_))),
        Message::RootPartial(said) => {
            let held = |(id, channel): (&ChannelRef, &Channel)| {
                let there = matches!(channel.stage, Stage::Held | Stage::Over);
                id.slot.attempt == *attempt && there
            };
            has(|record| matches!(record, Record::MemberPath(_)))
                && party.disk.channels.iter().any(held)
                && records.iter().any(|record| match record {
                    Record::MemberRootPartial(body) => body.partial == said.partial,
                    _ => false,
                })
        }
        Message::RootAck(_) => has(|record| matches!(record, Record::MemberRootSig(_))),
        Message::Invite(_) => has(|record| matches!(record, Record::LspGathering(_))),
        Message::Terms(_) => has(|record| matches!(record, Record::LspTerms(_))),
        Message::NodeSigs(_) | Message::Identity(_) => {
            has(|record| matches!(record, Record::LspNodes(_)))
        }
        Message::RootSig(_) => has(|record| matches!(record, Record::LspRoot(_))),
        _ => later::announced(records, attempt, message),
    };
    ensure(durable, Invariant::DurableFirst, || {
        format!("{who} says message {} before its record", message.number())
    })
}

/// An honest party writes a record after those it has.
pub(crate) fn writes(
    who: Who,
    party: &Party,
    attempt: &Attempt,
    record: &Record,
) -> Result<(), Violation> {
    let before = party.records(attempt);
    // A funding may come and go, and with it what is told of it.
    let again = matches!(
        record,
        Record::Activated(_) | Record::Dormant(_) | Record::Unfunded(_)
    ) || is_later(record);
    let same_kind =
        |other: &&Record| std::mem::discriminant(*other) == std::mem::discriminant(record);
    ensure(
        again || !before.iter().any(|other| same_kind(&other)),
        Invariant::NoEquivocation,
        || format!("{who} writes a second {record:?}"),
    )?;
    match (record, party.role(attempt)) {
        (Record::MemberRootPartial(_), Some(Role::Member(member))) => {
            let Some(tree) = member.tree() else {
                return Ok(());
            };
            payouts(
                tree,
                member.slot().slot,
                &member.invite().capacity,
                member.invite().stock,
            )?;
            let signatures = before.iter().find_map(|record| match record {
                Record::MemberPath(body) => Some(&body.signatures),
                _ => None,
            });
            let order = tree.signing_order(member.slot().slot);
            let valid = |signatures: &Vec<_>| {
                signatures.len() + 1 == order.len()
                    && order.iter().zip(signatures).all(|(name, signature)| {
                        tree.tx(*name)
                            .is_some_and(|tx| verify(&tx.key.output_key(), &tx.sighash, signature))
                    })
            };
            ensure(
                signatures.is_some_and(valid),
                Invariant::Recoverability,
                || format!("{who} signs the root without a valid path on disk"),
            )
        }
        (Record::LspTerms(_), Some(Role::Coordinator(role))) => {
            let Some(built) = role.built() else {
                return Ok(());
            };
            let owed: Amount = built
                .terms
                .slots
                .iter()
                .map(|slot| slot.entitlement())
                .sum();
            conserved(&built.tree, owed)
        }
        _ => Ok(()),
    }
}

/// Whether a record is of a sale or a new epoch, of which there may be many.
fn is_later(record: &Record) -> bool {
    !matches!(
        record,
        Record::MemberJoined(_)
            | Record::MemberSigned(_)
            | Record::MemberPath(_)
            | Record::MemberRootPartial(_)
            | Record::MemberRootSig(_)
            | Record::LspGathering(_)
            | Record::LspTerms(_)
            | Record::LspNodes(_)
            | Record::LspRoot(_)
            | Record::LspPublished(_)
            | Record::Ended(_)
    )
}

/// Every distribution on the path pays the member all it could be entitled to.
fn payouts(tree: &Tree, slot: u16, capacity: &Amount, stock: Amount) -> Result<(), Violation> {
    for node in tree.nodes() {
        let Some(distribution) = &node.distribution else {
            continue;
        };
        let vout = usize::from(slot - node.node.slots.start);
        let paid = distribution.tx.output.get(vout).map(|output| output.value);
        ensure(paid >= Some(*capacity + stock), Invariant::Payouts, || {
            format!("node {:?} pays slot {slot} {paid:?}", node.node.id)
        })?;
    }
    Ok(())
}

/// The whole tree holds what it owes, its fees and its anchors, and nothing else.
fn conserved(tree: &Tree, owed: Amount) -> Result<(), Violation> {
    let feerate = u64::from(tree.header.tree_feerate);
    let mut costs = Amount::ZERO;
    for tx in tree.transactions() {
        let parent = tx.tx.input[0].previous_output;
        let spent = match parent == tree.funding {
            true => Some(&tree.funding_output),
            false => tree
                .transactions()
                .find(|other| other.txid() == parent.txid)
                .and_then(|other| other.tx.output.get(parent.vout as usize)),
        };
        ensure(spent == Some(&tx.prevout), Invariant::Conservation, || {
            format!("the {} does not spend what it says", tx.name)
        })?;
        let least = Amount::from_sat(feerate * tx.vsize() as u64);
        ensure(tx.fee() >= least, Invariant::Conservation, || {
            format!("the {} pays {} for {} vB", tx.name, tx.fee(), tx.vsize())
        })?;
        if tx.name.role != TxRole::Distribution {
            costs += tx.fee() + ANCHOR_VALUE;
        }
    }
    ensure(
        tree.funding_output.value == owed + costs,
        Invariant::Conservation,
        || {
            format!(
                "{} funded for {owed} and {costs}",
                tree.funding_output.value
            )
        },
    )
}

/// A short name for an attempt.
pub(crate) fn name(attempt: &Attempt) -> String {
    let [a, b, ..] = attempt.instance.0;
    format!("{a:02x}{b:02x}.{}", attempt.number)
}
