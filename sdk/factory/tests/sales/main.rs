//! Selling inbound liquidity between a member and its LSP: what happens in which order, what is
//! answered where nothing is sold, what either side can try, and dying at any point of it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "all of this program is tests and what they share"
)]

mod attacks;
mod crashes;
mod flow;
mod refusals;
#[path = "../world/mod.rs"]
mod world;

use bitcoin::Amount;
use superscalar_factory::effect::Event;
use superscalar_factory::exit::SignedPath;
use superscalar_factory::message::{Message, NoSale, Quote, SaleAccept};
use superscalar_factory::stock::StockChain;
use world::{Party, World};

/// Who buys.
const BUYER: u16 = 1;

fn active(members: u16) -> World {
    World::selling(world::plan(members))
}

/// Both sides hold the same sales, and everything that is bound to hold of them does.
fn agree(world: &World, slot: u16, sales: usize) -> StockChain {
    let member = &world.members[&slot];
    let ours = world.lsp.as_ref().unwrap().stock_chain(slot).unwrap();
    let theirs = member.stock_chain().unwrap();
    assert_eq!(&ours, theirs);
    assert_eq!(ours.links().len(), sales);
    let record = &member.path().unwrap().terms().facts.record;
    let channels: Amount = ours.links().iter().map(|sold| sold.terms().amount).sum();
    let left = ours.newest().map_or(Amount::ZERO, |stock| stock.value());
    assert!(record.entitlement() >= record.capacity + channels + left);
    // All of it is part of what the member leaves with, and the LSP knows as much.
    let path = member.path().unwrap();
    let names = path.tree.signing_order(slot);
    let signatures = names.into_iter().zip(path.signatures.iter().copied());
    let path = SignedPath::new(&path.tree, slot, signatures).unwrap();
    let path = path.with_sales(theirs.clone()).unwrap();
    assert_eq!(path.channel_outpoints().len(), 1 + sales);
    for (place, outpoint) in path.channel_outpoints().into_iter().skip(1).enumerate() {
        let agreed = world.bought.iter();
        let agreed =
            agreed.filter(|((_, id), _)| id.slot.slot == slot && id.seq as usize == place + 1);
        let outpoints: Vec<_> = agreed.map(|(_, channel)| channel.outpoint).collect();
        assert_eq!(outpoints, [outpoint, outpoint]);
    }
    ours
}

fn records(world: &World, who: Party) -> usize {
    world.journal[&who].len()
}

/// The messages said since, by number.
fn said(world: &World, since: usize) -> Vec<u16> {
    world.log[since..]
        .iter()
        .map(|(_, message)| message.number())
        .collect()
}

fn last_quote(world: &World) -> Quote {
    let mut log = world.log.iter().rev();
    let found = log.find_map(|(_, message)| match message {
        Message::Quote(quote) => Some(quote.clone()),
        _ => None,
    });
    found.expect("a quote was said")
}

fn last_accept(world: &World) -> SaleAccept {
    let mut log = world.log.iter().rev();
    let found = log.find_map(|(_, message)| match message {
        Message::SaleAccept(accept) => Some(accept.clone()),
        _ => None,
    });
    found.expect("a quote was accepted")
}

fn last_no_sale(world: &World) -> NoSale {
    match world.log.last() {
        Some((Party::Lsp, Message::NoSale(answer))) => answer.clone(),
        other => panic!("not an answer: {other:?}"),
    }
}

fn events(world: &World, wanted: impl Fn(&Event) -> bool) -> Vec<Party> {
    let found = world.events.iter().filter(|(_, event)| wanted(event));
    found.map(|(who, _)| *who).collect()
}
