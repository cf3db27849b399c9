//! Keys for LDK: deterministic per slot, and bound to what was agreed for it.
//!
//! What always holds: a factory channel's key signs only for the agreed outpoint, script and
//! capacity, never before the path's final signatures are stored, and the register says
//! `Committed` on disk before the first signature leaves. A factory key whose slot is not in the
//! register signs nothing.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bitcoin::absolute::LockTime;
use bitcoin::secp256k1::ecdh::SharedSecret;
use bitcoin::secp256k1::ecdsa::{RecoverableSignature, Signature};
use bitcoin::secp256k1::{All, PublicKey, Scalar, Secp256k1, SecretKey, schnorr};
use bitcoin::{ScriptBuf, Transaction, TxOut, Txid};
use lightning::ln::chan_utils::{
    ChannelPublicKeys, ChannelTransactionParameters, ClosingTransaction, CommitmentTransaction,
    HTLCOutputInCommitment, HolderCommitmentTransaction,
};
use lightning::ln::inbound_payment::ExpandedKey;
use lightning::ln::msgs::{UnsignedChannelAnnouncement, UnsignedGossipMessage};
use lightning::ln::script::ShutdownScript;
use lightning::offers::invoice::UnsignedBolt12Invoice;
use lightning::sign::ecdsa::EcdsaChannelSigner;
use lightning::sign::{
    ChannelSigner, EntropySource, HTLCDescriptor, InMemorySigner, KeysManager, NodeSigner,
    OutputSpender, PeerStorageKey, ReceiveAuthKey, Recipient, SignerProvider,
    SpendableOutputDescriptor,
};
use lightning::types::payment::PaymentPreimage;
use lightning_invoice::RawBolt11Invoice;
use superscalar_factory::scripts::channel_witness_script;

use super::fees::COMMITMENT_FEERATE_SAT_PER_KW;
use super::slot::SlotId;
use super::slots::{SharedSlots, Slot, SlotPhase};

/// First bytes of every factory `channel_keys_id`. LDK's own ids start with a counter that never
/// reaches this value, so the two kinds cannot be confused.
const FACTORY_PREFIX: [u8; 4] = [0xff; 4];

/// The `channel_keys_id` of a slot's channel.
pub(super) fn channel_keys_id(slot: &SlotId) -> [u8; 32] {
    let mut id = slot.keys_seed();
    id[..4].copy_from_slice(&FACTORY_PREFIX);
    id
}

/// All keys LDK asks for.
pub(super) struct FactoryKeys {
    inner: KeysManager,
    slots: SharedSlots,
}

/// The Lightning node id of a node with this seed.
pub(crate) fn node_id(seed: &[u8; 32]) -> PublicKey {
    let secret = KeysManager::new(seed, 0, 0, true).get_node_secret_key();
    secret.public_key(&Secp256k1::new())
}

impl FactoryKeys {
    pub(super) fn new(seed: &[u8; 32], slots: SharedSlots) -> Self {
        // Only makes LDK's ephemeral values differ between runs; a clock before 1970 is no harm.
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let inner = KeysManager::new(seed, now.as_secs(), now.subsec_nanos(), true);
        Self { inner, slots }
    }

    /// Our funding key for a slot, before any channel exists.
    pub(super) fn funding_pubkey(&self, slot: &SlotId) -> PublicKey {
        let signer = self.inner.derive_channel_keys(&channel_keys_id(slot));
        signer.pubkeys(&Secp256k1::new()).funding_pubkey
    }
}

impl SignerProvider for FactoryKeys {
    type EcdsaSigner = FactorySigner;

    fn generate_channel_keys_id(&self, inbound: bool, user_channel_id: u128) -> [u8; 32] {
        match self.slots.by_user_channel_id(user_channel_id) {
            Some(slot) => channel_keys_id(&slot.channel.slot),
            None => self
                .inner
                .generate_channel_keys_id(inbound, user_channel_id),
        }
    }

    fn derive_channel_signer(&self, channel_keys_id: [u8; 32]) -> FactorySigner {
        let inner = self.inner.derive_channel_keys(&channel_keys_id);
        FactorySigner {
            inner,
            slots: Arc::clone(&self.slots),
        }
    }

    fn get_destination_script(&self, channel_keys_id: [u8; 32]) -> Result<ScriptBuf, ()> {
        self.inner.get_destination_script(channel_keys_id)
    }

    fn get_shutdown_scriptpubkey(&self) -> Result<ShutdownScript, ()> {
        self.inner.get_shutdown_scriptpubkey()
    }
}

/// LDK's in-memory signer behind the checks this file promises.
pub(super) struct FactorySigner {
    inner: InMemorySigner,
    slots: SharedSlots,
}

impl FactorySigner {
    /// `Ok(None)` for an ordinary channel, `Err` for a factory channel nobody agreed to.
    fn slot(&self) -> Result<Option<Slot>, ()> {
        let id = self.inner.channel_keys_id();
        if id[..4] != FACTORY_PREFIX {
            return Ok(None);
        }
        self.slots.by_keys_id(&id).map(Some).ok_or(())
    }

    /// Checks the channel LDK wants a signature for against what was agreed.
    fn check(&self, parameters: &ChannelTransactionParameters) -> Result<Option<Slot>, ()> {
        let Some(slot) = self.slot()? else {
            return Ok(None);
        };
        let counterparty = parameters.counterparty_parameters.as_ref().ok_or(())?;
        let ours = &parameters.holder_pubkeys.funding_pubkey;
        let theirs = &counterparty.pubkeys.funding_pubkey;
        let script = channel_witness_script(ours, theirs).to_p2wsh();
        let outpoint = parameters
            .funding_outpoint
            .map(|outpoint| outpoint.into_bitcoin_outpoint());
        let agreed = outpoint == Some(slot.channel.outpoint)
            && script == slot.channel.funding_script
            && parameters.channel_value_satoshis == slot.channel.capacity_sat
            && parameters.splice_parent_funding_txid.is_none();
        if !agreed {
            tracing::error!(slot = %slot.channel.slot, "refused to sign for an outpoint or script not agreed");
            return Err(());
        }
        Ok(Some(slot))
    }
}

impl ChannelSigner for FactorySigner {
    fn get_per_commitment_point(&self, idx: u64, secp: &Secp256k1<All>) -> Result<PublicKey, ()> {
        self.inner.get_per_commitment_point(idx, secp)
    }

    fn release_commitment_secret(&self, idx: u64) -> Result<[u8; 32], ()> {
        self.inner.release_commitment_secret(idx)
    }

    /// An error closes the channel at once: the acceptor's answer to a wrong outpoint, or to another
    /// feerate.
    fn validate_holder_commitment(
        &self,
        holder_tx: &HolderCommitmentTransaction,
        outbound_htlc_preimages: Vec<PaymentPreimage>,
    ) -> Result<(), ()> {
        if let Some(slot) = self.slot()? {
            let trusted = holder_tx.trust();
            let spent = trusted.built_transaction().transaction.input.first();
            let on_agreed =
                spent.is_some_and(|input| input.previous_output == slot.channel.outpoint);
            // A funder that raised it could make dust of every HTLC, which nobody can claim.
            let at_agreed_rate =
                holder_tx.negotiated_feerate_per_kw() == COMMITMENT_FEERATE_SAT_PER_KW;
            if !on_agreed || !at_agreed_rate || slot.phase < SlotPhase::Signable {
                tracing::error!(slot = %slot.channel.slot, phase = ?slot.phase, "refused a commitment");
                return Err(());
            }
        }
        self.inner
            .validate_holder_commitment(holder_tx, outbound_htlc_preimages)
    }

    fn validate_counterparty_revocation(&self, idx: u64, secret: &SecretKey) -> Result<(), ()> {
        self.inner.validate_counterparty_revocation(idx, secret)
    }

    fn pubkeys(&self, secp: &Secp256k1<All>) -> ChannelPublicKeys {
        self.inner.pubkeys(secp)
    }

    fn new_funding_pubkey(&self, parent: Txid, secp: &Secp256k1<All>) -> PublicKey {
        self.inner.new_funding_pubkey(parent, secp)
    }

    fn channel_keys_id(&self) -> [u8; 32] {
        self.inner.channel_keys_id()
    }
}

impl EcdsaChannelSigner for FactorySigner {
    fn sign_counterparty_commitment(
        &self,
        parameters: &ChannelTransactionParameters,
        commitment_tx: &CommitmentTransaction,
        inbound_htlc_preimages: Vec<PaymentPreimage>,
        outbound_htlc_preimages: Vec<PaymentPreimage>,
        secp: &Secp256k1<All>,
    ) -> Result<(Signature, Vec<Signature>), ()> {
        if let Some(slot) = self.check(parameters)? {
            match slot.phase {
                SlotPhase::Signable => self
                    .slots
                    .set_phase(&slot.channel.slot, SlotPhase::Committed)
                    .map_err(
                        |error| tracing::error!(%error, "cannot record the first signature"),
                    )?,
                phase if phase.may_sign() => {}
                _ => return Err(()),
            }
        }
        self.inner.sign_counterparty_commitment(
            parameters,
            commitment_tx,
            inbound_htlc_preimages,
            outbound_htlc_preimages,
            secp,
        )
    }

    fn sign_holder_commitment(
        &self,
        parameters: &ChannelTransactionParameters,
        commitment_tx: &HolderCommitmentTransaction,
        secp: &Secp256k1<All>,
    ) -> Result<Signature, ()> {
        self.check(parameters)?;
        self.inner
            .sign_holder_commitment(parameters, commitment_tx, secp)
    }

    fn sign_justice_revoked_output(
        &self,
        parameters: &ChannelTransactionParameters,
        justice_tx: &Transaction,
        input: usize,
        amount: u64,
        per_commitment_key: &SecretKey,
        secp: &Secp256k1<All>,
    ) -> Result<Signature, ()> {
        self.inner.sign_justice_revoked_output(
            parameters,
            justice_tx,
            input,
            amount,
            per_commitment_key,
            secp,
        )
    }

    fn sign_justice_revoked_htlc(
        &self,
        parameters: &ChannelTransactionParameters,
        justice_tx: &Transaction,
        input: usize,
        amount: u64,
        per_commitment_key: &SecretKey,
        htlc: &HTLCOutputInCommitment,
        secp: &Secp256k1<All>,
    ) -> Result<Signature, ()> {
        self.inner.sign_justice_revoked_htlc(
            parameters,
            justice_tx,
            input,
            amount,
            per_commitment_key,
            htlc,
            secp,
        )
    }

    fn sign_holder_htlc_transaction(
        &self,
        htlc_tx: &Transaction,
        input: usize,
        htlc_descriptor: &HTLCDescriptor,
        secp: &Secp256k1<All>,
    ) -> Result<Signature, ()> {
        self.inner
            .sign_holder_htlc_transaction(htlc_tx, input, htlc_descriptor, secp)
    }

    fn sign_counterparty_htlc_transaction(
        &self,
        parameters: &ChannelTransactionParameters,
        htlc_tx: &Transaction,
        input: usize,
        amount: u64,
        per_commitment_point: &PublicKey,
        htlc: &HTLCOutputInCommitment,
        secp: &Secp256k1<All>,
    ) -> Result<Signature, ()> {
        self.inner.sign_counterparty_htlc_transaction(
            parameters,
            htlc_tx,
            input,
            amount,
            per_commitment_point,
            htlc,
            secp,
        )
    }

    /// A cooperative close is an ordinary transaction on the leaf: only once the leaf is one.
    fn sign_closing_transaction(
        &self,
        parameters: &ChannelTransactionParameters,
        closing_tx: &ClosingTransaction,
        secp: &Secp256k1<All>,
    ) -> Result<Signature, ()> {
        if self
            .check(parameters)?
            .is_some_and(|slot| slot.leaf_height.is_none())
        {
            return Err(());
        }
        self.inner
            .sign_closing_transaction(parameters, closing_tx, secp)
    }

    fn sign_holder_keyed_anchor_input(
        &self,
        parameters: &ChannelTransactionParameters,
        anchor_tx: &Transaction,
        input: usize,
        secp: &Secp256k1<All>,
    ) -> Result<Signature, ()> {
        self.inner
            .sign_holder_keyed_anchor_input(parameters, anchor_tx, input, secp)
    }

    fn sign_channel_announcement_with_funding_key(
        &self,
        parameters: &ChannelTransactionParameters,
        msg: &UnsignedChannelAnnouncement,
        secp: &Secp256k1<All>,
    ) -> Result<Signature, ()> {
        if self.slot()?.is_some() {
            return Err(());
        }
        self.inner
            .sign_channel_announcement_with_funding_key(parameters, msg, secp)
    }

    /// After a 0-conf splice LDK no longer punishes a revoked commitment on the old outpoint.
    fn sign_splice_shared_input(
        &self,
        parameters: &ChannelTransactionParameters,
        tx: &Transaction,
        input_index: usize,
        secp: &Secp256k1<All>,
    ) -> Result<Signature, ()> {
        if self.slot()?.is_some() {
            return Err(());
        }
        self.inner
            .sign_splice_shared_input(parameters, tx, input_index, secp)
    }
}

impl EntropySource for FactoryKeys {
    fn get_secure_random_bytes(&self) -> [u8; 32] {
        self.inner.get_secure_random_bytes()
    }
}

impl NodeSigner for FactoryKeys {
    fn get_expanded_key(&self) -> ExpandedKey {
        self.inner.get_expanded_key()
    }

    fn get_peer_storage_key(&self) -> PeerStorageKey {
        self.inner.get_peer_storage_key()
    }

    fn get_receive_auth_key(&self) -> ReceiveAuthKey {
        self.inner.get_receive_auth_key()
    }

    fn get_node_id(&self, recipient: Recipient) -> Result<PublicKey, ()> {
        self.inner.get_node_id(recipient)
    }

    fn ecdh(
        &self,
        recipient: Recipient,
        other_key: &PublicKey,
        tweak: Option<&Scalar>,
    ) -> Result<SharedSecret, ()> {
        self.inner.ecdh(recipient, other_key, tweak)
    }

    fn sign_invoice(
        &self,
        invoice: &RawBolt11Invoice,
        recipient: Recipient,
    ) -> Result<RecoverableSignature, ()> {
        self.inner.sign_invoice(invoice, recipient)
    }

    fn sign_bolt12_invoice(
        &self,
        invoice: &UnsignedBolt12Invoice,
    ) -> Result<schnorr::Signature, ()> {
        self.inner.sign_bolt12_invoice(invoice)
    }

    fn sign_gossip_message(&self, msg: UnsignedGossipMessage) -> Result<Signature, ()> {
        self.inner.sign_gossip_message(msg)
    }

    fn sign_message(&self, msg: &[u8]) -> Result<String, ()> {
        self.inner.sign_message(msg)
    }
}

impl OutputSpender for FactoryKeys {
    fn spend_spendable_outputs(
        &self,
        descriptors: &[&SpendableOutputDescriptor],
        outputs: Vec<TxOut>,
        change_destination_script: ScriptBuf,
        feerate_sat_per_1000_weight: u32,
        locktime: Option<LockTime>,
        secp: &Secp256k1<All>,
    ) -> Result<Transaction, ()> {
        self.inner.spend_spendable_outputs(
            descriptors,
            outputs,
            change_destination_script,
            feerate_sat_per_1000_weight,
            locktime,
            secp,
        )
    }
}
