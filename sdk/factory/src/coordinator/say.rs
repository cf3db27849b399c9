//! What the LSP's role says and asks for, put into effects.

use bitcoin::OutPoint;
use bitcoin::secp256k1::PublicKey;

use super::{Built, Coordinator};
use crate::effect::{Effect, Event, SlotChannel, SlotRef};
use crate::message::{Attempt, Message, Refusal, RefusalCode};

impl Coordinator {
    pub(super) fn refuse(
        &self,
        peer: PublicKey,
        code: RefusalCode,
        field: &'static str,
    ) -> Vec<Effect> {
        refuse(self.attempt, peer, code, field)
    }

    pub(super) fn channel(&self, built: &Built, slot: u16) -> SlotChannel {
        let record = &built.terms.slots[usize::from(slot)];
        let output = record.channel_output();
        let outpoint = built.tree.channel_outpoint(slot);
        let header = &built.terms.header;
        SlotChannel {
            slot: SlotRef {
                attempt: self.attempt,
                slot,
            },
            peer: self.peers[usize::from(slot)],
            outpoint: outpoint.unwrap_or_else(OutPoint::null),
            capacity: output.value,
            push_msat: record.push_msat,
            script_pubkey: output.script_pubkey,
            timing: header.timing.clone(),
            layers: header.shape.layers(),
            expiry: header.expiry,
        }
    }
}

pub(super) fn refuse(
    attempt: Attempt,
    peer: PublicKey,
    code: RefusalCode,
    field: &'static str,
) -> Vec<Effect> {
    let field = field.to_owned();
    let refusal = Refusal {
        attempt,
        code,
        field: field.clone(),
    };
    vec![
        send(peer, refusal),
        Effect::Emit(Event::Refused {
            attempt,
            peer,
            code,
            field,
        }),
    ]
}

pub(super) fn send(to: PublicKey, message: impl Into<Message>) -> Effect {
    Effect::Send {
        to,
        message: message.into(),
    }
}
