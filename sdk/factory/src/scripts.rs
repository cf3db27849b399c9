//! The scripts of a factory: what its outputs are locked to.
//!
//! Every tree output commits to the terms in its taproot tweak. The commitment is a hash under a
//! tag of its own, so it can be neither a leaf nor a branch: it hides no script and costs no byte.

use bitcoin::hashes::{Hash as _, HashEngine as _, sha256};
use bitcoin::opcodes::all::{OP_CHECKSIG, OP_CLTV, OP_CSV, OP_DROP, OP_EQUALVERIFY, OP_SHA256};
use bitcoin::script::{Builder, PushBytesBuf};
use bitcoin::secp256k1::{PublicKey, XOnlyPublicKey};
use bitcoin::{
    Amount, Script, ScriptBuf, Sequence, TapNodeHash, TxOut, WitnessVersion,
    taproot::{LeafVersion, TapLeafHash},
};

/// Value of every pay-to-anchor output: the least that standard policy relays.
pub const ANCHOR_VALUE: Amount = Amount::from_sat(240);
/// The least amount of any payout, channel or stock output.
pub const MIN_OUTPUT: Amount = Amount::from_sat(1_000);
/// Bytes of a P2WSH output script.
pub(crate) const P2WSH_SIZE: usize = 34;
/// Bytes of a P2TR output script.
pub(crate) const P2TR_SIZE: usize = 34;

/// A BIP340-style tagged hash over the concatenation of `parts`.
pub fn tagged_hash(tag: &str, parts: &[&[u8]]) -> [u8; 32] {
    let tag = sha256::Hash::hash(tag.as_bytes());
    let mut engine = sha256::Hash::engine();
    engine.input(tag.as_byte_array());
    engine.input(tag.as_byte_array());
    for part in parts {
        engine.input(part);
    }
    sha256::Hash::from_engine(engine).to_byte_array()
}

/// The pay-to-anchor output anybody can spend to pay more fees (BIP433).
pub fn anchor() -> TxOut {
    TxOut {
        value: ANCHOR_VALUE,
        script_pubkey: ScriptBuf::new_p2a(),
    }
}

/// The P2TR script of an already tweaked key.
pub fn p2tr(output_key: XOnlyPublicKey) -> ScriptBuf {
    ScriptBuf::new_p2tr_tweaked(bitcoin::key::TweakedPublicKey::dangerous_assume_tweaked(
        output_key,
    ))
}

/// The taproot Merkle root of a tree output: the commitment alone, or beside it the tapscript by
/// which the LSP reclaims after `expiry` (policy `LspReclaims`).
pub fn tree_root(commitment: [u8; 32], reclaim: Option<(u32, XOnlyPublicKey)>) -> TapNodeHash {
    let commitment = TapNodeHash::assume_hidden(commitment);
    match reclaim {
        None => commitment,
        Some((expiry, lsp)) => {
            let script = reclaim_script(expiry, lsp);
            let leaf = TapLeafHash::from_script(&script, LeafVersion::TapScript);
            TapNodeHash::from_node_hashes(commitment, leaf.into())
        }
    }
}

/// `<expiry> CLTV DROP <LSP> CHECKSIG`.
pub fn reclaim_script(expiry: u32, lsp: XOnlyPublicKey) -> ScriptBuf {
    Builder::new()
        .push_int(i64::from(expiry))
        .push_opcode(OP_CLTV)
        .push_opcode(OP_DROP)
        .push_x_only_key(&lsp)
        .push_opcode(OP_CHECKSIG)
        .into_script()
}

/// The taproot Merkle root of a stock output: revocation leaf and the LSP's delayed leaf.
pub fn stock_root(
    stock_hash: [u8; 32],
    member_revocation: XOnlyPublicKey,
    lsp: XOnlyPublicKey,
    csv: u16,
) -> TapNodeHash {
    let leaf = |script: &Script| TapLeafHash::from_script(script, LeafVersion::TapScript).into();
    TapNodeHash::from_node_hashes(
        leaf(&stock_revocation_script(stock_hash, member_revocation)),
        leaf(&stock_reclaim_script(csv, lsp)),
    )
}

/// `SHA256 <h> EQUALVERIFY <member_rev> CHECKSIG`: the member takes stale stock.
pub fn stock_revocation_script(stock_hash: [u8; 32], member: XOnlyPublicKey) -> ScriptBuf {
    Builder::new()
        .push_opcode(OP_SHA256)
        .push_slice(PushBytesBuf::from(&stock_hash))
        .push_opcode(OP_EQUALVERIFY)
        .push_x_only_key(&member)
        .push_opcode(OP_CHECKSIG)
        .into_script()
}

/// `<csv> CSV DROP <LSP> CHECKSIG`: the LSP takes unsold stock after a delay.
pub fn stock_reclaim_script(csv: u16, lsp: XOnlyPublicKey) -> ScriptBuf {
    Builder::new()
        .push_sequence(Sequence::from_height(csv))
        .push_opcode(OP_CSV)
        .push_opcode(OP_DROP)
        .push_x_only_key(&lsp)
        .push_opcode(OP_CHECKSIG)
        .into_script()
}

/// The 2-of-2 witness script of a Lightning channel, keys in BOLT3's order.
pub fn channel_witness_script(a: &PublicKey, b: &PublicKey) -> ScriptBuf {
    let (first, second) = if a.serialize() < b.serialize() {
        (a, b)
    } else {
        (b, a)
    };
    Builder::new()
        .push_int(2)
        .push_slice(first.serialize())
        .push_slice(second.serialize())
        .push_int(2)
        .push_opcode(bitcoin::opcodes::all::OP_CHECKMULTISIG)
        .into_script()
}

/// Whether money may be paid out to `script`: a v0 key or script hash, or a v1 key. That leaves
/// out pay-to-anchor (anyone could take it) and programs no consensus rule gives a meaning.
pub fn is_payout(script: &Script) -> bool {
    match script.witness_version() {
        Some(WitnessVersion::V0) => script.is_p2wpkh() || script.is_p2wsh(),
        Some(WitnessVersion::V1) => script.is_p2tr(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::hex::FromHex as _;

    #[test]
    fn only_spendable_witness_programs_are_payouts() {
        let script = |hex: &str| ScriptBuf::from_bytes(Vec::from_hex(hex).unwrap());
        let zeros = "00".repeat(32);
        assert!(is_payout(&script(&format!("5120{zeros}"))));
        assert!(is_payout(&script(&format!("0020{zeros}"))));
        assert!(is_payout(&script(&format!("0014{}", &zeros[..40]))));
        assert!(!is_payout(&ScriptBuf::new_p2a()));
        assert!(!is_payout(&script(&format!("5220{zeros}"))));
        assert!(!is_payout(&script("6a")));
        assert!(!is_payout(&script(&format!("76a914{}88ac", &zeros[..40]))));
    }
}
