//! What Bitcoin Core's relay policy and consensus make of a factory's transactions.
//!
//! The protocol rests on these facts, so they are pinned here by a real bitcoind and not by our own
//! reading of its rules: if a new release behaves otherwise, this file fails first. Transactions
//! are built by hand, with one key where factories have an aggregate; the chain sees no difference.

use bitcoin::absolute::LockTime;
use bitcoin::hashes::Hash;
use bitcoin::key::{Keypair, Secp256k1, TapTweak};
use bitcoin::secp256k1::{Message, SecretKey};
use bitcoin::sighash::{Prevouts, SighashCache, TapSighashType};
use bitcoin::taproot::{Signature, TapNodeHash};
use bitcoin::transaction::Version;
use bitcoin::{
    Amount, FeeRate, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness,
    WitnessProgram, WitnessVersion,
};
use superscalar_tests::regtest::{Acceptance, RegtestNode, RpcError};

const TREE_FEERATE_SAT_PER_VB: u64 = 10;
const ANCHOR: Amount = Amount::from_sat(240);
const FUNDING: Amount = Amount::from_sat(1_000_000);
const STATE_DELAY: u16 = 6;
const KICKOFF_VBYTES: u64 = 124;
const STATE_VBYTES: u64 = 167;
/// A child that spends an anchor and one taproot coin into one taproot output.
const BUMP_CHILD_VBYTES: u64 = 153;
const TRUC: Version = Version(3);

/// A coin and what is needed to spend it.
#[derive(Clone)]
struct Coin {
    outpoint: OutPoint,
    output: TxOut,
}

/// The one key of this file, tweaked with an arbitrary Merkle root as tree outputs are with the
/// terms: a hash that commits to no script.
fn tree_key() -> Keypair {
    let root = TapNodeHash::from_byte_array([0xc3; 32]);
    let secret = SecretKey::from_slice(&[0x21; 32]).unwrap();
    let secp = Secp256k1::new();
    Keypair::from_secret_key(&secp, &secret)
        .tap_tweak(&secp, Some(root))
        .to_keypair()
}

fn tree_script() -> ScriptBuf {
    let (output_key, _) = tree_key().x_only_public_key();
    ScriptBuf::new_p2tr_tweaked(output_key.dangerous_assume_tweaked())
}

fn channel_script() -> ScriptBuf {
    ScriptBuf::new_witness_program(&WitnessProgram::new(WitnessVersion::V0, &[9; 32]).unwrap())
}

fn anchor_output(value: Amount) -> TxOut {
    let script_pubkey = ScriptBuf::new_witness_program(
        &WitnessProgram::new(WitnessVersion::V1, b"\x4e\x73").unwrap(),
    );
    TxOut {
        value,
        script_pubkey,
    }
}

/// Signs every input that pays to [`tree_script`]; anchors need no signature.
fn signed(mut transaction: Transaction, prevouts: &[&TxOut]) -> Transaction {
    let secp = Secp256k1::new();
    for index in 0..prevouts.len() {
        if prevouts[index].script_pubkey != tree_script() {
            continue;
        }
        let sighash = SighashCache::new(&transaction)
            .taproot_key_spend_signature_hash(
                index,
                &Prevouts::All(prevouts),
                TapSighashType::Default,
            )
            .unwrap();
        let signature = secp.sign_schnorr(&Message::from(sighash), &tree_key());
        let sighash_type = TapSighashType::Default;
        transaction.input[index].witness = Witness::p2tr_key_spend(&Signature {
            signature,
            sighash_type,
        });
    }
    transaction
}

/// What distinguishes the nodes of a tree on chain.
struct NodeShape {
    sequence: Sequence,
    lock_time: LockTime,
    scripts: Vec<ScriptBuf>,
    anchor: Amount,
    fee: Amount,
}

impl NodeShape {
    fn kickoff() -> Self {
        Self {
            sequence: Sequence::MAX,
            lock_time: LockTime::ZERO,
            scripts: vec![tree_script()],
            anchor: ANCHOR,
            fee: Amount::from_sat(KICKOFF_VBYTES * TREE_FEERATE_SAT_PER_VB),
        }
    }

    fn state(scripts: [ScriptBuf; 2]) -> Self {
        Self {
            sequence: Sequence::from_height(STATE_DELAY),
            scripts: scripts.into(),
            fee: Amount::from_sat(STATE_VBYTES * TREE_FEERATE_SAT_PER_VB),
            ..Self::kickoff()
        }
    }

    /// One version-3 transaction: the value in equal parts, the anchor last.
    fn spend(&self, coin: &Coin) -> Transaction {
        let value = coin.output.value - self.fee - self.anchor;
        let share = value / self.scripts.len() as u64;
        let mut output: Vec<TxOut> = self
            .scripts
            .iter()
            .map(|script| TxOut {
                value: share,
                script_pubkey: script.clone(),
            })
            .collect();
        output[0].value += value % self.scripts.len() as u64;
        output.push(anchor_output(self.anchor));
        let input = TxIn {
            previous_output: coin.outpoint,
            sequence: self.sequence,
            ..TxIn::default()
        };
        let transaction = Transaction {
            version: TRUC,
            lock_time: self.lock_time,
            input: vec![input],
            output,
        };
        signed(transaction, &[&coin.output])
    }
}

fn coin(transaction: &Transaction, vout: usize) -> Coin {
    let outpoint = OutPoint {
        txid: transaction.compute_txid(),
        vout: vout as u32,
    };
    Coin {
        outpoint,
        output: transaction.output[vout].clone(),
    }
}

fn anchor_of(transaction: &Transaction) -> Coin {
    coin(transaction, transaction.output.len() - 1)
}

/// Spends an anchor together with a coin of ours into one output, paying `fee` (anchor included).
fn bump_child(version: Version, anchor: &Coin, fee_coin: &Coin, fee: Amount) -> Transaction {
    let inputs = [anchor, fee_coin];
    let value = anchor.output.value + fee_coin.output.value - fee;
    let transaction = Transaction {
        version,
        lock_time: LockTime::ZERO,
        input: inputs
            .map(|coin| TxIn {
                previous_output: coin.outpoint,
                ..TxIn::default()
            })
            .into(),
        output: vec![TxOut {
            value,
            script_pubkey: tree_script(),
        }],
    };
    signed(transaction, &inputs.map(|coin| &coin.output))
}

fn funded(node: &RegtestNode, value: Amount) -> Coin {
    let outpoint = node.fund(&tree_script(), value).unwrap();
    Coin {
        outpoint,
        output: TxOut {
            value,
            script_pubkey: tree_script(),
        },
    }
}

fn refusal(node: &RegtestNode, transaction: &Transaction) -> String {
    match node.test_accept(transaction).unwrap() {
        Acceptance::Refused { reason } => {
            let error = node.submit(transaction).unwrap_err();
            assert!(
                error.refused_with(&reason),
                "asked: {reason}, submitted: {error}"
            );
            reason
        }
        accepted => panic!("{accepted:?}"),
    }
}

/// Submits, checks what the mempool says of size and fee, and mines.
fn confirm(node: &RegtestNode, transaction: &Transaction, vsize_vb: u64) -> Txid {
    let fee = Amount::from_sat(vsize_vb * TREE_FEERATE_SAT_PER_VB);
    match node.test_accept(transaction).unwrap() {
        Acceptance::Accepted {
            vsize_vb: size,
            fee: paid,
            ..
        } => {
            assert_eq!((size, paid), (vsize_vb, fee));
        }
        refused => panic!("{refused:?}"),
    }
    let txid = node.submit(transaction).unwrap();
    node.mine(1).unwrap();
    assert_eq!(node.confirmations(txid).unwrap(), 1);
    txid
}

fn assert_consensus_refuses(node: &RegtestNode, transaction: &Transaction, rule: &str) {
    let error: RpcError = node
        .mine_with(std::slice::from_ref(transaction))
        .unwrap_err();
    assert!(error.refused_with(rule), "{error}");
}

#[test]
fn two_layers_confirm_each_state_at_its_height_and_not_one_block_before() {
    let node = RegtestNode::new().unwrap();
    let mut parent = funded(&node, FUNDING);
    for layer_outputs in [
        [tree_script(), tree_script()],
        [channel_script(), channel_script()],
    ] {
        let kickoff = NodeShape::kickoff().spend(&parent);
        confirm(&node, &kickoff, KICKOFF_VBYTES);

        let is_leaf = layer_outputs[0] == channel_script();
        let state = NodeShape::state(layer_outputs).spend(&coin(&kickoff, 0));
        assert_eq!(
            refusal(&node, &state),
            "non-BIP68-final",
            "right after its kickoff"
        );
        node.mine_empty(u32::from(STATE_DELAY) - 2).unwrap();
        assert_eq!(
            refusal(&node, &state),
            "non-BIP68-final",
            "one block before"
        );
        assert_consensus_refuses(&node, &state, "bad-txns-nonfinal");
        node.mine_empty(1).unwrap();
        assert_eq!(
            node.confirmations(kickoff.compute_txid()).unwrap(),
            u32::from(STATE_DELAY)
        );
        confirm(&node, &state, STATE_VBYTES);
        if !is_leaf {
            parent = coin(&state, 1);
        } else {
            assert_eq!(state.output[0].script_pubkey, channel_script());
        }
    }
}

#[test]
fn a_distribution_waits_for_both_its_locks() {
    let node = RegtestNode::new().unwrap();
    let funding = funded(&node, FUNDING);
    let expiry = node.height().unwrap() + 20;
    let kickoff = NodeShape::kickoff().spend(&funding);
    let distribution = NodeShape {
        lock_time: LockTime::from_height(expiry).unwrap(),
        ..NodeShape::state([channel_script(), channel_script()])
    };
    // A kickoff published long before T: only T counts.
    confirm(&node, &kickoff, KICKOFF_VBYTES);
    let early = distribution.spend(&coin(&kickoff, 0));
    node.mine_empty_to_height(expiry - 1).unwrap();
    assert_eq!(refusal(&node, &early), "non-final", "tip T-1");
    assert_consensus_refuses(&node, &early, "bad-txns-nonfinal");
    node.mine_empty(1).unwrap();
    confirm(&node, &early, STATE_VBYTES);
    assert_eq!(
        node.confirmed_at(early.compute_txid()).unwrap(),
        Some(expiry + 1)
    );

    // A kickoff published after T: only the delay counts.
    let late_kickoff = NodeShape::kickoff().spend(&funded(&node, FUNDING));
    confirm(&node, &late_kickoff, KICKOFF_VBYTES);
    let late = distribution.spend(&coin(&late_kickoff, 0));
    node.mine_empty(u32::from(STATE_DELAY) - 2).unwrap();
    assert_eq!(refusal(&node, &late), "non-BIP68-final");
    node.mine_empty(1).unwrap();
    confirm(&node, &late, STATE_VBYTES);
}

/// The tree pays 10 sat/vB. Both ways a node may come to ask for more, and what it says then.
fn nodes_asking_more_than_the_tree_pays() -> [(RegtestNode, &'static str); 2] {
    let configured = RegtestNode::with_args(&["-minrelaytxfee=0.0002"]).unwrap();
    let congested = RegtestNode::with_args(&["-maxmempool=5"]).unwrap();
    congested
        .congest(FeeRate::from_sat_per_vb(20).unwrap())
        .unwrap();
    [
        (configured, "min relay fee not met"),
        (congested, "mempool min fee not met"),
    ]
}

#[test]
fn above_the_trees_feerate_a_package_with_the_anchors_child_gets_in() {
    for (node, reason) in nodes_asking_more_than_the_tree_pays() {
        let minimum = node.mempool_minimum().unwrap();
        assert!(minimum >= FeeRate::from_sat_per_vb(20).unwrap());
        let kickoff = NodeShape::kickoff().spend(&funded(&node, FUNDING));
        let fee_coin = funded(&node, Amount::from_sat(100_000));
        assert_eq!(refusal(&node, &kickoff), reason);

        let anchor = anchor_of(&kickoff);
        // With the anchor's value the package still pays no more than the tree alone.
        let stingy_fee = Amount::from_sat(BUMP_CHILD_VBYTES * TREE_FEERATE_SAT_PER_VB);
        let stingy = bump_child(TRUC, &anchor, &fee_coin, stingy_fee);
        let outcome = node.submit_package(&[kickoff.clone(), stingy]).unwrap();
        let words: Vec<_> = outcome
            .transactions
            .iter()
            .filter_map(|tx| tx.error.as_ref())
            .collect();
        assert!(
            words.len() == 2 && words.iter().all(|text| text.contains(reason)),
            "{outcome:?}"
        );
        assert_eq!(node.spender_of(fee_coin.outpoint).unwrap(), None);

        let fee = minimum
            .fee_vb(2 * (KICKOFF_VBYTES + BUMP_CHILD_VBYTES))
            .unwrap();
        let child = bump_child(TRUC, &anchor, &fee_coin, fee);
        assert_eq!(child.vsize() as u64, BUMP_CHILD_VBYTES);
        let outcome = node
            .submit_package(&[kickoff.clone(), child.clone()])
            .unwrap();
        assert!(outcome.accepted(), "{outcome:?}");
        node.mine_with(&[kickoff.clone(), child.clone()]).unwrap();
        for transaction in [&kickoff, &child] {
            assert_eq!(node.confirmations(transaction.compute_txid()).unwrap(), 1);
        }
    }
}

#[test]
fn a_child_of_an_unconfirmed_node_must_be_version_3_and_small() {
    let node = RegtestNode::new().unwrap();
    let kickoff = NodeShape::kickoff().spend(&funded(&node, FUNDING));
    let fee_coin = funded(&node, Amount::from_sat(100_000));
    node.submit(&kickoff).unwrap();

    let fee = Amount::from_sat(20_000);
    let ordinary = bump_child(Version::TWO, &anchor_of(&kickoff), &fee_coin, fee);
    assert_eq!(refusal(&node, &ordinary), "TRUC-violation");
    let mut large = bump_child(TRUC, &anchor_of(&kickoff), &fee_coin, fee);
    let padding = bitcoin::script::PushBytesBuf::try_from(vec![0; 900]).unwrap();
    let script_pubkey = ScriptBuf::new_op_return(padding);
    large.output.push(TxOut {
        value: Amount::ZERO,
        script_pubkey,
    });
    let large = signed(large, &[&anchor_of(&kickoff).output, &fee_coin.output]);
    assert!(large.vsize() > 1_000);
    assert_eq!(refusal(&node, &large), "TRUC-violation");

    node.mine(1).unwrap();
    assert_eq!(node.confirmations(kickoff.compute_txid()).unwrap(), 1);
    let txid = node
        .submit(&ordinary)
        .expect("the parent is confirmed: no restriction any more");
    node.mine(1).unwrap();
    assert_eq!(node.confirmations(txid).unwrap(), 1);
}

#[test]
fn a_node_may_have_10_000_vbytes() {
    let node = RegtestNode::new().unwrap();
    let funding = funded(&node, FUNDING * 10);
    let with_outputs = |count: usize| {
        let vbytes = KICKOFF_VBYTES + 43 * (count as u64 - 1);
        let fee = Amount::from_sat(vbytes * TREE_FEERATE_SAT_PER_VB);
        let scripts = vec![channel_script(); count];
        (
            vbytes,
            NodeShape {
                scripts,
                fee,
                ..NodeShape::kickoff()
            }
            .spend(&funding),
        )
    };
    let (vbytes, too_large) = with_outputs(231);
    assert_eq!((vbytes, too_large.vsize()), (10_014, 10_014));
    assert_eq!(refusal(&node, &too_large), "TRUC-violation");
    // A root distribution of the largest group has 128 payouts.
    for count in [128, 230] {
        let (vbytes, fits) = with_outputs(count);
        match node.test_accept(&fits).unwrap() {
            Acceptance::Accepted { vsize_vb, .. } => assert_eq!(vsize_vb, vbytes),
            refused => panic!("{count} outputs: {refused:?}"),
        }
    }
}

#[test]
fn only_one_generation_may_be_unconfirmed() {
    let node = RegtestNode::new().unwrap();
    let kickoff = NodeShape::kickoff().spend(&funded(&node, FUNDING));
    // The newest of all states has no delay and may follow its kickoff at once…
    let newest = NodeShape {
        sequence: Sequence::from_height(0),
        ..NodeShape::state([tree_script(), tree_script()])
    };
    let state = newest.spend(&coin(&kickoff, 0));
    let next_kickoff = NodeShape::kickoff().spend(&coin(&state, 0));
    node.submit(&kickoff).unwrap();
    node.submit(&state).unwrap();
    // …but nothing may follow the state before the kickoff is mined.
    assert_eq!(refusal(&node, &next_kickoff), "TRUC-violation");
    // Nor may the kickoff's anchor be spent beside the state: a parent has one child.
    let fee_coin = funded(&node, Amount::from_sat(100_000));
    let bump = bump_child(
        TRUC,
        &anchor_of(&kickoff),
        &fee_coin,
        Amount::from_sat(1_000),
    );
    assert_eq!(
        refusal(&node, &bump),
        "insufficient fee (including sibling eviction)"
    );

    node.mine(1).unwrap();
    assert_eq!(
        node.confirmations(state.compute_txid()).unwrap(),
        1,
        "both in one block"
    );
    confirm(&node, &next_kickoff, KICKOFF_VBYTES);
}

#[test]
fn a_stale_state_of_equal_fee_does_not_replace_the_newest() {
    let node = RegtestNode::new().unwrap();
    let kickoff = NodeShape::kickoff().spend(&funded(&node, FUNDING));
    confirm(&node, &kickoff, KICKOFF_VBYTES);
    let parent = coin(&kickoff, 0);
    let stale = NodeShape::state([channel_script(), tree_script()]).spend(&parent);
    let newest = NodeShape {
        sequence: Sequence::from_height(0),
        ..NodeShape::state([tree_script(), channel_script()])
    }
    .spend(&parent);
    let txid = node.submit(&newest).unwrap();
    node.mine_empty(u32::from(STATE_DELAY)).unwrap();
    assert_eq!(refusal(&node, &stale), "insufficient fee");
    assert_eq!(node.mempool().unwrap(), [txid]);
    node.mine(1).unwrap();
    let error = node.submit(&stale).unwrap_err();
    assert!(
        error.refused_with("bad-txns-inputs-missingorspent"),
        "{error}"
    );
}

#[test]
fn anchors_below_240_sat_are_dust_unless_the_parent_pays_no_fee() {
    let node = RegtestNode::new().unwrap();
    let funding = funded(&node, FUNDING);
    let with_anchor = |value: u64| {
        NodeShape {
            anchor: Amount::from_sat(value),
            ..NodeShape::kickoff()
        }
        .spend(&funding)
    };
    for value in [239, 100, 0] {
        assert_eq!(refusal(&node, &with_anchor(value)), "dust", "{value} sat");
    }
    assert!(matches!(
        node.test_accept(&with_anchor(240)).unwrap(),
        Acceptance::Accepted {
            vsize_vb: KICKOFF_VBYTES,
            ..
        }
    ));

    // Without a fee of its own it is relayed in a package only: a member without coins could
    // not leave. That is why the tree pays fees and 240 sat.
    let free = NodeShape {
        anchor: Amount::ZERO,
        fee: Amount::ZERO,
        ..NodeShape::kickoff()
    };
    let free = free.spend(&funding);
    assert_eq!(refusal(&node, &free), "min relay fee not met");
    let fee_coin = funded(&node, Amount::from_sat(100_000));
    let child = bump_child(TRUC, &anchor_of(&free), &fee_coin, Amount::from_sat(5_000));
    let outcome = node.submit_package(&[free.clone(), child]).unwrap();
    assert!(outcome.accepted(), "{outcome:?}");
}

#[test]
fn block_rules_do_not_know_dust_or_versions() {
    // What policy refuses a miner may still mine: amounts must be safe by themselves.
    let node = RegtestNode::new().unwrap();
    let kickoff = NodeShape {
        anchor: Amount::ZERO,
        ..NodeShape::kickoff()
    }
    .spend(&funded(&node, FUNDING));
    assert_eq!(refusal(&node, &kickoff), "dust");
    node.mine_with(std::slice::from_ref(&kickoff)).unwrap();
    assert_eq!(node.confirmations(kickoff.compute_txid()).unwrap(), 1);
}
