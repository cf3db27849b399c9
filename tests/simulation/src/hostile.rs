//! Parties that do not keep to the protocol. They hold the same roles as everybody else, but what
//! those say is dropped, repeated, held back, replaced or rewritten before it leaves, and now and
//! then they say or publish something nobody asked them for.

use bitcoin::{Amount, OutPoint, Transaction, TxOut};
use superscalar_factory::effect::ChannelRef;
use superscalar_factory::message::{Attempt, CutOffer, EpochEnd, Message, RefusalCode};
use superscalar_factory::wire::Frame;

use crate::channel::{Change, Htlc, Stage, Talk, Toward};
use crate::invariants::Violation;
use crate::money;
use crate::network::{End, Origin, Packet};
use crate::party::{Role, Who};
use crate::world::World;

/// Among what a hostile party does of its own accord: it publishes what is older.
const PUBLISH_OLD: usize = 3;

impl World {
    /// What becomes of a message that a hostile party's role wants to send.
    pub(crate) fn twist(
        &mut self,
        who: Who,
        number: u16,
        message: Message,
    ) -> Result<(), Violation> {
        let choice = match self.profile.ambush {
            // It is trusted until it publishes.
            true => 0,
            false => self.dice.below(100),
        };
        match choice {
            0..70 => self.put(who, number, &message, Origin::Role),
            70..73 => {}
            73..77 => {
                self.put(who, number, &message, Origin::Role);
                self.put(who, number, &message, Origin::Role);
            }
            77..80 => self.withheld.push((who, number, message)),
            80..84 => {
                if let Some(other) = self.hearsay() {
                    self.put(who, number, &other, Origin::Forged);
                }
                self.put(who, number, &message, Origin::Role);
            }
            84..92 => {
                let forged = self.rewrite(message.clone());
                self.put(who, number, &forged, Origin::Forged);
                if self.dice.per_mille(500) {
                    self.put(who, number, &message, Origin::Role);
                }
            }
            _ => {
                self.garble(who, number, &message);
                self.put(who, number, &message, Origin::Role);
            }
        }
        Ok(())
    }

    fn hearsay(&mut self) -> Option<Message> {
        let index = self.dice.below(self.overheard.len());
        self.overheard
            .get(index)
            .map(|(_, message)| message.clone())
    }

    /// The same message with one bit changed somewhere on the wire.
    fn garble(&mut self, who: Who, number: u16, message: &Message) {
        let mut payload = message.payload();
        if payload.is_empty() {
            return;
        }
        let at = self.dice.below(payload.len());
        payload[at] ^= 1 << self.dice.below(8);
        if self.dice.per_mille(100) {
            payload.truncate(at);
        }
        let frame = Frame {
            submessage: message.number(),
            payload,
        };
        let to = match who {
            Who::Lsp => End::Wallet,
            Who::Wallet(_) => End::Lsp,
        };
        let link = &mut self.links[usize::from(number)];
        if link.up {
            link.queue(to)
                .push_back(Packet::Factory(frame, Origin::Forged));
        }
    }

    /// The same message with one thing in it that is wrong.
    fn rewrite(&mut self, mut message: Message) -> Message {
        let choice = self.dice.below(8);
        let random = self.dice.bytes();
        match &mut message {
            Message::Invite(invite) => match choice {
                0 => invite.slot = invite.slot.wrapping_add(1),
                1 => invite.price += Amount::ONE_SAT,
                2 => invite.header.expiry = u32::MAX,
                3 => invite.header.timing.step = u16::MAX,
                4 => invite.members = invite.members.wrapping_mul(3),
                5 => invite.push_msat = u64::MAX,
                6 => invite.header.tree_feerate = 0,
                _ => invite.header.shape.arity.clear(),
            },
            Message::Join(join) => match choice {
                0 => join.nonces.reverse(),
                1 => drop(join.nonces.pop()),
                2 => join.nonces.iter_mut().for_each(|nonce| nonce[40] ^= 1),
                3 => join.member_key = self.lsp.node,
                4 => join.payout = bitcoin::ScriptBuf::new_p2a(),
                _ => join.attempt.number ^= 1,
            },
            Message::Terms(terms) => match choice {
                0 => terms.nonces.reverse(),
                1 => terms.funding = OutPoint::null(),
                2 => terms.facts.record.capacity -= Amount::ONE_SAT,
                3 => terms.facts.keys.reverse(),
                4 => terms.header.timing.step = terms.header.timing.step.wrapping_sub(1),
                5 => {
                    if let Some((_, value)) = terms.facts.siblings.first_mut() {
                        *value += Amount::ONE_SAT;
                    }
                }
                6 => {
                    if let Some(payout) = terms.facts.payouts.last_mut() {
                        payout.value -= Amount::ONE_SAT;
                    }
                }
                _ => terms.header.expiry += 1,
            },
            Message::PartialSigs(sigs) => match choice {
                0..4 => sigs.partials.reverse(),
                4..6 => drop(sigs.partials.pop()),
                _ => sigs.partials.iter_mut().for_each(|it| *it = random),
            },
            Message::NodeSigs(sigs) => match choice {
                0..4 => sigs.signatures.reverse(),
                4..6 => drop(sigs.signatures.pop()),
                _ => sigs.signatures.clear(),
            },
            Message::Identity(identity) => match choice {
                0..3 => identity.slot ^= 1,
                3..6 => identity.blocks_early += 1,
                _ => identity.protocol = random,
            },
            Message::RootPartial(root) => root.partial = random,
            Message::RootSig(root) => {
                if let Some(Message::NodeSigs(other)) = self.hearsay()
                    && let Some(signature) = other.signatures.first()
                {
                    root.signature = *signature;
                }
            }
            Message::Refusal(refusal) => refusal.code = RefusalCode::Restarted,
            Message::Quote(quote) => match choice {
                0 => quote.sale.price_msat += 1,
                1 => quote.sale.amount += Amount::ONE_SAT,
                2 => quote.sale.next_hash = Some(random),
                3 => quote.sale.link ^= 1,
                4 => quote.sale.version ^= 1,
                5 => quote.sale.lsp_funding_key = quote.sale.member_funding_key,
                6 => quote.sale.stock = OutPoint::null(),
                _ => quote.nonce[40] ^= 1,
            },
            Message::SaleAccept(accept) => match choice {
                0..3 => accept.partial = random,
                3 => accept.sale.price_msat = 0,
                4 => accept.sale.amount += Amount::ONE_SAT,
                5 => accept.quoted_nonce = accept.nonce,
                6 => accept.sale.slot ^= 1,
                _ => accept.nonce.reverse(),
            },
            Message::QuoteRequest(request) => request.amount = Amount::from_sat(choice as u64),
            Message::SaleStored(stored) => stored.sale.0 = random,
            Message::SaleSig(sig) => match choice {
                0..4 => sig.sale.0 = random,
                _ => {
                    if let Some(Message::NodeSigs(other)) = self.hearsay()
                        && let Some(signature) = other.signatures.first()
                    {
                        sig.signature = *signature;
                    }
                }
            },
            Message::EpochPropose(propose) => match (choice, &mut propose.cut) {
                (0, _) => propose.version ^= 1,
                (1, _) => propose.epoch.retry = propose.epoch.retry.wrapping_sub(1),
                (2, _) => propose.epoch.epochs.iter_mut().for_each(|epoch| *epoch = 0),
                (3, _) => propose.epoch.node.0 ^= 1,
                (4, CutOffer::Channel { capacity, .. }) => *capacity -= Amount::ONE_SAT,
                (5, CutOffer::Channel { stock, .. }) => *stock += Amount::ONE_SAT,
                (6, CutOffer::Channel { stock_hash, .. }) => *stock_hash = random,
                _ => propose.cut = CutOffer::Departed,
            },
            Message::EpochReady(ready) => match choice {
                0..3 => ready
                    .balances
                    .iter_mut()
                    .for_each(|(_, msat)| *msat += 1_000),
                3 => ready.balances.clear(),
                4 => drop(ready.nonces.pop()),
                5 => ready.nonces.reverse(),
                _ => ready.funding_key = self.lsp.node,
            },
            Message::EpochTerms(terms) => match choice {
                0 => terms.contents.reverse(),
                1 => drop(terms.contents.pop()),
                2 => drop(terms.leaf_outputs.pop()),
                3 => terms.leaf_outputs.reverse(),
                4 => terms.nonces.reverse(),
                _ => {
                    if let Some(output) = terms.leaf_outputs.first_mut() {
                        output.value -= Amount::ONE_SAT;
                    }
                }
            },
            Message::EpochPartials(said) => match choice {
                0..4 => said.partials.reverse(),
                _ => said.partials.iter_mut().for_each(|it| *it = random),
            },
            Message::EpochSigs(sigs) => match choice {
                0..4 => sigs.signatures.reverse(),
                _ => drop(sigs.signatures.pop()),
            },
            Message::EpochAsk(ask) => ask.round = random,
            Message::EpochNonce(nonce) => match choice {
                0..4 => nonce.round = random,
                _ => nonce.nonce[40] ^= 1,
            },
            Message::EpochCommit(commit) => match choice {
                0..4 => commit.round = random,
                _ => commit.nonce.reverse(),
            },
            Message::EpochPartial(partial) => partial.partial = random,
            Message::EpochReveal(reveal) => match choice {
                0..3 => reveal.preimages.clear(),
                3..5 => drop(reveal.preimages.pop()),
                _ => reveal.preimages.iter_mut().for_each(|it| *it = random),
            },
            // What is complete was never to be completed.
            Message::EpochSig(sig) => {
                message = EpochEnd {
                    attempt: sig.attempt,
                    epoch: sig.epoch.clone(),
                    code: RefusalCode::Silence,
                }
                .into();
            }
            Message::SwitchAck(ack) => ack.epoch.retry ^= 1,
            Message::PathAck(ack) => ack.attempt.number ^= 1,
            Message::RootAck(ack) => ack.attempt.number ^= 1,
            _ => {}
        }
        message
    }

    /// A hostile party does something of its own accord.
    pub(crate) fn cheat(&mut self) -> Result<bool, Violation> {
        let hostile: Vec<Who> = self
            .everybody()
            .into_iter()
            .filter(|who| !self.party(*who).is_honest() && self.party(*who).is_live())
            .collect();
        let Some(&who) = self.dice.pick(&hostile) else {
            return Ok(false);
        };
        let choice = match self.profile.ambush {
            true => PUBLISH_OLD,
            false => self.dice.below(7),
        };
        let done = match (choice, who) {
            (0, _) => self.say_withheld(who),
            (1, _) => self.say_hearsay(who),
            (2, Who::Lsp) => self.publish_something()?,
            (PUBLISH_OLD | 4, _) => self.publish_old(who)?,
            (5, Who::Lsp) => self.break_promise(),
            (_, Who::Lsp) => self.propose_nonsense(),
            (_, Who::Wallet(number)) => self.talk_nonsense(number),
        };
        self.counts.hostile += u64::from(done);
        Ok(done)
    }

    fn say_withheld(&mut self, who: Who) -> bool {
        let position = self.withheld.iter().position(|(by, _, _)| *by == who);
        let Some(position) = position else {
            return false;
        };
        let (_, number, message) = self.withheld.remove(position);
        self.note(format_args!("{who} says what it held back"));
        self.put(who, number, &message, Origin::Role);
        true
    }

    fn say_hearsay(&mut self, who: Who) -> bool {
        let number = match who {
            Who::Wallet(number) => number,
            Who::Lsp => self.dice.below(self.wallets.len()) as u16,
        };
        let Some(message) = self.hearsay() else {
            return false;
        };
        let message = match self.dice.per_mille(500) {
            true => self.rewrite(message),
            false => message,
        };
        self.note(format_args!("{who} repeats what somebody said"));
        self.put(who, number, &message, Origin::Forged);
        self.links[usize::from(number)].up
    }

    /// Any transaction it holds: a funding too early, any part of a tree; or, before anybody counts
    /// on the funding, one that spends the same coin.
    fn publish_something(&mut self) -> Result<bool, Violation> {
        let Some(live) = &self.lsp.live else {
            return Ok(false);
        };
        let roles: Vec<(&Attempt, &Role)> = live.roles.iter().collect();
        let Some((attempt, Role::Coordinator(role))) = self.dice.pick(&roles) else {
            return Ok(false);
        };
        let Some(built) = role.built() else {
            return Ok(false);
        };
        let counted = (0..self.wallets.len() as u16).any(|it| self.counts_on(it, attempt));
        let mut txs = vec![built.funding.clone()];
        if !counted {
            txs.extend(self.rival(&built.funding));
        }
        // Opening a factory ends it: seldom enough that others are lived in.
        if built.complete() && self.dice.per_mille(100) {
            txs.extend(built.signed());
        }
        let tx = txs[self.dice.below(txs.len())].clone();
        let txid = tx.compute_txid();
        let accepted = self.chain.submit(&tx).is_ok();
        if accepted {
            self.note(format_args!("the LSP publishes {txid} of its own accord"));
        }
        Ok(accepted)
    }

    /// Once a factory is open, whatever was ever signed for it, the oldest first. Opening one is
    /// left to a few.
    fn publish_old(&mut self, who: Who) -> Result<bool, Violation> {
        let roles = self.party(who).live.iter().flat_map(|live| &live.roles);
        let tree = |role: &Role| match role {
            Role::Coordinator(role) => Some(role.newest_tree()?.funding),
            Role::Member(role) => Some(role.newer_trees().next()?.funding),
        };
        let built = roles.filter_map(|(attempt, role)| Some((*attempt, tree(role)?)));
        let built = built.filter(|(_, funding)| self.chain.height_of(&funding.txid).is_some());
        let built: Vec<(Attempt, OutPoint)> = built.collect();
        let Some(&(attempt, funding)) = self.dice.pick(&built) else {
            return Ok(false);
        };
        let open = self.chain.spender(&funding).is_some();
        if self.profile.ambush && !open {
            return self.ambush(who, &attempt);
        }
        if !open && !self.dice.per_mille(60) {
            return Ok(false);
        }
        let mut any = self.publish_all(who, &attempt);
        // While nobody looks.
        if open && !self.profile.ambush && self.dice.per_mille(500) {
            for _ in 0..self.dice.between(1, 16) {
                self.block()?;
                any |= self.publish_all(who, &attempt);
            }
        }
        Ok(any)
    }

    /// Opens a factory that has older epochs, and sees to it that nobody looks until the oldest state
    /// could be through. What was sold below it is for later: stock lies open until then.
    fn ambush(&mut self, who: Who, attempt: &Attempt) -> Result<bool, Violation> {
        let older = match self.party(who).role(attempt) {
            Some(Role::Coordinator(role)) => role.places().any(|slot| role.version(slot.slot) > 0),
            _ => false,
        };
        if !older || !self.dice.per_mille(200) {
            return Ok(false);
        }
        let txs = self.older(who, attempt, 0);
        let mut any = false;
        for _ in 0..self.dice.between(8, 40) {
            any |= self.publish(who, &txs);
            self.block()?;
        }
        Ok(any)
    }

    /// Tells everybody that the epoch under way is over, and goes on with it.
    fn break_promise(&mut self) -> bool {
        let mut under_way = self.overheard.iter().rev();
        let found = under_way.find_map(|(who, message)| match message {
            Message::EpochPartial(said) if *who != Who::Lsp => Some((*who, said.clone())),
            _ => None,
        });
        let Some((Who::Wallet(number), said)) = found else {
            return false;
        };
        let end = EpochEnd {
            attempt: said.attempt,
            epoch: said.epoch,
            code: RefusalCode::Silence,
        };
        self.note(format_args!(
            "the LSP promises wallet {number} what it will not keep"
        ));
        self.put(Who::Lsp, number, &end.into(), Origin::Forged);
        true
    }

    /// Takes a funding's coin back.
    fn rival(&self, funding: &Transaction) -> Option<Transaction> {
        let outpoint = funding.input[0].previous_output;
        let (coin, _) = self.chain.coin(&outpoint)?;
        let back = TxOut {
            value: Amount::from_sat(10_000),
            script_pubkey: coin.script_pubkey.clone(),
        };
        money::funding((outpoint, coin), &self.coin_key, back, 20)
    }

    /// A change of a channel that no member may accept.
    fn propose_nonsense(&mut self) -> bool {
        let Some((id, number)) = self.some_channel(None) else {
            return false;
        };
        let Some(channel) = self.lsp.disk.channels.get(&id) else {
            return false;
        };
        let expiry = self.chain.tip() + 2;
        let amount_msat = 10_000_000;
        let random = self.dice.bytes();
        let take = Htlc {
            toward: Toward::Lsp,
            amount_msat,
            hash: random,
            expiry,
        };
        let late = Htlc {
            toward: Toward::Member,
            expiry: channel.agreed.expiry,
            ..take.clone()
        };
        let claimed = channel
            .balances
            .htlcs
            .iter()
            .find(|it| it.toward == Toward::Member);
        let cancel = claimed.map_or(random, |htlc| htlc.hash);
        let next = channel.balances.number + 1;
        let change = match self.dice.below(5) {
            0 => Change::Add(take),
            1 => Change::Add(late),
            2 => Change::Settle(random),
            _ => Change::Cancel(cancel),
        };
        let talk = Talk::Propose {
            number: next,
            change,
        };
        self.note(format_args!(
            "the LSP proposes to wallet {number}: {talk:?}"
        ));
        let link = &mut self.links[usize::from(number)];
        link.queue(End::Wallet).push_back(Packet::Channel(id, talk));
        true
    }

    fn talk_nonsense(&mut self, number: u16) -> bool {
        let Some((id, _)) = self.some_channel(Some(number)) else {
            return false;
        };
        let random = self.dice.bytes();
        let talk = match self.dice.below(4) {
            0 => Talk::Accept {
                number: self.dice.between(0, 9),
            },
            1 => Talk::Reveal(random),
            2 => Talk::Decline {
                number: self.dice.between(0, 9),
            },
            _ => Talk::Pay {
                amount_msat: u64::MAX / 2,
                hash: random,
            },
        };
        self.note(format_args!("wallet {number} says {talk:?}"));
        let link = &mut self.links[usize::from(number)];
        link.queue(End::Lsp).push_back(Packet::Channel(id, talk));
        true
    }

    /// A held channel whose connection is up.
    fn some_channel(&mut self, of: Option<u16>) -> Option<(ChannelRef, u16)> {
        let channels = self.lsp.disk.channels.iter();
        let held: Vec<(ChannelRef, u16)> = channels
            .filter(|(_, channel)| channel.stage == Stage::Held)
            .filter_map(|(id, channel)| Some((*id, self.wallet_of(&channel.agreed.peer)?)))
            .filter(|(_, number)| {
                of.is_none_or(|wanted| wanted == *number) && self.links[usize::from(*number)].up
            })
            .collect();
        self.dice.pick(&held).copied()
    }
}
