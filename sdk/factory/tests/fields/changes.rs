//! What is changed, field by field, and what a member must do about it.

use bitcoin::{Amount, Network};
use rand::{Rng as _, rngs::StdRng};
use superscalar_factory::message::{RefusalCode, TermsMessage};
use superscalar_factory::shape::NodeId;
use superscalar_factory::terms::{Instance, TimeoutPolicy};

use crate::world::{key, payout};

/// What a member does about a change.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Meets {
    /// A refusal with one of these fields.
    Refusal(RefusalCode, &'static [&'static str]),
    /// Only others can see it: signatures that fit nobody's.
    NoSignature,
    /// Either, as the value may be impossible in itself.
    Both(&'static [&'static str]),
    /// What others are paid by distributions, of which there are none: only the impossible is
    /// noticed.
    Unused(&'static [&'static str]),
}

/// Any other number of the same type.
macro_rules! other {
    ($rng:expr, $place:expr) => {{
        let old = $place.clone();
        while $place == old {
            $place = $rng.r#gen();
        }
    }};
}

/// Changes `field` to some other value. A row that is missing fails the test that counts them.
pub(crate) fn change(field: &str, rng: &mut StdRng, t: &mut TermsMessage) -> Option<Meets> {
    use Meets::{Both, NoSignature, Refusal, Unused};
    use RefusalCode::{Nonce, Terms, Unknown};
    let own = usize::from(t.facts.slot);
    let own_outputs = own_outputs(t);
    let (header, facts) = (&mut t.header, &mut t.facts);
    let timing = Refusal(Terms, &["timing"]);
    let someone = key("someone", rng.r#gen());
    Some(match field {
        "attempt.instance" => {
            t.attempt.instance = Instance(rng.r#gen());
            Refusal(Unknown, &["attempt"])
        }
        "attempt.number" => {
            other!(rng, t.attempt.number);
            Refusal(Unknown, &["attempt"])
        }
        "header.instance" => {
            header.instance = Instance(rng.r#gen());
            Refusal(Terms, &["instance"])
        }
        "header.attempt" => {
            other!(rng, header.attempt);
            Refusal(Terms, &["attempt"])
        }
        "header.version" => {
            other!(rng, header.version);
            Refusal(Terms, &["version"])
        }
        "header.network" => {
            let others = [Network::Bitcoin, Network::Testnet4, Network::Signet];
            header.network = others[rng.gen_range(0..3)];
            Refusal(Terms, &["network"])
        }
        "header.lsp_key" => {
            header.lsp_key = someone;
            Refusal(Terms, &["lsp_key"])
        }
        "header.lsp_payout" => {
            header.lsp_payout = payout(rng.gen_range(100..u64::MAX));
            Refusal(Terms, &["lsp_payout"])
        }
        "header.shape.arity" => {
            match header.shape.arity.is_empty() {
                true => header.shape.arity.push(2),
                false => other!(rng, header.shape.arity[0]),
            }
            Refusal(Terms, &["shape"])
        }
        "header.shape.members_per_leaf" => {
            other!(rng, header.shape.members_per_leaf);
            Refusal(Terms, &["shape"])
        }
        "header.timing.states" => {
            other!(rng, header.timing.states);
            timing
        }
        "header.timing.step" => {
            other!(rng, header.timing.step);
            timing
        }
        "header.timing.confirm_margin" => {
            other!(rng, header.timing.confirm_margin);
            timing
        }
        "header.timing.max_sales" => {
            other!(rng, header.timing.max_sales);
            timing
        }
        "header.timing.distribution_margin" => {
            other!(rng, header.timing.distribution_margin);
            timing
        }
        "header.timing.lsp_to_self_delay" => {
            other!(rng, header.timing.lsp_to_self_delay);
            timing
        }
        "header.timing.member_to_self_delay" => {
            other!(rng, header.timing.member_to_self_delay);
            timing
        }
        "header.timing.stock_csv" => {
            other!(rng, header.timing.stock_csv);
            timing
        }
        "header.timing.min_depth" => {
            other!(rng, header.timing.min_depth);
            timing
        }
        "header.timing.blocks_early" => {
            other!(rng, header.timing.blocks_early);
            timing
        }
        "header.expiry" => {
            other!(rng, header.expiry);
            Refusal(Terms, &["expiry"])
        }
        "header.tree_feerate" => {
            other!(rng, header.tree_feerate);
            Refusal(Terms, &["tree_feerate"])
        }
        "header.policy" => {
            header.policy = match header.policy {
                TimeoutPolicy::LspReclaims => TimeoutPolicy::MembersReclaim,
                _ => TimeoutPolicy::LspReclaims,
            };
            Refusal(Terms, &["policy"])
        }
        "facts.keys" => {
            let slot = rng.gen_range(0..facts.keys.len());
            match rng.gen_range(0..4) {
                0 => {
                    facts.keys.remove(slot);
                    Refusal(Terms, &["keys"])
                }
                1 => {
                    facts.keys.insert(slot, someone);
                    Refusal(Terms, &["keys"])
                }
                2 => {
                    let from = (slot + 1) % facts.keys.len();
                    facts.keys[slot] = facts.keys[from];
                    Refusal(Terms, &["member_key", "keys"])
                }
                _ => {
                    facts.keys[slot] = someone;
                    match slot == own {
                        true => Refusal(Terms, &["keys"]),
                        false => NoSignature,
                    }
                }
            }
        }
        "facts.slot" => {
            other!(rng, facts.slot);
            Refusal(Terms, &["slot"])
        }
        "facts.record.member_key" => {
            facts.record.member_key = someone;
            Refusal(Terms, &["member_key"])
        }
        "facts.record.capacity" => {
            let old = facts.record.capacity;
            while facts.record.capacity == old {
                facts.record.capacity = amount(rng);
            }
            Refusal(Terms, &["capacity"])
        }
        "facts.record.push_msat" => {
            other!(rng, facts.record.push_msat);
            Refusal(Terms, &["push_msat"])
        }
        "facts.record.stock" => {
            facts.record.stock = amount(rng);
            Refusal(Terms, &["stock"])
        }
        "facts.record.payout" => {
            facts.record.payout = payout(rng.gen_range(100..u64::MAX));
            Refusal(Terms, &["payout"])
        }
        "facts.record.member_funding_key" => {
            facts.record.member_funding_key = someone;
            Refusal(Terms, &["member_funding_key"])
        }
        // These two are the LSP's to choose; what follows from them is the own leaf output.
        "facts.record.lsp_funding_key" => {
            facts.record.lsp_funding_key = someone;
            Refusal(Terms, &["leaf_outputs"])
        }
        "facts.record.stock_hash" => {
            other!(rng, facts.record.stock_hash);
            Refusal(Terms, &["leaf_outputs"])
        }
        "facts.record.member_revocation_key" => {
            facts.record.member_revocation_key = someone.x_only_public_key().0;
            Refusal(Terms, &["member_revocation_key"])
        }
        "facts.proof.siblings" => {
            let siblings = &mut facts.proof.siblings;
            let at = rng.gen_range(0..siblings.len());
            match rng.gen_range(0..3) {
                0 => {
                    siblings.remove(at);
                    Refusal(Terms, &["proof"])
                }
                1 => {
                    siblings.insert(at, rng.r#gen());
                    Refusal(Terms, &["proof"])
                }
                _ => {
                    other!(rng, siblings[at]);
                    NoSignature
                }
            }
        }
        "facts.siblings" => match rng.gen_range(0..4) {
            // Beside a path of one node there is nothing.
            kind if kind == 0 || facts.siblings.is_empty() => {
                facts.siblings.push((NodeId(rng.r#gen()), amount(rng)));
                Refusal(Terms, &["siblings"])
            }
            1 => {
                facts.siblings.clear();
                Refusal(Terms, &["siblings"])
            }
            2 => {
                other!(rng, facts.siblings[0].0.0);
                Refusal(Terms, &["siblings"])
            }
            _ => {
                facts.siblings[0].1 = amount(rng);
                Both(&["siblings", "payouts"])
            }
        },
        "facts.leaf_outputs.value" => {
            let at = rng.gen_range(0..facts.leaf_outputs.len());
            facts.leaf_outputs[at].value = amount(rng);
            match own_outputs.contains(&at) {
                true => Refusal(Terms, &["leaf_outputs"]),
                false => Both(&["leaf_outputs", "payouts", "siblings"]),
            }
        }
        "facts.leaf_outputs.script_pubkey" => {
            let at = rng.gen_range(0..facts.leaf_outputs.len());
            facts.leaf_outputs[at].script_pubkey = payout(rng.gen_range(100..u64::MAX));
            match own_outputs.contains(&at) {
                true => Refusal(Terms, &["leaf_outputs"]),
                false => NoSignature,
            }
        }
        "facts.payouts.value" => {
            let at = rng.gen_range(0..facts.payouts.len());
            facts.payouts[at].value = amount(rng);
            match (at == own, header.policy) {
                (true, _) => Refusal(Terms, &["payouts"]),
                (_, TimeoutPolicy::LspReclaims) => Unused(&["payouts"]),
                _ => Both(&["payouts"]),
            }
        }
        "facts.payouts.script_pubkey" => {
            let at = rng.gen_range(0..facts.payouts.len());
            facts.payouts[at].script_pubkey = payout(rng.gen_range(100..u64::MAX));
            match (at == own, header.policy) {
                (true, _) => Refusal(Terms, &["payouts"]),
                (_, TimeoutPolicy::LspReclaims) => Unused(&[]),
                _ => NoSignature,
            }
        }
        "funding.txid" => {
            t.funding.txid = bitcoin::hashes::Hash::from_byte_array(rng.r#gen());
            NoSignature
        }
        "funding.vout" => {
            other!(rng, t.funding.vout);
            NoSignature
        }
        "nonces" => {
            let at = rng.gen_range(0..t.nonces.len());
            match rng.gen_range(0..3) {
                0 => {
                    t.nonces.remove(at);
                    Refusal(Nonce, &["nonces"])
                }
                1 => {
                    // Not the prefix of a point.
                    t.nonces[at][33] = rng.gen_range(4..=255);
                    Refusal(Nonce, &["nonces"])
                }
                _ => {
                    // The root kickoff's, last, is used later.
                    t.nonces.swap(0, 1);
                    NoSignature
                }
            }
        }
        _ => return None,
    })
}

/// Which outputs of the leaf are the member's: its channel and its stock.
fn own_outputs(t: &TermsMessage) -> [usize; 2] {
    let topology = t.header.shape.topology(t.facts.keys.len()).unwrap();
    let leaf = topology.path(t.facts.slot).pop().unwrap();
    let slots = &topology.node(leaf).slots;
    let channel = usize::from(t.facts.slot - slots.start);
    [channel, slots.len() + channel]
}

/// Any amount of any size, never the ones of the plan.
fn amount(rng: &mut StdRng) -> Amount {
    let bits = rng.gen_range(1..51);
    let sat = rng.gen_range(0..Amount::MAX_MONEY.to_sat()) >> (51 - bits);
    Amount::from_sat(if sat % 1_000 == 0 { sat + 1 } else { sat })
}
