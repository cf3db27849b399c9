//! One party: what is on its disk, and what a crash takes from it.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::secp256k1::PublicKey;
use bitcoin::{OutPoint, Transaction, Txid};
use superscalar_factory::coordinator::{self, Coordinator, FactoryPlan};
use superscalar_factory::effect::{Bill, ChannelRef, Effect, SlotRef};
use superscalar_factory::epoch::EpochStage;
use superscalar_factory::exit::stale::StaleSweep;
use superscalar_factory::exit::{Goal, SignedPath};
use superscalar_factory::journal::{Record, ReplayError};
use superscalar_factory::member::{self, Member};
use superscalar_factory::message::{Attempt, Message, SaleId};
use superscalar_factory::sale;
use superscalar_factory::stock::StockChain;

use crate::channel::{Channel, Kind, Stage};

/// Who something belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    Lsp,
    Wallet(u16),
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Who::Lsp => f.write_str("LSP"),
            Who::Wallet(number) => write!(f, "wallet {number}"),
        }
    }
}

/// Whether a party keeps to the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Character {
    Honest,
    Hostile,
}

/// A member's place in a factory.
pub(crate) type Place = (Attempt, u16);

pub(crate) fn place_of(id: &ChannelRef) -> Place {
    (id.slot.attempt, id.slot.slot)
}

pub(crate) fn slot_of(place: &Place) -> SlotRef {
    let (attempt, slot) = *place;
    SlotRef { attempt, slot }
}

/// What survives a crash.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    pub(crate) journals: BTreeMap<Attempt, Vec<Record>>,
    pub(crate) channels: BTreeMap<ChannelRef, Channel>,
    /// Member: the version of each place's path, where it is not the first.
    pub(crate) versions: BTreeMap<Place, u32>,
    /// Payments for sales, by hash: those that were made, or at the LSP those that arrived.
    pub(crate) payments: BTreeMap<[u8; 32], u64>,
    /// What a member has begun to leave, and how.
    pub(crate) exits: BTreeMap<Attempt, Goal>,
    /// LSP: fundings whose coins are spoken for.
    pub(crate) reserved: BTreeMap<Txid, Transaction>,
}

/// Where a role stands in all it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) phase: &'static str,
    pub(crate) epoch: Option<EpochStage>,
    pub(crate) sale: Option<sale::Stage>,
}

impl Standing {
    /// Whether a role that stood here is where it must be when it is back.
    pub(crate) fn resumes_as(&self, who: Who, now: &Standing) -> bool {
        // That its funding is on chain after all it hears only now.
        let funded = matches!(self.phase, "committed" | "funding" | "published");
        let told_later = funded && matches!(now.phase, "dormant" | "unfunded");
        let phase = told_later || Role::resumes_at(who, self.phase) == now.phase;
        let epoch = match self.epoch {
            // What is not written down is over.
            Some(EpochStage::Preparing) => None,
            other => other,
        };
        phase && epoch == now.epoch && self.sale == now.sale
    }
}

/// One role of a party.
#[derive(Debug)]
pub(crate) enum Role {
    Coordinator(Box<Coordinator>),
    Member(Box<Member>),
}

impl Role {
    /// The role a journal describes.
    pub(crate) fn replay(
        who: Who,
        seed: &[u8; 32],
        records: &[Record],
        tip: u32,
    ) -> Result<(Role, Vec<Effect>), ReplayError> {
        Ok(match who {
            Who::Lsp => {
                let (role, effects) = Coordinator::replay(seed, records, tip)?;
                (Role::Coordinator(Box::new(role)), effects)
            }
            Who::Wallet(_) => {
                let (role, effects) = Member::replay(seed, records, tip)?;
                (Role::Member(Box::new(role)), effects)
            }
        })
    }

    pub(crate) fn phase(&self) -> &'static str {
        match self {
            Role::Coordinator(role) => role.phase(),
            Role::Member(role) => role.phase(),
        }
    }

    /// Where a role that stood at `phase` must be after a restart: what had not left is over,
    /// because its nonces are gone; what had is where it was.
    pub(crate) fn resumes_at(who: Who, phase: &'static str) -> &'static str {
        match (who, phase) {
            (_, "joined" | "signed" | "opening" | "gathering" | "signing") => "ended",
            // An LSP has not asked for the coins it will need; a member has its whole path.
            (Who::Lsp, "funding") => "ended",
            (Who::Lsp, "active") => "published",
            (_, phase) => phase,
        }
    }

    pub(crate) fn is_active(&self) -> bool {
        match self {
            Role::Coordinator(role) => role.is_active(),
            Role::Member(role) => role.is_active(),
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        match self {
            Role::Coordinator(role) => role.ended().is_some(),
            Role::Member(role) => role.ended().is_some(),
        }
    }

    /// Whether a round is running that silence can end.
    pub(crate) fn waits(&self) -> bool {
        match self {
            Role::Coordinator(role) => role.awaits_members(),
            Role::Member(role) => matches!(role.phase(), "joined" | "signed" | "opening"),
        }
    }

    pub(crate) fn message(&mut self, from: PublicKey, message: Message) -> Vec<Effect> {
        match self {
            Role::Coordinator(role) => role.handle(coordinator::Input::Message { from, message }),
            Role::Member(role) => role.handle(member::Input::Message(message)),
        }
    }

    pub(crate) fn connected(&mut self, peer: PublicKey) -> Vec<Effect> {
        match self {
            Role::Coordinator(role) => role.handle(coordinator::Input::Connected(peer)),
            Role::Member(role) => role.handle(member::Input::Connected),
        }
    }

    pub(crate) fn height(&mut self, height: u32) -> Vec<Effect> {
        match self {
            Role::Coordinator(role) => role.handle(coordinator::Input::Height(height)),
            Role::Member(role) => role.handle(member::Input::Height(height)),
        }
    }

    pub(crate) fn funding_confirmed(&mut self, tx: Transaction, height: u32) -> Vec<Effect> {
        match self {
            Role::Coordinator(role) => role.handle(coordinator::Input::FundingConfirmed { height }),
            Role::Member(role) => role.handle(member::Input::FundingConfirmed { tx, height }),
        }
    }

    pub(crate) fn funding_reorged(&mut self) -> Vec<Effect> {
        match self {
            Role::Coordinator(role) => role.handle(coordinator::Input::FundingReorged),
            Role::Member(role) => role.handle(member::Input::FundingReorged),
        }
    }

    pub(crate) fn timed_out(&mut self) -> Vec<Effect> {
        match self {
            Role::Coordinator(role) => role.handle(coordinator::Input::TimedOut),
            Role::Member(role) => role.handle(member::Input::TimedOut),
        }
    }

    pub(crate) fn channel_held(&mut self, id: ChannelRef) -> Vec<Effect> {
        match (self, Kind::of(&id)) {
            (Role::Coordinator(role), Kind::First) => {
                role.handle(coordinator::Input::ChannelHeld(id.slot.slot))
            }
            (Role::Coordinator(role), Kind::Moved) => {
                role.handle(coordinator::Input::MovedHeld(id))
            }
            (Role::Coordinator(role), Kind::Bought) => {
                role.handle(coordinator::Input::BoughtHeld(id))
            }
            (Role::Member(role), Kind::First) => role.handle(member::Input::ChannelHeld),
            (Role::Member(role), Kind::Moved) => role.handle(member::Input::MovedHeld(id)),
            (Role::Member(role), Kind::Bought) => role.handle(member::Input::BoughtHeld(id)),
        }
    }

    pub(crate) fn channel_lost(&mut self, id: ChannelRef) -> Vec<Effect> {
        match (self, Kind::of(&id)) {
            (Role::Coordinator(role), Kind::First) => {
                role.handle(coordinator::Input::ChannelLost(id.slot.slot))
            }
            (Role::Coordinator(role), Kind::Moved) => {
                role.handle(coordinator::Input::MovedLost(id))
            }
            (Role::Member(role), Kind::First) => role.handle(member::Input::ChannelLost),
            (Role::Member(role), Kind::Moved) => role.handle(member::Input::MovedLost(id)),
            (Role::Coordinator(role), Kind::Bought) => {
                role.handle(coordinator::Input::BoughtLost(id))
            }
            (Role::Member(role), Kind::Bought) => role.handle(member::Input::BoughtLost(id)),
        }
    }

    /// Whether a channel of the newest epoch is no sale's, or that sale was delivered.
    pub(crate) fn has_delivered(&self, id: &ChannelRef) -> bool {
        let links = |chain: Option<&StockChain>| chain.map_or(0, |chain| chain.links().len());
        let delivered = match self {
            Role::Coordinator(role) => links(role.stock_chain(id.slot.slot).as_ref()),
            Role::Member(role) => links(role.stock_chain()),
        };
        Kind::of(id) != Kind::Bought || delivered >= id.seq as usize
    }

    pub(crate) fn tree_seen(&mut self) -> Vec<Effect> {
        match self {
            Role::Coordinator(role) => role.handle(coordinator::Input::TreeSeen),
            Role::Member(role) => role.handle(member::Input::TreeSeen),
        }
    }

    pub(crate) fn epoch_timed_out(&mut self) -> Vec<Effect> {
        match self {
            Role::Coordinator(role) => role.handle(coordinator::Input::EpochTimedOut),
            Role::Member(role) => role.handle(member::Input::EpochTimedOut),
        }
    }

    pub(crate) fn epoch_randomness(&mut self, bytes: [u8; 32]) -> Vec<Effect> {
        match self {
            Role::Coordinator(role) => role.handle(coordinator::Input::EpochRandomness(bytes)),
            Role::Member(role) => role.handle(member::Input::EpochRandomness(bytes)),
        }
    }

    /// The version of the path to a place.
    pub(crate) fn version(&self, slot: u16) -> u32 {
        match self {
            Role::Coordinator(role) => role.version(slot),
            Role::Member(role) => role.version(),
        }
    }

    /// Where the role stands.
    pub(crate) fn stands(&self) -> Standing {
        let (epoch, sale) = match self {
            Role::Coordinator(_) => (None, None),
            Role::Member(role) => (role.epoch_stage(), role.sale_stage()),
        };
        Standing {
            phase: self.phase(),
            epoch,
            sale,
        }
    }
}

/// A path as it can be read from disk, kept so that it need not be read again.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) path: SignedPath,
    pub(crate) watched: Vec<OutPoint>,
    /// Spends of stock of older epochs.
    pub(crate) sweeps: Vec<StaleSweep>,
}

/// A place that comes to rest.
#[derive(Debug, Clone, Default)]
pub(crate) struct Frozen {
    pub(crate) channels: BTreeSet<ChannelRef>,
    pub(crate) told: bool,
}

/// What a crash takes away.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub(crate) roles: BTreeMap<Attempt, Role>,
    /// Channels that may carry payments.
    pub(crate) open: BTreeSet<ChannelRef>,
    /// Channels the roles hold this life's channel layer to.
    pub(crate) agreed: BTreeSet<ChannelRef>,
    /// Places whose channels come to rest, those channels, and whether the role was told of it.
    pub(crate) frozen: BTreeMap<SlotRef, Frozen>,
    /// What channels of a place may hold, in millisatoshi.
    pub(crate) limbo: BTreeMap<SlotRef, u64>,
    /// Member: what it was quoted and may accept.
    pub(crate) quoted: BTreeMap<Attempt, SaleId>,
    /// Member: what it owes.
    pub(crate) bills: BTreeMap<ChannelRef, Bill>,
    /// Trees that the role knows to be open.
    pub(crate) opened: BTreeSet<Attempt>,
    /// LSP: epochs that hang.
    pub(crate) hanging: BTreeSet<Attempt>,
    /// Fundings that are looked for, and the height last told.
    pub(crate) watched: BTreeMap<Attempt, (Txid, Option<u32>)>,
    /// Transactions to be sent again with every block until they are confirmed.
    pub(crate) publishing: Vec<Transaction>,
    /// Height of the chain when the party last looked at it.
    pub(crate) tip: u32,
    /// Version of the chain then.
    pub(crate) seen: u64,
    /// LSP: what it wants to build, until it is published.
    pub(crate) plans: BTreeMap<Attempt, FactoryPlan>,
    pub(crate) kept: BTreeMap<Place, Kept>,
}

impl Live {
    /// A channel is not used any more.
    pub(crate) fn forget(&mut self, id: &ChannelRef) {
        self.open.remove(id);
        let left = self.frozen.get_mut(&id.slot).map(|frozen| {
            frozen.channels.remove(id);
            frozen.channels.len()
        });
        if left == Some(0) {
            self.frozen.remove(&id.slot);
        }
    }
}

/// One party.
#[derive(Debug)]
pub(crate) struct Party {
    pub(crate) node: PublicKey,
    pub(crate) seed: [u8; 32],
    pub(crate) character: Character,
    pub(crate) disk: Disk,
    /// `None` while it is not running.
    pub(crate) live: Option<Live>,
    /// Effects it will still carry out before it is killed.
    pub(crate) fuse: Option<u32>,
    /// How often it was started.
    pub(crate) life: u32,
    /// Never comes back.
    pub(crate) gone: bool,
    /// Where each role stood when the party died with nothing left to do.
    pub(crate) stood: BTreeMap<Attempt, Standing>,
}

impl Party {
    pub(crate) fn new(node: PublicKey, seed: [u8; 32], character: Character) -> Party {
        Party {
            node,
            seed,
            character,
            disk: Disk::default(),
            live: None,
            fuse: None,
            life: 0,
            gone: false,
            stood: BTreeMap::new(),
        }
    }

    pub(crate) fn is_honest(&self) -> bool {
        self.character == Character::Honest
    }

    pub(crate) fn is_live(&self) -> bool {
        self.live.is_some()
    }

    pub(crate) fn role(&self, attempt: &Attempt) -> Option<&Role> {
        self.live.as_ref()?.roles.get(attempt)
    }

    pub(crate) fn role_mut(&mut self, attempt: &Attempt) -> Option<&mut Role> {
        self.live.as_mut()?.roles.get_mut(attempt)
    }

    pub(crate) fn is_open(&self, id: &ChannelRef) -> bool {
        self.live
            .as_ref()
            .is_some_and(|live| live.open.contains(id))
    }

    /// Whether nothing new may come into a channel.
    pub(crate) fn is_frozen(&self, id: &ChannelRef) -> bool {
        let frozen = self
            .live
            .as_ref()
            .and_then(|live| live.frozen.get(&id.slot));
        frozen.is_some_and(|frozen| frozen.channels.contains(id))
    }

    /// The channels of a place.
    pub(crate) fn channels(
        &self,
        place: &Place,
    ) -> impl Iterator<Item = (&ChannelRef, &Channel)> + use<'_> {
        let place = *place;
        let all = self.disk.channels.iter();
        all.filter(move |(id, _)| place_of(id) == place)
    }

    /// Member: the channels that its money is in.
    pub(crate) fn counted(
        &self,
        place: &Place,
    ) -> impl Iterator<Item = (&ChannelRef, &Channel)> + use<'_> {
        let version = self.disk.versions.get(place).copied().unwrap_or(0);
        self.channels(place)
            .filter(move |(id, channel)| id.version == version && channel.stage == Stage::Held)
    }

    pub(crate) fn records(&self, attempt: &Attempt) -> &[Record] {
        self.disk.journals.get(attempt).map_or(&[], Vec::as_slice)
    }
}
