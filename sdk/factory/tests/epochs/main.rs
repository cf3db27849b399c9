//! New epochs between an LSP and its members: what happens in which order, what either side can try,
//! and dying at any point of it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "all of this program is tests and what they share"
)]

mod crashes;
mod departures;
mod disagreements;
mod flow;
mod limbo;
mod lost_sales;
mod refusals;
mod stale;
#[path = "../support/mod.rs"]
mod support;
mod untimely;
#[path = "../world/mod.rs"]
mod world;

use std::collections::BTreeSet;

use bitcoin::Amount;
use superscalar_factory::coordinator::FactoryPlan;
use superscalar_factory::effect::{ChannelRef, Event};
use superscalar_factory::exit::SignedPath;
use superscalar_factory::message::Message;
use world::{Party, World};

/// A plan with `states` epochs of every node.
fn plan(members: u16, states: u8) -> FactoryPlan {
    let mut plan = world::plan(members);
    plan.timing.states = states;
    let layers = plan.shape.layers();
    plan.timing = plan.timing.with_least_blocks_early(layers);
    plan
}

fn active(members: u16, states: u8) -> World {
    World::selling(plan(members, states))
}

/// Gives every member's channels something, different for each.
fn endow(world: &mut World) {
    for slot in 0..world.plan.seats.len() as u16 {
        for (place, id) in (1u64..).zip(world.channels(Party::Member(slot), slot)) {
            let msat = 1_000_000 * (u64::from(slot) + 1) + 7 * place;
            world.epochs.balances.insert(id, msat);
        }
    }
}

/// What is the member's, in all channels it uses.
fn balance(world: &World, slot: u16) -> u64 {
    let channels = world.channels(Party::Member(slot), slot);
    let balances = channels
        .iter()
        .filter_map(|id| world.epochs.balances.get(id));
    balances.sum()
}

/// Both sides are in this version of the place's path, and everything bound to hold of it does.
fn agree(world: &World, slot: u16, version: u32) -> SignedPath {
    let (lsp, member) = (world.lsp.as_ref().unwrap(), &world.members[&slot]);
    assert_eq!((lsp.version(slot), member.version()), (version, version));
    assert_eq!(member.epoch_stage(), None);
    assert_eq!(member.limbo_msat(), None);
    let ours = lsp.signed_path(slot).unwrap().unwrap();
    let theirs = member.signed_path().unwrap().unwrap();
    assert_eq!(ours.nodes(), theirs.nodes());
    assert_eq!(ours.sales(), theirs.sales());
    assert_eq!(lsp.stock_chain(slot).as_ref(), member.stock_chain());
    // The payout invariant: what the member is entitled to is what distributions pay.
    let record = &member.path().unwrap().terms().facts.record;
    let cut = member.cut().unwrap();
    if let Some(channel) = cut.channel() {
        assert_eq!(channel.capacity + channel.stock, record.entitlement());
        let stock = member.stock_chain().map(|chain| chain.first().value());
        assert_eq!(stock.unwrap_or(Amount::ZERO), channel.stock);
    }
    // One channel is in use on both sides, all others are retired.
    let live = |who| -> BTreeSet<ChannelRef> {
        let all = world.epochs.activated.iter();
        let own = all.filter(|(by, id)| *by == who && id.slot.slot == slot);
        own.map(|(_, id)| *id).collect()
    };
    assert_eq!(live(Party::Lsp), live(Party::Member(slot)));
    if version > 0 && cut.channel().is_some() {
        assert_eq!(live(Party::Lsp).len(), 1);
        let id = live(Party::Lsp).into_iter().next().unwrap();
        assert_eq!(id.version, version);
        let channel = &world.epochs.moved[&(Party::Lsp, id)];
        assert_eq!(channel.outpoint, theirs.channel_outpoint());
    }
    for who in [Party::Lsp, Party::Member(slot)] {
        assert!(!world.epochs.frozen.contains(&(who, slot)) || cut.channel().is_none());
    }
    theirs
}

fn records(world: &World, who: Party) -> usize {
    world.journal[&who].len()
}

/// The messages said since, by number, once each.
fn said(world: &World, since: usize) -> BTreeSet<u16> {
    let log = world.log[since..].iter();
    log.map(|(_, message)| message.number()).collect()
}

fn events(world: &World, wanted: impl Fn(&Event) -> bool) -> Vec<Party> {
    let found = world.events.iter().filter(|(_, event)| wanted(event));
    found.map(|(who, _)| *who).collect()
}

/// The last message of one kind.
fn last<T>(world: &World, wanted: impl Fn(&Message) -> Option<T>) -> T {
    let mut log = world.log.iter().rev();
    log.find_map(|(_, message)| wanted(message))
        .expect("it was said")
}
