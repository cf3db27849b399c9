//! What wallet and tower say to each other, as bytes: one request, one answer, by number.
//!
//! A message is `version u8 ‖ number u32 ‖ kind u8 ‖ body`, sent in pieces of
//! `index u16 ‖ count u16 ‖ bytes`. What always holds: any bytes become one message or one typed
//! error; what a peer has half sent is bounded by [`MAX_MESSAGE`]; a request whose number could be
//! read is answered, whatever else is wrong with it.

use super::{Appointment, AppointmentKey, Digest};
use crate::codec::{Decode, DecodeError, Encode, Reader, fields};

/// What this code speaks.
pub const VERSION: u8 = 1;
/// Longest message after its pieces were put together, in bytes.
pub const MAX_MESSAGE: usize = 1 << 20;
/// Longest piece, in bytes without its head.
const MAX_PIECE: usize = 60_000;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ask {
    /// Look after this, instead of what was kept under the same key.
    Keep {
        /// The lowest height at which anything of it can be on chain.
        from_height: u32,
        /// What to look after.
        appointment: Appointment,
    },
    /// Look after it no longer.
    Forget(AppointmentKey),
    /// How the tower is, and what it keeps for this client.
    Report,
}

/// An [`Ask`] with the number its answer will carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Chosen by the client.
    pub number: u32,
    /// What is asked for.
    pub ask: Ask,
}

/// How a tower is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// The last block it has looked at.
    pub height: u32,
    /// Coins of its own to pay fees with, in satoshi.
    pub coins_sat: u64,
    /// How many appointments it keeps for this client, and may keep at most.
    pub kept: u32,
    /// See `kept`.
    pub quota: u32,
    /// Sum of their digests: what a client compares with what was acknowledged.
    pub sum: Digest,
}

fields!(Report {
    height,
    coins_sat,
    kept,
    quota,
    sum
});

/// Why a request changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefusalCode {
    /// The bytes are no request of this version.
    Malformed,
    /// Another chain than the tower's.
    Network,
    /// As many appointments, or bytes, as the tower keeps for one client.
    Quota,
    /// More requests than it takes in that time: try again later.
    TooMany,
    /// It would have to look at more old blocks than it does.
    TooOld,
    /// Nothing is kept under that key.
    Unknown,
    /// The tower cannot write or cannot see the chain: try again later.
    Unavailable,
}

impl RefusalCode {
    /// Whether the same request may succeed later.
    pub fn is_temporary(self) -> bool {
        matches!(self, RefusalCode::TooMany | RefusalCode::Unavailable)
    }

    fn number(self) -> u8 {
        match self {
            RefusalCode::Malformed => 0,
            RefusalCode::Network => 1,
            RefusalCode::Quota => 2,
            RefusalCode::TooMany => 3,
            RefusalCode::TooOld => 4,
            RefusalCode::Unknown => 5,
            RefusalCode::Unavailable => 6,
        }
    }
}

impl Encode for RefusalCode {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.number());
    }
}
impl Decode for RefusalCode {
    fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        Ok(match u8::decode(r, field)? {
            0 => RefusalCode::Malformed,
            1 => RefusalCode::Network,
            2 => RefusalCode::Quota,
            3 => RefusalCode::TooMany,
            4 => RefusalCode::TooOld,
            5 => RefusalCode::Unknown,
            6 => RefusalCode::Unavailable,
            _ => return Err(DecodeError::Invalid { field }),
        })
    }
}

/// What a tower answers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer {
    /// The appointment with this content is on the tower's disk, and watched.
    Kept(Digest),
    /// It is not looked after any more.
    Forgotten,
    /// How the tower is.
    Report(Report),
    /// Nothing has changed.
    Refused {
        /// Why.
        code: RefusalCode,
        /// What was wrong, in words.
        detail: String,
    },
}

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    /// What is wrong with it, and its number if that could be read.
    pub fn read(bytes: &[u8]) -> Result<Request, (Option<u32>, DecodeError)> {
        let mut r = Reader::new(bytes);
        let number = head(&mut r).map_err(|error| (None, error))?;
        let ask = Self::body(&mut r).map_err(|error| (Some(number), error))?;
        Ok(Request { number, ask })
    }

    fn body(r: &mut Reader<'_>) -> Result<Ask, DecodeError> {
        let ask = match u8::decode(r, "request")? {
            0 => Ask::Keep {
                from_height: u32::decode(r, "from_height")?,
                appointment: Appointment::decode(r, "appointment")?,
            },
            1 => Ask::Forget(AppointmentKey::decode(r, "key")?),
            2 => Ask::Report,
            typ => {
                return Err(DecodeError::UnknownType {
                    what: "request",
                    typ: typ.into(),
                });
            }
        };
        r.finish("request")?;
        Ok(ask)
    }

    /// The number of a request, whatever else is in it; `None` where it cannot be read.
    pub fn number_of(bytes: &[u8]) -> Option<u32> {
        head(&mut Reader::new(bytes)).ok()
    }

    /// Its bytes.
    pub fn write(&self) -> Vec<u8> {
        let mut out = begun(self.number);
        match &self.ask {
            Ask::Keep {
                from_height,
                appointment,
            } => {
                out.push(0);
                from_height.encode(&mut out);
                appointment.encode(&mut out);
            }
            Ask::Forget(key) => {
                out.push(1);
                key.encode(&mut out);
            }
            Ask::Report => out.push(2),
        }
        out
    }
}

/// The bytes of the answer to request `number`.
pub fn answer_to(number: u32, answer: &Answer) -> Vec<u8> {
    let mut out = begun(number);
    match answer {
        Answer::Kept(digest) => {
            out.push(0);
            digest.encode(&mut out);
        }
        Answer::Forgotten => out.push(1),
        Answer::Report(report) => {
            out.push(2);
            report.encode(&mut out);
        }
        Answer::Refused { code, detail } => {
            out.push(3);
            code.encode(&mut out);
            detail.encode(&mut out);
        }
    }
    out
}

impl Answer {
    /// Reads an answer and the number of the request it is for.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(bytes: &[u8]) -> Result<(u32, Answer), DecodeError> {
        let mut r = Reader::new(bytes);
        let number = head(&mut r)?;
        let answer = match u8::decode(&mut r, "answer")? {
            0 => Answer::Kept(Digest::decode(&mut r, "digest")?),
            1 => Answer::Forgotten,
            2 => Answer::Report(Report::decode(&mut r, "report")?),
            3 => Answer::Refused {
                code: RefusalCode::decode(&mut r, "code")?,
                detail: String::decode(&mut r, "detail")?,
            },
            typ => {
                return Err(DecodeError::UnknownType {
                    what: "answer",
                    typ: typ.into(),
                });
            }
        };
        r.finish("answer")?;
        Ok((number, answer))
    }
}

fn begun(number: u32) -> Vec<u8> {
    let mut out = vec![VERSION];
    number.encode(&mut out);
    out
}

fn head(r: &mut Reader<'_>) -> Result<u32, DecodeError> {
    match u8::decode(r, "version")? {
        VERSION => u32::decode(r, "number"),
        typ => Err(DecodeError::UnknownType {
            what: "version",
            typ: typ.into(),
        }),
    }
}

/// The pieces of a message, in their order; `None` where it is longer than [`MAX_MESSAGE`].
pub fn pieces(message: &[u8]) -> Option<Vec<Vec<u8>>> {
    if message.len() > MAX_MESSAGE {
        return None;
    }
    let pieces = message.chunks(MAX_PIECE);
    let count = pieces.len() as u16;
    let piece = |(index, bytes): (u16, &[u8])| {
        let mut out = Vec::with_capacity(4 + bytes.len());
        index.encode(&mut out);
        count.encode(&mut out);
        out.extend_from_slice(bytes);
        out
    };
    Some((0..).zip(pieces).map(piece).collect())
}

/// Puts one peer's pieces together.
#[derive(Debug, Default)]
pub struct Ears {
    heard: Vec<u8>,
    next: u16,
    count: u16,
}

impl Ears {
    /// Takes a piece; the message when it is the last one. After an error what came before is
    /// forgotten.
    ///
    /// # Errors
    /// It does not follow the one before, or the message is too long.
    pub fn hear(&mut self, piece: &[u8]) -> Result<Option<Vec<u8>>, DecodeError> {
        let before = std::mem::take(self);
        let mut r = Reader::new(piece);
        let index = u16::decode(&mut r, "piece")?;
        let count = u16::decode(&mut r, "pieces")?;
        let bytes = r.rest();
        let follows = index == before.next && (index == 0 || count == before.count);
        let length = before.heard.len() + bytes.len();
        let is_short = length <= MAX_MESSAGE && usize::from(count) <= MAX_MESSAGE / MAX_PIECE + 1;
        if !follows || index >= count || !is_short || bytes.len() > MAX_PIECE {
            return Err(DecodeError::Invalid { field: "piece" });
        }
        let mut heard = before.heard;
        heard.extend_from_slice(bytes);
        if index + 1 == count {
            return Ok(Some(heard));
        }
        *self = Ears {
            heard,
            next: index + 1,
            count,
        };
        Ok(None)
    }
}
