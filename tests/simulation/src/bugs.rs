//! Bugs that can be planted, to see that the checks catch them. None is in the core: they stand for
//! mistakes that a role, a host or a disk could make.

use superscalar_factory::journal::{MemberPath, MemberSigned, Record};

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Bug {
    /// A member signs the root before its path is on disk.
    RootPartialBeforePath,
    /// The LSP publishes the funding as soon as the root is signed.
    FundingBeforeAcks,
    /// A crash loses a member's last records: the root signature and what came after it.
    LostRecord,
    /// After a restart a member draws the random numbers of before.
    SameRandomness,
    /// A member's disk gives the terms back with every delay too short.
    DelayShortByOne,
    /// A member's disk gives the value of a neighbour back with one satoshi more.
    AmountOffByOne,
    /// A member books one satoshi too many.
    BalanceOffByOne,
    /// A member reveals a preimage before the HTLC it pays for is on disk.
    EarlyPreimage,
    /// A member takes a funding in the mempool for a buried one.
    UnburiedCounts,
    /// A member writes down signatures that it has not checked.
    UncheckedPath,
    /// The LSP frees the coins of a funding it has published.
    CoinsReleased,
    /// The LSP forgets, in a crash, that it reserved coins for a factory that never came to be.
    CoinsLocked,
    /// A refused message ends a member's attempt.
    RefusalChangesState,
    /// An exit publishes each state one block before its delay is over.
    ExitTooEarly,
    /// A member sends its exit's first transaction without writing down that it leaves.
    ExitNotWritten,
    /// A member stays in a factory of which the LSP may take all that is not on chain at its end.
    StaysToTheEnd,
    /// For sales and epochs the same random numbers are drawn again and again.
    SameSaleRandomness,
    /// What is signed of a sale is not written down.
    SaleNotWritten,
    /// A new state is signed for before that is written down.
    StateNotWritten,
    /// The final signature of a new epoch is not written down.
    EpochNotWritten,
    /// A member switches without writing down what revokes the old stock.
    PreimagesNotWritten,
    /// A member's disk loses the signature of what it bought.
    SaleLost,
    /// A member's disk loses a new epoch.
    EpochLost,
    /// A member takes payments while its channels come to rest.
    FrozenIgnored,
    /// A member in limbo takes more than completion would give it.
    LimboIgnored,
    /// The LSP uses a bought channel that is not paid for.
    UnpaidUsed,
    /// A member does not publish what it bought.
    SalesStayOffChain,
    /// A member that does not leave leaves kickoffs unanswered.
    KickoffsUnanswered,
    /// Watchtowers acknowledge, look, and publish nothing.
    TowerOnlyAcknowledges,
    /// Watchtowers publish what their members' trees need, and take no stock of older epochs.
    TowerTakesNoStock,
    /// A member's host lets it lose whatever is left in the channels of a place it gives up.
    ForgoesAnything,
}

impl Bug {
    /// Whether it can show only while an epoch is on its way: in a world where that is most of the
    /// time it does so in a few seeds.
    pub(crate) fn shows_in_epochs(self) -> bool {
        matches!(
            self,
            Bug::StateNotWritten
                | Bug::EpochNotWritten
                | Bug::PreimagesNotWritten
                | Bug::EpochLost
                | Bug::FrozenIgnored
                | Bug::LimboIgnored
                | Bug::TowerOnlyAcknowledges
                | Bug::ForgoesAnything
        )
    }

    /// What reaches the disk instead of `record`.
    pub(crate) fn written(self, record: Record) -> Option<Record> {
        match (self, record) {
            (Bug::RootPartialBeforePath, Record::MemberPath(_)) => None,
            (Bug::UncheckedPath, Record::MemberPath(MemberPath { mut signatures })) => {
                if let [first, .., last] = signatures.as_mut_slice() {
                    std::mem::swap(first, last);
                }
                Some(MemberPath { signatures }.into())
            }
            (Bug::SaleNotWritten, Record::MemberSaleSigned(_))
            | (Bug::StateNotWritten, Record::MemberEpochCommitted(_))
            | (Bug::EpochNotWritten, Record::EpochSigned(_))
            | (Bug::PreimagesNotWritten, Record::MemberEpochRevealed(_)) => None,
            (_, record) => Some(record),
        }
    }

    /// What a disk gives back after a restart.
    pub(crate) fn read(self, records: &mut Vec<Record>) {
        match self {
            Bug::LostRecord => records.retain(|record| {
                !matches!(record, Record::MemberRootSig(_) | Record::Activated(_))
            }),
            Bug::DelayShortByOne => {
                if let Some(terms) = signed(records) {
                    terms.terms.header.timing.step -= 1;
                }
            }
            Bug::AmountOffByOne => {
                let facts = signed(records).map(|signed| &mut signed.terms.facts);
                if let Some((_, value)) = facts.and_then(|facts| facts.siblings.first_mut()) {
                    *value += bitcoin::Amount::ONE_SAT;
                }
            }
            Bug::SaleLost => {
                drop_from(records, |record| matches!(record, Record::MemberSaleSig(_)))
            }
            Bug::EpochLost => drop_from(records, |record| matches!(record, Record::EpochSigned(_))),
            _ => {}
        }
    }
}

/// Loses the last of such records and all after it.
fn drop_from(records: &mut Vec<Record>, lost: impl Fn(&Record) -> bool) {
    if let Some(at) = records.iter().rposition(lost) {
        records.truncate(at);
    }
}

fn signed(records: &mut [Record]) -> Option<&mut MemberSigned> {
    records.iter_mut().find_map(|record| match record {
        Record::MemberSigned(body) => Some(body),
        _ => None,
    })
}
