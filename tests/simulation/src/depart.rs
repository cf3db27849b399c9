//! Departures: a member gives its place up and forgoes what is left in its channels, if that is no
//! more than it has agreed to lose. What it forgoes is its LSP's, to the millisatoshi, and nothing
//! else changes hands.

use bitcoin::TxOut;
use superscalar_factory::effect::SlotRef;
use superscalar_factory::exit::SignedPath;
use superscalar_factory::journal::Record;
use superscalar_factory::message::{Attempt, CutOffer};

use crate::invariants::{Invariant, Violation, ensure};
use crate::observer::name;
use crate::party::{Party, Role, Who};
use crate::world::World;

/// No member agrees to lose more.
pub(crate) const MOST_FORGONE_MSAT: u64 = 100_000_000;

/// Whether a member would give its place up: one in five.
pub(crate) fn leaves(attempt: &Attempt, slot: u16) -> bool {
    (u16::from(attempt.instance.0[3]) + slot).is_multiple_of(5)
}

/// The most that a member would lose by that. Its LSP does not know it.
pub(crate) fn forgoes_msat(attempt: &Attempt) -> u64 {
    u64::from(attempt.instance.0[4]) * MOST_FORGONE_MSAT / u64::from(u8::MAX)
}

/// Whether a member has ever signed its place away, so that its LSP may complete that at any time.
pub(crate) fn is_signed_away(records: &[Record]) -> bool {
    let mut departs = false;
    records.iter().any(|record| match record {
        Record::MemberEpochStored(body) => {
            departs = body.cut == CutOffer::Departed;
            false
        }
        Record::MemberEpochCommitted(_) => departs,
        _ => false,
    })
}

/// Whether the newest leaf of a path pays the LSP where its member had a channel.
pub(crate) fn is_departed(path: &SignedPath) -> bool {
    let leaf = path.channel_outpoint();
    let mut states = path.nodes().iter().map(|node| &node.newest().1.state);
    let state = states.find(|state| state.compute_txid() == leaf.txid);
    let output = state.and_then(|state| state.output.get(leaf.vout as usize));
    output.is_some_and(|output| output.script_pubkey == path.header().lsp_payout)
}

impl World {
    /// A member is told that it has left, and what that costs it.
    pub(crate) fn left(
        &mut self,
        who: Who,
        slot: SlotRef,
        forgone_msat: u64,
    ) -> Result<(), Violation> {
        let (attempt, place) = (slot.attempt, (slot.attempt, slot.slot));
        let name = name(&attempt);
        self.counts.forgone += u64::from(forgone_msat > 0);
        self.note(format_args!("{who} leaves {name} and {forgone_msat} msat"));
        let party = self.party(who);
        let had = self.observer.departing(who, &attempt);
        let Some(had) = had.filter(|_| party.is_honest()) else {
            return Ok(());
        };
        let channels = |party: &Party| {
            let channels = had.iter().filter_map(|id| party.disk.channels.get(id));
            channels.cloned().collect::<Vec<_>>()
        };
        let own = channels(party).into_iter();
        let lost: u64 = own.map(|it| it.balances.member_msat).sum();
        let theirs = channels(&self.lsp).into_iter();
        let gained = theirs.map(|it| {
            let all = it.agreed.capacity.to_sat() * 1_000;
            all.saturating_sub(it.balances.lsp_msat)
        });
        let gained: u64 = gained.sum();
        // In limbo some of it may have been spent before an LSP that cheats came back to it.
        let exact = match self.lsp.is_honest() {
            true => lost == forgone_msat && gained == forgone_msat,
            false => lost <= forgone_msat,
        };
        let kept = party.counted(&place).count();
        ensure(exact && kept == 0, Invariant::Conservation, || {
            format!(
                "{who} is told of {forgone_msat} msat in {name} and loses {lost}, its LSP gains \
                 {gained}, {kept} channels are left"
            )
        })?;
        let Some(Role::Member(role)) = party.role(&attempt) else {
            return Ok(());
        };
        let invite = role.invite();
        let due = TxOut {
            value: invite.capacity + invite.stock,
            script_pubkey: invite.header.lsp_payout.clone(),
        };
        let given = role.switched_trees().last().and_then(|tree| {
            let vout = tree.channel_outpoint(slot.slot)?.vout;
            let leaf = tree.leaf(slot.slot)?;
            leaf.state.tx.output.get(vout as usize).cloned()
        });
        ensure(
            given.as_ref() == Some(&due),
            Invariant::Conservation,
            || format!("{who} leaves {due:?} of {name} behind, its LSP has {given:?}"),
        )
    }
}
