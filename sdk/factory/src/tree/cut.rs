//! What one place holds in a leaf: a channel and the stock beside it, or nothing any more.
//!
//! What always holds: whatever the epoch, a place holds exactly what distributions pay its member,
//! because the terms fix those amounts once; only how it is divided changes.

use bitcoin::secp256k1::{PublicKey, XOnlyPublicKey};
use bitcoin::{Amount, TxOut};

use crate::codec::{Decode, DecodeError, Encode, Reader, fields};
use crate::scripts;
use crate::signing::{SignerSet, SignerSetError, TweakedKey};
use crate::terms::{Header, SlotRecord, TermsError};

/// A channel and the stock beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelCut {
    /// Amount of the channel.
    pub capacity: Amount,
    /// LSP money beside it; zero for none.
    pub stock: Amount,
    /// The member's key in the channel's 2-of-2.
    pub member_funding_key: PublicKey,
    /// The LSP's key in the channel's 2-of-2.
    pub lsp_funding_key: PublicKey,
    /// SHA256 of the preimage that revokes the stock output.
    pub stock_hash: [u8; 32],
}

fields!(ChannelCut {
    capacity,
    stock,
    member_funding_key,
    lsp_funding_key,
    stock_hash,
});

/// What one place holds in a leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cut {
    /// A channel and the stock beside it.
    Channel(ChannelCut),
    /// The member has left: all of it is a plain output of the LSP.
    Departed,
}

impl Encode for Cut {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Cut::Channel(cut) => {
                out.push(0);
                cut.encode(out);
            }
            Cut::Departed => out.push(1),
        }
    }
}
impl Decode for Cut {
    fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        match u8::decode(r, field)? {
            0 => Ok(Cut::Channel(ChannelCut::decode(r, field)?)),
            1 => Ok(Cut::Departed),
            _ => Err(DecodeError::Invalid { field }),
        }
    }
}

/// Why a place cannot be cut so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CutError {
    /// An amount below the least.
    #[error(transparent)]
    Terms(#[from] TermsError),
    /// Channel and stock are not what distributions pay: their amounts are fixed by the terms.
    #[error(
        "capacity: {} sat with the stock, but distributions pay {} sat",
        given.to_sat(),
        entitlement.to_sat()
    )]
    Payout {
        /// Channel and stock.
        given: Amount,
        /// What distributions pay.
        entitlement: Amount,
    },
    /// Both keys of the channel are the same.
    #[error("lsp_funding_key: it is the member's")]
    FundingKey,
}

impl CutError {
    /// The field that was wrong.
    pub fn field(&self) -> &'static str {
        match self {
            CutError::Terms(error) => error.field(),
            CutError::Payout { .. } => "capacity",
            CutError::FundingKey => "lsp_funding_key",
        }
    }
}

impl ChannelCut {
    /// The channel's output.
    pub fn channel_output(&self) -> TxOut {
        let script =
            scripts::channel_witness_script(&self.member_funding_key, &self.lsp_funding_key);
        TxOut {
            value: self.capacity,
            script_pubkey: script.to_p2wsh(),
        }
    }

    /// The key of the stock output beside it; `None` if there is no stock.
    ///
    /// # Errors
    /// LSP and member have the same factory key; valid terms do not.
    pub fn stock_key(
        &self,
        header: &Header,
        member_key: PublicKey,
        member_revocation_key: XOnlyPublicKey,
    ) -> Result<Option<TweakedKey>, SignerSetError> {
        if self.stock == Amount::ZERO {
            return Ok(None);
        }
        let root = scripts::stock_root(
            self.stock_hash,
            member_revocation_key,
            header.lsp_key.x_only_public_key().0,
            header.timing.stock_csv,
        );
        let signers = SignerSet::new(&[header.lsp_key, member_key])?;
        Ok(Some(signers.tweaked(root)))
    }
}

impl Cut {
    /// The channel; `None` where the member has left.
    pub fn channel(&self) -> Option<&ChannelCut> {
        match self {
            Cut::Channel(cut) => Some(cut),
            Cut::Departed => None,
        }
    }

    /// Whether the place of `record` may be cut so.
    ///
    /// # Errors
    /// See [`CutError`].
    pub fn check(&self, record: &SlotRecord) -> Result<(), CutError> {
        let Cut::Channel(cut) = self else {
            return Ok(());
        };
        SlotRecord::validate_amounts(cut.capacity, 0, cut.stock)?;
        if cut.member_funding_key == cut.lsp_funding_key {
            return Err(CutError::FundingKey);
        }
        // Both are at most all the money there is.
        let (given, entitlement) = (cut.capacity + cut.stock, record.entitlement());
        match given == entitlement {
            true => Ok(()),
            false => Err(CutError::Payout { given, entitlement }),
        }
    }

    /// The output at the place's own position in the leaf: the channel, or what the LSP has of it.
    pub fn output(&self, header: &Header, record: &SlotRecord) -> TxOut {
        match self {
            Cut::Channel(cut) => cut.channel_output(),
            Cut::Departed => TxOut {
                value: record.entitlement(),
                script_pubkey: header.lsp_payout.clone(),
            },
        }
    }

    /// The stock output; `None` without stock.
    ///
    /// # Errors
    /// LSP and member have the same factory key; valid terms do not.
    pub fn stock_output(
        &self,
        header: &Header,
        record: &SlotRecord,
    ) -> Result<Option<TxOut>, SignerSetError> {
        let Some(cut) = self.channel() else {
            return Ok(None);
        };
        let key = cut.stock_key(header, record.member_key, record.member_revocation_key)?;
        Ok(key.map(|key| TxOut {
            value: cut.stock,
            script_pubkey: key.script_pubkey(),
        }))
    }
}

impl SlotRecord {
    /// What the place holds in the first epoch.
    pub fn cut(&self) -> Cut {
        Cut::Channel(ChannelCut {
            capacity: self.capacity,
            stock: self.stock,
            member_funding_key: self.member_funding_key,
            lsp_funding_key: self.lsp_funding_key,
            stock_hash: self.stock_hash,
        })
    }
}

/// All outputs of a leaf but the anchor: those of its places in slot order, then the stock.
pub(crate) fn leaf_outputs(
    header: &Header,
    places: &[(&SlotRecord, Cut)],
) -> Result<Vec<TxOut>, SignerSetError> {
    let own = places.iter();
    let mut outputs: Vec<TxOut> = own
        .map(|(record, cut)| cut.output(header, record))
        .collect();
    for (record, cut) in places {
        outputs.extend(cut.stock_output(header, record)?);
    }
    Ok(outputs)
}

/// The stock output of a slot in the first epoch; `None` if it has no stock.
///
/// # Errors
/// LSP and member have the same factory key; valid terms do not.
pub fn stock_output(header: &Header, record: &SlotRecord) -> Result<Option<TxOut>, SignerSetError> {
    record.cut().stock_output(header, record)
}
