//! Every field of every message of a new epoch, changed by whoever says it: it is refused by name
//! and changes nothing, or fits nobody else's signatures.

use bitcoin::Amount;
use superscalar_factory::coordinator::{self, StockOutput, stock_preimage};
use superscalar_factory::effect::Event;
use superscalar_factory::epoch::Wish;
use superscalar_factory::journal::Record;
use superscalar_factory::message::{CutOffer, EpochName, EpochPropose, Message, RefusalCode};
use superscalar_factory::shape::NodeId;
use superscalar_factory::terms::{Instance, stock_hash};

use crate::world::{Party, World, bytes, key};
use crate::{active, agree, balance, endow, records};

pub(crate) type Change = fn(&mut Message);
type Row = (&'static str, Change, RefusalCode, &'static str);

fn propose(message: &mut Message, change: impl FnOnce(&mut EpochPropose)) {
    if let Message::EpochPropose(body) = message {
        change(body);
    }
}

/// Changes what is offered: capacity and stock in satoshi, key and hash.
fn offer(
    message: &mut Message,
    change: impl FnOnce(&mut Amount, &mut Amount, &mut bitcoin::secp256k1::PublicKey, &mut [u8; 32]),
) {
    propose(message, |body| {
        if let CutOffer::Channel {
            capacity,
            stock,
            lsp_funding_key,
            stock_hash,
        } = &mut body.cut
        {
            change(capacity, stock, lsp_funding_key, stock_hash);
        }
    });
}

fn epoch(message: &mut Message, change: impl FnOnce(&mut EpochName)) {
    propose(message, |body| change(&mut body.epoch));
}

/// Of the member at slot 0.
fn own_stock_hash() -> [u8; 32] {
    let output = StockOutput {
        instance: Instance(bytes("instance", 0)),
        attempt: 0,
        slot: 0,
        root_epoch: 0,
        leaf_epoch: 0,
        link: 0,
    };
    stock_hash(&stock_preimage(&bytes("lsp seed", 0), &output))
}

const SAT: Amount = Amount::ONE_SAT;

/// What an LSP can change before a member has signed anything that counts.
const BEFORE: &[Row] = {
    use RefusalCode::{Equivocation, Limits, Nonce, Terms, Unknown, UsedUp};
    &[
        (
            "attempt",
            |message| propose(message, |body| body.attempt.number = 1),
            Unknown,
            "attempt",
        ),
        (
            "a node of others",
            |message| epoch(message, |name| name.node = NodeId(2)),
            Terms,
            "node",
        ),
        (
            "no node",
            |message| epoch(message, |name| name.node = NodeId(999)),
            Terms,
            "node",
        ),
        (
            "no epoch",
            |message| epoch(message, |name| name.epochs.clear()),
            Terms,
            "epochs",
        ),
        (
            "another root",
            |message| epoch(message, |name| name.epochs[0] = 1),
            Terms,
            "epochs",
        ),
        (
            "too many",
            |message| epoch(message, |name| name.epochs.push(1)),
            Terms,
            "epochs",
        ),
        (
            "the epoch there is",
            |message| epoch(message, |name| name.epochs[1] = 0),
            Equivocation,
            "epochs",
        ),
        (
            "an epoch there never is",
            |message| epoch(message, |name| name.epochs[1] = 4),
            UsedUp,
            "epochs",
        ),
        (
            "version",
            |message| propose(message, |body| body.version += 1),
            Terms,
            "version",
        ),
        (
            "more than distributions pay",
            |message| offer(message, |capacity, _, _, _| *capacity += SAT),
            Terms,
            "capacity",
        ),
        (
            "less than distributions pay",
            |message| offer(message, |_, stock, _, _| *stock -= SAT),
            Terms,
            "capacity",
        ),
        (
            "no output",
            |message| {
                offer(message, |capacity, stock, _, _| {
                    *capacity = *capacity + *stock - SAT;
                    *stock = SAT;
                });
            },
            Terms,
            "stock",
        ),
        (
            "less than the channels hold",
            |message| {
                offer(message, |capacity, stock, _, _| {
                    *capacity -= SAT;
                    *stock += SAT;
                });
            },
            Limits,
            "capacity",
        ),
        (
            "the member's key as the LSP's",
            |message| {
                offer(message, |_, _, lsp, _| *lsp = key("member funding", 0));
            },
            Terms,
            "lsp_funding_key",
        ),
        (
            "a hash that is in use",
            |message| offer(message, |_, _, _, hash| *hash = own_stock_hash()),
            Terms,
            "stock_hash",
        ),
        (
            "to leave",
            |message| propose(message, |body| body.cut = CutOffer::Departed),
            Limits,
            "cut",
        ),
        (
            "terms of another try",
            |message| {
                if let Message::EpochTerms(body) = message {
                    body.epoch.retry += 1;
                }
            },
            RefusalCode::Unexpected,
            "epoch",
        ),
        (
            "the own channel's amount",
            |message| {
                if let Message::EpochTerms(body) = message {
                    body.leaf_outputs[0].value -= SAT;
                }
            },
            Terms,
            "leaf_outputs",
        ),
        (
            "the own stock is not there",
            |message| {
                if let Message::EpochTerms(body) = message {
                    body.leaf_outputs.truncate(2);
                }
            },
            Terms,
            "leaf_outputs",
        ),
        (
            "more than the leaf holds",
            |message| {
                if let Message::EpochTerms(body) = message {
                    // Of the neighbour, whose own refusal is another.
                    body.leaf_outputs[1].value += SAT;
                }
            },
            Terms,
            "leaf_outputs",
        ),
        (
            "contents of no leaf below",
            |message| {
                if let Message::EpochTerms(body) = message {
                    body.contents.push([1; 32]);
                }
            },
            Terms,
            "contents",
        ),
        (
            "nonces for nothing",
            |message| {
                if let Message::EpochTerms(body) = message {
                    body.nonces.push([2; 66]);
                }
            },
            Nonce,
            "nonces",
        ),
    ]
};

/// The same where a part of the tree is signed below.
const BELOW: &[Row] = {
    use RefusalCode::{Nonce, Signature, Terms};
    &[
        (
            "the own leaf's hash",
            |message| {
                if let Message::EpochTerms(body) = message {
                    body.contents[0] = [1; 32];
                    body.contents[1] = [1; 32];
                }
            },
            Terms,
            "contents",
        ),
        (
            "a leaf too many",
            |message| {
                if let Message::EpochTerms(body) = message {
                    body.contents.push([1; 32]);
                }
            },
            Terms,
            "contents",
        ),
        (
            "a nonce too few",
            |message| {
                if let Message::EpochTerms(body) = message {
                    body.nonces.pop();
                }
            },
            Nonce,
            "nonces",
        ),
        (
            "a signature too few",
            |message| {
                if let Message::EpochSigs(body) = message {
                    body.signatures.pop();
                }
            },
            Signature,
            "signatures",
        ),
        (
            "signatures of other transactions",
            |message| {
                if let Message::EpochSigs(body) = message {
                    body.signatures.reverse();
                }
            },
            Signature,
            "signatures",
        ),
    ]
};

/// What an LSP can change once it has asked for the signatures that count.
const AFTER: &[Row] = {
    use RefusalCode::{Nonce, Signature, Terms, Unexpected};
    &[
        (
            "a nonce that is none",
            |message| {
                if let Message::EpochCommit(body) = message {
                    body.nonce = [9; 66];
                }
            },
            Nonce,
            "nonces",
        ),
        (
            "the final signature",
            |message| {
                if let Message::EpochSig(body) = message {
                    let mut bytes = body.signature.serialize();
                    bytes[40] ^= 1;
                    let changed = bitcoin::secp256k1::schnorr::Signature::from_slice(&bytes);
                    body.signature = changed.unwrap();
                }
            },
            Signature,
            "signature",
        ),
        (
            "a signature of another try",
            |message| {
                if let Message::EpochSig(body) = message {
                    body.epoch.retry += 1;
                }
            },
            Unexpected,
            "epoch",
        ),
        (
            "another preimage",
            |message| {
                if let Message::EpochReveal(body) = message {
                    body.preimages[0] = [1; 32];
                }
            },
            Terms,
            "preimages",
        ),
        (
            "a preimage too few",
            |message| {
                if let Message::EpochReveal(body) = message {
                    body.preimages.remove(0);
                }
            },
            Terms,
            "preimages",
        ),
        (
            "preimages of another try",
            |message| {
                if let Message::EpochReveal(body) = message {
                    body.epoch.retry += 1;
                }
            },
            Unexpected,
            "epoch",
        ),
    ]
};

pub(crate) fn ready(carry: bool) -> World {
    let mut world = active(4, if carry { 2 } else { 4 });
    world.buy(0, 20_000);
    endow(&mut world);
    if carry {
        world.merge(0).unwrap();
        // Their own records are what a slot that has not moved is compared with.
        world.events.clear();
    }
    world
}

/// Begins an epoch whose messages of this party are changed.
pub(crate) fn begin(world: &mut World, by: Party, change: Change) {
    world.tamper = Box::new(move |from, mut message| {
        if from == by {
            change(&mut message);
        }
        Some(message)
    });
    let plan = world.epoch_plan(0, |_| Wish::Merge).unwrap();
    world.begin_epoch(&plan).unwrap();
    world.deliver();
    world.tamper = Box::new(|_, message| Some(message));
}

pub(crate) fn refusals(world: &World) -> Vec<(Party, RefusalCode, String)> {
    let refused = world.events.iter().filter_map(|(who, event)| match event {
        Event::Refused { code, field, .. } => Some((*who, *code, field.clone())),
        _ => None,
    });
    refused.collect()
}

fn committed(world: &World) -> usize {
    let all = world.journal.values().flatten();
    all.filter(|record| matches!(record, Record::MemberEpochCommitted(_)))
        .count()
}

#[test]
fn what_an_lsp_changes_is_refused_by_name_before_anything_counts() {
    for (carry, rows) in [(false, BEFORE), (true, BELOW)] {
        for (what, change, code, field) in rows {
            let mut world = ready(carry);
            let (version, signed) = (u32::from(carry), committed(&world));
            let before: Vec<u64> = (0..4).map(|slot| balance(&world, slot)).collect();
            begin(&mut world, Party::Lsp, *change);
            let wanted = (*code, (*field).to_owned());
            let named = refusals(&world);
            let members = named.iter().filter(|(who, ..)| *who != Party::Lsp);
            let mut members = members.map(|(_, code, field)| (*code, field.clone()));
            assert!(
                members.any(|refused| refused == wanted),
                "{what}: {named:?}"
            );
            assert_eq!(committed(&world), signed, "{what}");
            // It ends for all, and the next is what it would have been.
            world.tell_lsp(coordinator::Input::EpochTimedOut);
            world.deliver();
            for slot in [0, 1] {
                agree(&world, slot, version);
            }
            let plan = world.epoch_plan(0, |_| Wish::Merge).unwrap();
            world.begin_epoch(&plan).unwrap();
            world.deliver();
            for slot in [0, 1] {
                agree(&world, slot, version + 1);
                assert_eq!(balance(&world, slot), before[usize::from(slot)], "{what}");
            }
        }
    }
}

#[test]
fn what_an_lsp_changes_after_the_signatures_stops_everything_until_it_is_right() {
    for (what, change, code, field) in AFTER {
        let mut world = ready(false);
        begin(&mut world, Party::Lsp, *change);
        let named = refusals(&world);
        assert!(
            named.contains(&(Party::Member(0), *code, (*field).to_owned())),
            "{what}: {named:?}"
        );
        for slot in [0, 1] {
            let own = Party::Member(slot);
            // Neither channel is in use.
            assert!(world.epochs.frozen.contains(&(own, slot)), "{what}");
            let mine = |all: &std::collections::BTreeSet<(Party, _)>| {
                all.iter().filter(|(who, _)| *who == own).count()
            };
            assert_eq!(
                (mine(&world.epochs.activated), mine(&world.epochs.retired)),
                (0, 0)
            );
        }
        // Also after a restart.
        world.kill(Party::Member(0));
        crate::crashes::revive(&mut world);
        assert!(world.epochs.frozen.contains(&(Party::Member(0), 0)));
        // Said again as it should be, it goes on.
        for slot in [0, 1] {
            world.reconnect(slot);
        }
        world.deliver();
        for slot in [0, 1] {
            agree(&world, slot, 1);
        }
    }
}

/// A name that was agreed on for a channel is not used for another.
#[test]
fn a_try_has_a_channel_of_its_own() {
    let mut world = ready(false);
    // The channel of the first try is agreed on and never opened.
    let plan = world.epoch_plan(0, |_| Wish::Merge).unwrap();
    world.begin_epoch(&plan).unwrap();
    world.deliver_until(|_, _, message| matches!(message, Message::EpochStored(_)));
    world.tell_lsp(coordinator::Input::EpochTimedOut);
    world.deliver();
    assert_eq!(world.epochs.discarded.len(), 4);
    let next = world.lsp.as_ref().unwrap().next_epoch(0).unwrap();
    assert_eq!((next.epoch.retry, next.channels[0].seq), (1, 1 << 16));
    let signed = records(&world, Party::Member(0));
    begin(&mut world, Party::Lsp, |message| {
        epoch(message, |name| name.retry = 0)
    });
    assert!(refusals(&world).contains(&(Party::Member(0), RefusalCode::Terms, "retry".to_owned())));
    assert_eq!(records(&world, Party::Member(0)), signed);
    world.tell_lsp(coordinator::Input::EpochTimedOut);
    world.deliver();
    world.merge(0).unwrap();
    agree(&world, 0, 1);
    assert_eq!(world.epochs.activated.iter().next().unwrap().1.seq, 1 << 16);
}

/// What a member changes is refused by name, names the member, and harms nobody.
#[test]
fn what_a_member_changes_is_refused_by_name() {
    use RefusalCode::{Key, Nonce, Signature};
    let rows: [(&str, bool, Change, RefusalCode, &str); 6] = [
        (
            "a nonce too many",
            false,
            |message| {
                if let Message::EpochReady(body) = message {
                    body.nonces.push([2; 66]);
                }
            },
            Nonce,
            "nonces",
        ),
        (
            "a nonce that is none",
            true,
            |message| {
                if let Message::EpochReady(body) = message {
                    body.nonces[0] = [9; 66];
                }
            },
            Nonce,
            "nonces",
        ),
        (
            "the LSP's key as its own",
            false,
            |message| {
                if let Message::EpochReady(body) = message {
                    body.funding_key = key("lsp moved", 1_000);
                }
            },
            Key,
            "funding_key",
        ),
        (
            "partial signatures below",
            true,
            |message| {
                if let Message::EpochPartials(body) = message {
                    body.partials[1][5] ^= 1;
                }
            },
            Signature,
            "partials",
        ),
        (
            "its nonce",
            false,
            |message| {
                if let Message::EpochNonce(body) = message {
                    body.nonce = [9; 66];
                }
            },
            Nonce,
            "nonce",
        ),
        (
            "its partial signature",
            false,
            |message| {
                if let Message::EpochPartial(body) = message {
                    body.partial[5] ^= 1;
                }
            },
            Signature,
            "partial",
        ),
    ];
    for (what, carry, change, code, field) in rows {
        let mut world = ready(carry);
        begin(&mut world, Party::Member(0), change);
        let wanted = (Party::Lsp, code, field.to_owned());
        let named = refusals(&world);
        assert!(named.contains(&wanted), "{what}: {named:?}");
        let version = u32::from(carry);
        assert_eq!(world.lsp.as_ref().unwrap().version(0), version, "{what}");
        // Said again as it should be, it goes on; nothing was used up.
        world.reconnect(0);
        world.deliver();
        for slot in [0, 1] {
            agree(&world, slot, version + 1);
        }
    }
}
