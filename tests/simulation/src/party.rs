//! One party: what is on its disk, and what a crash takes from it.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::secp256k1::PublicKey;
use bitcoin::{OutPoint, Transaction, Txid};
use superscalar_factory::coordinator::{self, Coordinator, FactoryPlan};
use superscalar_factory::effect::Effect;
use superscalar_factory::exit::{Goal, SignedPath};
use superscalar_factory::journal::{Record, ReplayError};
use superscalar_factory::member::{self, Member};
use superscalar_factory::message::{Attempt, Message};

use crate::channel::Channel;

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

/// A channel's place.
pub(crate) type Place = (Attempt, u16);

/// What survives a crash.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    pub(crate) journals: BTreeMap<Attempt, Vec<Record>>,
    pub(crate) channels: BTreeMap<Place, Channel>,
    /// What a member has begun to leave, and how.
    pub(crate) exits: BTreeMap<Attempt, Goal>,
    /// LSP: fundings whose coins are spoken for.
    pub(crate) reserved: BTreeMap<Txid, Transaction>,
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

    pub(crate) fn channel_held(&mut self, slot: u16) -> Vec<Effect> {
        match self {
            Role::Coordinator(role) => role.handle(coordinator::Input::ChannelHeld(slot)),
            Role::Member(role) => role.handle(member::Input::ChannelHeld),
        }
    }

    pub(crate) fn channel_lost(&mut self, slot: u16) -> Vec<Effect> {
        match self {
            Role::Coordinator(role) => role.handle(coordinator::Input::ChannelLost(slot)),
            Role::Member(role) => role.handle(member::Input::ChannelLost),
        }
    }
}

/// A path as it can be read from disk, kept so that it need not be read again.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) path: SignedPath,
    pub(crate) watched: Vec<OutPoint>,
}

/// What a crash takes away.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub(crate) roles: BTreeMap<Attempt, Role>,
    /// Channels that may carry payments.
    pub(crate) open: BTreeSet<Place>,
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
    pub(crate) stood: BTreeMap<Attempt, &'static str>,
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

    pub(crate) fn is_open(&self, place: &Place) -> bool {
        self.live
            .as_ref()
            .is_some_and(|live| live.open.contains(place))
    }

    pub(crate) fn records(&self, attempt: &Attempt) -> &[Record] {
        self.disk.journals.get(attempt).map_or(&[], Vec::as_slice)
    }
}
