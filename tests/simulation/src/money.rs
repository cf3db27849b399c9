//! Transactions that the model's parties sign outside the tree: funding, commitments, claims and
//! sweeps. They are real ones; Bitcoin Core's script check judges them.

use std::sync::{Arc, Mutex, PoisonError};

use bitcoin::absolute::LockTime;
use bitcoin::hashes::Hash as _;
use bitcoin::opcodes::all::{
    OP_CHECKSIG, OP_CLTV, OP_CSV, OP_DROP, OP_ELSE, OP_ENDIF, OP_EQUALVERIFY, OP_IF, OP_SHA256,
};
use bitcoin::script::Builder;
use bitcoin::secp256k1::{Message, PublicKey, SecretKey, ecdsa};
use bitcoin::sighash::{EcdsaSighashType, SighashCache};
use bitcoin::transaction::Version;
use bitcoin::{
    Amount, CompressedPublicKey, FeeRate, OutPoint, PrivateKey, Script, ScriptBuf, Sequence,
    Transaction, TxIn, TxOut, Witness,
};
use superscalar_factory::effect::{ChannelRef, SlotChannel};
use superscalar_factory::exit::Worth;
use superscalar_factory::scripts;

use crate::channel::{Balances, Channel, Htlc, Toward};
use crate::dice::{SECP, secret_key};

/// Outputs below this are left to the fee, in sat.
const DUST_SAT: u64 = 354;

/// The keys of a slot's channel, both sides'. Made once for each slot: they cost more than all else
/// that is done with them.
#[derive(Debug)]
pub(crate) struct ChannelKeys {
    member: Side,
    lsp: Side,
    /// The newest commitment: signing one costs more than all else of it.
    newest: Mutex<Option<(Balances, Arc<Commitment>)>>,
}

#[derive(Debug, Clone)]
struct Side {
    /// In the channel's 2-of-2.
    funding: (SecretKey, PublicKey),
    /// In the outputs of commitments.
    own: (SecretKey, PublicKey),
}

impl ChannelKeys {
    /// The keys of a channel in the run of `seed`.
    pub(crate) fn new(seed: u64, id: &ChannelRef) -> ChannelKeys {
        let attempt = id.slot.attempt;
        let instance = u64::from_be_bytes(first_eight(&attempt.instance.0));
        let (number, version, seq) = (attempt.number, id.version, id.seq);
        let slot = id.slot.slot;
        let pair = |whose: &str| {
            let label = format!("{whose}/{instance}/{number}/{version}/{seq}");
            let secret = secret_key(seed, &label, u64::from(slot));
            (secret, secret.public_key(&SECP))
        };
        ChannelKeys {
            member: Side {
                funding: pair("member funding"),
                own: pair("member own"),
            },
            lsp: Side {
                funding: pair("lsp funding"),
                own: pair("lsp own"),
            },
            newest: Mutex::default(),
        }
    }

    fn side(&self, side: Toward) -> &Side {
        match side {
            Toward::Member => &self.member,
            Toward::Lsp => &self.lsp,
        }
    }

    /// The key of one side in the channel's 2-of-2.
    pub(crate) fn funding(&self, side: Toward) -> PublicKey {
        self.side(side).funding.1
    }
}

fn first_eight(bytes: &[u8; 32]) -> [u8; 8] {
    let mut first = [0; 8];
    first.copy_from_slice(&bytes[..8]);
    first
}

/// The P2WPKH script of a key.
pub(crate) fn wallet_script(key: &PublicKey) -> ScriptBuf {
    ScriptBuf::new_p2wpkh(&CompressedPublicKey(*key).wpubkey_hash())
}

/// A commitment of the member with its outputs' scripts.
#[derive(Debug)]
pub(crate) struct Commitment {
    pub(crate) tx: Transaction,
    /// Position of the member's balance, unless it is dust.
    local: Option<u32>,
    htlcs: Vec<(u32, Htlc)>,
    delay: u16,
    /// The last sweep that was made of it.
    swept: Mutex<Option<Transaction>>,
}

/// The member's commitment in a channel to its balances, signed by both.
pub(crate) fn commitment(keys: &ChannelKeys, channel: &Channel) -> Arc<Commitment> {
    let newest = keys.newest.lock();
    let mut newest = newest.unwrap_or_else(PoisonError::into_inner);
    let balances = &channel.balances;
    if let Some((_, made)) = newest.as_ref().filter(|(known, _)| known == balances) {
        return Arc::clone(made);
    }
    let made = Arc::new(signed(keys, &channel.agreed, balances));
    *newest = Some((balances.clone(), Arc::clone(&made)));
    made
}

fn signed(keys: &ChannelKeys, agreed: &SlotChannel, balances: &Balances) -> Commitment {
    let (outpoint, capacity) = (agreed.outpoint, agreed.capacity);
    let delay = agreed.timing.member_to_self_delay;
    let mut outputs = Vec::new();
    let mut local = None;
    if balances.member_msat / 1_000 >= DUST_SAT {
        local = Some(0);
        outputs.push(TxOut {
            value: Amount::from_sat(balances.member_msat / 1_000),
            script_pubkey: local_script(keys, delay).to_p2wsh(),
        });
    }
    let lsp_sat = (balances.lsp_msat / 1_000).saturating_sub(balances.fee_sat());
    if lsp_sat >= DUST_SAT {
        outputs.push(TxOut {
            value: Amount::from_sat(lsp_sat),
            script_pubkey: wallet_script(&keys.lsp.own.1),
        });
    }
    let mut htlcs = Vec::new();
    for htlc in &balances.htlcs {
        htlcs.push((outputs.len() as u32, htlc.clone()));
        outputs.push(TxOut {
            value: Amount::from_sat(htlc.amount_msat / 1_000),
            script_pubkey: htlc_script(keys, htlc).to_p2wsh(),
        });
    }
    let mut tx = spend(Version::TWO, outpoint, Sequence::MAX, outputs);
    let (member, member_key) = keys.member.funding;
    let (lsp, lsp_key) = keys.lsp.funding;
    let script = scripts::channel_witness_script(&member_key, &lsp_key);
    let sign = |key: &SecretKey| segwit_signature(&tx, &script, capacity, key);
    let mut signatures = [sign(&member), sign(&lsp)];
    if lsp_key.serialize() < member_key.serialize() {
        signatures.reverse();
    }
    let mut witness = Witness::new();
    witness.push([]);
    signatures
        .iter()
        .for_each(|signature| witness.push(signature));
    witness.push(script.as_bytes());
    tx.input[0].witness = witness;
    Commitment {
        tx,
        local,
        htlcs,
        delay,
        swept: Mutex::default(),
    }
}

impl Commitment {
    /// What takes the member's balance to `payout`; `None` if it is not worth its fee.
    pub(crate) fn sweep(
        &self,
        keys: &ChannelKeys,
        payout: &Script,
        feerate: FeeRate,
    ) -> Option<Transaction> {
        let vout = self.local?;
        let output = &self.tx.output[vout as usize];
        let Worth::Yes { net } = Worth::of(output.value, feerate) else {
            return None;
        };
        let outpoint = OutPoint {
            txid: self.tx.compute_txid(),
            vout,
        };
        let paid = TxOut {
            value: net,
            script_pubkey: payout.to_owned(),
        };
        let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = swept.as_ref().filter(|tx| tx.output[0] == paid) {
            return Some(made.clone());
        }
        let sequence = Sequence::from_height(self.delay);
        let mut tx = spend(Version::TWO, outpoint, sequence, vec![paid]);
        let script = local_script(keys, self.delay);
        let key = keys.member.own.0;
        let signature = segwit_signature(&tx, &script, output.value, &key);
        tx.input[0].witness = Witness::from_slice(&[signature.as_slice(), script.as_bytes()]);
        *swept = Some(tx.clone());
        Some(tx)
    }

    /// What takes an HTLC with its preimage (the member is to be paid), or back after its expiry
    /// (the member was to pay); `None` if it is not worth its fee.
    pub(crate) fn claim(
        &self,
        keys: &ChannelKeys,
        hash: &[u8; 32],
        preimage: Option<&[u8; 32]>,
        payout: &Script,
        feerate: FeeRate,
    ) -> Option<Transaction> {
        let (vout, htlc) = self.htlcs.iter().find(|(_, htlc)| htlc.hash == *hash)?;
        let output = &self.tx.output[*vout as usize];
        let Worth::Yes { net } = Worth::of(output.value, feerate) else {
            return None;
        };
        let outpoint = OutPoint {
            txid: self.tx.compute_txid(),
            vout: *vout,
        };
        let paid = TxOut {
            value: net,
            script_pubkey: payout.to_owned(),
        };
        let sequence = Sequence::ENABLE_RBF_NO_LOCKTIME;
        let mut tx = spend(Version::TWO, outpoint, sequence, vec![paid]);
        if htlc.toward == Toward::Lsp {
            tx.lock_time = LockTime::from_consensus(htlc.expiry);
        }
        let script = htlc_script(keys, htlc);
        let key = keys.member.own.0;
        let signature = segwit_signature(&tx, &script, output.value, &key);
        let mut witness = Witness::new();
        witness.push(&signature);
        match (htlc.toward, preimage) {
            (Toward::Member, Some(preimage)) => {
                witness.push(preimage);
                witness.push([1]);
            }
            (Toward::Lsp, _) => witness.push([]),
            (Toward::Member, None) => return None,
        }
        witness.push(script.as_bytes());
        tx.input[0].witness = witness;
        Some(tx)
    }
}

/// A funding transaction from one of the LSP's coins, with change.
pub(crate) fn funding(
    coin: (OutPoint, &TxOut),
    key: &SecretKey,
    output: TxOut,
    feerate_sat_per_vb: u64,
) -> Option<Transaction> {
    const FUNDING_VSIZE_VB: u64 = 160;
    let (outpoint, spent) = coin;
    let fee = Amount::from_sat(FUNDING_VSIZE_VB * feerate_sat_per_vb);
    let change = spent.value.checked_sub(output.value)?.checked_sub(fee)?;
    let mut outputs = vec![output];
    if change.to_sat() >= DUST_SAT {
        outputs.push(TxOut {
            value: change,
            script_pubkey: spent.script_pubkey.clone(),
        });
    }
    let sequence = Sequence::ENABLE_RBF_NO_LOCKTIME;
    let mut tx = spend(Version::TWO, outpoint, sequence, outputs);
    sign_wallet_input(&mut tx, spent, key)?;
    Some(tx)
}

/// Signs the only input of `tx`, which spends a P2WPKH coin.
fn sign_wallet_input(tx: &mut Transaction, spent: &TxOut, key: &SecretKey) -> Option<()> {
    let sighash = SighashCache::new(&*tx)
        .p2wpkh_signature_hash(0, &spent.script_pubkey, spent.value, EcdsaSighashType::All)
        .ok()?;
    let message = Message::from_digest(sighash.to_byte_array());
    let signature = bitcoin::ecdsa::Signature::sighash_all(SECP.sign_ecdsa(&message, key));
    let public = PrivateKey::new(*key, bitcoin::Network::Regtest).public_key(&SECP_ALL);
    tx.input[0].witness = Witness::p2wpkh(&signature, &public.inner);
    Some(())
}

static SECP_ALL: std::sync::LazyLock<bitcoin::secp256k1::Secp256k1<bitcoin::secp256k1::All>> =
    std::sync::LazyLock::new(bitcoin::secp256k1::Secp256k1::new);

fn spend(
    version: Version,
    outpoint: OutPoint,
    sequence: Sequence,
    output: Vec<TxOut>,
) -> Transaction {
    Transaction {
        version,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: outpoint,
            script_sig: ScriptBuf::new(),
            sequence,
            witness: Witness::new(),
        }],
        output,
    }
}

/// The signature of the only input, which spends a P2WSH output.
fn segwit_signature(tx: &Transaction, script: &Script, value: Amount, key: &SecretKey) -> Vec<u8> {
    let mut cache = SighashCache::new(tx);
    #[expect(clippy::expect_used, reason = "there is an input 0")]
    let sighash = cache
        .p2wsh_signature_hash(0, script, value, EcdsaSighashType::All)
        .expect("input 0");
    let signature: ecdsa::Signature =
        SECP.sign_ecdsa(&Message::from_digest(sighash.to_byte_array()), key);
    bitcoin::ecdsa::Signature::sighash_all(signature).to_vec()
}

/// `<delay> CSV DROP <member> CHECKSIG`; the revocation branch is not modelled.
fn local_script(keys: &ChannelKeys, delay: u16) -> ScriptBuf {
    Builder::new()
        .push_sequence(Sequence::from_height(delay))
        .push_opcode(OP_CSV)
        .push_opcode(OP_DROP)
        .push_key(&keys.member.own.1.into())
        .push_opcode(OP_CHECKSIG)
        .into_script()
}

/// With the preimage whom it pays, after the expiry whom it came from.
fn htlc_script(keys: &ChannelKeys, htlc: &Htlc) -> ScriptBuf {
    let (paid, payer) = match htlc.toward {
        Toward::Member => (Toward::Member, Toward::Lsp),
        Toward::Lsp => (Toward::Lsp, Toward::Member),
    };
    let key = |side| keys.side(side).own.1.into();
    Builder::new()
        .push_opcode(OP_IF)
        .push_opcode(OP_SHA256)
        .push_slice(htlc.hash)
        .push_opcode(OP_EQUALVERIFY)
        .push_key(&key(paid))
        .push_opcode(OP_ELSE)
        .push_int(i64::from(htlc.expiry))
        .push_opcode(OP_CLTV)
        .push_opcode(OP_DROP)
        .push_key(&key(payer))
        .push_opcode(OP_ENDIF)
        .push_opcode(OP_CHECKSIG)
        .into_script()
}
