//! What kind of world a seed gives: how many members, how rough the network, who is hostile, and
//! what the factories look like.

use bitcoin::{Amount, Network};
use superscalar_factory::coordinator::{FactoryPlan, Seat};
use superscalar_factory::member::WalletLimits;
use superscalar_factory::message::Attempt;
use superscalar_factory::shape::Shape;
use superscalar_factory::terms::{Instance, TimeoutPolicy};
use superscalar_factory::timing::Timing;

use crate::dice::{Dice, public_key};
use crate::money::wallet_script;
use crate::party::Character;
use crate::sell::ALL_GUARDED;
use crate::tower::ALL_SLEEP;

/// What a seed decides before anything happens.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    pub(crate) name: &'static str,
    pub(crate) wallets: usize,
    pub(crate) lsp: Character,
    /// Hostile wallets, of a thousand.
    pub(crate) hostile_wallets: u32,
    pub(crate) weights: Weights,
    /// Most factories that are being built or lived in at a time.
    pub(crate) factories: usize,
    /// Whether the LSP vanishes for ever at some point.
    pub(crate) vanishing: Vanishing,
    /// Whether members leave everything to their watchtowers, and the LSP keeps to the protocol until
    /// it publishes what is older, while nobody looks.
    pub(crate) ambush: bool,
}

/// Whether the LSP goes and does not come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vanishing {
    Never,
    /// When this many steps are done.
    At(u64),
}

/// How often each kind of thing happens, relative to the others.
#[derive(Debug, Clone)]
pub(crate) struct Weights {
    pub(crate) deliver: u32,
    pub(crate) look: u32,
    pub(crate) block: u32,
    pub(crate) pay: u32,
    pub(crate) disconnect: u32,
    pub(crate) connect: u32,
    pub(crate) crash: u32,
    pub(crate) restart: u32,
    pub(crate) timer: u32,
    pub(crate) reorg: u32,
    pub(crate) forget: u32,
    pub(crate) leave: u32,
    pub(crate) hostile: u32,
    pub(crate) build: u32,
    pub(crate) sell: u32,
    pub(crate) epoch: u32,
}

impl Weights {
    const CALM: Weights = Weights {
        deliver: 1_500,
        look: 200,
        block: 40,
        pay: 500,
        disconnect: 4,
        connect: 150,
        crash: 2,
        restart: 200,
        timer: 1,
        reorg: 1,
        forget: 1,
        leave: 1,
        hostile: 0,
        build: 20,
        sell: 60,
        epoch: 20,
    };
}

impl Profile {
    /// A world in which nothing happens by itself.
    #[cfg(test)]
    pub(crate) fn quiet(wallets: usize) -> Profile {
        Profile {
            name: "quiet",
            wallets,
            lsp: Character::Honest,
            hostile_wallets: 0,
            weights: Weights::CALM,
            factories: 0,
            vanishing: Vanishing::Never,
            ambush: false,
        }
    }

    /// A world without great misfortunes.
    pub(crate) fn calm(dice: &mut Dice) -> Profile {
        Profile {
            name: "calm",
            wallets: 2 + dice.below(7),
            lsp: Character::Honest,
            hostile_wallets: 0,
            weights: Weights::CALM,
            factories: 2 + dice.below(4),
            vanishing: Vanishing::Never,
            ambush: false,
        }
    }

    /// The same in which all sleep but their watchtowers, and the LSP waits for that. Few members have
    /// many epochs and sales, so that there is stock to be taken.
    pub(crate) fn ambushes(self) -> Profile {
        Profile {
            name: "ambushes",
            wallets: self.wallets.min(5),
            lsp: Character::Hostile,
            factories: self.factories + 2,
            weights: Weights {
                block: 60,
                leave: 0,
                hostile: 30,
                sell: 120,
                epoch: 120,
                ..self.weights
            },
            ambush: true,
            ..self
        }
    }

    /// The world of a seed.
    pub(crate) fn of(seed: u64, dice: &mut Dice) -> Profile {
        let calm = Profile::calm(dice);
        let stormy = Weights {
            disconnect: 30,
            crash: 25,
            timer: 4,
            reorg: 6,
            forget: 3,
            ..Weights::CALM
        };
        match seed % 16 {
            0 | 1 => calm,
            2..=4 => Profile {
                name: "stormy",
                weights: stormy,
                ..calm
            },
            5 => Profile {
                name: "reorgs",
                weights: Weights {
                    reorg: 30,
                    forget: 10,
                    ..Weights::CALM
                },
                ..calm
            },
            6 | 7 => Profile {
                name: "hostile members",
                hostile_wallets: 300,
                weights: Weights {
                    hostile: 30,
                    ..Weights::CALM
                },
                ..calm
            },
            8 | 9 => Profile {
                name: "hostile LSP",
                lsp: Character::Hostile,
                weights: Weights {
                    hostile: 20,
                    leave: 1,
                    ..Weights::CALM
                },
                ..calm
            },
            10 => calm.ambushes(),
            11 => Profile {
                name: "everybody hostile",
                lsp: Character::Hostile,
                hostile_wallets: 400,
                weights: Weights {
                    hostile: 40,
                    ..stormy
                },
                ..calm
            },
            12 | 13 => Profile {
                name: "the LSP vanishes",
                vanishing: Vanishing::At(dice.between(2_000, 4_500)),
                weights: Weights {
                    leave: 2,
                    ..Weights::CALM
                },
                ..calm
            },
            14 => Profile {
                name: "exits",
                weights: Weights {
                    leave: 20,
                    block: 100,
                    reorg: 4,
                    ..Weights::CALM
                },
                ..calm
            },
            _ => {
                // One in 128 seeds has a factory of up to 64.
                let (wallets, factories) = match (seed / 16) % 8 {
                    7 => (33 + dice.below(32), 1),
                    _ => (9 + dice.below(8), 2),
                };
                Profile {
                    name: "large",
                    wallets,
                    factories,
                    ..calm
                }
            }
        }
    }

    /// A factory for `members` of the wallets, in a shape and with delays of its own.
    pub(crate) fn plan(
        &self,
        seed: u64,
        dice: &mut Dice,
        members: &[u16],
        tip: u32,
    ) -> FactoryPlan {
        let count = members.len();
        let shape = match dice.below(4) {
            0 if count <= 16 => Shape::binary(count),
            1 if count <= 16 => Shape {
                arity: vec![2, 2],
                members_per_leaf: count.div_ceil(4) as u8,
            },
            2 if count <= 8 => Shape {
                arity: Vec::new(),
                members_per_leaf: count as u8,
            },
            _ => Shape::two_layers(count),
        };
        let layers = shape.layers();
        let timing = Timing {
            states: 2 + dice.below(2) as u8,
            step: 2 + dice.below(6) as u16,
            confirm_margin: 1 + dice.below(3) as u16,
            distribution_margin: 6 + dice.below(8) as u16,
            min_depth: 1 + dice.below(4) as u16,
            max_sales: 1 + dice.below(4) as u8,
            ..Timing::regtest(layers)
        }
        .with_least_blocks_early(layers);
        let life = 2 * timing.exit_delay(layers) + 60 + dice.below(240) as u32;
        let policy = match dice.per_mille(250) {
            true => TimeoutPolicy::LspReclaims,
            false => TimeoutPolicy::MembersReclaim,
        };
        let seats = members.iter().map(|wallet| {
            let capacity = Amount::from_sat(dice.between(50_000, 1_000_000));
            let push = match dice.per_mille(300) {
                true => capacity.to_sat() * dice.between(1, 200),
                false => 0,
            };
            let stock = match dice.per_mille(800) {
                true => Amount::from_sat(dice.between(1_000, 200_000)),
                false => Amount::ZERO,
            };
            Seat {
                peer: public_key(seed, "node", u64::from(*wallet)),
                capacity,
                push_msat: push,
                stock,
                price: Amount::ZERO,
            }
        });
        let seats = seats.collect();
        let mut instance: [u8; 32] = dice.bytes();
        if self.ambush {
            (instance[2], instance[3]) = (ALL_GUARDED, ALL_SLEEP);
        }
        FactoryPlan {
            attempt: Attempt {
                instance: Instance(instance),
                number: 0,
            },
            network: Network::Regtest,
            shape,
            timing,
            expiry: tip + life,
            tree_feerate: 5 + dice.below(20) as u32,
            policy,
            lsp_payout: wallet_script(&public_key(seed, "lsp coins", 0)),
            round_seconds: 30,
            seats,
        }
    }
}

/// What every wallet accepts.
pub(crate) fn limits() -> WalletLimits {
    let mut limits = WalletLimits::standard(Network::Regtest);
    limits.life_blocks = 20..=*limits.life_blocks.end();
    limits.max_route_budget_blocks = 2_016;
    limits.delays.max_exit_delay = 2_016;
    limits.policies = vec![TimeoutPolicy::MembersReclaim, TimeoutPolicy::LspReclaims];
    limits
}
