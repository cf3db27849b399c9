//! Many payments at once between real LDK nodes, under a seed: connections break, blocks come, and
//! now and then the power fails for everybody at any durable write.
//!
//! The simulation of whole factories has channels as a stated model; this is the same for the real
//! ones. The seed fixes what is tried and where the power fails; how threads interleave it does not.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use superscalar_sdk::hosting::Role;

use crate::chain::Chain;
use crate::node::{CAPACITY_SAT, DEADLINE, Node, invoice, lsp_role, open, slot_id, wait_until};
use crate::store::History;

const MEMBERS: usize = 3;
const ROUNDS: usize = 5;
const ACTIONS: usize = 24;
/// What every member begins with.
const BEGIN_MSAT: u64 = 400_000_000;
const MOST_MSAT: u64 = 40_000_000;
/// Base 1,000 msat and 100 ppm: of all payments of a round less than one larger payment.
const MOST_FEE_MSAT: u64 = 1_000 + MOST_MSAT / 10_000;
const WHOLE_MSAT: u64 = CAPACITY_SAT * 1_000;

struct World {
    lsp: Node,
    members: Vec<Node>,
}

impl World {
    async fn start(chain: &Chain, history: &History) -> World {
        let lsp = Node::start("lsp", lsp_role(), chain, history).await;
        let mut members = Vec::new();
        for name in ["alice", "bob", "carol"] {
            members.push(Node::start(name, Role::Member, chain, history).await);
        }
        World { lsp, members }
    }

    /// Again and again: the LSP may not have noticed yet that the last connection is gone.
    async fn connect(&self, member: usize) {
        let (peer, host) = (self.lsp.host.node_id(), &self.members[member].host);
        let address = self.lsp.host.listen_address().unwrap();
        let began = std::time::Instant::now();
        while let Err(error) = host.connect(peer, address).await {
            assert!(began.elapsed() < DEADLINE, "{error}");
        }
    }

    async fn stop(self) {
        for node in self.members.into_iter().chain([self.lsp]) {
            node.stop().await;
        }
    }

    /// Everybody is back and nothing is on its way.
    async fn settle(&self) {
        for member in 0..MEMBERS {
            let lsp = self.lsp.host.node_id();
            if !self.members[member].host.is_connected(&lsp) {
                self.connect(member).await;
            }
        }
        let quiet = |node: &Node, slot| {
            let state = node.host.channel_state(&slot).expect("it is open");
            state.is_usable && state.inbound_htlcs + state.outbound_htlcs == 0
        };
        wait_until("all channels settle", || {
            (0..MEMBERS).all(|member| {
                let slot = slot_id(member as u16);
                quiet(&self.lsp, slot) && quiet(&self.members[member], slot) && self.agree(member)
            })
        })
        .await;
    }

    fn agree(&self, member: usize) -> bool {
        let slot = slot_id(member as u16);
        let ours = self.members[member].balance_msat(&slot);
        ours + self.lsp.balance_msat(&slot) == WHOLE_MSAT
    }

    fn members_msat(&self) -> u64 {
        let balance = |member: usize| self.members[member].balance_msat(&slot_id(member as u16));
        (0..MEMBERS).map(balance).sum()
    }
}

/// Gives what all members have at the end.
async fn days(seed: u64) -> u64 {
    let mut dice = StdRng::seed_from_u64(seed);
    let (chain, mut history) = (Chain::new(), History::default());
    let mut world = World::start(&chain, &history).await;
    for member in 0..MEMBERS {
        world.connect(member).await;
        let us = world.members[member].host.node_id();
        wait_until("the LSP to be connected too", || {
            world.lsp.host.is_connected(&us)
        })
        .await;
        let slot = slot_id(member as u16);
        let node = &mut world.members[member];
        open(&mut world.lsp, node, slot, BEGIN_MSAT).await;
        invoice(&world.members[member], 1).await;
    }
    let mut members_msat = world.members_msat();
    assert_eq!(members_msat, MEMBERS as u64 * BEGIN_MSAT);
    for _ in 0..ROUNDS {
        let began = history.len();
        for _ in 0..ACTIONS {
            act(&mut dice, &world, &chain).await;
        }
        let power_fails = dice.gen_bool(0.7);
        if !power_fails {
            world.settle().await;
        }
        let mut nodes = world.members.iter().chain([&world.lsp]);
        assert!(nodes.all(|it| it.published.all().is_empty()));
        drop(nodes);
        if power_fails {
            // Anywhere since the last quiet moment, for everybody at once.
            let moment = dice.gen_range(began..=history.len());
            history = history.until(moment);
            world.stop().await;
            world = World::start(&chain, &history).await;
            world.settle().await;
        }
        // The LSP pays nobody of its own, so what moves is its fees, and no payment is lost on it.
        let now_msat = world.members_msat();
        let fees_msat = members_msat.checked_sub(now_msat).expect("the LSP lost");
        let most_msat = ACTIONS as u64 * MOST_FEE_MSAT;
        assert!(fees_msat <= most_msat, "{fees_msat} of fees");
        members_msat = now_msat;
    }
    world.stop().await;
    members_msat
}

async fn act(dice: &mut StdRng, world: &World, chain: &Chain) {
    let member = dice.gen_range(0..MEMBERS);
    match dice.gen_range(0..20) {
        0 => chain.mine_empty(1),
        1 => {
            let lsp = world.lsp.host.node_id();
            world.members[member].host.disconnect(&lsp);
        }
        2 => {
            let lsp = world.lsp.host.node_id();
            if !world.members[member].host.is_connected(&lsp) {
                world.connect(member).await;
            }
        }
        _ => {
            let payee = (member + dice.gen_range(1..MEMBERS)) % MEMBERS;
            let amount_msat = dice.gen_range(1_000..MOST_MSAT);
            let payee = &world.members[payee].host;
            // Who is away cannot say what it would be paid over.
            if let Ok(invoice) = payee.invoice(Some(amount_msat), "", 600) {
                // Refused at once where the money or the way is missing.
                let _ = world.members[member].host.pay(&invoice.to_string(), None);
            }
        }
    }
}

async fn all(seeds: impl Iterator<Item = u64>) {
    for seed in seeds {
        println!("seed {seed}");
        let left_msat = days(seed).await;
        let fees_msat = MEMBERS as u64 * BEGIN_MSAT - left_msat;
        assert!(fees_msat > 0, "seed {seed}: nothing was ever paid");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn balances_survive_any_day() {
    all(0..3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn balances_survive_any_other_day() {
    all(3..6).await;
}
