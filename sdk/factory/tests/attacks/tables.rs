//! The tables of forgeries: a name, how the honest message is changed, the refusal's code and field.

use bitcoin::hashes::Hash as _;
use bitcoin::secp256k1::{PublicKey, Secp256k1};
use bitcoin::{Amount, Network, PubkeyHash, ScriptBuf, Txid};
use superscalar_factory::message::RefusalCode::*;
use superscalar_factory::message::{Identity, Invite, Join, Message, NodeSigs, PartialSigs};
use superscalar_factory::message::{RootSig, TermsMessage};
use superscalar_factory::shape::{NodeId, Shape};
use superscalar_factory::terms::{Instance, TimeoutPolicy};
use superscalar_factory::tree::stock_output;

use crate::by_lsp::flip;
use crate::world::{Party, TIP, World, key, payout};
use crate::{Row, Unseen, world_before};

#[rustfmt::skip]
pub(crate) fn terms() -> Vec<Row<TermsMessage>> {
    vec![
        // Amounts.
        ("less capacity", |t| t.facts.record.capacity -= Amount::ONE_SAT, Terms, "capacity"),
        ("a push nobody agreed to", |t| t.facts.record.push_msat += 1, Terms, "push_msat"),
        ("less stock", |t| t.facts.record.stock -= Amount::ONE_SAT, Terms, "stock"),
        ("a smaller own payout", |t| t.facts.payouts[1].value -= Amount::ONE_SAT, Terms, "payouts"),
        ("others are paid more than there is",
            |t| { t.facts.payouts[0].value = Amount::from_int_btc(5); }, Terms, "payouts"),
        ("a payout of dust", |t| t.facts.payouts[3].value = Amount::from_sat(999), Terms, "payouts"),
        ("a payout left out", |t| { t.facts.payouts.pop(); }, Terms, "payouts"),
        ("a sibling that cannot pay its members",
            |t| { t.facts.siblings[0].1 = Amount::from_sat(1_000); }, Terms, "payouts"),
        ("a sibling of dust", |t| t.facts.siblings[0].1 = Amount::from_sat(999), Terms, "siblings"),
        ("a sibling of all money", |t| t.facts.siblings[0].1 = Amount::MAX_MONEY, Terms, "siblings"),
        ("no sibling", |t| t.facts.siblings.clear(), Terms, "siblings"),
        ("a sibling twice", |t| t.facts.siblings.push(t.facts.siblings[0]), Terms, "siblings"),
        ("a sibling on the own path", |t| t.facts.siblings[0].0 = NodeId(1), Terms, "siblings"),
        ("a sibling that is no node", |t| t.facts.siblings[0].0 = NodeId(900), Terms, "siblings"),
        ("a smaller channel output",
            |t| { t.facts.leaf_outputs[1].value -= Amount::ONE_SAT; }, Terms, "leaf_outputs"),
        ("a smaller stock output",
            |t| { t.facts.leaf_outputs[3].value -= Amount::ONE_SAT; }, Terms, "leaf_outputs"),
        // Keys.
        ("own key missing", |t| t.facts.keys[1] = key("nobody", 0), Terms, "keys"),
        ("own key replaced in the record",
            |t| { t.facts.record.member_key = key("nobody", 0); }, Terms, "member_key"),
        ("own key replaced everywhere",
            |t| {
                t.facts.record.member_key = key("nobody", 0);
                t.facts.keys[1] = key("nobody", 0);
            }, Terms, "member_key"),
        ("own key twice", |t| t.facts.keys[0] = t.facts.keys[1], Terms, "member_key"),
        ("own key twice, negated",
            |t| { t.facts.keys[0] = t.facts.keys[1].negate(&Secp256k1::new()); }, Terms, "member_key"),
        ("the LSP's key as a member's", |t| t.facts.keys[2] = t.header.lsp_key, Terms, "member_key"),
        ("a key more", |t| t.facts.keys.push(key("nobody", 0)), Terms, "keys"),
        ("a key less", |t| { t.facts.keys.pop(); }, Terms, "keys"),
        // Scripts.
        ("own payout script", |t| t.facts.record.payout = payout(99), Terms, "payout"),
        ("own script in the distribution",
            |t| { t.facts.payouts[1].script_pubkey = payout(99); }, Terms, "payouts"),
        ("an anchor as a payout",
            |t| { t.facts.payouts[2].script_pubkey = ScriptBuf::new_p2a(); }, Terms, "payouts"),
        ("an OP_RETURN as a payout",
            |t| { t.facts.payouts[0].script_pubkey = ScriptBuf::new_op_return([1]); }, Terms, "payouts"),
        ("another channel script",
            |t| {
                t.facts.leaf_outputs[1].script_pubkey = t.facts.leaf_outputs[0].script_pubkey.clone();
            }, Terms, "leaf_outputs"),
        ("another stock script",
            |t| {
                t.facts.leaf_outputs[3].script_pubkey = t.facts.leaf_outputs[2].script_pubkey.clone();
            }, Terms, "leaf_outputs"),
        ("own stock twice",
            |t| { t.facts.leaf_outputs[2] = t.facts.leaf_outputs[3].clone(); }, Terms, "leaf_outputs"),
        ("no stock", |t| { t.facts.leaf_outputs.truncate(2); }, Terms, "leaf_outputs"),
        ("one output for two channels", |t| t.facts.leaf_outputs.truncate(1), Terms, "leaf_outputs"),
        ("an output more than a leaf has",
            |t| { t.facts.leaf_outputs.push(t.facts.leaf_outputs[0].clone()); }, Terms, "leaf_outputs"),
        ("an anchor in the leaf",
            |t| { t.facts.leaf_outputs[0].script_pubkey = ScriptBuf::new_p2a(); }, Terms, "leaf_outputs"),
        ("own channel key",
            |t| { t.facts.record.member_funding_key = key("nobody", 0); }, Terms, "member_funding_key"),
        ("the LSP's channel key",
            |t| { t.facts.record.lsp_funding_key = key("nobody", 0); }, Terms, "leaf_outputs"),
        ("own revocation key",
            |t| {
                t.facts.record.member_revocation_key = key("nobody", 0).x_only_public_key().0;
            }, Terms, "member_revocation_key"),
        ("another stock hash", |t| t.facts.record.stock_hash = [7; 32], Terms, "leaf_outputs"),
        // What holds for all.
        ("another factory", |t| t.header.instance = Instance([9; 32]), Terms, "instance"),
        ("another attempt in the header", |t| t.header.attempt += 1, Terms, "attempt"),
        ("another version", |t| t.header.version += 1, Terms, "version"),
        ("another chain", |t| t.header.network = Network::Bitcoin, Terms, "network"),
        ("another LSP key", |t| t.header.lsp_key = key("nobody", 0), Terms, "lsp_key"),
        ("another LSP payout", |t| t.header.lsp_payout = payout(99), Terms, "lsp_payout"),
        ("another shape", |t| t.header.shape = Shape::binary(4), Terms, "shape"),
        ("longer delays", |t| t.header.timing.step += 1, Terms, "timing"),
        ("a shorter expiry", |t| t.header.expiry -= 1, Terms, "expiry"),
        ("a longer expiry", |t| t.header.expiry += 1, Terms, "expiry"),
        ("a lower feerate", |t| t.header.tree_feerate -= 1, Terms, "tree_feerate"),
        ("another policy", |t| t.header.policy = TimeoutPolicy::LspReclaims, Terms, "policy"),
        // Place and proof.
        ("another slot", |t| t.facts.slot = 0, Terms, "slot"),
        ("a slot that is none", |t| t.facts.slot = u16::MAX, Terms, "slot"),
        ("a proof too short", |t| { t.facts.proof.siblings.pop(); }, Terms, "proof"),
        ("a proof too long", |t| t.facts.proof.siblings.push([0; 32]), Terms, "proof"),
        // Nonces.
        ("a nonce less", |t| { t.nonces.pop(); }, Nonce, "nonces"),
        ("a nonce more", |t| t.nonces.push(t.nonces[0]), Nonce, "nonces"),
        ("no nonce", |t| t.nonces.clear(), Nonce, "nonces"),
        ("the last nonce is no point", |t| *t.nonces.last_mut().unwrap() = [9; 66], Nonce, "nonces"),
        // Other ceremonies.
        ("terms of the next attempt", |t| t.attempt.number += 1, Unknown, "attempt"),
        ("terms of another factory", |t| t.attempt.instance = Instance([9; 32]), Unknown, "attempt"),
    ]
}

#[rustfmt::skip]
pub(crate) fn invites() -> Vec<Row<Invite>> {
    vec![
        ("a price", |i| i.price = Amount::ONE_SAT, Limits, "price"),
        ("a tiny channel", |i| i.capacity = Amount::from_sat(19_999), Limits, "capacity"),
        ("stock of dust", |i| i.stock = Amount::from_sat(999), Terms, "stock"),
        ("more than all money", |i| i.capacity = Amount::MAX, Terms, "capacity"),
        ("leaves a year before it must",
            |i| { i.header.timing.blocks_early = 52_560; }, Terms, "timing"),
        ("a push above the capacity", |i| i.push_msat = u64::MAX, Limits, "push_msat"),
        ("a slot that is none", |i| i.slot = i.members, Limits, "slot"),
        ("the LSP takes all in the end", |i| { i.header.policy = TimeoutPolicy::LspReclaims; }, Limits, "policy"),
        ("ends too soon", |i| i.header.expiry = TIP + 287, Limits, "expiry"),
        ("locks money for years", |i| i.header.expiry = 400_000, Limits, "expiry"),
        ("no height but a time", |i| i.header.expiry = 1_600_000_000, Terms, "expiry"),
        ("a feerate below relay", |i| i.header.tree_feerate = 4, Terms, "tree_feerate"),
        ("a feerate out of all proportion", |i| i.header.tree_feerate = 201, Limits, "tree_feerate"),
        ("a feerate that eats the channel", |i| { i.header.tree_feerate = 1_001; }, Terms, "tree_feerate"),
        ("a chain the wallet is not on", |i| { i.header.network = Network::Bitcoin; }, Limits, "network"),
        ("a version of tomorrow", |i| i.header.version = 2, Limits, "version"),
        ("invoices nobody can pay", |i| i.header.timing.blocks_early = 800, Limits, "timing"),
        ("an exit of days",
            |i| {
                i.header.timing.step = 200;
                i.header.timing = i.header.timing.clone().with_least_blocks_early(2);
            }, Limits, "exit_delay"),
        ("an exit of many epochs",
            |i| {
                i.header.timing.states = 40;
                i.header.timing = i.header.timing.clone().with_least_blocks_early(2);
            }, Limits, "exit_delay"),
        ("an exit of many layers",
            |i| {
                i.header.timing.step = 70;
                i.header.shape.arity = vec![2, 2, 2, 2, 2];
                i.members = 64;
                i.header.timing = i.header.timing.clone().with_least_blocks_early(6);
            }, Limits, "exit_delay"),
        ("time for one block and no more", |i| i.header.timing.confirm_margin = 0, Limits, "confirm_margin"),
        ("a chain of sales without end", |i| { longer_sales(i, 17); }, Limits, "max_sales"),
        ("distributions that come months later",
            |i| { i.header.timing.distribution_margin = 433; }, Limits, "distribution_margin"),
        ("the member's money waits for days",
            |i| { i.header.timing.member_to_self_delay = 289; }, Limits, "member_to_self_delay"),
        ("rounds of an hour", |i| i.round_seconds = 3_600, Limits, "round_seconds"),
        ("no time to answer", |i| i.round_seconds = 0, Limits, "round_seconds"),
        ("no time between epochs", |i| i.header.timing.step = 0, Terms, "step"),
        ("no states", |i| i.header.timing.states = 0, Terms, "states"),
        ("distributions as fast as states",
            |i| { i.header.timing.distribution_margin = 0; }, Terms, "distribution_margin"),
        ("leaves later than it can exit", |i| { i.header.timing.blocks_early -= 1; }, Terms, "blocks_early"),
        ("the member's money waits for months",
            |i| { i.header.timing.member_to_self_delay = 2_017; }, Terms, "member_to_self_delay"),
        ("the LSP's money does not wait",
            |i| { i.header.timing.lsp_to_self_delay = 143; }, Terms, "lsp_to_self_delay"),
        ("stock is taken back at once", |i| i.header.timing.stock_csv = 1, Terms, "stock_csv"),
        ("an unburied funding", |i| i.header.timing.min_depth = 0, Terms, "min_depth"),
        ("a day of confirmations", |i| i.header.timing.min_depth = 13, Limits, "min_depth"),
        ("an anchor as the LSP's payout", |i| { i.header.lsp_payout = ScriptBuf::new_p2a(); }, Terms, "lsp_payout"),
        ("a shape without room", |i| i.header.shape.arity.clear(), Terms, "shape"),
        ("a shape of one child", |i| i.header.shape.arity = vec![1, 2], Terms, "shape"),
        ("one member", |i| i.members = 1, Terms, "shape"),
        ("a crowd", |i| i.members = 129, Terms, "shape"),
    ]
}

/// What only matters where blocks are not made by a test; each is fine on regtest.
#[rustfmt::skip]
pub(crate) fn real_invites() -> Vec<Row<Invite>> {
    vec![
        ("a funding two blocks deep", |i| i.header.timing.min_depth = 2, Limits, "min_depth"),
        ("a race of hours", |i| i.header.timing.step = 47, Limits, "step"),
        ("an hour for each transaction", |i| i.header.timing.confirm_margin = 5, Limits, "confirm_margin"),
        ("a weekend to answer a fraud",
            |i| { i.header.timing.lsp_to_self_delay = 431; }, Limits, "lsp_to_self_delay"),
        ("a weekend to keep what was bought", |i| { i.header.timing.stock_csv = 431; }, Limits, "stock_csv"),
        ("over in a week", |i| i.header.expiry = TIP + 1_007, Limits, "expiry"),
    ]
}

fn longer_sales(invite: &mut Invite, links: u8) {
    let timing = &mut invite.header.timing;
    timing.max_sales = links;
    *timing = timing.clone().with_least_blocks_early(2);
}

#[rustfmt::skip]
pub(crate) fn node_sigs() -> Vec<Row<NodeSigs>> {
    vec![
        ("one bit", |s| s.signatures[3] = flip(&s.signatures[3]), Signature, "signatures"),
        ("two swapped", |s| s.signatures.swap(0, 1), Signature, "signatures"),
        ("one less", |s| { s.signatures.pop(); }, Signature, "signatures"),
        ("one more", |s| s.signatures.push(s.signatures[0]), Signature, "signatures"),
        ("none", |s| s.signatures.clear(), Signature, "signatures"),
        ("of another attempt", |s| s.attempt.number += 1, Unknown, "attempt"),
    ]
}

#[rustfmt::skip]
pub(crate) fn identities() -> Vec<Row<Identity>> {
    vec![
        ("another factory type", |i| i.protocol[0] ^= 1, Channel, "factory_protocol"),
        ("another slot", |i| i.slot += 1, Channel, "slot"),
        ("less time to leave", |i| i.blocks_early -= 1, Channel, "blocks_early"),
        ("another factory", |i| i.attempt.instance = Instance([9; 32]), Unknown, "attempt"),
    ]
}

#[rustfmt::skip]
pub(crate) fn root_sigs() -> Vec<Row<RootSig>> {
    vec![
        ("one bit", |s| s.signature = flip(&s.signature), Signature, "signature"),
        ("of another attempt", |s| s.attempt.number += 1, Unknown, "attempt"),
    ]
}

#[rustfmt::skip]
pub(crate) fn unseen_terms() -> Vec<Unseen<TermsMessage>> {
    vec![
        ("another funding transaction", |t| { t.funding.txid = Txid::all_zeros() }),
        ("another output of it", |t| t.funding.vout += 1),
        ("a neighbour's key replaced", |t| { t.facts.keys[0] = key("nobody", 0) }),
        ("a stranger's key replaced", |t| { t.facts.keys[3] = key("nobody", 0) }),
        ("two keys swapped", |t| t.facts.keys.swap(2, 3)),
        ("another record beside the own", |t| { t.facts.proof.siblings[0][0] ^= 1 }),
        ("another record in the other leaf", |t| { t.facts.proof.siblings[1][0] ^= 1 }),
        ("a smaller sibling", |t| { t.facts.siblings[0].1 -= Amount::from_sat(1) }),
        ("a neighbour paid elsewhere", |t| { t.facts.payouts[0].script_pubkey = payout(99) }),
        ("a stranger paid less", |t| { t.facts.payouts[3].value -= Amount::ONE_SAT }),
        ("a neighbour's channel", |t| { t.facts.leaf_outputs[0].value -= Amount::ONE_SAT }),
        ("a neighbour's stock", |t| { t.facts.leaf_outputs[2].value += Amount::ONE_SAT }),
        ("no stock for the neighbour", |t| { t.facts.leaf_outputs.remove(2); }),
        ("own stock and its hash",
            |t| {
                // Consistent, but not what the LSP and the others sign.
                t.facts.record.stock_hash = [7; 32];
                let stock = stock_output(&t.header, &t.facts.record);
                t.facts.leaf_outputs[3] = stock.unwrap().unwrap(); }),
        ("the LSP's channel key and the channel",
            |t| {
                t.facts.record.lsp_funding_key = key("nobody", 0);
                t.facts.leaf_outputs[1] = t.facts.record.channel_output(); }),
        ("nonces in another order", |t| t.nonces.reverse()),
        ("no nonce at all", |t| t.nonces[0] = [0; 66]),
    ]
}

#[rustfmt::skip]
pub(crate) fn joins() -> Vec<Row<Join>> {
    vec![
        ("the LSP's own key", |j| j.member_key = lsp_key(), Key, "member_key"),
        ("another member's key", |j| j.member_key = first_key(), Key, "member_key"),
        ("another member's key, negated",
            |j| { j.member_key = first_key().negate(&Secp256k1::new()); }, Key, "member_key"),
        ("an anchor as payout", |j| j.payout = ScriptBuf::new_p2a(), Terms, "payout"),
        ("an old payout",
            |j| { j.payout = ScriptBuf::new_p2pkh(&PubkeyHash::all_zeros()); }, Terms, "payout"),
        ("no payout", |j| j.payout = ScriptBuf::new(), Terms, "payout"),
        ("a nonce less", |j| { j.nonces.pop(); }, Nonce, "nonces"),
        ("a nonce more", |j| j.nonces.push(j.nonces[0]), Nonce, "nonces"),
        ("a nonce that is no point", |j| j.nonces[2] = [3; 66], Nonce, "nonces"),
        ("the point at infinity", |j| j.nonces[0] = [0; 66], Nonce, "nonces"),
        ("another attempt", |j| j.attempt.number += 1, Unknown, "attempt"),
    ]
}

#[rustfmt::skip]
pub(crate) fn partial_sigs() -> Vec<Row<PartialSigs>> {
    vec![
        ("one less", |p| { p.partials.pop(); }, Signature, "partials"),
        ("one more", |p| p.partials.push([1; 32]), Signature, "partials"),
        ("none", |p| p.partials.clear(), Signature, "partials"),
        ("another attempt", |p| p.attempt.number += 1, Unknown, "attempt"),
    ]
}

#[rustfmt::skip]
pub(crate) fn bad_partials() -> Vec<Unseen<Message>> {
    vec![
        ("one partial of the leaf", |m| { if let Message::PartialSigs(sigs) = m { sigs.partials[0][31] ^= 1; } }),
        ("one partial of the root",
            |m| { if let Message::PartialSigs(sigs) = m { sigs.partials.last_mut().unwrap()[31] ^= 1; } }),
        ("all of them", |m| { if let Message::PartialSigs(sigs) = m { sigs.partials.reverse(); } }),
        ("no scalar", |m| { if let Message::PartialSigs(sigs) = m { sigs.partials[1] = [0xff; 32]; } }),
        ("the root kickoff's", |m| { if let Message::RootPartial(root) = m { root.partial[31] ^= 1; } }),
        ("the root kickoff's, no scalar",
            |m| { if let Message::RootPartial(root) = m { root.partial = [0xff; 32]; } }),
        ("nonces it does not have", |m| { if let Message::Join(join) = m { join.nonces.reverse(); } }),
    ]
}

fn lsp_key() -> PublicKey {
    let mut world = World::new(4);
    world.start();
    world.lsp.as_ref().unwrap().invites()[0].header.lsp_key
}

fn first_key() -> PublicKey {
    let (_, join) = world_before(Party::Member(0), Party::Lsp, 3);
    match join {
        Message::Join(join) => join.member_key,
        _ => unreachable!(),
    }
}
