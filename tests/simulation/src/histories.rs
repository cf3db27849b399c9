//! Sales and new epochs by name: a restart between any two effects of them, and an LSP that
//! publishes all it ever signed.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeSet;

use bitcoin::Amount;
use superscalar_factory::exit::Goal;
use superscalar_factory::message::Attempt;
use superscalar_factory::terms::TimeoutPolicy;
use superscalar_factory::timing::Timing;

use crate::channel::Stage;
use crate::dice::Dice;
use crate::network::End;
use crate::party::{Character, Role, Who, place_of};
use crate::profile::Profile;
use crate::recover;
use crate::trail::Echo;
use crate::world::World;

fn deliver(world: &mut World) {
    loop {
        let ends = [End::Lsp, End::Wallet];
        let ready: Vec<(u16, End)> = (0..world.links.len() as u16)
            .flat_map(|number| ends.map(|end| (number, end)))
            .filter(|(number, end)| world.links[usize::from(*number)].waiting(*end) > 0)
            .collect();
        let Some(&(number, end)) = world.dice.pick(&ready) else {
            return;
        };
        world.deliver(number, end).unwrap();
    }
}

/// A block, and whoever is there looks at it.
fn block(world: &mut World) {
    world.chain.mine(|| true).unwrap();
    world.check_races().unwrap();
    for who in world.everybody() {
        if world.party(who).is_live() {
            world.look(who).unwrap();
        }
    }
    deliver(world);
}

/// A factory of everybody that exists, in which every place has stock.
fn active(seed: u64, wallets: usize) -> (World, Attempt) {
    let profile = Profile::quiet(wallets);
    let mut world = World::with(seed, Dice::new(seed), profile, Echo::Silent, None);
    let members: Vec<u16> = (0..wallets as u16).collect();
    let (tip, profile) = (world.chain.tip(), world.profile.clone());
    let mut plan = profile.plan(seed, &mut world.dice, &members, tip);
    let layers = plan.shape.layers();
    plan.timing = Timing {
        states: 3,
        step: 6,
        max_sales: 3,
        ..Timing::regtest(layers)
    }
    .with_least_blocks_early(layers);
    plan.policy = TimeoutPolicy::MembersReclaim;
    plan.expiry = tip + 1_500;
    for seat in &mut plan.seats {
        seat.capacity = Amount::from_sat(400_000);
        seat.push_msat = 100_000_000;
        seat.stock = Amount::from_sat(150_000);
    }
    let attempt = plan.attempt;
    world.begin(plan).unwrap();
    world.settle().unwrap();
    deliver(&mut world);
    for _ in 0..3 {
        block(&mut world);
    }
    assert!(world.lsp.role(&attempt).is_some_and(Role::is_active));
    (world, attempt)
}

/// Somebody buys, if anybody can.
fn buy(world: &mut World) {
    let before = world.counts.sales;
    for _ in 0..60 {
        world.sell_some().unwrap();
        deliver(world);
        if world.counts.sales > before {
            break;
        }
    }
    // What is delivered is paid for.
    for _ in 0..20 {
        world.sell_some().unwrap();
        deliver(world);
    }
}

fn moves(world: &mut World) {
    let before = world.counts.moves;
    for _ in 0..20 {
        world.begin_epoch().unwrap();
        deliver(world);
        while world.guard_some().unwrap() {}
        deliver(world);
        if world.counts.moves > before {
            return;
        }
    }
}

/// What is a member's, and what of that must arrive.
fn balance(world: &World, number: u16, attempt: Attempt) -> Amount {
    let counted = world.party(Who::Wallet(number)).counted(&(attempt, number));
    let rate = world.lsp.role(&attempt).map_or(0, |role| match role {
        Role::Coordinator(role) => role.invites()[0].header.tree_feerate,
        Role::Member(_) => 0,
    });
    recover::due(counted.map(|(_, it)| &it.balances), rate)
}

fn paid(world: &World, number: u16) -> Amount {
    let coins = world.chain.coins_of(&world.payout(number));
    coins.iter().map(|(_, coin)| coin.value).sum()
}

#[test]
fn a_sale_goes_through_or_comes_to_nothing_wherever_somebody_dies() {
    for victim in [Who::Lsp, Who::Wallet(0), Who::Wallet(1)] {
        let mut outcomes = BTreeSet::new();
        for fuse in 1..=24 {
            let (mut world, _) = active(3_000 + u64::from(fuse), 2);
            world.party_mut(victim).fuse = Some(fuse);
            buy(&mut world);
            let died = !world.party(victim).is_live();
            world.calm_down().unwrap();
            buy(&mut world);
            world.calm_down().unwrap();
            outcomes.insert((died, world.counts.sales > 0));
        }
        assert!(outcomes.contains(&(true, true)), "{victim}: {outcomes:?}");
    }
}

#[test]
fn an_epoch_is_made_by_all_or_by_none_wherever_somebody_dies() {
    for victim in [Who::Lsp, Who::Wallet(0), Who::Wallet(2)] {
        let mut outcomes = BTreeSet::new();
        for fuse in 1..=30 {
            let (mut world, attempt) = active(4_000 + u64::from(fuse), 4);
            buy(&mut world);
            world.party_mut(victim).fuse = Some(fuse);
            moves(&mut world);
            let died = !world.party(victim).is_live();
            // Everybody is where the LSP has it, and nobody waits for anything.
            world.calm_down().unwrap();
            moves(&mut world);
            world.calm_down().unwrap();
            let role = world.lsp.role(&attempt).unwrap();
            let moved = (0..4).any(|slot| role.version(slot) > 0);
            outcomes.insert((died, moved));
        }
        assert!(outcomes.contains(&(true, true)), "{victim}: {outcomes:?}");
    }
}

/// Whoever looks within a step is paid in the newest epoch, whatever the LSP publishes, and the LSP
/// has no more of it than what is its own.
#[test]
fn an_lsp_that_publishes_every_older_epoch_gains_nothing() {
    let mut stale = 0;
    for seed in 5_000..5_006 {
        let (mut world, attempt) = active(seed, 4);
        for _ in 0..4 {
            buy(&mut world);
            moves(&mut world);
        }
        buy(&mut world);
        let epochs: usize = (0..4u16)
            .map(|slot| world.lsp.role(&attempt).unwrap().version(slot) as usize)
            .sum();
        assert!(epochs > 0);
        stale += epochs;
        world.lsp.character = Character::Hostile;
        for number in 0..4 {
            world.disconnect(number).unwrap();
        }
        let due: Vec<Amount> = (0..4)
            .map(|number| balance(&world, number, attempt))
            .collect();
        world.publish_all(Who::Lsp, &attempt);
        for _ in 0..120 {
            world.chain.mine(|| true).unwrap();
            world.check_races().unwrap();
            // First what cheats, then who defends itself.
            world.publish_all(Who::Lsp, &attempt);
            for number in 0..4 {
                world.look(Who::Wallet(number)).unwrap();
            }
        }
        for number in 0..4 {
            world.leave(number, attempt, Goal::Leave).unwrap();
        }
        for _ in 0..320 {
            world.chain.mine(|| true).unwrap();
            world.check_races().unwrap();
            for number in 0..4 {
                world.look(Who::Wallet(number)).unwrap();
            }
        }
        assert_eq!(world.counts.stale, 0, "seed {seed}");
        for number in 0..4 {
            // One commitment each and nothing revoked: what is not the member's is the LSP's own.
            let (got, owed) = (paid(&world, number), due[usize::from(number)]);
            assert_eq!(got, owed, "seed {seed}, wallet {number}");
            let wallet = world.party(Who::Wallet(number));
            let own = wallet.channels(&(attempt, number));
            let retired = own.filter(|(_, channel)| channel.stage == Stage::Retired);
            for (id, channel) in retired {
                let txid = channel.agreed.outpoint.txid;
                let leaf = world.chain.height_of(&txid);
                assert_eq!(leaf, None, "seed {seed}: {:?} of {id:?}", place_of(id));
            }
        }
    }
    assert!(stale > 12, "there was something older to publish");
}

/// Who sleeps through the race has what it had then, and with the preimages all stock that comes
/// back: the LSP pays for that.
#[test]
fn stock_that_an_older_epoch_brings_back_is_the_members() {
    let mut swept = 0;
    for seed in 6_000..6_004 {
        let (mut world, attempt) = active(seed, 2);
        moves(&mut world);
        let number = 0;
        let role = world.lsp.role(&attempt).unwrap();
        assert!(role.version(number) > 0, "seed {seed}");
        world.lsp.character = Character::Hostile;
        for number in 0..2 {
            world.disconnect(number).unwrap();
        }
        // Stock of the first epoch, which nothing was sold of.
        let stock = Amount::from_sat(150_000);
        let had = balance(&world, number, attempt);
        for _ in 0..60 {
            world.publish_all(Who::Lsp, &attempt);
            world.chain.mine(|| true).unwrap();
        }
        for _ in 0..320 {
            world.look(Who::Wallet(number)).unwrap();
            world.chain.mine(|| true).unwrap();
        }
        let got = paid(&world, number);
        let stale = world.counts.stale > 0;
        // Nobody spent anything meanwhile: the balance is what it was, and the stock comes with it.
        if stale {
            assert!(
                got + Amount::from_sat(10_000) > had + stock,
                "seed {seed}: {got} of {had}"
            );
            swept += world.counts.swept;
        }
    }
    assert!(swept > 0, "somebody was outrun");
}
