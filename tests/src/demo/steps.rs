//! The steps of the demo, each with processes of their own: bitcoind, `lsp-node`, four wallets
//! without a coin, and an ordinary Lightning node.
//!
//! What always holds: all of them die with [`Network`], and with this process however it ends.

use anyhow::{Context, Result, ensure};
use bitcoin::{Address, Amount, ScriptBuf};
use superscalar_regtest::RegtestNode;
use superscalar_sdk::hosting::COMMITMENT_FEERATE_SAT_PER_KW;
use superscalar_sdk::{BuildRequest, ExitPlan, FactoryInfo, PaymentStatus, TreeNodeInfo};

use super::books::{Books, Held, Paid, Party};
use super::checker::{self, Audit};
use super::epoch::Merged;
use super::outside::OutsideNode;
use super::picture::Picture;
use super::progress::{Done, Progress};
use super::published::Published;
use super::table::thousands;
use super::{tree, words};
use crate::processes::{LspProcess, Programs, WalletProcess};

pub(super) const NAMES: [&str; 4] = ["Alice", "Bob", "Carol", "Dave"];
const LSP_COIN: Amount = Amount::from_sat(10_000_000);
const OUTSIDE_COIN: Amount = Amount::from_sat(2_000_000);
const CAPACITY_SAT: u64 = 500_000;
const STOCK_SAT: u64 = 100_000;
const BOUGHT_SAT: u64 = 60_000;
const MAX_PRICE_MSAT: u64 = 1_000_000;
const OUTSIDE_CAPACITY_SAT: u64 = 1_000_000;
/// The LSP's part of the ordinary channel, so that members can pay the outside node.
const OUTSIDE_PUSH_MSAT: u64 = 200_000_000;
const ALICE: Party = Party::Member(0);
const BOB: Party = Party::Member(1);
pub(super) const CAROL: Party = Party::Member(2);
const DAVE: Party = Party::Member(3);
/// From, to, millisatoshi. Odd ones show what becomes of parts of a satoshi.
const PAYMENTS: [(Party, Party, u64); 9] = [
    (Party::Outside, ALICE, 150_000_000),
    (ALICE, CAROL, 40_000_123),
    (Party::Outside, BOB, 60_000_000),
    (BOB, DAVE, 20_000_000),
    (CAROL, Party::Outside, 15_000_000),
    (DAVE, ALICE, 5_000_000),
    (Party::Outside, CAROL, 440_000_000),
    // More than is left in Carol's channel; she has bought another before.
    (Party::Outside, CAROL, 45_000_000),
    // Into the one channel that both have become.
    (Party::Outside, CAROL, LATER_MSAT),
];
/// Before which of them Carol buys.
const BUY_BEFORE: usize = 7;
/// Before which of them her channels are merged.
const MERGE_BEFORE: usize = 8;
/// What Carol is paid after that: what an LSP with the state before it would have back.
pub(super) const LATER_MSAT: u64 = 30_000_000;
/// More than any exit with regtest delays takes.
pub(super) const MAX_EXIT_BLOCKS: u32 = 400;

/// Everything that runs.
pub struct Network {
    /// The chain.
    pub chain: RegtestNode,
    pub(super) lsp: LspProcess,
    pub(super) members: Vec<WalletProcess>,
    outside: OutsideNode,
}

/// What came of it.
pub struct Report {
    /// Step by step.
    pub steps: Vec<Done>,
    /// All payments.
    pub books: Books,
    /// Alice's way home.
    pub home: Home,
    /// Carol's, through an older state that was brought on chain.
    pub robbed: Home,
    /// The members' names in slot order.
    pub names: Vec<String>,
    /// The factory.
    pub picture: Picture,
}

/// A member's way home.
pub struct Home {
    /// The programs' figures.
    pub published: Published,
    /// The chain's.
    pub audit: Audit,
    /// What the wallet foresaw.
    pub plan: ExitPlan,
}

/// Does everything; the network is given back for whoever wants to look closer.
///
/// # Errors
/// What failed in which step, or the figure that does not agree with the chain.
pub fn run(progress: &mut Progress) -> Result<(Network, Report)> {
    let mut network = start(progress)?;
    let mut built = network.build(progress)?;
    network.join_outside(progress)?;
    let (books, merged) = network.pay_all(progress, &mut built)?;
    let (mut alices, mut carols) = (network.exit(&built, 0)?, network.exit(&built, 2)?);
    network.kill_lsp(progress)?;
    network.leave(progress, &built, 0)?;
    alices.published.member_coins_after = network.coins(0)?;
    let audit = progress.step("recompute everything from bitcoind", |_| {
        books.check()?;
        let audit = checker::check(&network.chain, &alices.published)?;
        let result = format!(
            "{} transactions agree to the satoshi",
            audit.transactions.len()
        );
        Ok((audit, result, network.chain.height()?))
    })?;
    let old_leaf = network.cheat(progress, &built, &merged, &carols.published)?;
    network.leave(progress, &built, 2)?;
    carols.published.member_coins_after = network.coins(2)?;
    let robbed = progress.step("recompute what the cheat has got", |_| {
        checker::check_outrun(&network.chain, old_leaf, &carols.published)?;
        let audit = checker::check(&network.chain, &carols.published)?;
        let wanted = thousands(LATER_MSAT / 1_000);
        let result = format!("nothing; Carol has the {wanted} sat it wanted back");
        Ok((audit, result, network.chain.height()?))
    })?;
    let names = built.names();
    let picture = tree::picture(&tree::Drawn {
        chain: &network.chain,
        tree: &built.tree,
        names: &names,
        slot: built.slots[0],
        audit: &audit,
        funding_amount: alices.published.funding_amount,
        to_self_delay: alices.published.to_self_delay,
    })?;
    let report = Report {
        steps: progress.steps().to_vec(),
        books,
        home: alices.home(audit),
        robbed: carols.home(robbed),
        names: NAMES.map(str::to_owned).to_vec(),
        picture,
    };
    Ok((network, report))
}

fn start(progress: &mut Progress) -> Result<Network> {
    progress.step("find or build the programs", |_| {
        let programs = Programs::locate()?;
        let folder = programs.lsp_node.parent().context("a folder")?;
        Ok(((), folder.display().to_string(), 0))
    })?;
    let chain = progress.step("start bitcoind", |_| {
        let chain = RegtestNode::new()?;
        let result = format!("a regtest chain, RPC port {}", chain.rpc_port());
        let height = chain.height()?;
        Ok((chain, result, height))
    })?;
    let lsp = progress.step("start lsp-node and give it coins", |progress| {
        let lsp = LspProcess::start(&chain)?;
        let coin = chain.fund(&script(&lsp.address()?)?, LSP_COIN)?;
        progress.wait("the LSP to see its coin", || {
            Ok(lsp.coins()?.spendable_sat == LSP_COIN.to_sat())
        })?;
        let sat = thousands(LSP_COIN.to_sat());
        Ok((lsp, format!("{sat} sat in {}", coin.txid), chain.height()?))
    })?;
    let members = progress.step("start four wallets without a coin", |progress| {
        let mut members = Vec::new();
        for name in NAMES {
            progress.now(format!("start the wallet of {name}"));
            members.push(WalletProcess::start(&chain, &lsp.uri)?);
            progress.go_on()?;
        }
        Ok((members, NAMES.join(", "), chain.height()?))
    })?;
    let outside = progress.step("start an ordinary Lightning node", |_| {
        let outside = OutsideNode::start(&chain)?;
        let result = "ldk-node, which knows nothing of factories".to_owned();
        Ok((outside, result, chain.height()?))
    })?;
    Ok(Network {
        chain,
        lsp,
        members,
        outside,
    })
}

/// A factory as the LSP told it while it lived.
pub(super) struct Built {
    pub(super) info: FactoryInfo,
    pub(super) tree: Vec<TreeNodeInfo>,
    /// Slot of each member, in the order of [`NAMES`].
    pub(super) slots: Vec<u16>,
    lsp_coins_before: Amount,
    lsp_coins_after: Amount,
}

impl Built {
    /// Names in slot order.
    fn names(&self) -> Vec<String> {
        let mut named: Vec<(u16, &str)> = self.slots.iter().copied().zip(NAMES).collect();
        named.sort_unstable();
        named.into_iter().map(|(_, name)| name.to_owned()).collect()
    }
}

struct Exit {
    published: Published,
    plan: ExitPlan,
}

impl Exit {
    fn home(self, audit: Audit) -> Home {
        Home {
            published: self.published,
            audit,
            plan: self.plan,
        }
    }
}

impl Network {
    fn build(&mut self, progress: &mut Progress) -> Result<Built> {
        let (chain, lsp, members) = (&self.chain, &self.lsp, &self.members);
        let request = BuildRequest {
            members: NAMES.len() as u16,
            capacity_sat: CAPACITY_SAT,
            stock_sat: STOCK_SAT,
            life_blocks: 2_000,
            tree_feerate: 10,
            round_seconds: 60,
            preset: None,
            blocks_early: None,
            shape: None,
            policy: Default::default(),
        };
        let lsp_coins_before = lsp_coins(lsp)?;
        let factory = progress.step("sign a factory of four", |progress| {
            for member in members {
                member.join(CAPACITY_SAT)?;
            }
            progress.wait("all to wait for a place", || {
                Ok(lsp.waiting()?.len() == NAMES.len())
            })?;
            let factory = lsp.create_factory(&request)?;
            progress.wait("the funding to be published", || {
                let info = lsp.factory(&factory)?;
                ensure!(info.ended.is_none(), "the factory ended: {:?}", info.ended);
                progress.now(format!("sign a factory of four: {}", info.phase));
                Ok(info.phase == "published")
            })?;
            let transactions: usize = lsp
                .tree(&factory)?
                .iter()
                .map(|node| node.transactions.len())
                .sum();
            let result = format!("{transactions} transactions, all signed by all below them");
            Ok((factory, result, chain.height()?))
        })?;
        progress.step("mine its funding", |progress| {
            chain.mine(1)?;
            progress.wait("everybody to see the factory", || {
                let mut all = lsp.factory(&factory)?.active;
                for member in members {
                    all = all && member.is_active(&factory)?;
                }
                Ok(all)
            })?;
            let funding = lsp.factory(&factory)?.funding.context("a funding")?;
            Ok(((), funding, chain.height()?))
        })?;
        let info = lsp.factory(&factory)?;
        let slot_of = |member: &WalletProcess| -> Result<u16> {
            let id = member.status()?.node_id;
            let seat = info.seats.iter().find(|seat| seat.peer == id);
            Ok(seat.context("a member has a seat")?.slot)
        };
        let slots: Vec<u16> = members.iter().map(slot_of).collect::<Result<_>>()?;
        let (tree, lsp_coins_after) = (lsp.tree(&factory)?, lsp_coins(lsp)?);
        // Names go by places: Alice and Bob share a leaf, Carol and Dave the other.
        let members = std::mem::take(&mut self.members);
        let mut placed: Vec<_> = slots.into_iter().zip(members).collect();
        placed.sort_unstable_by_key(|(slot, _)| *slot);
        let (slots, members) = placed.into_iter().unzip();
        self.members = members;
        Ok(Built {
            tree,
            slots,
            lsp_coins_before,
            lsp_coins_after,
            info,
        })
    }

    fn join_outside(&mut self, progress: &mut Progress) -> Result<()> {
        let (chain, outside) = (&self.chain, &mut self.outside);
        let uri = self.lsp.uri.clone();
        progress.step("the ordinary node opens a channel to the LSP", |progress| {
            chain.fund(&script(&outside.address()?)?, OUTSIDE_COIN)?;
            progress.wait("the ordinary node to see its coin", || {
                Ok(outside.coins()? == OUTSIDE_COIN.to_sat())
            })?;
            outside.open_channel(&uri, OUTSIDE_CAPACITY_SAT, OUTSIDE_PUSH_MSAT)?;
            progress.wait("the channel's funding", || Ok(!chain.mempool()?.is_empty()))?;
            chain.mine(6)?;
            progress.wait("the channel to be usable", || {
                Ok(outside.channel()?.is_some_and(|channel| channel.usable))
            })?;
            let capacity = thousands(OUTSIDE_CAPACITY_SAT);
            let result = format!("{capacity} sat, an ordinary channel on chain");
            Ok(((), result, chain.height()?))
        })
    }

    fn pay_all(&mut self, progress: &mut Progress, built: &mut Built) -> Result<(Books, Merged)> {
        let parties = [ALICE, BOB, CAROL, DAVE, Party::Outside, Party::Lsp];
        self.settled(progress)?;
        let mut books = Books::default();
        let mut merged = None;
        let before: Result<Vec<u64>> = parties.iter().map(|it| self.holds(*it)).collect();
        for (index, (from, to, amount_msat)) in PAYMENTS.into_iter().enumerate() {
            if index == BUY_BEFORE {
                let factory = &built.info.factory;
                books.payments.push(self.buy(progress, factory)?);
            }
            if index == MERGE_BEFORE {
                self.settled(progress)?;
                merged = Some(self.merge(progress, built)?);
            }
            let sat = thousands(amount_msat / 1_000);
            let what = format!("{} pays {} {sat} sat", name(from), name(to));
            let fee_msat = progress.step(&what, |progress| {
                let fee_msat = self.pay(progress, index, from, to, amount_msat)?;
                let result = format!("routing fee {} msat", thousands(fee_msat));
                Ok((fee_msat, result, self.chain.height()?))
            })?;
            books.payments.push(Paid {
                from,
                to,
                amount_msat,
                fee_msat,
            });
        }
        self.settled(progress)?;
        for (party, mut before_msat) in parties.into_iter().zip(before?) {
            if party == Party::Lsp {
                // Stock that has become a channel: the LSP's before and after.
                before_msat += BOUGHT_SAT * 1_000;
            }
            let after_msat = self.holds(party)?;
            books.held.push(Held {
                party,
                before_msat,
                after_msat,
            });
        }
        Ok((books, merged.context("channels were merged")?))
    }

    /// Carol buys a channel out of the stock beside her own; what she pays for it.
    fn buy(&mut self, progress: &mut Progress, factory: &str) -> Result<Paid> {
        let (chain, carol) = (&self.chain, &self.members[2]);
        let height = chain.height()?;
        let sat = thousands(BOUGHT_SAT);
        let what = format!("Carol buys a channel of {sat} sat to receive on");
        let price_msat = progress.step(&what, |_| {
            let quote = carol.buy_inbound(factory, BOUGHT_SAT, MAX_PRICE_MSAT)?;
            ensure!(chain.mempool()?.is_empty(), "a sale leaves the chain alone");
            ensure!(chain.height()? == height, "and waits for no block");
            let price = thousands(quote.price_msat);
            let result = format!("for {price} msat, paid when it was there; nothing on chain");
            Ok((quote.price_msat, result, height))
        })?;
        Ok(Paid {
            from: CAROL,
            to: Party::Lsp,
            amount_msat: price_msat,
            fee_msat: 0,
        })
    }

    fn pay(
        &mut self,
        progress: &Progress,
        index: usize,
        from: Party,
        to: Party,
        amount_msat: u64,
    ) -> Result<u64> {
        let description = format!("demo payment {index}");
        let invoice = match to {
            Party::Member(member) => self.members[member].receive(amount_msat, &description)?,
            _ => self.outside.invoice(amount_msat, &description)?,
        };
        if let Party::Member(member) = from {
            let wallet = &self.members[member];
            let hash = wallet.send(&invoice)?;
            progress.wait("the payment to arrive", || {
                let status = wallet.payment(&hash)?.status;
                ensure!(status != PaymentStatus::Failed, "the payment failed");
                Ok(status == PaymentStatus::Succeeded)
            })?;
            return wallet.payment(&hash)?.fee_msat.context("a fee");
        }
        let id = self.outside.pay(&invoice)?;
        progress.wait("the payment to arrive", || {
            let arrived = self.outside.payment(&id)?.arrived;
            ensure!(arrived != Some(false), "the payment failed");
            Ok(arrived == Some(true))
        })?;
        Ok(self.outside.payment(&id)?.fee_msat)
    }

    /// Waits until no HTLC is pending and both sides of every factory channel agree.
    pub(super) fn settled(&mut self, progress: &Progress) -> Result<()> {
        progress.wait("all payments to be settled", || {
            let channels = self.lsp.channels()?;
            let pending = channels
                .iter()
                .any(|it| it.inbound_htlcs + it.outbound_htlcs > 0);
            let total: u64 = channels.iter().map(|it| it.capacity_sat * 1_000).sum();
            let mut held = self.holds(Party::Lsp)? + self.holds(Party::Outside)?;
            for member in 0..NAMES.len() {
                held += self.holds(Party::Member(member))?;
            }
            // An ordinary channel with anchors keeps their value beside both balances.
            Ok(!pending && held <= total && total - held < 1_000_000)
        })
    }

    pub(super) fn holds(&mut self, party: Party) -> Result<u64> {
        Ok(match party {
            Party::Member(member) => {
                let balance = self.members[member].balance()?;
                balance.spendable_msat + balance.reserved_msat
            }
            Party::Outside => self.outside.channel()?.context("a channel")?.balance_msat,
            Party::Lsp => self.lsp.channels()?.iter().map(|it| it.balance_msat).sum(),
        })
    }

    /// What a member can foresee and show while the LSP lives.
    fn exit(&mut self, built: &Built, member: usize) -> Result<Exit> {
        let wallet = &self.members[member];
        let balance = wallet.balance()?;
        let id = wallet.status()?.node_id;
        let channels = self.lsp.channels()?;
        let channel = channels.iter().find(|it| it.peer == id);
        let channel = channel.context("the member has a channel")?;
        let mut published = self.published(built, member)?;
        published.member_msat = balance.spendable_msat + balance.reserved_msat;
        published.reserve_msat = balance.reserved_msat;
        published.pending_htlcs = channel.inbound_htlcs + channel.outbound_htlcs;
        published.member_coins_before = self.coins(member)?;
        for other in staying(member) {
            published.staying_coins += self.coins(other)?;
        }
        let coins = published.member_coins_before + published.staying_coins;
        ensure!(coins == Amount::ZERO, "members own {coins} on chain");
        Ok(Exit {
            plan: wallet.exit_plan(&built.info.factory)?,
            published,
        })
    }

    fn kill_lsp(&mut self, progress: &mut Progress) -> Result<()> {
        let (chain, lsp) = (&self.chain, &mut self.lsp);
        progress.step("kill lsp-node (SIGKILL)", |_| {
            let id = lsp.program().id();
            lsp.kill();
            Ok(((), format!("process {id} is gone"), chain.height()?))
        })
    }

    fn leave(&self, progress: &mut Progress, built: &Built, member: usize) -> Result<()> {
        let factory = &built.info.factory;
        let (chain, wallet) = (&self.chain, &self.members[member]);
        let what = format!("{} leaves alone", NAMES[member]);
        progress.step(&what, |progress| {
            wallet.exit_start(factory)?;
            let begun = chain.height()?;
            loop {
                let status = wallet.exit_status(factory)?;
                let mined = chain.height()? - begun;
                if status.stage == "done" {
                    let sat = thousands(self.coins(member)?.to_sat());
                    let result = format!("{sat} sat are hers on chain after {mined} blocks");
                    return Ok(((), result, chain.height()?));
                }
                ensure!(mined < MAX_EXIT_BLOCKS, "{mined} blocks and {status:?}");
                progress.go_on()?;
                progress.now(format!("{what}: block {mined}, {}", status.waiting));
                chain.mine(1)?;
                wallet.sync()?;
            }
        })
    }

    /// The programs' figures, while the LSP lives; the member's own are filled in later.
    fn published(&self, built: &Built, member: usize) -> Result<Published> {
        let info = &built.info;
        let slot = built.slots[member];
        let seat = info.seats.iter().find(|seat| seat.slot == slot);
        let seat = seat.context("the member has a seat")?;
        let words_in = |folder: &std::path::Path| -> Result<Vec<ScriptBuf>> {
            words::scripts(&std::fs::read_to_string(folder.join("mnemonic"))?)
        };
        let others = staying(member);
        let others = others.map(|it| words_in(self.members[it].directory()));
        let others: Vec<Vec<ScriptBuf>> = others.collect::<Result<_>>()?;
        let wallet = &self.members[member];
        Ok(Published {
            funding: info.funding.as_ref().context("a funding")?.parse()?,
            funding_amount: Amount::from_sat(info.funding_sat.context("its amount")?),
            lsp_coins_before: built.lsp_coins_before,
            lsp_coins_after: built.lsp_coins_after,
            lsp_scripts: words_in(self.lsp.directory())?,
            tree_feerate: info.tree_feerate.into(),
            path: tree::path(&built.tree, slot)?,
            channel: seat.channel.as_ref().context("a channel")?.parse()?,
            capacity: Amount::from_sat(seat.capacity_sat),
            member_msat: 0,
            reserve_msat: 0,
            pending_htlcs: 0,
            commitment_feerate: COMMITMENT_FEERATE_SAT_PER_KW.into(),
            to_self_delay: wallet.exit_plan(&info.factory)?.then_blocks - 1,
            member_scripts: words_in(wallet.directory())?,
            member_coins_before: Amount::ZERO,
            member_coins_after: Amount::ZERO,
            staying_scripts: others.into_iter().flatten().collect(),
            staying_coins: Amount::ZERO,
        })
    }

    /// What a member's wallet says it has on chain.
    fn coins(&self, member: usize) -> Result<Amount> {
        let coins = self.members[member].coins()?;
        let all = coins.spendable_sat + coins.reserved_sat + coins.pending_sat;
        Ok(Amount::from_sat(all))
    }
}

/// Who has not left when this member has: Alice leaves first.
fn staying(member: usize) -> impl Iterator<Item = usize> {
    (1..NAMES.len()).filter(move |it| *it != member)
}

fn lsp_coins(lsp: &LspProcess) -> Result<Amount> {
    let coins = lsp.coins()?;
    let all = coins.spendable_sat + coins.reserved_sat + coins.pending_sat;
    Ok(Amount::from_sat(all))
}

fn name(party: Party) -> &'static str {
    match party {
        Party::Member(member) => NAMES[member],
        Party::Outside => "the outside node",
        Party::Lsp => "the LSP",
    }
}

fn script(address: &str) -> Result<ScriptBuf> {
    let address: Address<_> = address.parse()?;
    Ok(address
        .require_network(bitcoin::Network::Regtest)?
        .script_pubkey())
}
