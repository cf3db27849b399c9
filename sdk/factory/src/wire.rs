//! Messages on the wire (bLIP-56): a submessage number and a TLV stream, in parts when too long.
//!
//! The Lightning connection carries custom message 33001, `protocol_id ‖ submessage ‖ payload`;
//! this room makes and reads what follows the protocol id. Bytes from a peer either become one
//! message or one typed error; what a peer has half sent is bounded.

use std::collections::VecDeque;

use crate::codec::{Decode, DecodeError, Encode, tlv};
use crate::message::{Attempt, Message, Refusal, RefusalCode};

/// Submessage number of one part of a longer message.
pub const PART: u16 = 4;
/// Longest payload sent in one piece, in bytes: under BOLT1's 65,535 with all headers.
pub const MAX_PIECE: usize = 60_000;
/// Longest message after reassembly, in bytes.
pub const MAX_MESSAGE: usize = 1 << 20;

/// What a custom message carries after the protocol id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Number of the message, or [`PART`].
    pub submessage: u16,
    /// Its TLV stream.
    pub payload: Vec<u8>,
}

tlv! {
    /// One piece of a message that does not fit into one frame.
    pub struct Part {
        /// Number of the whole message.
        0 => submessage: u16,
        /// Position of this piece, from 0.
        2 => index: u16,
        /// How many pieces there are.
        4 => count: u16,
        /// The piece.
        6 => bytes: Bytes,
    }
}

/// Bytes up to the end of their TLV.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Encode for Bytes {
    const SELF_DELIMITING: bool = false;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }
}
impl Decode for Bytes {
    fn decode(r: &mut crate::codec::Reader<'_>, _: &'static str) -> Result<Self, DecodeError> {
        Ok(Bytes(r.rest().to_vec()))
    }
}

/// Why what a peer sent is no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Not decodable.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A part that does not follow the one before it.
    #[error("part {index} of {count} does not follow part {expected}")]
    Part {
        /// Position it claims.
        index: u16,
        /// Number of parts it claims.
        count: u16,
        /// Position that was due.
        expected: u16,
    },
    /// More than [`MAX_MESSAGE`] bytes.
    #[error("a message of more than {MAX_MESSAGE} bytes")]
    TooLong,
}

impl WireError {
    /// What could not be read.
    pub fn field(&self) -> &'static str {
        match self {
            WireError::Decode(error) => error.field(),
            WireError::Part { .. } => "part",
            WireError::TooLong => "length",
        }
    }
}

impl Frame {
    /// The refusal that answers a frame which is no message; `None` for one that was itself a
    /// refusal, because two parties must not refuse each other's refusals for ever.
    pub fn refused(&self, error: &WireError) -> Option<Message> {
        if self.submessage == REFUSAL {
            return None;
        }
        // The first field of every message that belongs to an attempt.
        let head = self.payload.get(..ATTEMPT_TLV_HEAD.len() + ATTEMPT_BYTES);
        let attempt = head.and_then(|head| head.strip_prefix(&ATTEMPT_TLV_HEAD));
        let attempt = attempt.and_then(|bytes| Attempt::from_bytes(bytes, "attempt").ok());
        Some(Message::Refusal(Refusal {
            attempt: attempt.unwrap_or(Attempt::NONE),
            code: RefusalCode::Malformed,
            field: error.field().to_owned(),
        }))
    }
}

const REFUSAL: u16 = 12;
/// Type and length of the TLV that holds an attempt.
const ATTEMPT_TLV_HEAD: [u8; 2] = [0, ATTEMPT_BYTES as u8];
const ATTEMPT_BYTES: usize = 34;

/// The frames of a message, in the order in which they must be sent.
pub fn frames(message: &Message) -> Vec<Frame> {
    let (submessage, payload) = (message.number(), message.payload());
    if payload.len() <= MAX_PIECE {
        return vec![Frame {
            submessage,
            payload,
        }];
    }
    let pieces = payload.chunks(MAX_PIECE);
    let count = pieces.len() as u16;
    let part = |(index, bytes): (u16, &[u8])| Frame {
        submessage: PART,
        payload: Part {
            submessage,
            index,
            count,
            bytes: Bytes(bytes.to_vec()),
        }
        .to_bytes(),
    };
    (0u16..).zip(pieces).map(part).collect()
}

/// Puts the parts of one peer's messages together.
#[derive(Debug, Default)]
pub struct Assembler {
    parts: VecDeque<Part>,
}

impl Assembler {
    /// Takes one frame; gives a message when one is complete. After an error the parts before it
    /// are forgotten.
    pub fn receive(&mut self, frame: &Frame) -> Result<Option<Message>, WireError> {
        let before = std::mem::take(&mut self.parts);
        if frame.submessage != PART {
            let message = Message::from_parts(frame.submessage, &frame.payload)?;
            return Ok(Some(message));
        }
        let part = Part::from_bytes(&frame.payload, "Part")?;
        let expected = before.len() as u16;
        let follows = before
            .front()
            .is_none_or(|first| first.count == part.count && first.submessage == part.submessage);
        if !follows || part.index != expected || part.index >= part.count {
            return Err(WireError::Part {
                index: part.index,
                count: part.count,
                expected,
            });
        }
        let length: usize = before.iter().map(|part| part.bytes.0.len()).sum();
        let most = MAX_MESSAGE.div_ceil(MAX_PIECE);
        if length + part.bytes.0.len() > MAX_MESSAGE || usize::from(part.count) > most {
            return Err(WireError::TooLong);
        }
        let (submessage, last) = (part.submessage, part.index + 1 == part.count);
        self.parts = before;
        self.parts.push_back(part);
        if !last {
            return Ok(None);
        }
        let parts = std::mem::take(&mut self.parts);
        let payload: Vec<u8> = parts.into_iter().flat_map(|part| part.bytes.0).collect();
        Ok(Some(Message::from_parts(submessage, &payload)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Attempt, NodeSigs, PartialSigs, RootAck};
    use crate::terms::Instance;

    fn attempt() -> Attempt {
        Attempt {
            instance: Instance([3; 32]),
            number: 1,
        }
    }

    #[test]
    fn a_long_message_arrives_in_parts() {
        let message = Message::from(PartialSigs {
            attempt: attempt(),
            partials: vec![[5; 32]; 4_000],
        });
        let frames = frames(&message);
        assert_eq!(frames.len(), 3);
        let mut assembler = Assembler::default();
        assert_eq!(assembler.receive(&frames[0]), Ok(None));
        assert_eq!(assembler.receive(&frames[1]), Ok(None));
        assert_eq!(assembler.receive(&frames[2]), Ok(Some(message.clone())));
        // Out of order: refused, and forgotten.
        assert_eq!(assembler.receive(&frames[0]), Ok(None));
        assert!(matches!(
            assembler.receive(&frames[2]),
            Err(WireError::Part { expected: 1, .. })
        ));
        assert!(matches!(
            assembler.receive(&frames[1]),
            Err(WireError::Part { expected: 0, .. })
        ));
    }

    /// Two peers that cannot read each other's refusals would go on for ever.
    #[test]
    fn a_refusal_that_cannot_be_read_is_not_answered() {
        for (submessage, answered) in [(REFUSAL, false), (11, true)] {
            let payload = vec![9];
            let frame = Frame {
                submessage,
                payload,
            };
            let error = Assembler::default().receive(&frame).unwrap_err();
            assert_eq!(frame.refused(&error).is_some(), answered, "{submessage}");
        }
    }

    #[test]
    fn unknown_and_malformed_messages_are_typed_errors() {
        let mut assembler = Assembler::default();
        let frame = |submessage, payload: &[u8]| Frame {
            submessage,
            payload: payload.to_vec(),
        };
        let ack = RootAck { attempt: attempt() }.to_bytes();
        assert!(assembler.receive(&frame(11, &ack)).is_ok());
        let mut errors = Vec::new();
        for (number, payload) in [
            (999, &ack[..]),
            (11, &ack[..10]),
            (11, &[]),
            (11, &[ack.clone(), vec![4, 0]].concat()),
            (PART, &[0, 2, 0, 11, 2, 2, 0, 0, 4, 2, 0, 0, 6, 0]),
        ] {
            errors.push(assembler.receive(&frame(number, payload)).unwrap_err());
        }
        assert_eq!(
            errors[0],
            WireError::Decode(DecodeError::UnknownType {
                what: "message",
                typ: 999
            })
        );
        assert!(matches!(
            errors[1],
            WireError::Decode(DecodeError::Truncated { .. })
        ));
        assert_eq!(
            errors[2],
            WireError::Decode(DecodeError::Missing { field: "attempt" })
        );
        assert_eq!(
            errors[3],
            WireError::Decode(DecodeError::UnknownEven { typ: 4 })
        );
        // An odd TLV is ignored.
        let odd = [ack, vec![5, 1, 9]].concat();
        assert!(assembler.receive(&frame(11, &odd)).is_ok());
        let empty = Message::from(NodeSigs {
            attempt: attempt(),
            signatures: Vec::new(),
        });
        assert_eq!(frames(&empty).len(), 1);
    }
}
