//! The published test vectors in `vectors/` are what this crate computes, byte for byte.
//! `SUPERSCALAR_BLESS=1` writes them anew; a change to them is a change of the protocol.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "all of this program is tests and what they share"
)]

mod world;

use std::fs;
use std::path::Path;

use bitcoin::consensus::encode::serialize_hex;
use bitcoin::hashes::Hash as _;
use bitcoin::{OutPoint, TxOut, Txid};
use serde_json::{Value, json};
use superscalar_factory::codec::Encode;
use superscalar_factory::coordinator::{
    EpochStockOutput, StockOutput, epoch_stock_preimage, stock_preimage,
};
use superscalar_factory::message::Message;
use superscalar_factory::shape::{NodeId, Shape};
use superscalar_factory::signing::FactoryKey;
use superscalar_factory::terms::{
    FactoryId, FeeRules, Header, Instance, PROTOCOL_VERSION, SlotRecord, Terms, TimeoutPolicy,
    stock_hash,
};
use superscalar_factory::timing::Timing;
use superscalar_factory::tree::{Blueprint, Tree, TxName, leaf_hash};
use superscalar_factory::wire;
use world::{World, bytes, key, payout, plan};

/// Compares with the committed file.
fn published(name: &str, vectors: &Value) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("vectors")
        .join(name);
    let text = serde_json::to_string_pretty(&sorted(vectors)).unwrap() + "\n";
    if std::env::var_os("SUPERSCALAR_BLESS").is_some() {
        fs::write(&file, &text).unwrap();
    }
    let committed = fs::read_to_string(&file).unwrap();
    for (number, (ours, theirs)) in text.lines().zip(committed.lines()).enumerate() {
        assert_eq!(ours, theirs, "{name}, line {}", number + 1);
    }
    assert!(text == committed, "{name} has another length");
}

/// With keys in alphabetical order, whether or not another crate of this build makes the JSON
/// library keep the order of insertion.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            let sorted = |(key, value): (&String, &Value)| (key.clone(), sorted(value));
            entries.into_iter().map(sorted).collect()
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

fn encoded(value: &impl Encode) -> String {
    hex::encode(value.to_bytes())
}

fn terms(policy: TimeoutPolicy) -> Terms {
    let shape = Shape::two_layers(4);
    let slot = |number: u64| SlotRecord {
        member_key: key("vector member", number),
        capacity: bitcoin::Amount::from_sat(500_000 + number),
        push_msat: 1_000 * number,
        // The last has none: its leaf has three outputs.
        stock: bitcoin::Amount::from_sat(if number == 3 { 0 } else { 100_000 }),
        payout: payout(number + 1),
        member_funding_key: key("vector member funding", number),
        lsp_funding_key: key("vector lsp funding", number),
        stock_hash: stock_hash(&bytes("vector preimage", number)),
        member_revocation_key: key("vector revocation", number).x_only_public_key().0,
    };
    Terms {
        header: Header {
            instance: Instance(bytes("vector instance", 0)),
            attempt: 1,
            version: PROTOCOL_VERSION,
            network: bitcoin::Network::Bitcoin,
            lsp_key: key("vector lsp", 0),
            lsp_payout: payout(0),
            timing: Timing::mainnet(shape.layers()),
            shape,
            expiry: 905_808,
            tree_feerate: 10,
            policy,
            fee_rules: FeeRules::OperatorKeeps,
        },
        slots: (0..4).map(slot).collect(),
    }
}

fn header(header: &Header) -> Value {
    let t = &header.timing;
    json!({
        "instance": header.instance.to_string(),
        "attempt": header.attempt,
        "version": header.version,
        "network": header.network.to_string(),
        "lsp_key": header.lsp_key.to_string(),
        "lsp_payout": header.lsp_payout.to_hex_string(),
        "shape": {
            "arity": header.shape.arity,
            "members_per_leaf": header.shape.members_per_leaf,
        },
        "timing": {
            "states": t.states,
            "step": t.step,
            "confirm_margin": t.confirm_margin,
            "max_sales": t.max_sales,
            "distribution_margin": t.distribution_margin,
            "lsp_to_self_delay": t.lsp_to_self_delay,
            "member_to_self_delay": t.member_to_self_delay,
            "stock_csv": t.stock_csv,
            "min_depth": t.min_depth,
            "blocks_early": t.blocks_early,
        },
        "expiry": header.expiry,
        "tree_feerate": header.tree_feerate,
        "policy": format!("{:?}", header.policy),
        "fee_rules": format!("{:?}", header.fee_rules),
        "encoded": encoded(header),
    })
}

fn record(record: &SlotRecord) -> Value {
    json!({
        "member_key": record.member_key.to_string(),
        "capacity": record.capacity.to_sat(),
        "push_msat": record.push_msat,
        "stock": record.stock.to_sat(),
        "payout": record.payout.to_hex_string(),
        "member_funding_key": record.member_funding_key.to_string(),
        "lsp_funding_key": record.lsp_funding_key.to_string(),
        "stock_hash": hex::encode(record.stock_hash),
        "member_revocation_key": record.member_revocation_key.to_string(),
        "encoded": encoded(record),
    })
}

fn output(output: &TxOut) -> Value {
    json!({
        "value": output.value.to_sat(),
        "script_pubkey": output.script_pubkey.to_hex_string(),
    })
}

fn factory(policy: TimeoutPolicy) -> Value {
    let terms = terms(policy);
    let blueprint = Blueprint::whole(&terms).unwrap();
    let funding = OutPoint::new(Txid::from_byte_array(bytes("vector funding", 0)), 1);
    let tree = blueprint.tree(funding).unwrap();
    let slots = 0..terms.slots.len() as u16;
    let path = |slot: u16| path(&blueprint, &terms, &tree, slot);
    json!({
        "header": header(&terms.header),
        "records": terms.slots.iter().map(record).collect::<Vec<_>>(),
        "terms_id": terms.terms_id().to_string(),
        "funding": { "txid": funding.txid.to_string(), "vout": funding.vout },
        "funding_output": output(&tree.funding_output),
        "factory_id": FactoryId::new(terms.terms_id(), funding).to_string(),
        "transactions": tree.transactions().map(transaction).collect::<Vec<_>>(),
        "paths": slots.map(path).collect::<Vec<_>>(),
    })
}

/// One transaction of a tree, with all that signing it needs.
fn transaction(tx: &superscalar_factory::tree::TreeTx) -> Value {
    json!({
        "name": tx.name.to_string(),
        "txid": tx.txid().to_string(),
        "unsigned": serialize_hex(&tx.tx),
        "spends": output(&tx.prevout),
        "output_key": tx.key.output_key().to_string(),
        "signers": tx.key.signers().count(),
        "sighash": hex::encode(tx.sighash),
        "fee": tx.fee().to_sat(),
        "signed_vsize": tx.vsize(),
    })
}

/// What one member is told, and what it makes of it.
fn path(blueprint: &Blueprint, terms: &Terms, tree: &Tree, slot: u16) -> Value {
    let facts = blueprint.facts(terms, slot).unwrap();
    let order = tree.signing_order(slot);
    let channel = tree.channel_outpoint(slot).unwrap();
    json!({
        "slot": slot,
        "proof": facts.proof.siblings.iter().map(hex::encode).collect::<Vec<_>>(),
        "facts": encoded(&facts),
        "signing_order": order.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "channel": { "txid": channel.txid.to_string(), "vout": channel.vout },
    })
}

#[test]
fn a_factory_of_four_under_both_policies() {
    published(
        "factory-members-reclaim.json",
        &factory(TimeoutPolicy::MembersReclaim),
    );
    published(
        "factory-lsp-reclaims.json",
        &factory(TimeoutPolicy::LspReclaims),
    );
}

#[test]
fn keys_and_stock_preimages() {
    let factory_keys = (0..4).map(|number| {
        let (seed, salt) = (bytes("vector seed", number), bytes("vector salt", number));
        json!({
            "seed": hex::encode(seed),
            "salt": hex::encode(salt),
            "factory_key": FactoryKey::derive(&seed, &salt).public().to_string(),
            "revocation_key": superscalar_factory::member::revocation_key(&seed, &salt)
                .public()
                .to_string(),
        })
    });
    let factory_keys: Vec<Value> = factory_keys.collect();
    let seed = bytes("vector lsp seed", 0);
    let first = StockOutput {
        instance: Instance(bytes("vector instance", 0)),
        attempt: 0,
        slot: 0,
        root_epoch: 0,
        leaf_epoch: 0,
        link: 0,
    };
    let outputs = [
        first,
        StockOutput {
            attempt: 258,
            ..first
        },
        StockOutput { slot: 127, ..first },
        StockOutput {
            root_epoch: 1,
            ..first
        },
        StockOutput {
            leaf_epoch: 1,
            ..first
        },
        StockOutput { link: 4, ..first },
    ];
    let mut seen = std::collections::BTreeSet::new();
    let stock = outputs.iter().map(|output| {
        let preimage = stock_preimage(&seed, output);
        assert!(seen.insert(*preimage), "preimages are independent");
        json!({
            "instance": output.instance.to_string(),
            "attempt": output.attempt,
            "slot": output.slot,
            "root_epoch": output.root_epoch,
            "leaf_epoch": output.leaf_epoch,
            "link": output.link,
            "preimage": hex::encode(*preimage),
            "hash": hex::encode(stock_hash(&preimage)),
        })
    });
    let stock: Vec<Value> = stock.collect();
    let vectors = json!({
        "factory_keys": factory_keys,
        "stock": { "seed": hex::encode(seed), "outputs": stock },
    });
    published("keys.json", &vectors);
}

fn on_the_wire(message: &Message) -> Value {
    let debug = format!("{message:?}");
    let [frame] = &wire::frames(message)[..] else {
        panic!("messages of a small factory are one frame")
    };
    json!({
        "submessage": frame.submessage,
        "name": debug.split('(').next(),
        "attempt": message.attempt().map(|attempt| encoded(&attempt)),
        "payload": hex::encode(&frame.payload),
    })
}

/// One of each message of a whole ceremony of four, as it stands on the wire.
#[test]
fn messages() {
    let mut world = World::new(4);
    world.run();
    let mut kinds = std::collections::BTreeMap::new();
    for (_, message) in world.log {
        kinds.entry(message.number()).or_insert(message);
    }
    let each: Vec<Value> = kinds.values().map(on_the_wire).collect();
    assert_eq!(each.len(), 10);
    published("messages.json", &json!({ "messages": each }));
}

/// A member of two buys twice, the second time everything: what was said, and the chain it makes.
#[test]
fn sales() {
    let mut world = World::selling(plan(2));
    let since = world.log.len();
    world.buy(0, 10_000);
    let everything = world.members[&0].sellable().whole;
    world.buy(0, everything.to_sat());
    let attempt = world.plan.attempt;
    let promised: Vec<_> = world.log[since..]
        .iter()
        .filter_map(|(_, message)| match message {
            Message::Quote(quote) => Some(quote.sale.clone()),
            _ => None,
        })
        .collect();
    let chain = world.members[&0].stock_chain().unwrap();
    let origin = chain.origin();
    let links = chain.links().iter().zip(&promised).map(|(sold, terms)| {
        let tx = &sold.link().tx;
        json!({
            "sale": encoded(terms),
            "sale_id": terms.id(&attempt).to_string(),
            "amount": terms.amount.to_sat(),
            "member_funding_key": terms.member_funding_key.to_string(),
            "lsp_funding_key": terms.lsp_funding_key.to_string(),
            "next_hash": terms.next_hash.map(hex::encode),
            "price_msat": terms.price_msat,
            "valid_until": terms.valid_until,
            "payment_hash": hex::encode(terms.payment_hash),
            "txid": tx.txid().to_string(),
            "unsigned": serialize_hex(&tx.tx),
            "spends": output(&tx.prevout),
            "output_key": tx.key.output_key().to_string(),
            "sighash": hex::encode(tx.sighash),
            "fee": tx.fee().to_sat(),
            "signed_vsize": tx.vsize(),
            "signature": sold.signature().to_string(),
        })
    });
    let links: Vec<Value> = links.collect();
    assert_eq!(links.len(), 2);
    let said: Vec<Value> = world.log[since..]
        .iter()
        .map(|(_, message)| on_the_wire(message))
        .collect();
    assert_eq!(said.len(), 2 * 5);
    let vectors = json!({
        "attempt": encoded(&attempt),
        "tree_feerate": world.plan.tree_feerate,
        "stock_csv": world.plan.timing.stock_csv,
        "lsp_key": world::lsp_key(attempt).public().to_string(),
        "origin": {
            "txid": origin.outpoint.txid.to_string(),
            "vout": origin.outpoint.vout,
            "value": chain.first().value().to_sat(),
            "member_key": origin.member_key.to_string(),
            "member_revocation_key": origin.member_revocation_key.to_string(),
            "hash": hex::encode(origin.hash),
        },
        "links": links,
        "messages": said,
    });
    published("sales.json", &vectors);
}

/// A factory of four: a new epoch of a leaf after a sale, then one that is carried into the root.
#[test]
fn epochs() {
    let mut world = World::selling(plan(4));
    world.buy(0, 10_000);
    let attempt = world.plan.attempt;
    let mut made = Vec::new();
    for _ in 0..2 {
        let since = world.log.len();
        let next = world.lsp.as_ref().unwrap().next_epoch(0).unwrap();
        world.merge(0).unwrap();
        let node = next.epoch.node;
        let tree = world.lsp.as_ref().unwrap().newest_tree().unwrap();
        let mut names = tree.renewed_below(node);
        names.push(TxName::state(node));
        let preimage = |slot: u16| {
            let mut epochs = next.epoch.epochs.clone();
            epochs.resize(2, 0);
            let output = EpochStockOutput {
                attempt,
                slot,
                epochs,
                retry: 0,
                link: 0,
            };
            let preimage = epoch_stock_preimage(&bytes("lsp seed", 0), &output);
            json!({
                "slot": slot,
                "epochs": output.epochs,
                "preimage": hex::encode(*preimage),
                "hash": hex::encode(stock_hash(&preimage)),
            })
        };
        let slots = tree.topology().node(node).slots.clone();
        let leaves = tree.topology().leaves(node).into_iter();
        let leaf = |leaf| {
            let outputs = &tree.node(leaf).unwrap().state.tx.output;
            hex::encode(leaf_hash(&outputs[..outputs.len() - 1]))
        };
        let said = world.log[since..].iter();
        made.push(json!({
            "epoch": encoded(&next.epoch),
            "version": next.channels[0].version,
            "leaf_hashes": leaves.map(leaf).collect::<Vec<_>>(),
            "commitment_below": hex::encode(tree.commitment(NodeId(1))),
            "stock": slots.map(preimage).collect::<Vec<_>>(),
            "transactions": names.into_iter().map(|name| transaction(tree.tx(name).unwrap()))
                .collect::<Vec<_>>(),
            "messages": said.map(|(_, message)| on_the_wire(message)).collect::<Vec<_>>(),
        }));
    }
    let vectors = json!({
        "attempt": encoded(&attempt),
        "lsp_seed": hex::encode(bytes("lsp seed", 0)),
        "epochs": made,
    });
    published("epochs.json", &vectors);
}
